"""Split conformal prediction: scores, threshold and sets (the base layer of every calibrated threshold).

A score s(x, y) says how strange class y is for image x. With the k-th smallest score of n calibration images as
threshold, k = ceil((n + 1)(1 - alpha)), the set {y: s(x, y) <= threshold} holds the true class of a new image with
probability at least 1 - alpha, whatever the model (Vovk et al., 2005). Arrays are float64 `[n, K]`.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snellen.errors import InvalidInput

Method = Literal["lac", "aps", "raps"]
AbstentionScore = Literal["confidence", "margin", "entropy", "surprise", "set size"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def lac_scores(probabilities: Floats) -> Floats:
    """1 - p: the smallest sets on average (Sadinle et al., 2019). `[n, K]`."""
    return 1 - check_probabilities(probabilities)


def aps_scores(probabilities: Floats, u: Floats | None) -> Floats:
    """Probability mass above and at the class, less the share u of its own (Romano et al., 2020). `[n, K]`.

    u: one uniform number an image, `[n]`, shared by its classes; None for the variant without randomisation.
    """
    return raps_scores(probabilities, u, k_reg=probabilities.shape[1], penalty=0.0)


def raps_scores(probabilities: Floats, u: Floats | None, k_reg: int = 5, penalty: ArrayLike = 0.01) -> Floats:
    """APS with `penalty` added to every class of rank above `k_reg` (Angelopoulos et al., 2021). `[n, K]`.

    penalty: a number, or one an image `[n]` (a function of the image alone keeps the guarantee).
    """
    p = check_probabilities(probabilities)
    extra = np.broadcast_to(np.asarray(penalty, dtype=float), (len(p),))
    if k_reg >= p.shape[1] and np.any(extra > 0):
        warnings.warn(f"k_reg = {k_reg} penalises nothing with {p.shape[1]} classes", UserWarning, stacklevel=2)

    # regularised probabilities in descending order
    order = np.argsort(-p, axis=1, kind="stable")
    mass = np.take_along_axis(p, order, axis=1)
    mass[:, k_reg:] += extra[:, None]

    # cumulative mass, randomised, back in the order of the classes
    score = np.cumsum(mass, axis=1)
    if u is not None:
        score -= u[:, None] * mass
    unsorted = np.empty_like(score)
    np.put_along_axis(unsorted, order, score, axis=1)
    return unsorted


def entropy_penalty(probabilities: Floats, penalty: float) -> Floats:
    """The penalty of each image `[n]`, smaller where the model is unsure: penalty * clip(1 - H / ln K, 0.01, 1)."""
    return penalty * np.clip(1 - normalised_entropy(probabilities), 0.01, 1.0)


def conformal_rank(n: int, alpha: float) -> int:
    """k = ceil((n + 1)(1 - alpha)); above n the threshold is infinite."""
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha must be in (0, 1), got {alpha}")
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)  # 1e-9: (n + 1)(1 - alpha) may be whole up to rounding


def conformal_threshold(calibration_scores: Floats, alpha: float) -> float:
    """The exact k-th smallest score of the true classes `[n]`, infinite when k > n (every set is then full).

    np.quantile(scores, k / n, method="higher"), which circulates, gives the (k + 1)-th: one too cautious.
    """
    k = conformal_rank(len(calibration_scores), alpha)
    if k > len(calibration_scores):
        return math.inf
    return float(np.partition(calibration_scores, k - 1)[k - 1])


def prediction_sets(scores: Floats, threshold: float, allow_empty: bool = True) -> Bools:
    """Sets `[n, K]`. Without empty sets the class of the lowest score is added, which can only raise coverage."""
    sets = scores <= threshold
    if not allow_empty:
        empty = ~sets.any(axis=1)
        sets[empty, scores[empty].argmin(axis=1)] = True
    return sets


def true_class(table: NDArray[np.generic], labels: NDArray[np.int64]) -> NDArray[np.generic]:
    """The entry of each row's true class, `[n]` of `[n, K]`."""
    if len(labels) != len(table) or np.any(labels < 0) or np.any(labels >= table.shape[1]):
        raise InvalidInput(f"labels must be {len(table)} classes in [0, {table.shape[1]})")
    return table[np.arange(len(labels)), labels]


def abstention_score(kind: AbstentionScore, probabilities: Floats, sets: Bools | None = None) -> Floats:
    """How doubtful an answer is, `[n]`, high for doubt, from what is known in service.

    "confidence": 1 - max p. "margin": 1 - (p1 - p2). "entropy": H / ln K. "surprise": -ln max p. "set size".
    """
    top = np.sort(probabilities, axis=1)
    if kind == "confidence":
        return 1 - top[:, -1]
    if kind == "margin":
        return 1 - (top[:, -1] - top[:, -2])
    if kind == "entropy":
        return normalised_entropy(probabilities)
    if kind == "surprise":
        return np.asarray(-np.log(top[:, -1]))
    if sets is None:
        raise InvalidInput("sets must be given for the abstention score 'set size'")
    return np.asarray(sets.sum(axis=1), dtype=float)


def oracle_abstention_score(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """-ln(p_true + 1e-7), `[n]`: the published score. It reads the true class, so no service can compute it."""
    return np.asarray(-np.log(true_class(probabilities, labels).astype(float) + 1e-7))


def oracle_candidates() -> Floats:
    """The published candidate thresholds for the oracle score, 150 numbers in the order tried."""
    return np.concatenate([np.linspace(0, 0.1, 50), np.linspace(0.1, 1, 50), np.exp(np.linspace(0, math.log(5), 50))])


def normalised_entropy(probabilities: Floats) -> Floats:
    """Entropy over its maximum ln K, `[n]` in [0, 1]."""
    p = probabilities
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1) / math.log(p.shape[1]))


def check_probabilities(probabilities: Floats) -> Floats:
    """Refuse what is not rows of probabilities."""
    p = np.asarray(probabilities, dtype=float)
    if p.ndim != 2 or not np.all(p >= 0) or np.any(np.abs(p.sum(axis=1) - 1) > 1e-3):
        raise InvalidInput(f"probabilities must be [n, K], not negative, each row summing to 1, got {list(p.shape)}")
    return p
