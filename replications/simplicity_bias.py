"""The Pitfalls of Simplicity Bias in Neural Networks (2020): of two perfect features the simple one is used alone.

Claim: networks reach an AUC of about 1 on LMS-5; permuting the linear coordinate leaves about 0.5, permuting all
slab coordinates leaves about 1, and neither ensembles nor a simple feature that is sometimes wrong change it, though
the slabs alone would do. Protocol: (a) LMS-5 with 20 coordinates, 20,000 samples, two layers of 100, SGD 0.1, 5 seeds;
(b) scikit-learn's digits 0 and 1 above a block of two gratings whose class is the parity of their directions, a
small convolutional network. A network that sees the hard block alone shows that the block can be learnt at all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.discovery.simplicity_bias import Slabs, dependence, stacked_images
from snellen.replication import Claim

PAPER = "The Pitfalls of Simplicity Bias in Neural Networks (2020)"
SEEDS = 5


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [slab_run(seed * SEEDS + k) for k in range(SEEDS)]
    clean, simple, hard = (np.array([run[i] for run in runs]) for i in range(3))
    single = float(simple.mean())
    ensemble, alone = float(ensemble_run(seed)), float(slabs_alone(seed))
    noisy_accuracy, linear_accuracy = map(float, noisy_run(seed))
    image_simple, image_hard, image_alone = map(float, image_run(seed))
    replicated = int(((simple <= 0.60) & (hard >= 0.97)).sum())
    return [
        Claim(
            "Networks on LMS-5 rely on the linear coordinate alone",
            "linear randomised <= 0.60 and slabs randomised >= 0.97 in 4 of 5 seeds",
            f"{replicated} of {SEEDS}: clean {clean.min():.3f}, linear randomised {simple.min():.2f} to"
            f" {simple.max():.2f}, slabs randomised {hard.min():.3f}",
            replicated >= 4,
        ),
        Claim(
            "The slabs alone can be learnt, so that the test is not void",
            "AUC > 0.9 without the linear coordinate",
            f"{alone:.3f}",
            alone > 0.9,
        ),
        Claim(
            "An ensemble of 5 relies on the same coordinate",
            "AUC with the linear coordinate randomised changes by < 0.05",
            f"{ensemble:.3f} against {single:.3f}",
            abs(ensemble - single) < 0.05,
        ),
        Claim(
            "A linear coordinate that is wrong in 10 % caps the accuracy, though the slabs allow 1.0",
            "accuracy within 0.05 of the linear coordinate's",
            f"{noisy_accuracy:.3f} against {linear_accuracy:.3f}",
            abs(noisy_accuracy - linear_accuracy) < 0.05,
        ),
        Claim(
            "Of a digit above a block of gratings the digit alone is used",
            "digit randomised <= 0.60, gratings randomised >= 0.97; gratings alone > 0.9",
            f"{image_simple:.3f}, {image_hard:.3f}; {image_alone:.3f}",
            image_simple <= 0.60 and image_hard >= 0.97 and image_alone > 0.9,
        ),
    ]


def network(inputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))


def fit(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, epochs: int, rate: float = 0.1, until: float = 0.01
) -> nn.Module:
    """SGD in batches of 256 until the mean loss of an epoch is below `until`."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), rate)
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(x), generator=generator).split(256):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        if np.mean(losses) < until:
            break
    return model.eval()


def draw(kind: Slabs, n: int, *seed: int) -> tuple[Tensor, Tensor]:
    data = kind.draw(n, np.random.default_rng(seed))
    return torch.from_numpy(data.x).float(), torch.from_numpy(data.y)


def slab_model(seed: int) -> nn.Module:
    x, y = draw(Slabs(), 20_000, seed, 0)
    return fit(network(20, seed), x, y, seed, epochs=60)


def judged(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, block: Tensor | list[int], seed: int
) -> list[float]:
    """Clean AUC, with the block randomised, and with everything else randomised."""
    found = dependence(model, x, y, block, np.random.default_rng([seed, 9]))
    return [found.clean_auc, found.randomised_auc[0], found.complement_auc[0]]


def slab_run(seed: int) -> list[float]:
    return judged(slab_model(seed), *draw(Slabs(), 4000, seed, 1), [0], seed)


def ensemble_run(seed: int) -> float:
    models = [slab_model(seed * SEEDS + k) for k in range(SEEDS)]

    def mean(x: Tensor) -> Tensor:
        return torch.stack([model(x).softmax(dim=1) for model in models]).mean(dim=0)

    return judged(mean, *draw(Slabs(), 4000, seed, 2), [0], seed)[1]


def slabs_alone(seed: int) -> float:
    kind = Slabs(linear=False)
    model = fit(network(19, seed), *draw(kind, 20_000, seed, 3), seed, epochs=80, until=0.05)
    return judged(model, *draw(kind, 4000, seed, 4), [0], seed)[0]


def noisy_run(seed: int) -> tuple[float, float]:
    """Accuracy of the network and of the sign of the linear coordinate."""
    kind = Slabs(corrupted=0.1)
    model = fit(network(20, seed), *draw(kind, 20_000, seed, 5), seed, epochs=80, until=0.05)  # as the slabs alone
    x, y = draw(kind, 4000, seed, 6)
    with torch.no_grad():
        accuracy = (model(x).argmax(dim=1) == y).double().mean()
    return float(accuracy), float(((x[:, 0] > 0).long() == y).double().mean())


def gratings(n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images `[n, 1, 8, 8]`: two gratings side by side, class = whether their directions differ."""
    down, right = np.mgrid[0:8, 0:4]
    turned = rng.integers(0, 2, (n, 2))
    phase = rng.uniform(0, 2 * np.pi, (n, 2, 1, 1))
    wave = np.where(turned[..., None, None] == 1, down, right) * np.pi / 2
    halves = 0.5 + 0.5 * np.sin(wave + phase)
    images = np.concatenate([halves[:, 0], halves[:, 1]], axis=2) + rng.normal(0, 0.05, (n, 8, 8))
    return torch.from_numpy(images).float()[:, None], torch.from_numpy(turned[:, 0] ^ turned[:, 1])


def convolutional(height: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * height // 2 * 4, 64), nn.ReLU(), nn.Linear(64, 2),
        )  # fmt: skip


def image_run(seed: int) -> list[float]:
    """AUC with the digit randomised, with the gratings randomised, and of a network that sees gratings alone."""
    rng = np.random.default_rng([seed, 7])
    digits = load_digits()
    binary = digits.target < 2
    glyphs = torch.tensor(digits.images[binary] / 16).float()[:, None]
    labels = torch.tensor(digits.target[binary]).long()
    order = torch.from_numpy(rng.permutation(len(labels)))
    hard, hard_labels = gratings(4000, rng)
    parts = []
    for rows, times in ((order[:240], 16), (order[240:], 8)):
        parts.append(stacked_images(glyphs[rows.repeat(times)], labels[rows.repeat(times)], hard, hard_labels, rng))
    (x, y), (test_x, test_y) = parts
    model = fit(convolutional(16, seed), x, y, seed, epochs=20, rate=0.05, until=0.005)
    top = torch.zeros(16, 8, dtype=torch.bool)
    top[:8] = True
    _, simple, rest = judged(model, test_x, test_y, top, seed)
    alone = fit(convolutional(8, seed), hard, hard_labels, seed, epochs=60, rate=0.05, until=0.02)
    return [simple, rest, judged(alone, *gratings(1000, rng), top[:8], seed)[0]]
