"""Confidence sequences: intervals that hold at every sample size at once.

One may look after every sample, stop when one likes, and the statement "all intervals so far contain the mean" is
still true with probability `level`. The price over a fixed-n interval is about a factor 1.5 to 2 in width.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from snellen.errors import InvalidInput
from snellen.stats.intervals import Interval, IntervalArrays, check_level


def bernoulli_sequence(
    successes: int, n: int, level: float = 0.95, prior: tuple[float, float] = (0.5, 0.5)
) -> Interval:
    """Time-uniform interval for a proportion after n trials: the beta-binomial mixture (Robbins, 1970).

    The likelihood of p against a beta mixture of alternatives is a martingale, so it falls below 1 - level at any
    time with at most that probability (Ville, 1939; Howard et al., 2021). Trials must be independent of each other
    given the past, with one success probability. prior: parameters of the beta, (0.5, 0.5) is Jeffreys'.
    """
    if not 0 <= successes <= n:
        raise InvalidInput(f"successes must be in [0, n = {n}], got {successes}")
    if min(prior) <= 0:
        raise InvalidInput(f"prior must be two positive numbers, got {prior}")
    alpha = 1 - check_level(level)
    failures = n - successes
    mixture = betaln(prior[0] + successes, prior[1] + failures) - betaln(*prior)

    def log_wealth(p: float) -> float:
        return float(mixture - xlogy(successes, p) - xlog1py(failures, -p) + math.log(alpha))

    def solve(inside: float, outside: float) -> float:
        if log_wealth(outside) <= 0:
            return outside
        return float(brentq(log_wealth, *sorted((inside, outside)), xtol=1e-12))

    tiny = 1e-15
    if n == 0:
        return Interval(0.0, 1.0)
    inside = min(max(successes / n, tiny), 1 - tiny)
    low = 0.0 if successes == 0 else solve(inside, tiny)
    high = 1.0 if failures == 0 else solve(inside, 1 - tiny)
    return Interval(low, high)


def bounded_sequence(values: ArrayLike, level: float = 0.95) -> IntervalArrays:
    """Time-uniform intervals `[n]` for the mean of values in [0, 1], one after each value.

    Empirical Bernstein with predictable plug-in weights (Waudby-Smith and Ramdas, 2024, theorem 2), intersected over
    time. Needs no more than one conditional mean for all values; adapts to a small variance.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not np.all((x >= 0) & (x <= 1)):
        raise InvalidInput("values must be a list of numbers in [0, 1]")
    budget = math.log(2 / (1 - check_level(level)))
    t = np.arange(1, len(x) + 1)

    # running mean and variance, each from the past only (predictable), started at 1/2 and 1/4
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    mean_before = _shifted(mean, 0.5)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    bet = np.minimum(np.sqrt(2 * budget / (_shifted(variance, 0.25) * t * np.log1p(t))), 0.5)

    weight = np.cumsum(bet)
    centre = np.cumsum(bet * x) / weight
    spent = np.cumsum((x - mean_before) ** 2 * (-np.log1p(-bet) - bet))
    half = (budget + spent) / weight
    low = np.maximum.accumulate(np.maximum(centre - half, 0.0))
    high = np.minimum.accumulate(np.minimum(centre + half, 1.0))
    return IntervalArrays(low, high)


def _shifted(series: NDArray[np.float64], first: float) -> NDArray[np.float64]:
    return np.concatenate([[first], series[:-1]])[: len(series)]
