"""Dual-Threshold Conformal Prediction (2025): set coverage, abstention that grows with the corruption, and its AUC.

Claim: coverage above 90 % on clean images, abstention that rises with the severity of a corruption, and an AUC of the
abstention score above 0.99 under severe corruption. Protocol: an MLP on scikit-learn's digits, RAPS sets (which may be
empty, as published), Gaussian noise of 0.1 to 0.5 of the range, five seeds. The published score reads the true class of
the test image; the AUC of scores that a service could compute is printed beside it, for the published event (true class
not in the set) and for the deployable one (wrong answer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from snellen.replication import Claim
from snellen.stats import Separation, separate
from snellen.uncertainty._conformal import (
    abstention_score,
    conformal_threshold,
    oracle_abstention_score,
    oracle_candidates,
    prediction_sets,
    raps_scores,
    true_class,
)

PAPER = "Beyond Confidence: Adaptive Abstention in Dual-Threshold Conformal Prediction (2025, arXiv 2502.07255)"
SEEDS = 5
ALPHA = 0.1
SIGMAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """One severity: rates at thresholds fixed on clean calibration images, AUC on the test images."""

    coverage: float
    lac_coverage: float
    abstained: float
    oracle_abstained: float
    oracle: float
    label_free: float
    wrong_answer: float
    accuracy: float


def replicate(seed: int) -> list[Claim]:
    runs = [one_run(seed * SEEDS + k) for k in range(SEEDS)]
    table = np.array([[list(vars(level).values()) for level in run] for run in runs])  # [seeds, severities, figures]
    mean = table.mean(axis=0)
    print("sigma  coverage  LAC    abstains  oracle abstains  oracle AUC  entropy AUC  AUC for wrong answers  accuracy")
    for sigma, row in zip(SIGMAS, mean, strict=True):
        print(f"{sigma:5.1f}  " + "  ".join(f"{value:8.3f}" for value in row))
    clean = table[:, 0, 0]
    error = clean.std(ddof=1) / np.sqrt(SEEDS)
    rank = [float(spearmanr(SIGMAS[1:], run[1:, 2]).statistic) for run in table]
    oracle_rank = [float(spearmanr(SIGMAS[1:], run[1:, 3]).statistic) for run in table]
    strongest = table[:, -2:, 4]
    return [
        Claim(
            "Clean coverage is as promised",
            f"at least {1 - ALPHA:.2f} - 3 standard errors",
            f"{clean.mean():.3f} +- {error:.3f}",
            bool(clean.mean() >= 1 - ALPHA - 3 * error),
        ),
        Claim(
            "Abstention at the fixed label-free threshold grows with the noise",
            "Spearman >= 0.9 on every seed",
            f"{min(rank):.2f} to {max(rank):.2f}; abstains {mean[1, 2]:.0%} to {mean[-1, 2]:.0%}",
            min(rank) >= 0.9 - 1e-9,  # 0.9 of five ranks is 0.8999...
        ),
        Claim(
            "Abstention at the fixed oracle threshold grows with the noise",
            "Spearman >= 0.9 on every seed",
            f"{min(oracle_rank):.2f} to {max(oracle_rank):.2f}; abstains {mean[1, 3]:.0%} to {mean[-1, 3]:.0%}",
            min(oracle_rank) >= 0.9 - 1e-9,
        ),
        Claim(
            "The oracle score separates missed from covered images under strong noise (not achievable in service)",
            "AUC >= 0.9 at the two strongest severities, mean of the seeds",
            f"{strongest.mean(axis=0)[0]:.3f}, {strongest.mean(axis=0)[1]:.3f}"
            f" (label-free entropy: {mean[-2, 5]:.3f}, {mean[-1, 5]:.3f})",
            bool(np.all(strongest.mean(axis=0) >= 0.9)),
        ),
    ]


def one_run(seed: int) -> list[Level]:
    rng = np.random.default_rng([seed, 3])
    digits = load_digits()
    x, y = digits.data / 16, digits.target.astype(np.int64)
    order = rng.permutation(len(y))
    train, fit, tune, test = np.split(order, [700, 1000, 1250])
    model = MLPClassifier((64,), max_iter=1000, random_state=seed).fit(x[train], y[train])

    # Both thresholds on clean images; the second where the first was not fitted.
    scores, p, own = scored(model, x[fit], y[fit], rng)
    threshold = conformal_threshold(own, ALPHA)
    lac_threshold = conformal_threshold(1 - true_class(p, y[fit]).astype(float), ALPHA)
    scores, p, own = scored(model, x[tune], y[tune], rng)
    second = separate(abstention_score("entropy", p), p.argmax(axis=1) != y[tune])
    oracle = separate(oracle_abstention_score(p, y[tune]), own > threshold, oracle_candidates())

    levels = []
    for sigma in SIGMAS:
        noisy = np.clip(x[test] + sigma * rng.normal(size=x[test].shape), 0, 1)
        scores, p, own = scored(model, noisy, y[test], rng)
        missed = ~true_class(prediction_sets(scores, threshold), y[test]).astype(bool)  # the published event
        wrong = p.argmax(axis=1) != y[test]
        doubt, seen = abstention_score("entropy", p), oracle_abstention_score(p, y[test])
        published: Separation = separate(seen, missed, oracle_candidates())
        levels.append(
            Level(
                coverage=float(1 - missed.mean()),
                lac_coverage=float((1 - true_class(p, y[test]).astype(float) <= lac_threshold).mean()),
                abstained=float((doubt > second.threshold).mean()),
                oracle_abstained=float((seen > oracle.threshold).mean()),
                oracle=published.auc,
                label_free=separate(doubt, missed).auc,
                wrong_answer=separate(doubt, wrong).auc,
                accuracy=float(1 - wrong.mean()),
            )
        )
    return levels


def scored(model: MLPClassifier, x: Floats, y: Labels, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """RAPS scores `[n, K]`, probabilities `[n, K]` and the true class's score `[n]`."""
    p = model.predict_proba(x)
    scores = raps_scores(p, rng.random(len(p)), k_reg=2, penalty=0.02)
    return scores, p, true_class(scores, y).astype(float)
