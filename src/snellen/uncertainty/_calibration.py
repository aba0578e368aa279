"""Measures of calibration as functions of arrays: confidences, right answers, probabilities, logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from snellen.scores import FLOOR, log_probabilities
from snellen.stats import exceedance_p_value

TEMPERATURES = (0.05, 20.0)
"""Bounds of the fit; a model without a mistake would otherwise be sharpened for ever."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def equal_mass_bins(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """The bin `[n]` of each sample, 0 the least confident; sizes differ by at most one (fewer bins when n < bins)."""
    order = np.argsort(confidence, kind="stable")
    codes = np.empty(len(confidence), dtype=np.int64)
    codes[order] = np.arange(len(confidence)) * min(bins, len(confidence)) // max(len(confidence), 1)
    return codes


def expected_calibration_error(confidence: Floats, correct: Bools, bins: int = 15) -> float:
    """Mean absolute gap between confidence and accuracy over equal-mass bins, 0 to 1; biased upwards by chance."""
    return binned_error(equal_mass_bins(confidence, bins), confidence - correct)


def classwise_calibration_error(probabilities: Floats, labels: NDArray[np.int64], bins: int = 15) -> float:
    """The calibration error of each class's probability, averaged over the K classes (Kull et al., 2019)."""
    return float(np.mean([expected_calibration_error(p, labels == k, bins) for k, p in enumerate(probabilities.T)]))


def brier_score(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Mean squared distance of the probabilities from the one-hot label, 0 to 2 (Brier, 1950)."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(((probabilities**2).sum(axis=1) - 2 * true + 1).mean())


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean of -log p(label) in nats, with logits divided by `temperature`."""
    true = log_probabilities(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.maximum(true, FLOOR).mean())


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] of least negative log-likelihood; above 1 the model was over-confident."""
    fitted = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(fitted.x))


def tempered_confidence(logits: Floats, labels: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Confidence `[n]` after temperature scaling, each half with the temperature fitted on the other half."""
    halves = np.array_split(rng.permutation(len(labels)), 2)
    confidence = np.empty(len(labels))
    for fit, judge in (halves, halves[::-1]):
        temperature = fit_temperature(logits[fit], labels[fit])
        confidence[judge] = np.exp(log_probabilities(logits[judge], temperature).max(axis=1))
    return confidence


class Consistency(NamedTuple):
    """What a perfectly calibrated model with the same confidences would show."""

    p_value: float
    mean: float


def consistency_test(
    confidence: Floats, correct: Bools, bins: int, rng: np.random.Generator, draws: int = 999
) -> Consistency:
    """p-value of perfect calibration and the mean error under it, by drawing `correct` from the confidences."""
    codes = equal_mass_bins(confidence, bins)
    drawn = [binned_error(codes, confidence - (rng.random(len(codes)) < confidence)) for _ in range(draws)]
    return Consistency(
        exceedance_p_value(binned_error(codes, confidence - correct), np.array(drawn)), float(np.mean(drawn))
    )


def binned_error(codes: NDArray[np.int64], gap: Floats) -> float:
    """Mean absolute gap over the bins `codes` `[n]` of `gap` = confidence - correct `[n]`."""
    return float(np.abs(np.bincount(codes, weights=gap)).sum() / len(gap))
