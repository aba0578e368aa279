"""Confident learning (2021) finds planted wrong labels and their joint distribution with the true ones.

Claim: from out-of-sample probabilities, confident learning tells which labels are wrong and estimates how many there
are of each (given, true) pair. Protocol: scikit-learn's digits with 20 % of the labels replaced by a random other class
(symmetric), or by the next class (pair); logistic regression trained on the noisy labels, probabilities by 5-fold
cross-validation; flags by the default rule (prune by noise rate). Joint error: half the L1 distance of C / n from the
planted joint. Co-teaching and generalised cross-entropy, the card's training recipes, are not part of this.

Printed beside it: what the audit's own statement gives, the excess over a calibrated model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from snellen.discovery._confident_learning import confident_joint, find_label_issues
from snellen.discovery._label_noise import contradictions
from snellen.replication import Claim

PAPER = "Confident Learning: Estimating Uncertainty in Dataset Labels (2021)"
SEEDS = 5
SHARE = 0.2

Labels = NDArray[np.int64]


def replicate(seed: int) -> list[Claim]:
    claims = []
    for noise in ("symmetric", "pair"):
        runs = np.array([detect(noise, seed * SEEDS + k) for k in range(SEEDS)])
        precision, recall, error = runs.T
        claims += [
            Claim(
                f"Flagged labels are wrong ({noise} noise)",
                f"precision >= 0.8 on {SEEDS} of {SEEDS} seeds",
                spread(precision),
                bool(precision.min() >= 0.8),
            ),
            Claim(
                f"Wrong labels are flagged ({noise} noise)",
                f"recall >= 0.7 on {SEEDS} of {SEEDS} seeds",
                spread(recall),
                bool(recall.min() >= 0.7),
            ),
            Claim(
                f"The joint of given and true labels is estimated ({noise} noise)",
                f"L1 / 2 <= 0.05 on {SEEDS} of {SEEDS} seeds",
                spread(error),
                bool(error.max() <= 0.05),
            ),
        ]
    return claims


def detect(noise: str, seed: int) -> tuple[float, float, float]:
    """Precision and recall of the flags and the error of the joint."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    x, true = digits.data / 16, digits.target.astype(np.int64)
    n = len(true)
    wrong = rng.random(n) < SHARE
    steps = rng.integers(1, 10, n) if noise == "symmetric" else np.ones(n, dtype=np.int64)
    labels: Labels = np.where(wrong, (true + steps) % 10, true)

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    p = cross_val_predict(LogisticRegression(max_iter=500), x, labels, cv=folds, method="predict_proba")
    flags = find_label_issues(labels, p)

    planted = np.zeros((10, 10))
    np.add.at(planted, (labels, true), 1 / n)
    error = np.abs(confident_joint(labels, p) / n - planted).sum() / 2
    found = contradictions(labels, np.log(p), rng.random(n) < 0.5, rng, 199)
    excess = found.flagged.mean() - found.chance.sum() / n
    print(f"{noise} noise: {wrong.mean():.3f} planted, {flags.mean():.3f} flagged; beyond chance {excess:.3f}")
    return float(flags[wrong].sum() / max(flags.sum(), 1)), float(flags[wrong].mean()), float(error)


def spread(values: NDArray[np.float64]) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"
