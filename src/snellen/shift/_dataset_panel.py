"""One robustness over a panel of data sets: the plain mean, and a weighted one that ranks models as they do singly.

From LR0.FM, 2025, where the values are Gamma at one resolution; any score of models by data set will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from snellen.errors import InvalidInput

WEIGHTS: Mapping[str, float] = {
    "ImageNet": 0.15556,
    "ImageNet-A": 0.97050,
    "ImageNet-V2": 0.28546,
    "ImageNet-R": 0.01,
    "ImageNet-Sketch": 0.02146,
    "Caltech101": 0.01,
    "DTD": 0.50592,
    "Food101": 0.01,
    "SUN397": 0.40756,
    "Cars": 0.13584,
    "Aircraft": 0.82295,
    "Pets": 0.08995,
    "Flowers": 0.08972,
    "EuroSAT": 1.0,
    "UCF101": 0.01,
}
"""The published weights of WAR."""
STEPS = (0.01, 0.03, *np.linspace(0.1, 1.0, 10).round(1).tolist())
SWEEPS = 50
FEWEST_MODELS, MODELS_FOR_WEIGHTS = 3, 8


def simple_aggregate(robustness: Mapping[str, float]) -> float:
    """SAR: the mean of Gamma over data sets."""
    if not robustness:
        raise InvalidInput("robustness must hold at least one data set, got none")
    return math.fsum(robustness.values()) / len(robustness)


def weighted_aggregate(robustness: Mapping[str, float], weights: Mapping[str, float] = WEIGHTS) -> float:
    """WAR: the weighted mean of Gamma over data sets. Raises InvalidInput for a data set without a weight."""
    unknown = sorted(set(robustness) - set(weights))
    if unknown or not robustness:
        raise InvalidInput(f"robustness must be of data sets with a weight ({', '.join(weights)}), got {unknown}")
    total = math.fsum(weights[name] for name in robustness)
    if not total > 0 or min(weights[name] for name in robustness) < 0:
        raise InvalidInput(f"weights must be 0 or above and not all 0, got {dict(weights)}")
    return math.fsum(weights[name] * value for name, value in robustness.items()) / total


class Agreement(NamedTuple):
    """Spearman correlation of the models' ranking by the weighted mean with that by each data set alone."""

    mean: float
    lowest: float


def agreement(robustness: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Agreement:
    """How well WAR stands for its data sets. robustness: Gamma of every model by data set, at least 3 models.

    A data set that cannot tell the models apart counts as a correlation of 0.
    """
    scores = _scores(robustness)
    if set(weights) != set(robustness):
        raise InvalidInput(f"weights must be for {sorted(robustness)}, got {sorted(weights)}")
    return _agreement(scores, _ranks(scores), np.array([weights[name] for name in robustness]))


def search_weights(robustness: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Weights in [0.01, 1] whose weighted mean ranks models most as the data sets do: mean + lowest correlation.

    robustness: Gamma of every model by data set. Coordinate search from equal weights, 50 sweeps at most, which finds
    a local optimum; a reconstruction of the paper's search. Below 8 models a ranking is too short to fit to, so the
    weights stay equal. Raises InvalidInput below 3.
    """
    scores = _scores(robustness)
    weights = np.ones(len(scores))
    if scores.shape[1] >= MODELS_FOR_WEIGHTS:
        ranks = _ranks(scores)
        best = sum(_agreement(scores, ranks, weights))
        for _ in range(SWEEPS):
            before = best
            for place in range(len(weights)):
                for step in STEPS:
                    tried = weights.copy()
                    tried[place] = step
                    value = sum(_agreement(scores, ranks, tried))
                    if value > best + 1e-12:
                        best, weights = value, tried
            if best == before:
                break
    return dict(zip(robustness, weights.tolist(), strict=True))


def _scores(robustness: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    sizes = {len(values) for values in robustness.values()}
    if len(sizes) != 1 or min(sizes) < FEWEST_MODELS:
        raise InvalidInput(f"robustness must hold one value of each of 3 models or more, got {sorted(sizes)}")
    return np.array(list(robustness.values()), dtype=np.float64)


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred ranks of length 1 along the last axis; zeros where all are equal."""
    ranks = rankdata(scores.round(12), axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    unit: NDArray[np.float64] = ranks / np.maximum(np.linalg.norm(ranks, axis=-1, keepdims=True), 1e-12)
    return unit


def _agreement(scores: NDArray[np.float64], ranks: NDArray[np.float64], weights: NDArray[np.float64]) -> Agreement:
    correlations = ranks @ _ranks(weights @ scores / weights.sum())
    return Agreement(float(correlations.mean()), float(correlations.min()))
