"""Hu et al. (2023): robust training costs all classes accuracy, and under imbalance it widens the gap between them.

Claim: accuracy lost with equal classes (the inherent part), and a rise of the accuracy disparity dAD that grows with
the imbalance R for Gaussian classes; for heavy tails R plays another role. Protocol: linear models trained against
the exact one-step adversary, eps half of ||mu|| (a quarter of the distance of the class means) in (a) and (b), 5 seeds,
gaps on balanced tests. (a) Gaussian classes in 100 dimensions, ||mu|| = 1.645, 5000 : 5000 / R for training. (b)
scikit-learn's digits 3 and 8 in place of MNIST, 110 : 110 / R, the rest as test. (c) the inherent part under linf, by
which small coordinates are dropped. (d) the closed form for Cauchy classes. (e) whether per-class biases, chosen on one
half of the test, undo the gap of (a) on the other. The confound, the offset of each model, is printed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from snellen.discovery.accuracy_disparity import (
    LinearRule,
    Mixture,
    accuracies,
    best_rule,
    imbalanced_rows,
    train_linear,
    undo_gap,
)
from snellen.replication import Claim

PAPER = "Understanding the Impact of Adversarial Robustness on Accuracy Disparity (2023)"
SEEDS = 5
NORM_OF_MU = 1.645

Floats = NDArray[np.float64]


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [gaussian(np.random.default_rng([seed, k])) for k in range(SEEDS)]
    growth = np.array([run[10] - run[1] for run, _ in runs])
    images = [digits(np.random.default_rng([seed, 50, k])) for k in range(SEEDS)]
    image_growth = np.array([run[10][0] - run[1][0] for run in images])
    collapsed = sum(run[10][1] for run in images)
    inherent = np.array([unequal(np.random.default_rng([seed, 90, k])) for k in range(SEEDS)])
    cauchy = {ratio: closed_rise(1.0, ratio) for ratio in (1, 2, 5, 10)}
    gauss = {ratio: closed_rise(2.0, ratio) for ratio in (1, 2, 5, 10)}
    print("closed form dAD, Gaussian: " + ", ".join(f"R={r} {v:.3f}" for r, v in gauss.items()))
    undone = np.array([both for _, both in runs])
    return [
        Claim(
            "The rise of the gap grows with the imbalance, Gaussian classes",
            "dAD(10) - dAD(1) > 0.10 and more than 2 s.e.",
            with_error(growth),
            bool(growth.mean() > max(0.10, 2 * error(growth))),
        ),
        Claim(
            "The same on digits 3 and 8 where the robust model has not collapsed to one class",
            "dAD(10) - dAD(1) > 0.05 and more than 2 s.e., no collapse",
            f"{with_error(image_growth)}; collapsed on {collapsed} of {SEEDS} seeds",
            bool(image_growth.mean() > max(0.05, 2 * error(image_growth)) and not collapsed),
        ),
        Claim(
            "With equal classes robustness (linf) costs every class standard accuracy",
            "both classes lose, mean loss more than 2 s.e.",
            "; ".join(with_error(inherent[:, side]) for side in (0, 1)),
            bool((inherent.mean(axis=0) > 2 * inherent.std(axis=0, ddof=1) / np.sqrt(SEEDS)).all()),
        ),
        Claim(
            "For heavy tails the imbalance plays another role",
            "Cauchy, closed form: dAD(10) is below the largest dAD of a smaller R",
            ", ".join(f"R={ratio} {rise:.3f}" for ratio, rise in cauchy.items()),
            cauchy[10] < max(cauchy[ratio] for ratio in (1, 2, 5)),
        ),
        Claim(
            "Per-class biases undo the gap of the robust Gaussian model at R = 10",
            "at most half of it is left on images not used to choose them",
            f"AD {undone[:, 0].mean():.3f} -> {undone[:, 1].mean():.3f} (5 seeds)",
            bool(abs(undone[:, 1].mean()) <= undone[:, 0].mean() / 2),
        ),
    ]


def gaussian(rng: np.random.Generator) -> tuple[dict[int, float], tuple[float, float]]:
    """dAD by R, and the robust model's AD at R = 10 on the judged half without and with biases."""
    mixture = Mixture(np.full(100, NORM_OF_MU / 10))
    test, side = mixture.draw(5000, 5000, rng)
    labels = (side + 1) // 2
    rise: dict[int, float] = {}
    for ratio in (1, 5, 10):
        x, y = mixture.draw(5000, 5000 // ratio, rng)
        standard, robust = trained_pair(x, y, NORM_OF_MU / 2)
        rise[ratio] = gap(robust, test, side) - gap(standard, test, side)
        print(f"(a) R={ratio:2d}: dAD {rise[ratio]:.3f}, offsets {offset(standard):+.2f} and {offset(robust):+.2f}")
    ids = [str(row) for row in range(len(labels))]
    found = undo_gap(ids, labels, scores(standard, test), scores(robust, test), minority=1, majority=0)
    return rise, (found.plain.gap_after.value, found.recalibrated.gap_after.value)


def digits(rng: np.random.Generator) -> dict[int, tuple[float, bool]]:
    """dAD by R, and whether the robust model answers one class only. The minority is the 8."""
    data = load_digits()
    kept = np.isin(data.target, (3, 8))
    x, y = data.data[kept] / 16, np.where(data.target[kept] == 8, 1, -1)
    order = rng.permutation(len(y))
    train = np.concatenate([order[y[order] == side][:110] for side in (-1, 1)])
    rest = np.setdiff1d(order, train)
    eps = float(np.linalg.norm(x[train][y[train] == 1].mean(0) - x[train][y[train] == -1].mean(0))) / 4
    found = {}
    for ratio in (1, 10):
        rows = train[imbalanced_rows(y[train], 1, ratio, rng)]
        standard, robust = trained_pair(x[rows], y[rows], eps)
        answers = np.sign(x[rest] @ robust.weights + robust.bias)
        found[ratio] = gap(robust, x[rest], y[rest]) - gap(standard, x[rest], y[rest]), len(np.unique(answers)) == 1
        print(
            f"(b) eps {eps:.2f} R={ratio:2d}: AD {gap(standard, x[rest], y[rest]):+.3f} ->"
            f" {gap(robust, x[rest], y[rest]):+.3f}, offsets {offset(standard):+.2f} and {offset(robust):+.2f}"
        )
    return found


def unequal(rng: np.random.Generator) -> tuple[float, float]:
    """Accuracy that each class loses under linf with equal classes: 5 strong coordinates beside 95 weak ones."""
    mixture = Mixture(np.repeat([0.5, 0.1], [5, 95]))
    x, y = mixture.draw(5000, 5000, rng)
    test, side = mixture.draw(5000, 5000, rng)
    standard, robust = (train_linear(torch.from_numpy(x), torch.from_numpy(y), eps, "linf") for eps in (0.0, 0.25))
    lost = [
        right(standard, test, side)[side == s].mean() - right(robust, test, side)[side == s].mean() for s in (-1, 1)
    ]
    return float(lost[0]), float(lost[1])


def closed_rise(alpha: float, ratio: float) -> float:
    """dAD of the best rules in one dimension."""
    mixture = Mixture(np.array([NORM_OF_MU]), 1.0, alpha)
    gaps = [accuracies(mixture, best_rule(mixture, ratio, eps)).gap for eps in (0.0, NORM_OF_MU / 2)]
    return gaps[1] - gaps[0]


def trained_pair(x: Floats, y: NDArray[np.int64], eps: float) -> tuple[LinearRule, LinearRule]:
    data, sides = torch.from_numpy(x), torch.from_numpy(y)
    return train_linear(data, sides), train_linear(data, sides, eps)


def scores(rule: LinearRule, x: Floats) -> Floats:
    return np.stack([np.zeros(len(x)), x @ rule.weights + rule.bias], axis=1)


def right(rule: LinearRule, x: Floats, side: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(np.sign(x @ rule.weights + rule.bias) == side)


def gap(rule: LinearRule, x: Floats, side: NDArray[np.int64]) -> float:
    hits = right(rule, x, side)
    return float(hits[side == -1].mean() - hits[side == 1].mean())


def offset(rule: LinearRule) -> float:
    """b in units of ||w||_2."""
    return rule.bias / float(np.linalg.norm(rule.weights))


def error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def with_error(values: Floats) -> str:
    return f"{values.mean():.3f} +- {error(values):.3f} (s.e., {len(values)} seeds)"
