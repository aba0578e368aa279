"""Does Grad-CAM point better than a gradient, do integrated gradients add up, and do maps depend on the weights?

Claims: regions from the last feature map find the object more often than pixel gradients (Selvaraju et al., 2017),
integrated gradients sum to the difference of the scores (Sundararajan et al., 2017), gradient and Grad-CAM change when
the weights are randomised (Adebayo et al., 2018). That measures disagree is reported, not judged: the rank correlation
over five explainers between deletion area and pointing game.

Protocol: scikit-learn's digits, 1,597 for training and 200 for the test, enlarged to 20 px and put at random on a
canvas of 48 px beside four quarters of other digits; a CNN with batch normalisation and global average pooling. The
pointing game asks whether the largest value of the true class's map lies on the digit's ink, with the card's tolerance
of 15 px at 224 px, 3 px here; so widened, the ink covers 21 % of the canvas. Three splits, canvases and trainings a
seed; each claim must hold in each. 15 points and 1 % are the card's; the share of images and the Spearman are ours.

Outcome at seeds 0 and 1: all but the first held. The gradient of these networks is already on the ink for 90 to 96 %
of the images in five of the six runs, which leaves Grad-CAM (99.5 to 100 %) no 15 points to win; in one it is 78 %.

Open, until the package has them: composite LRP, RISE and guided backpropagation, and the four-block ViT.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from snellen.explain._curves import area, faithfulness_curves
from snellen.explain.cam import class_activation_map
from snellen.explain.gradients import COMPLETENESS, gradient, integrated_gradients, smooth_grad
from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim
from snellen.stats import bootstrap_bca

PAPER = (
    "Selvaraju et al., 2017, Grad-CAM; Sundararajan et al., 2017, Axiomatic attribution for deep networks; Adebayo et"
    " al., 2018, Sanity checks for saliency maps"
)
RUNS, TEST, COPIES, EPOCHS = 3, 200, 2, 5
CANVAS, DIGIT, QUARTERS, TOLERANCE = 48, 20, 4, 3
LEAST_ACCURACY = 0.85
"""Maps of a network that cannot do its task say nothing about the explainers."""

AHEAD, COMPLETE_SHARE, MOST_ALIKE = 0.15, 0.99, 0.5
"""The card's 15 points; the share of images complete to 1 %; Spearman after randomisation. Set before any map."""


class Scenes(NamedTuple):
    """images: `[N, 1, 48, 48]`. ink: bool `[N, 48, 48]`, the digit's pixels. labels: int64 `[N]`."""

    images: Tensor
    ink: Tensor
    labels: Tensor


class Alike(NamedTuple):
    """Mean Spearman of |map| before and after randomisation, and of maps of two images. flat: images left out."""

    after: float
    unrelated: float
    flat: int


class Run(NamedTuple):
    """hits: explainer -> bool `[200]`. deletion: explainer -> area `[200]`. complete: share of images."""

    accuracy: float
    hits: dict[str, NDArray[np.bool_]]
    deletion: dict[str, NDArray[np.float64]]
    complete: float
    alike: dict[str, Alike]

    def pointing(self, explainer: str) -> float:
        return float(self.hits[explainer].mean())


def replicate(seed: int) -> list[Claim]:
    """Three trainings derived from `seed`; every claim must hold in each."""
    runs = [one_run(derive_seed(seed, "attribution_core", index)) for index in range(RUNS)]
    able = all(run.accuracy >= LEAST_ACCURACY for run in runs)
    accuracies = ", ".join(f"{run.accuracy:.1%}" for run in runs)
    table = "; ".join(", ".join(f"{name} {run.pointing(name):.1%}" for name in run.hits) for run in runs)
    return [
        Claim(
            "The largest value of Grad-CAM lies on the object more often than that of the gradient",
            f"pointing game: Grad-CAM >= gradient + 15 points, in each of {RUNS} runs",
            f"{table} (accuracy {accuracies}; {_disagreement(runs, seed)})",
            able and all(run.pointing("Grad-CAM") >= run.pointing("gradient") + AHEAD for run in runs),
        ),
        Claim(
            "Integrated gradients add up to the difference of the scores",
            f"gap within 1 % on at least {COMPLETE_SHARE:.0%} of the images, in each of {RUNS} runs",
            ", ".join(f"{run.complete:.1%}" for run in runs),
            able and all(run.complete >= COMPLETE_SHARE for run in runs),
        ),
        *(
            Claim(
                f"The {name} map changes when all weights are randomised",
                f"mean Spearman of |map| before and after < {MOST_ALIKE}, in each of {RUNS} runs",
                "; ".join(
                    f"{run.alike[name].after:.2f} (maps of two images {run.alike[name].unrelated:.2f},"
                    f" {run.alike[name].flat} flat maps left out)"
                    for run in runs
                ),
                able and all(run.alike[name].after < MOST_ALIKE for run in runs),
            )
            for name in ("gradient", "Grad-CAM")
        ),
    ]


def one_run(seed: int) -> Run:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch_generator(seed, "split"))
    digits = (torch.tensor(data.images, dtype=torch.float32) / 16)[order]
    labels = torch.tensor(data.target)[order]
    training = scenes(digits[TEST:], labels[TEST:], COPIES, torch_generator(seed, "training scenes"))
    test = scenes(digits[:TEST], labels[:TEST], 1, torch_generator(seed, "test scenes"))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = _network()
        randomised = _network().eval().requires_grad_(False)
    _train(network, training, torch_generator(seed, "order"))
    with torch.no_grad():
        accuracy = float((network(test.images).argmax(1) == test.labels).float().mean())

    maps, complete = _maps(network, test, seed)
    reach = F.max_pool2d(test.ink.float().unsqueeze(1), 2 * TOLERANCE + 1, stride=1, padding=TOLERANCE).flatten(1)
    hits = {}
    for name, heat_maps in maps.items():
        largest = heat_maps.flatten(1).max(dim=1)
        on_ink = reach.gather(1, largest.indices.unsqueeze(1)).squeeze(1) > 0
        hits[name] = (on_ink & (largest.values > 0)).numpy()  # an empty map points nowhere
    curves = faithfulness_curves(network, test.images, list(maps.values()), test.labels, steps=10)

    after = {"gradient": _saliency(randomised, test), "Grad-CAM": _grad_cam(randomised, test)}
    return Run(
        accuracy,
        hits,
        {name: area(curve.deletion).double().numpy() for name, curve in zip(maps, curves, strict=True)},
        complete,
        {name: _alike(maps[name], heat_maps) for name, heat_maps in after.items()},
    )


def _maps(network: nn.Module, test: Scenes, seed: int) -> tuple[dict[str, Tensor], float]:
    """Maps `[N, 48, 48]` of the true class, and the share of images whose integrated gradients are complete."""
    images, labels = test.images, test.labels
    plain = gradient(network, images, labels)
    generators = SampleRandom(seed, "attribution_core").generators([str(i) for i in range(len(images))])
    integrated = integrated_gradients(network, images, labels)
    with torch.no_grad():
        ends = network(images) - network(torch.zeros_like(images))
    gained = ends.gather(1, labels.unsqueeze(1)).squeeze(1).abs()
    maps = {
        "gradient": plain.abs().amax(dim=1),
        "gradient x input": (plain * images).sum(dim=1),
        "SmoothGrad": smooth_grad(network, images, labels, generators).abs().amax(dim=1),
        "integrated gradients": integrated.attributions.sum(dim=1),
        "Grad-CAM": _grad_cam(network, test),
    }
    return maps, float((integrated.gap <= COMPLETENESS * gained).float().mean())


def _saliency(network: nn.Module, test: Scenes) -> Tensor:
    return gradient(network, test.images, test.labels).abs().amax(dim=1)


def _grad_cam(network: nn.Module, test: Scenes) -> Tensor:
    return class_activation_map(network, test.images, test.labels)[0]


def _alike(before: Tensor, after: Tensor) -> Alike:
    first, second = before.abs().flatten(1).numpy(), after.abs().flatten(1).numpy()
    kept = (np.ptp(first, axis=1) > 0) & (np.ptp(second, axis=1) > 0)  # a flat map has no ranks
    first, second = first[kept], second[kept]

    def mean(others: NDArray[np.float32]) -> float:
        return float(np.mean([spearmanr(a, b).statistic for a, b in zip(first, others, strict=True)]))

    return Alike(mean(second), mean(np.roll(first, 1, axis=0)), int((~kept).sum()))


def _disagreement(runs: list[Run], seed: int) -> str:
    """Do explainers that delete well also point well? Over the images of all runs, without a verdict."""
    names = list(runs[0].hits)
    deletion = [np.concatenate([run.deletion[name] for run in runs]) for name in names]
    hits = [np.concatenate([run.hits[name] for run in runs]).astype(np.float64) for name in names]
    values = np.stack([*deletion, *hits], axis=1)

    def agreement(sample: NDArray[np.float64]) -> float:
        mean = sample.mean(axis=0)
        return float(spearmanr(-mean[: len(names)], mean[len(names) :]).statistic)

    low, high = bootstrap_bca(values, agreement, SampleRandom(seed, "attribution_core").numpy("disagreement"))
    areas = ", ".join(f"{name} {values[:, index].mean():.3f}" for index, name in enumerate(names))
    return (
        f"reported only: Spearman over {len(names)} explainers between a small deletion area and the pointing game"
        f" {agreement(values):.2f}, 95 % interval over images {low:.2f} to {high:.2f}; deletion areas: {areas}"
    )


def scenes(digits: Tensor, labels: Tensor, copies: int, generator: Generator) -> Scenes:
    """Every digit `[N, 8, 8]` on `copies` canvases, each with quarters of other digits that do not touch it."""
    large = F.interpolate(digits.unsqueeze(1), size=(DIGIT, DIGIT), mode="bilinear", align_corners=False).squeeze(1)
    images = torch.zeros(copies * len(digits), CANVAS, CANVAS)
    ink = torch.zeros_like(images, dtype=torch.bool)
    half = DIGIT // 2
    for row, image in enumerate(images):
        y, x = torch.randint(CANVAS - DIGIT + 1, (2,), generator=generator).tolist()
        box = slice(y, y + DIGIT), slice(x, x + DIGIT)
        image[box] = large[row % len(digits)]
        ink[row][box] = image[box] > 0.1
        placed = 0
        while placed < QUARTERS:
            top, left = torch.randint(CANVAS - half + 1, (2,), generator=generator).tolist()
            if y - half < top < y + DIGIT and x - half < left < x + DIGIT:
                continue
            other = int(torch.randint(len(digits), (1,), generator=generator))
            down, right = (torch.randint(2, (2,), generator=generator) * half).tolist()
            piece = image[top : top + half, left : left + half]
            torch.maximum(piece, large[other, down : down + half, right : right + half], out=piece)
            placed += 1
    return Scenes(images.unsqueeze(1), ink, labels.repeat(copies))


def _network() -> nn.Module:
    def block(incoming: int, outgoing: int) -> list[nn.Module]:
        return [nn.Conv2d(incoming, outgoing, 3, padding=1, bias=False), nn.BatchNorm2d(outgoing), nn.ReLU()]

    return nn.Sequential(
        *block(1, 12), nn.MaxPool2d(2), *block(12, 24), nn.MaxPool2d(2), *block(24, 48), *block(48, 48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def _train(network: nn.Module, training: Scenes, generator: Generator) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    steps = EPOCHS * -(-len(training.labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(training.labels), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(network(training.images[chosen]), training.labels[chosen]).backward()
            optimiser.step()
            schedule.step()
    network.eval().requires_grad_(False)


if __name__ == "__main__":
    claims = replicate(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for claim in claims:
        print(f"{'held' if claim.held else 'NOT HELD'}: {claim.statement}")
        print(f"  claimed  {claim.claimed}\n  measured {claim.measured}")
    sys.exit(not all(claim.held for claim in claims))
