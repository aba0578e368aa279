"""SkewSize (2024): models that accuracy calls equal are told apart by what their mistakes depend on.

Claim: SkewSize separates models whose accuracy, worst-group accuracy and accuracy gap agree. Protocol: a logistic
regression on half of scikit-learn's digits, judged on the other half repeated; a random binary attribute. Model A: 20 %
of the answers flipped to a random wrong class. Model B: 20 % flipped, in 7 of 10 classes to the next class where the
attribute is 0 and to the one after where it is 1. Then a trained pair: networks on tinted digits whose tint goes
together with the parity of the label in 50 % and in 95 % of the training images.

The direction of SkewSize alone depends on how many classes are affected, so that curve is printed too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from snellen.discovery._skewsize import SkewSize, skewsize
from snellen.replication import Claim

PAPER = "SkewSize: Evaluating Model Bias Requires Characterizing its Mistakes (2024)"
SEEDS = 5

Labels = NDArray[np.int64]


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [planted_pair(np.random.default_rng([seed, k]), affected=7) for k in range(SEEDS)]
    gaps = [abs(gap_a - gap_b) for gap_a, gap_b, _, _ in runs]
    rise = [b.mean_corrected_v - a.mean_corrected_v for _, _, a, b in runs]
    turned = [b.corrected_skewsize < a.corrected_skewsize for _, _, a, b in runs]
    raw = [b.skewsize < a.skewsize for _, _, a, b in runs]
    trained = [trained_pair(seed * SEEDS + k) for k in range(SEEDS)]

    print("skewness of corrected V by the number of affected classes:")
    for affected in range(11):
        _, _, _, b = planted_pair(np.random.default_rng([seed, 99, affected]), affected)
        print(f"  {affected:2d}: mean corrected V {b.mean_corrected_v:.2f}, skewness {b.corrected_skewsize:+.2f}")
    return [
        Claim(
            "The accuracy gaps of A and B agree",
            "|gap A - gap B| < 0.02 on 5 of 5 seeds",
            f"at most {max(gaps):.4f}",
            max(gaps) < 0.02,
        ),
        Claim(
            "Mean bias-corrected V is larger for B",
            "B - A >= 0.15 on 5 of 5 seeds",
            f"{min(rise):.2f} to {max(rise):.2f}",
            min(rise) >= 0.15,
        ),
        Claim(
            "The skewness of corrected V is lower for B",
            "B < A on 5 of 5 seeds",
            f"{sum(turned)} of {SEEDS} (with raw V: {sum(raw)} of {SEEDS})",
            all(turned),
        ),
        Claim(
            "Mean corrected V rises with the correlation of tint and parity in training",
            "0.95 above 0.5 on 5 of 5 seeds",
            ", ".join(f"{low:.2f} -> {high:.2f}" for low, high in trained),
            all(high > low for low, high in trained),
        ),
    ]


def planted_pair(rng: np.random.Generator, affected: int) -> tuple[float, float, SkewSize, SkewSize]:
    """Accuracy gaps of A and B, and their SkewSize."""
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    train = order[: len(order) // 2]
    base = LogisticRegression(max_iter=300).fit(digits.data[train] / 16, digits.target[train])
    y: Labels = digits.target.astype(np.int64)  # all images, as the card: n is about 180 a class
    answers = base.predict(digits.data / 16).astype(np.int64)
    z = rng.integers(0, 2, len(y))
    flip = rng.random(len(y)) < 0.2
    a = np.where(flip, (y + rng.integers(1, 10, len(y))) % 10, answers)
    b = np.where(flip & (y < affected), (y + 1 + z) % 10, a)
    return gap(y, a, z), gap(y, b, z), skewsize(y, a, z, rng, 199, 50), skewsize(y, b, z, rng, 199, 50)


def gap(y: Labels, answers: Labels, z: Labels) -> float:
    right = y == answers
    return float(abs(right[z == 0].mean() - right[z == 1].mean()))


def trained_pair(seed: int) -> tuple[float, float]:
    """Mean corrected V of networks trained at correlation 0.5 and 0.95, judged on images with a random tint."""
    rng = np.random.default_rng([seed, 7])
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.tensor(rng.permutation(len(y)))
    train, test = order[:900], order[900:]
    found = []
    for correlation in (0.5, 0.95):
        follows = torch.tensor(rng.random(len(y)) < correlation)
        tint = torch.where(follows, y % 2, 1 - y % 2)
        model = train_network(tinted(images, tint)[train], y[train], seed)
        free = torch.tensor(rng.integers(0, 2, len(y)))
        with torch.no_grad():
            answers = model(tinted(images, free)[test]).argmax(1)
        result = skewsize(y[test].numpy(), answers.numpy(), free[test].numpy(), rng, 99, 50)
        found.append(result.mean_corrected_v)
    return found[0], found[1]


def tinted(images: torch.Tensor, tint: torch.Tensor) -> torch.Tensor:
    """Grey `[N, 8, 8]` to `[N, 2, 8, 8]`: the digit in one of two colours."""
    return torch.stack([images * (tint == 0)[:, None, None], images * (tint == 1)[:, None, None]], dim=1)


def train_network(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            for batch in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimiser.step()
    return model.eval()
