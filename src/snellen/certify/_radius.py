"""Figures of randomized smoothing: from votes to a radius, and from radii to a curve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm as gaussian

from snellen.stats import clopper_pearson_lower


def lower_bound(votes: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: below the class's probability with probability at least 1 - alpha."""
    return clopper_pearson_lower(votes, n, alpha)


def certified_radius(p_lower: ArrayLike, sigma: float) -> NDArray[np.float64]:
    """sigma * PhiInv(p), 0 where p <= 1/2."""
    bounded = np.clip(np.asarray(p_lower, dtype=np.float64), 0.5, None)
    return np.asarray(sigma * gaussian.ppf(bounded), dtype=np.float64)


def needed_copies(radius: float, alpha: float) -> int:
    """Fewest copies with which a radius above `radius` (in units of sigma) can be certified at all."""
    return math.floor(math.log(alpha) / math.log(gaussian.cdf(radius))) + 1


def radius_curve(predicted: ArrayLike, radius: ArrayLike, labels: ArrayLike, radii: ArrayLike) -> NDArray[np.float64]:
    """Certified accuracy at each of `radii`: the part with the right class and at least that radius. Abstaining is
    wrong."""
    right = np.asarray(predicted) == np.asarray(labels)
    reached = np.asarray(radius)[:, None] >= np.asarray(radii)[None, :]
    return np.asarray((right[:, None] & reached).mean(0), dtype=np.float64)


def average_certified_radius(predicted: ArrayLike, radius: ArrayLike, labels: ArrayLike) -> float:
    """Mean over all images of the radius, counted as 0 where the class is wrong or none is given."""
    return float(np.mean(np.asarray(radius) * (np.asarray(predicted) == np.asarray(labels))))
