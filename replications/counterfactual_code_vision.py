"""VISION (Egea et al., 2025): training on pairs of an original and its counterfactual twin stops a shortcut.

Claim: the share of pairs answered rightly (P-C) and worst-group accuracy rise, and half originals and half twins is
best. Protocol: images of 16 x 16 in place of code: the class is the direction of a diagonal stroke, and a texture
(stripes down or across) agrees with it in 98 % of the originals, 30 of class 0 for 1 of class 1, as in the paper's
CWE-20. The twin has the same texture and noise and the other stroke. A small network, always 620 training samples,
mixes 100/0, 80/20, 50/50 and 0/100 of originals and twins, judged on 400 new pairs; worst group: two clusters of the
network's features x class, over both members. Controls: originals resampled to equal classes, and twice as many
originals. A second subject, a graph network on random trees with a "check" above or below a "use", and nuisance
nodes, has two mixes of the same imbalance. 5 seeds.

Without the imbalance the graph network solves 97 % of the pairs from originals alone, so that nothing is left to
repair.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snellen.discovery.counterfactual_pairs import (
    Pairs,
    check_split,
    contrast_of,
    purity,
    train_on_mix,
    worst_group,
)
from snellen.replication import Claim

PAPER = "VISION: Robust and Interpretable Code Vulnerability Detection Leveraging Counterfactual Augmentation (2025)"
SEEDS = 5
SIDE, SIZE, POOL, TESTS = 16, 620, 1240, 400
MIXES = (1.0, 0.8, 0.5, 0.0)
AGREEING, IMBALANCE = 0.98, 30
NODES, KINDS = 12, 4

Floats = NDArray[np.float64]


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [image_run(seed * SEEDS + k) for k in range(SEEDS)]
    for name in runs[0]:
        values = np.array([run[name] for run in runs]).mean(axis=0)
        print(f"{name:>22}: P-C {values[0]:.3f}, WGA_2 {values[1]:.3f}, purity {values[2]:.3f}")
    correct = {name: np.array([run[name][0] for run in runs]) for name in runs[0]}
    worst = {name: np.array([run[name][1] for run in runs]) for name in runs[0]}
    gain, worst_gain = correct["mix 0.5"] - correct["mix 1.0"], worst["mix 0.5"] - worst["mix 1.0"]
    control = np.maximum(correct["equal classes"], correct["more originals"])
    graphs = np.array([graph_run(seed * SEEDS + k) for k in range(SEEDS)])
    return [
        Claim("Whole pairs raise P-C over originals alone", "at least 0.4", spread(gain), bool(gain.mean() >= 0.4)),
        Claim(
            "Whole pairs raise the accuracy of the worst group",
            "at least 0.3",
            spread(worst_gain),
            bool(worst_gain.mean() >= 0.3),
        ),
        Claim(
            "Half originals, half twins is no worse than twins alone in P-C",
            "50/50 >= 0/100",
            f"{spread(correct['mix 0.5'])} against {spread(correct['mix 0.0'])}",
            bool(correct["mix 0.5"].mean() >= correct["mix 0.0"].mean()),
        ),
        Claim(
            "Re-balancing the classes or more originals do not do the same",
            "the better control is at least 0.2 below 50/50 in P-C",
            f"{spread(control)} against {spread(correct['mix 0.5'])}",
            bool(control.mean() <= correct["mix 0.5"].mean() - 0.2),
        ),
        Claim(
            "The same holds for a graph network",
            "P-C(50/50) - P-C(100/0) >= 0.4",
            spread(graphs[:, 1] - graphs[:, 0]),
            bool((graphs[:, 1] - graphs[:, 0]).mean() >= 0.4),
        ),
    ]


def image_run(seed: int) -> dict[str, tuple[float, float, float]]:
    """P-C, worst-group accuracy and purity by training set."""
    rng = np.random.default_rng([seed, 1])
    pool, test = image_pairs(POOL, rng, "train"), image_pairs(TESTS, rng, "test", imbalance=1)
    check_split(pool, test)
    train = pool.rows(range(SIZE))
    rare = torch.nonzero(train.labels == 1).flatten().numpy()
    common = torch.nonzero(train.labels == 0).flatten().numpy()
    # resampled rows need names of their own, since each name is one pair
    drawn = np.concatenate([rng.choice(rare, SIZE // 2), rng.choice(common, SIZE // 2)])
    balanced = Pairs(
        [f"drawn/{row}" for row in range(SIZE)],
        train.samples[drawn], train.twins[drawn], train.labels[drawn], train.twin_labels[drawn],
    )  # fmt: skip
    sets = {f"mix {share}": (train, share, SIZE) for share in MIXES}
    sets |= {"equal classes": (balanced, 1.0, SIZE), "more originals": (pool, 1.0, POOL)}
    found = {}
    for name, (pairs, share, size) in sets.items():
        model = train_on_mix(image_network(seed), pairs, share, size, np.random.default_rng([seed, 2]), epochs=12)
        found[name] = judged(model, test, seed)
    return found


def judged(model: nn.Module, test: Pairs, seed: int) -> tuple[float, float, float]:
    both, labels = torch.cat([test.samples, test.twins]), torch.cat([test.labels, test.twin_labels]).numpy()
    with torch.no_grad():
        embeddings = nn.Sequential(*list(model.children())[:-1])(both).double().numpy()
        right = model(both).argmax(1).numpy() == labels
    worst = worst_group(embeddings, right, 2, seed, labels)
    return contrast_of(model, test).correct / len(test), worst.accuracy, purity(embeddings, labels).value


def image_pairs(n: int, rng: np.random.Generator, name: str, imbalance: int = IMBALANCE) -> Pairs:
    labels = (rng.random(n) < 1 / (imbalance + 1)).astype(np.int64)
    texture = np.where(rng.random(n) < AGREEING, labels, 1 - labels)
    down, right = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    phase = rng.integers(0, 4, n)[:, None, None]
    stripes = np.where(texture[:, None, None] == 1, (right + phase) // 2 % 2, (down + phase) // 2 % 2)
    base = 0.3 + 0.2 * stripes + rng.normal(0, 0.05, (n, SIDE, SIDE))
    centre, length = rng.integers(5, 11, (n, 2, 1, 1)), rng.integers(3, 5, n)[:, None, None]
    y, x = down - centre[:, 0], right - centre[:, 1]

    def with_stroke(direction: NDArray[np.int64]) -> Tensor:
        sign = np.where(direction == 1, 1, -1)[:, None, None]
        stroke = (abs(x - sign * y) <= 0) & (abs(y) <= length)
        return torch.from_numpy(np.where(stroke, 0.8, base)).float().unsqueeze(1)

    ids = [f"{name}/{row}" for row in range(n)]
    twins = 1 - labels
    return Pairs(ids, with_stroke(labels), with_stroke(twins), torch.from_numpy(labels), torch.from_numpy(twins))


def image_network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Linear(96, 2),
        )  # fmt: skip


class GraphNetwork(nn.Module):
    """Two rounds of messages from parent to child and back; graphs `[B, N, F + N]`: node features and adjacency."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = (KINDS, width, width)
        self.layers = nn.ModuleList(nn.Linear(3 * a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(2 * width, 2)

    def forward(self, graphs: Tensor) -> Tensor:
        nodes, children = graphs[:, :, :KINDS], graphs[:, :, KINDS:]
        for layer in self.layers:
            nodes = torch.relu(layer(torch.cat([nodes, children @ nodes, children.transpose(1, 2) @ nodes], dim=2)))
        logits: Tensor = self.head(torch.cat([nodes.mean(dim=1), nodes.amax(dim=1)], dim=1))
        return logits


def graph_pairs(n: int, rng: np.random.Generator, name: str, imbalance: int = IMBALANCE) -> Pairs:
    """Class 1: the use is the parent of the check. The share of nuisance nodes goes with the class in the originals."""
    labels = (rng.random(n) < 1 / (imbalance + 1)).astype(np.int64)
    nuisance = np.where(rng.random(n) < AGREEING, labels, 1 - labels)
    graphs = np.zeros((2, n, NODES, KINDS + NODES))
    for row in range(n):
        parents = np.array([rng.integers(0, child) for child in range(1, NODES)])
        child = int(rng.integers(1, NODES))
        kinds = np.where(rng.random(NODES) < (0.7 if nuisance[row] else 0.2), 3, 2)
        for member, label in enumerate((labels[row], 1 - labels[row])):
            own = kinds.copy()
            own[[parents[child - 1], child]] = (1, 0) if label == 1 else (0, 1)
            graphs[member, row, np.arange(NODES), own] = 1
            graphs[member, row, parents, KINDS + np.arange(1, NODES)] = 1
    samples, twins = torch.from_numpy(graphs).float()
    ids = [f"{name}/{row}" for row in range(n)]
    return Pairs(ids, samples, twins, torch.from_numpy(labels), torch.from_numpy(1 - labels))


def graph_run(seed: int) -> tuple[float, float]:
    """P-C of the graph network trained on originals alone and on whole pairs."""
    rng = np.random.default_rng([seed, 3])
    train, test = graph_pairs(SIZE, rng, "train"), graph_pairs(TESTS, rng, "test", imbalance=1)
    check_split(train, test)
    found = []
    for share in (1.0, 0.5):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GraphNetwork()
        train_on_mix(model, train, share, SIZE, np.random.default_rng([seed, 4]), epochs=12, learning_rate=3e-3)
        found.append(contrast_of(model, test).correct / len(test))
    return found[0], found[1]


def spread(values: Floats) -> str:
    return f"{values.mean():.3f} +- {values.std(ddof=1) / np.sqrt(len(values)):.3f} (s.e., {len(values)} seeds)"
