"""The robustness index (de Jong et al., 2025): what orders an embedding, the content or the site it comes from.

Claim: most encoders order images by medical centre more than by content, and the errors of a neighbour vote fall on
images of the same centre. Protocol, small: scikit-learn's digits (1,000 training and 700 test images, 8 x 8) under five
synthetic centres, each a fixed colour and contrast, at strengths 0.4 and 0.9. Encoders: raw pixels, PCA-50, a random
network, and a network trained (a) with the centre tied to the digit in 9 of 10 images, (b) balanced. k = 20, all test
images in every centre. Leave-centre-out accuracy: logistic regression on the features, mean over centres left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from snellen.discovery._neighbours import nearest, unit_rows
from snellen.discovery._robustness_index import attribute_errors
from snellen.discovery.robustness_index import robustness_index
from snellen.replication import Claim

PAPER = "Current Pathology Foundation Models are unrobust to Medical Center Differences (2025)"
SEEDS, CENTRES, K = 3, 5, 20
STRENGTHS = (0.4, 0.9)

Codes = NDArray[np.int64]


class Measured(NamedTuple):
    index: float
    accuracy: float
    excess: float


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    found: dict[tuple[int, float, str], Measured] = {}
    for turn in range(SEEDS):
        for strength in STRENGTHS:
            for name, measured in encoders(seed * SEEDS + turn, strength).items():
                found[turn, strength, name] = measured
                print(f"seed {turn}, strength {strength}, {name}: RI {measured.index:.2f},", end=" ")
                print(f"accuracy {measured.accuracy:.2f}, same-centre excess {measured.excess:+.2f}")
    ordered = [
        found[t, s, "balanced"].index > found[t, s, "pixels"].index > found[t, s, "tied"].index
        for t in range(SEEDS)
        for s in STRENGTHS
    ]
    indices, accuracies = (np.array([getattr(m, what) for m in found.values()]) for what in ("index", "accuracy"))
    rank = float(spearmanr(indices, accuracies).statistic)
    excess = [m.excess for m in found.values() if m.index < 0.5]
    return [
        Claim(
            "The index orders balanced training above pixels above training tied to the centre",
            f"RI(b) > RI(pixels) > RI(a) in {len(ordered)} of {len(ordered)} runs",
            f"{sum(ordered)} of {len(ordered)}",
            all(ordered),
        ),
        Claim(
            "The index goes with the accuracy on a centre left out",
            "Spearman >= 0.75 over encoders and strengths",
            f"{rank:.2f}",
            rank >= 0.75,
        ),
        Claim(
            "Errors of the neighbour vote come from the same centre where the index is below 0.5",
            "same-centre voters exceed the expected share by >= 10 points for every such encoder",
            f"{min(excess):.2f} to {max(excess):.2f} over {len(excess)} encoders" if excess else "no such encoder",
            bool(excess) and min(excess) >= 0.10,
        ),
    ]


def encoders(seed: int, strength: float) -> dict[str, Measured]:
    rng = np.random.default_rng([seed, round(strength * 10)])
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    order = rng.permutation(len(digits.target))
    train, test = order[:1000], order[1000:1700]
    stains = np.eye(3) + strength * rng.normal(0, 0.6, (CENTRES, 3, 3))
    shades = strength * rng.uniform(0, 0.6, (CENTRES, 3))

    def stained(rows: Codes, centres: Codes) -> Tensor:
        colour = np.clip(np.einsum("nij,j->ni", stains[centres], np.array([0.9, 0.6, 0.3])), 0, 1.5)
        pixels = images[rows][:, None] * torch.tensor(colour, dtype=torch.float32)[:, :, None, None]
        return pixels + torch.tensor(shades[centres], dtype=torch.float32)[:, :, None, None]

    y_train = digits.target[train].astype(np.int64)
    free = rng.integers(0, CENTRES, len(train))
    tied = np.where(rng.random(len(train)) < 0.9, y_train % CENTRES, free)
    b, c = np.tile(digits.target[test], CENTRES).astype(np.int64), np.repeat(np.arange(CENTRES), len(test))
    shown = stained(np.tile(test, CENTRES), c)
    pixels = shown.flatten(1).numpy()
    embedded = {
        "pixels": pixels,
        "PCA": PCA(50, random_state=0).fit(stained(train, free).flatten(1).numpy()).transform(pixels),
    }
    for name, centres in (("random", None), ("tied", tied), ("balanced", free)):
        body = network(None if centres is None else stained(train, centres), torch.tensor(y_train), seed)
        with torch.no_grad():
            embedded[name] = body(shown).numpy()
    same_image = np.tile(np.arange(len(test)), CENTRES)
    return {name: measure(points, b, c, same_image) for name, points in embedded.items()}


def measure(points: NDArray[np.float32], b: Codes, c: Codes, image: Codes) -> Measured:
    """The same image in another centre is no neighbour: the index is of content, not of identity."""
    usable = points + 1e-6
    index = robustness_index(usable, b, c, K, image, resamples=2).bounded
    neighbours = nearest(unit_rows(usable), K, image).rows
    errors = attribute_errors(neighbours, b, c, np.arange(len(b)))
    accuracy = []
    scaled = (points - points.mean(0)) / (points.std(0) + 1e-6)
    half = image < (image.max() + 1) // 2  # the probe is judged on images it has not seen in any centre
    for centre in range(CENTRES):
        fitted = LogisticRegression(C=0.1, max_iter=100).fit(scaled[half & (c != centre)], b[half & (c != centre)])
        accuracy.append(fitted.score(scaled[~half & (c == centre)], b[~half & (c == centre)]))
    return Measured(index, float(np.mean(accuracy)), errors.same - errors.expected)


def network(x: Tensor | None, y: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()
        )
        head = nn.Linear(64, 10)
        optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
        for _ in range(0 if x is None else 12):
            assert x is not None
            for batch in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(head(body(x[batch])), y[batch]).backward()
                optimiser.step()
    return body.eval()
