"""Are there more sure contradictions between labels and model than a calibrated model would show by chance?

A calibrated model that is sure of class j on an image still meets another label with the probability it gives the
others. So labels are drawn from its calibrated probabilities and counted as the real ones are. Thresholds and
calibration come from one half of the images and are used on the other, both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax

from snellen.discovery._confident_learning import (
    Bools,
    Floats,
    Labels,
    agrees,
    class_thresholds,
    confident_classes,
)
from snellen.stats import exceedance_p_value

TEMPERATURES = (0.05, 20.0)
RESAMPLES = 5
"""Calibrations on resampled images, over which the draws are spread: the fit has an error of its own."""
MOST_FITTED = 500_000
"""Scores that a calibration is fitted on, though never fewer than 1000 images."""
SHARES = (1e-6, 0.9)
FIRST_SHARE = 0.02
LOWEST_LOGIT = -1e4


class Calibration(NamedTuple):
    """softmax(logits / temperature + bias `[K]`); share: labels in (0, 1) that are arbitrary."""

    temperature: float
    bias: Floats
    share: float


class Contradictions(NamedTuple):
    """Per image `[n]` unless said otherwise.

    sure_of: the class the model is sure of, -1 for none. flagged: it is neither the label nor is the label the answer.
    chance: probability `[n, K]` that a calibrated model's label is k and flagged. totals, strongest: `[draws]`, the
    flags of each simulated labelling and the largest `strength` of its pairs.
    """

    sure_of: Labels
    flagged: Bools
    chance: Floats
    totals: Floats
    strongest: Floats

    @property
    def p_value(self) -> float:
        """Of the null that labels are drawn from the calibrated probabilities."""
        return exceedance_p_value(float(self.flagged.sum()), self.totals)


def fit_calibration(logits: Floats, labels: Labels, start: Calibration | None = None) -> Calibration:
    """Greatest likelihood where an unknown share of the labels is arbitrary; biases are held near 0 (normal, sd 1).

    Without that share, wrong labels would raise the temperature until their number is just what it predicts, and
    nothing could ever be found. Without the biases, a class that the model answers too often would look like wrong
    labels of all the others.
    """
    n, classes = logits.shape
    rows = np.arange(n)
    z = np.maximum(logits - logits.max(axis=1, keepdims=True), LOWEST_LOGIT)

    def loss(values: Floats) -> tuple[float, Floats]:
        temperature, share, bias = np.exp(values[0]), expit(values[1]), values[2:]
        p = softmax(z / temperature + bias, axis=1)
        of_label = p[rows, labels]
        likelihood = (1 - share) * of_label + share / classes
        by_logit = p * ((1 - share) * of_label / likelihood)[:, None]
        by_logit[rows, labels] -= (1 - share) * of_label / likelihood
        gradient = np.empty_like(values)
        gradient[0] = -(by_logit * z).sum() / temperature / n
        gradient[1] = ((of_label - 1 / classes) / likelihood).mean() * share * (1 - share)
        gradient[2:] = by_logit.mean(axis=0) + bias / n
        return float(-np.log(likelihood).mean() + (bias**2).sum() / (2 * n)), gradient

    first = np.zeros(classes + 2)
    first[1] = logit(FIRST_SHARE)
    if start is not None:
        first[0], first[1], first[2:] = np.log(start.temperature), logit(start.share), start.bias
    bounds = [tuple(np.log(TEMPERATURES)), tuple(logit(SHARES)), *[(-10.0, 10.0)] * classes]
    fitted = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100, "ftol": 1e-6}).x
    return Calibration(float(np.exp(fitted[0])), fitted[2:], float(expit(fitted[1])))


def contradictions(
    labels: Labels, logits: Floats, first: Bools, rng: np.random.Generator, draws: int = 999
) -> Contradictions:
    """labels: int64 `[n]`; logits: `[n, K]`; first: bool `[n]`, which of the two halves each image is in."""
    n, classes = logits.shape
    p = softmax(logits, axis=1)
    sure_of, chance = np.full(n, -1), np.zeros((n, classes))
    codes: list[list[Labels]] = [[] for _ in range(draws)]
    for judged in (np.flatnonzero(first), np.flatnonzero(~first)):
        fit = np.setdiff1d(np.arange(n), judged)
        sure_of[judged] = confident_classes(p[judged], class_thresholds(labels[fit], p[fit]))
        fit = rng.permutation(fit)[: max(1000, MOST_FITTED // classes)]
        calibration = fit_calibration(logits[fit], labels[fit])
        chance[judged] = _chance(logits[judged], sure_of[judged], calibration)
        for some in np.array_split(np.arange(draws), min(RESAMPLES, draws)):
            again = fit[rng.integers(0, len(fit), len(fit))]
            other = fit_calibration(logits[again], labels[again], calibration)
            drawn_from = _chance(logits[judged], sure_of[judged], other)
            for draw in some:
                codes[draw].append(_draw(drawn_from, sure_of[judged], rng))
    flagged = (sure_of >= 0) & (sure_of != labels) & ~agrees(labels, p)
    expected = expected_pairs(chance, sure_of)
    pooled = [np.concatenate(of) for of in codes]
    return Contradictions(
        sure_of,
        flagged,
        chance,
        np.array([len(of) for of in pooled], dtype=float),
        np.array([_strongest(of, expected) for of in pooled]),
    )


def expected_pairs(chance: Floats, sure_of: Labels) -> Floats:
    """How often `[label, sure of]` would be flagged by chance, `[K, K]`."""
    expected = np.zeros((chance.shape[1],) * 2)
    for surely in np.unique(sure_of[sure_of >= 0]):
        expected[:, surely] = chance[sure_of == surely].sum(axis=0)
    return expected


def strength(count: Floats, expected: Floats) -> Floats:
    """Excess of a pair in units of its spread; the 1 keeps a single image of an unheard-of pair from being much."""
    return np.asarray((count - expected) / np.sqrt(expected + 1))


def _chance(logits: Floats, sure_of: Labels, calibration: Calibration) -> Floats:
    """Calibrated probability `[n, K]` of the labels that would be flagged, 0 for the others."""
    p = np.asarray(softmax(logits / calibration.temperature + calibration.bias, axis=1))
    rows = np.arange(len(p))
    p[rows, logits.argmax(axis=1)] = 0.0
    p[rows, sure_of] = 0.0
    p[sure_of < 0] = 0.0
    return p


def _draw(chance: Floats, sure_of: Labels, rng: np.random.Generator) -> Labels:
    """Codes label * K + sure_of of the images flagged under labels drawn at random."""
    flagged = np.flatnonzero(rng.random(len(chance)) < chance.sum(axis=1))
    cumulated = chance[flagged].cumsum(axis=1)
    drawn = (cumulated < rng.random((len(flagged), 1)) * cumulated[:, -1:]).sum(axis=1)
    return np.asarray(drawn * chance.shape[1] + sure_of[flagged])


def _strongest(codes: Labels, expected: Floats) -> float:
    pairs, counts = np.unique(codes, return_counts=True)
    return float(strength(counts.astype(float), expected.reshape(-1)[pairs]).max(initial=0.0))
