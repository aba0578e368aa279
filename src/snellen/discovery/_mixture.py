"""The error-aware mixture model: slices of samples that are alike in their features, their class and their answer.

With s a slice, x the features, y the true class and a the answer, its density is

    p(x, y, a) = sum_s w_s N(x; m_s, diag v_s) Cat(y; p_s)^gamma Cat(a; q_s)^gamma

(Eyuboglu et al., 2022). Fitted by expectation maximisation; as gamma multiplies whole logarithms it leaves the
update of p and q as it is. Weak priors keep every parameter finite: a slice of one sample would else have no variance
and an infinite density, and a class never seen in a slice would be impossible there. The objective counts them, so
that no step lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

VARIANCE_COUNT = 10.0
"""Prior of a variance: as if a slice had so many samples more, of variance 1 (that of all samples together)."""
CLASS_COUNT = 0.5
"""Prior of class and answer: so many samples more in a slice, spread evenly over the classes."""
SAME = 0.9
"""How much of a slice is of its first sample's class and answer at the start."""


@dataclass(frozen=True)
class Mixture:
    """weights: `[S]`. means, variances: `[S, d]`. labels, answers: `[S, K]`, the classes' shares in each slice."""

    weights: Floats
    means: Floats
    variances: Floats
    labels: Floats
    answers: Floats

    def log_density(self, features: Floats) -> Floats:
        """Log of w_s N(x; m_s, v_s), `[n, S]`, of features `[n, d]`."""
        precision = 1 / self.variances
        distance = features**2 @ precision.T - 2 * features @ (self.means * precision).T
        constant = np.log(2 * np.pi * self.variances).sum(axis=1) + (self.means**2 * precision).sum(axis=1)
        return np.asarray(np.log(self.weights) - 0.5 * (distance + constant))

    def log_joint(self, features: Floats, labels: Codes, answers: Codes, gamma: float) -> Floats:
        """Log of the terms of the sum in the module's formula, `[n, S]`."""
        classes = np.log(self.labels)[:, labels] + np.log(self.answers)[:, answers]
        return np.asarray(self.log_density(features) + gamma * classes.T)

    def assign(self, features: Floats, labels: Codes) -> Floats:
        """How probable each slice is, `[n, S]`, for one who knows the features and the true class but not the answer.

        gamma, which serves to make the slices pure, is 1 here: otherwise a slice of many classes, such as all images
        on one background, would never hold a sample again once the answers that held it together are left out.
        """
        joint = self.log_density(features) + np.log(self.labels)[:, labels].T
        return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))


class Fit(NamedTuple):
    """objective: penalised log-likelihood before every step and after the last."""

    mixture: Mixture
    objective: tuple[float, ...]


def fit_mixture(
    features: Floats,
    labels: Codes,
    answers: Codes,
    slices: int,
    gamma: float,
    rng: np.random.Generator,
    restarts: int = 3,
    steps: int = 100,
    tolerance: float = 1e-5,
) -> Fit:
    """The best of several fits from random starts.

    features: `[n, d]`, of variance about 1. labels, answers: codes `[n]` from 0. A fit ends after `steps` or when the
    objective grows by less than `tolerance` nats a sample.
    """
    classes = 1 + int(max(labels.max(), answers.max()))
    fits = []
    for _ in range(restarts):
        mixture = _start(features, labels, answers, slices, classes, rng)
        objective: list[float] = []
        for step in range(steps + 1):
            joint = mixture.log_joint(features, labels, answers, gamma)
            evidence = logsumexp(joint, axis=1, keepdims=True)
            objective.append(float(evidence.sum()) + _log_prior(mixture, gamma))
            if step == steps or (step and objective[-1] - objective[-2] < tolerance * len(labels)):
                break
            mixture = _maximise(np.exp(joint - evidence), features, labels, answers, classes)
        fits.append(Fit(mixture, tuple(objective)))
    return max(fits, key=lambda fit: fit.objective[-1])


def _start(
    features: Floats, labels: Codes, answers: Codes, slices: int, classes: int, rng: np.random.Generator
) -> Mixture:
    """One sample is the seed of each slice; right and wrong answers are drawn equally often, for errors are sought."""
    wrong = labels != answers
    share = np.where(wrong, 1 / max(wrong.sum(), 1), 1 / max((~wrong).sum(), 1))
    enough = np.count_nonzero(share) >= slices
    seeds = rng.choice(len(labels), slices, replace=not enough, p=share / share.sum())
    pure, even = np.eye(classes), (1 - SAME) / classes
    return Mixture(
        np.full(slices, 1 / slices),
        features[seeds],
        np.ones((slices, features.shape[1])),
        SAME * pure[labels[seeds]] + even,
        SAME * pure[answers[seeds]] + even,
    )


def _maximise(shares: Floats, features: Floats, labels: Codes, answers: Codes, classes: int) -> Mixture:
    """The parameters that fit best when sample i is in slice s by `shares[i, s]`."""
    size = shares.sum(axis=0)[:, None]
    filled = size + 1e-9
    means = shares.T @ features / filled
    spread = np.maximum(shares.T @ features**2 - 2 * means * (shares.T @ features) + size * means**2, 0.0)
    weights = (size[:, 0] + 1) / (len(labels) + len(size))
    return Mixture(
        weights,
        means,
        (spread + VARIANCE_COUNT) / (size + VARIANCE_COUNT),
        _shares_of(labels, shares, classes),
        _shares_of(answers, shares, classes),
    )


def _shares_of(codes: Codes, shares: Floats, classes: int) -> Floats:
    counts = np.zeros((classes, shares.shape[1]))
    np.add.at(counts, codes, shares)
    return np.asarray((counts.T + CLASS_COUNT / classes) / (counts.sum(axis=0)[:, None] + CLASS_COUNT))


def _log_prior(mixture: Mixture, gamma: float) -> float:
    spread = np.log(mixture.variances) + 1 / mixture.variances
    classes = np.log(mixture.labels).mean() + np.log(mixture.answers).mean()
    return float(
        np.log(mixture.weights).sum()
        - 0.5 * VARIANCE_COUNT * spread.sum()
        + gamma * CLASS_COUNT * len(mixture.weights) * classes
    )


def principal(features: NDArray[np.float32], fitted: NDArray[np.bool_], dimensions: int) -> Floats:
    """Whitened principal components `[n, d]` of features `[n, D]`, found on the rows of `fitted`; d <= dimensions.

    Components whose deviation is below a hundredth of the first's are left out: whitening would enlarge their rounding.
    """
    centred = features.astype(np.float64) - features[fitted].mean(axis=0, dtype=np.float64)
    seen = centred[fitted]
    wide = seen.shape[1] > len(seen)  # the smaller of the two products has the same eigenvalues
    product = seen @ seen.T if wide else seen.T @ seen
    values, vectors = eigh(product, subset_by_index=(max(len(product) - dimensions, 0), len(product) - 1))
    kept = values > max(1e-4 * values[-1], 1e-12)
    axes = seen.T @ vectors[:, kept] / np.sqrt(values[kept]) if wide else vectors[:, kept]
    return np.asarray(centred @ axes * np.sqrt(len(seen) / values[kept]))
