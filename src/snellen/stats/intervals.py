"""Confidence intervals for fixed sample sizes.

Every function returns `Interval(low, high)` and raises `InvalidInput` on counts that cannot be. With no data at all
(n = 0) an interval for a proportion is the whole of [0, 1]: nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from snellen.errors import InvalidInput

JACKKNIFE_GROUPS = 1000
"""BCa's acceleration from at most so many leave-outs; above it, groups are left out (Efron and Tibshirani, 1993)."""


class Interval(NamedTuple):
    low: float
    high: float


class IntervalArrays(NamedTuple):
    """Lower and upper bounds, float64 arrays of one shape."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval for a proportion from independent trials (Wilson, 1927).

    Coverage is near `level` on average over the true proportion, a little below it for some; where a guarantee is
    promised use `clopper_pearson`.
    """
    low, high = wilson_arrays(successes, n, level)
    return Interval(float(low), float(high))


def wilson_arrays(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> IntervalArrays:
    """`wilson` for many groups at once; the arguments broadcast."""
    s, total = _counts(successes, n)
    z2 = stats.norm.isf((1 - check_level(level)) / 2) ** 2
    safe = np.maximum(total, 1)
    centre = (s + z2 / 2) / (safe + z2)
    half = np.sqrt(z2 * (s * (safe - s) / safe + z2 / 4)) / (safe + z2)
    # The bounds are exactly 0 and 1 at the ends; rounding must not leave 1e-17 there.
    low = np.where(s == 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(s == total, 1.0, np.minimum(centre + half, 1.0))
    return IntervalArrays(low, high)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact interval for a proportion (Clopper and Pearson, 1934): covers at least `level`, for every proportion."""
    low, high = clopper_pearson_arrays(successes, n, level)
    return Interval(float(low), float(high))


def clopper_pearson_arrays(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> IntervalArrays:
    """`clopper_pearson` for many groups at once; the arguments broadcast."""
    s, total = _counts(successes, n)
    tail = (1 - check_level(level)) / 2
    low = np.where(s == 0, 0.0, stats.beta.ppf(tail, np.maximum(s, 1), total - s + 1))
    high = np.where(s == total, 1.0, stats.beta.isf(tail, s + 1, np.maximum(total - s, 1)))
    return IntervalArrays(low, high)


def clopper_pearson_lower(successes: int, n: int, alpha: float) -> float:
    """One-sided exact lower bound: below the true proportion with probability at least 1 - alpha."""
    s, total = _counts(successes, n)
    check_level(1 - alpha, "1 - alpha")
    return 0.0 if s == 0 else float(stats.beta.ppf(alpha, s, total - s + 1))


def newcombe_difference(s1: int, n1: int, s2: int, n2: int, level: float = 0.95) -> Interval:
    """Interval for p1 - p2 of two independent samples: the hybrid score method (Newcombe, 1998a, method 10)."""
    low1, high1 = wilson(s1, n1, level)
    low2, high2 = wilson(s2, n2, level)
    if n1 == 0 or n2 == 0:
        return Interval(low1 - high2, high1 - low2)
    p1, p2 = s1 / n1, s2 / n2
    return Interval(
        p1 - p2 - math.hypot(p1 - low1, high2 - p2),
        p1 - p2 + math.hypot(high1 - p1, p2 - low2),
    )


def paired_difference(first_correct: ArrayLike, second_correct: ArrayLike, level: float = 0.95) -> Interval:
    """Interval for mean(first) - mean(second) on the same n samples: the score interval (Tango, 1998).

    first_correct, second_correct: bool `[n]`, sample by sample. Unlike Wald's it neither collapses to a point when
    nothing disagrees nor leaves [-1, 1].
    """
    first, second = np.asarray(first_correct), np.asarray(second_correct)
    if first.dtype != bool or second.dtype != bool or first.ndim != 1 or first.shape != second.shape:
        raise InvalidInput(
            "first_correct and second_correct must be two bool arrays of one length,"
            f" got {first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}"
        )
    return paired_difference_counts(int((first & ~second).sum()), int((~first & second).sum()), len(first), level)


def paired_difference_counts(only_first: int, only_second: int, n: int, level: float = 0.95) -> Interval:
    """`paired_difference` from counts: right in the first only, right in the second only, pairs in all."""
    _counts(only_first + only_second, n)
    _counts(min(only_first, only_second), n)
    z = float(stats.norm.isf((1 - check_level(level)) / 2))
    if n == 0:
        return Interval(-1.0, 1.0)
    estimate = (only_first - only_second) / n

    def score(delta: float) -> float:
        # q: the discordant probability p01 that is most likely when the difference is delta (Tango's equation 3)
        b = -only_first - only_second + (2 * n - only_first + only_second) * delta
        c = -only_second * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        if variance <= 0:
            return 0.0 if delta == estimate else math.copysign(math.inf, estimate - delta)
        return (only_first - only_second - n * delta) / math.sqrt(variance)

    def solve(target: float, far: float) -> float:
        edge = far * (1 - 1e-12)
        if abs(estimate - far) < 1e-9 or (score(edge) - target) * far > 0:
            return far
        return float(brentq(lambda delta: score(delta) - target, *sorted((edge, estimate)), xtol=1e-10))

    return Interval(solve(z, -1.0), solve(-z, 1.0))


def bootstrap_bca(
    values: NDArray[np.generic],
    statistic: Callable[[NDArray[np.generic]], float],
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval (Efron, 1987) of `statistic(values)`.

    values: `[n]` or `[n, d]`; rows are resampled together and must be independent. Approximate: with n below about
    20, or a statistic that rests on few rows (a maximum, a rare class), it covers less than `level`. A statistic that
    no resample changes gives the interval [point, point]. scipy's own builds n leave-outs of n rows each; here rows
    are left out in at most 1000 groups, so that 100,000 samples stay feasible.
    """
    n = len(values)
    if n < 2:
        raise InvalidInput(f"values needs at least 2 rows for a bootstrap, got {n}")
    point = float(statistic(values))
    drawn = np.array([statistic(values[rng.integers(0, n, n)]) for _ in range(resamples)], dtype=float)

    # acceleration: skewness of the leave-out values
    left_out = np.array_split(np.arange(n), min(n, JACKKNIFE_GROUPS))
    jack = np.array([statistic(np.delete(values, rows, axis=0)) for rows in left_out], dtype=float)
    jack = jack[np.isfinite(jack)]
    deviation = jack.mean() - jack if len(jack) else jack
    scale = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * scale) if scale > 0 else 0.0
    return bias_corrected_interval(point, drawn, level, float(acceleration))


def bias_corrected_interval(
    point: float, drawn: NDArray[np.float64], level: float = 0.95, acceleration: float = 0.0
) -> Interval:
    """Interval from the bootstrap values `drawn` of a statistic whose value is `point` (Efron, 1987).

    Corrects the percentiles for the median bias of the resamples, and for skewness by `acceleration`. For callers
    that resample in their own way (strata, tables); the others use `bootstrap_bca`.
    """
    tail = (1 - check_level(level)) / 2
    finite = drawn[np.isfinite(drawn)]
    if not math.isfinite(point) or len(finite) < max(1, len(drawn) / 2):
        raise InvalidInput("statistic must be finite on the values and on most resamples of them")
    if np.ptp(finite) == 0 and finite[0] == point:
        return Interval(point, point)
    below = ((finite < point).mean() + (finite <= point).mean()) / 2  # ties count half
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(finite), 1 - 0.5 / len(finite)))
    z = bias + stats.norm.ppf([tail, 1 - tail])
    low, high = np.quantile(finite, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return Interval(float(low), float(high))


def centred_interval(point: float, drawn: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The spread of the bootstrap values `drawn`, moved so that their mean is `point`.

    For distances from independence or from calibration: they are never negative, so each resample adds to them and all
    of `drawn` may lie above `point`, where `bias_corrected_interval` has nothing left to correct with.
    """
    tail = (1 - check_level(level)) / 2
    finite = drawn[np.isfinite(drawn)]
    if not math.isfinite(point) or len(finite) < max(1, len(drawn) / 2):
        raise InvalidInput("statistic must be finite on the values and on most resamples of them")
    low, high = np.quantile(finite, [tail, 1 - tail]) - finite.mean() + point
    return Interval(float(low), float(high))


def check_level(level: float, name: str = "level") -> float:
    """Refuse a probability outside (0, 1)."""
    if not 0 < level < 1:
        raise InvalidInput(f"{name} must be in (0, 1), got {level}")
    return level


def _counts(successes: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    s, total = np.asarray(successes), np.asarray(n)
    whole = all(array.dtype.kind in "iu" for array in (s, total))
    if not whole or np.any(s < 0) or np.any(s > total):
        raise InvalidInput(f"counts must be integers with 0 <= successes <= n, got {successes!r} of {n!r}")
    return s.astype(np.int64), total.astype(np.int64)
