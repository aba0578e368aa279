"""Hypothesis tests that return a p-value, and the control of false discoveries over many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from snellen.errors import InvalidInput

Alternative = Literal["two-sided", "less", "greater"]

Statistic = Callable[[NDArray[np.generic], NDArray[np.generic]], float]


def binomial_test(successes: int, n: int, p: float, alternative: Alternative = "two-sided") -> float:
    """Exact test that independent trials succeed with probability `p`; 1 when there are no trials."""
    if not 0 <= successes <= n:
        raise InvalidInput(f"successes must be in [0, n = {n}], got {successes}")
    if not 0 <= p <= 1:
        raise InvalidInput(f"p must be in [0, 1], got {p}")
    return 1.0 if n == 0 else float(stats.binomtest(int(successes), int(n), p, alternative).pvalue)


def mcnemar_exact(only_first_wrong: int, only_second_wrong: int, alternative: Alternative = "two-sided") -> float:
    """Exact test that two models (or two conditions) err equally often on the same samples; "greater": the first more.

    Only the pairs that disagree count (McNemar, 1947); under the null each falls to either side with probability
    one half. 1 when nothing disagrees.
    """
    if min(only_first_wrong, only_second_wrong) < 0:
        raise InvalidInput(f"counts must not be negative, got {only_first_wrong} and {only_second_wrong}")
    return binomial_test(only_first_wrong, only_first_wrong + only_second_wrong, 0.5, alternative)


def fisher_exact(s1: int, n1: int, s2: int, n2: int, alternative: Alternative = "two-sided") -> float:
    """Exact test that two independent groups succeed equally often (Fisher, 1935); "less" means group 1 less.

    Conservative for small groups. 1 when a group is empty.
    """
    if not (0 <= s1 <= n1 and 0 <= s2 <= n2):
        raise InvalidInput(f"counts need 0 <= successes <= n, got {s1} of {n1} and {s2} of {n2}")
    if n1 == 0 or n2 == 0:
        return 1.0
    return float(stats.fisher_exact([[s1, n1 - s1], [s2, n2 - s2]], alternative)[1])


def split_coverage_test(covered: int, n: int, rank: int, calibration_n: int) -> float:
    """p-value of "sets with the `rank`-th smallest calibration score as threshold cover as often as promised".

    One-sided, small when `covered` of n held-out samples are too few. Given the split, the coverage of a conformal
    set is Beta(rank, calibration_n + 1 - rank) (Vovk, 2012), so the count is beta-binomial: a plain binomial test
    would blame the model for the luck of its calibration half. 1 when the threshold is infinite.
    """
    if not (0 <= covered <= n and rank >= 1):
        raise InvalidInput(f"covered must be in [0, n = {n}] and rank at least 1, got {covered} and {rank}")
    if rank > calibration_n or n == 0:
        return 1.0
    return float(stats.betabinom.cdf(covered, n, rank, calibration_n + 1 - rank))


def permutation_test(
    statistic: Statistic,
    x: ArrayLike,
    groups: ArrayLike,
    rng: np.random.Generator,
    permutations: int = 999,
) -> float:
    """p-value of `statistic(x, groups)` against shuffled groups; a large statistic speaks against the null.

    x: `[n]` or `[n, d]`, groups: `[n]`. Assumes that the rows are exchangeable under the null. The observed value
    counts as one permutation, so the p-value is never 0 and the level holds exactly (Phipson and Smyth, 2010).
    """
    x, groups = np.asarray(x), np.asarray(groups)
    if len(x) != len(groups) or len(x) == 0:
        raise InvalidInput(f"x and groups need one length above 0, got {len(x)} and {len(groups)}")
    if permutations < 1:
        raise InvalidInput(f"permutations must be at least 1, got {permutations}")
    observed = statistic(x, groups)
    drawn = np.array([statistic(x, rng.permutation(groups)) for _ in range(permutations)])
    return exceedance_p_value(observed, drawn)


def exceedance_p_value(observed: float, drawn: NDArray[np.float64]) -> float:
    """(1 + how many of `drawn` reach `observed`) / (1 + how many there are), for values simulated under the null."""
    reached = drawn >= observed - 1e-12 * max(1.0, abs(observed))  # equal up to rounding counts as reached
    return float((1 + reached.sum()) / (1 + len(drawn)))


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """q-values `[n]` in the order given: rejecting q <= a keeps the expected share of false rejections below a.

    Holds for independent and for positively dependent tests (Benjamini and Hochberg, 1995).
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise InvalidInput(f"p_values must be a list of numbers in [0, 1], got {p_values!r}")
    return np.asarray(stats.false_discovery_control(p, method="bh")) if len(p) else p
