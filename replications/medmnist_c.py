"""MedMNIST-C: does training on the artefacts of the modality beat generic augmentation, on artefacts it never saw?

Claim (Di Salvo et al., 2024): targeted augmentation gives markedly higher robustness than generic augmentation at
similar clean accuracy.

Protocol: synthetic blood cells of 48 px, discs with 1 to 4 nuclei and a slight class colour, shares 40, 30, 20 and
10 %. A small convolutional network without augmentation, with a generic one (flip, shifted crop, brightness and
contrast jitter), and with the targeted one of the "blood" modality. Leave-one-fold-out: an artefact is judged with the
network that trained without its whole fold (digital, blur, colour, task); blood images have no noise fold. The balanced
error BE is relative to softmax regression. Replicated if BE(targeted) <= 0.85 BE(generic) in 4 of 5 runs and clean
balanced accuracies differ by at most 0.02 in as many, both as the card has them. Size of the task and length of the
training were chosen by clean accuracy on another seed.

Outcome at seed 0: neither held. Nearly all error here is under colour, which the generic jitter resembles and the
targeted networks that are judged on it have not seen. With no fold left out the targeted one is ahead: on a seed aside
its mean balanced error over the eleven artefacts was 0.08, the generic's 0.13 and 0.22 without augmentation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim
from snellen.shift.medical import (
    BalancedErrors,
    MedicalAugmentation,
    balanced_corruption_error,
    balanced_error,
    shifts_of,
)

PAPER = "MedMNIST-C: Comprehensive benchmark and improved classifier robustness (2024)"
RUNS, NEEDED = 5, 4
SHARES = (0.4, 0.3, 0.2, 0.1)
TRAIN_IMAGES, TEST_IMAGES, EPOCHS = 2000, 200, 3
SIDE = 48
SHIFTS = shifts_of("blood")
FOLDS = tuple(sorted({shift.group for shift in SHIFTS.values()}))
SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)


class Run(NamedTuple):
    """BE of each training, and balanced accuracy on clean images; targeted is the mean of its folds."""

    plain: float
    generic: float
    targeted: float
    clean_plain: float
    clean_generic: float
    clean_targeted: float


def cells(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images `[count, 3, 48, 48]` and labels, the number of nuclei less one."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.multinomial(torch.tensor(SHARES), count, replacement=True, generator=generator)
    axis = torch.arange(SIDE, dtype=torch.float32)
    centre = uniform(SIDE / 2 - 4, SIDE / 2 + 4, 2)

    def disc(middle: Tensor, radius: Tensor) -> Tensor:
        distance = torch.hypot(axis[:, None] - middle[:, 0, None, None], axis - middle[:, 1, None, None])
        return torch.sigmoid(2 * (radius[:, None, None] - distance))[:, None]

    background = torch.tensor([0.93, 0.85, 0.85]).view(3, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    tint = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.1, 0.0], [0.1, 0.0, 0.0], [0.1, 0.1, 0.0]])[labels]
    cell = torch.tensor([0.75, 0.6, 0.75]).view(3, 1, 1) + tint[:, :, None, None] + uniform(-0.05, 0.05, 3, 1, 1)
    nucleus = torch.tensor([0.4, 0.25, 0.55]).view(3, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    images = torch.lerp(background.expand(count, 3, SIDE, SIDE), cell, disc(centre, uniform(14, 18)))
    turn = uniform(0, 2 * np.pi)
    for number in range(4):
        angle = turn + 2 * np.pi * number / (labels + 1)
        middle = centre + uniform(6, 9, 1) * torch.stack([angle.sin(), angle.cos()], dim=1)
        there = (number <= labels).float().view(-1, 1, 1, 1)
        images = torch.lerp(images, nucleus, there * disc(middle, uniform(3, 4.5)))
    return (images + 0.02 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def generic(images: Tensor, generator: Generator) -> Tensor:
    """Flips, crops shifted by up to 4 px, brightness and contrast between 0.8 and 1.2."""
    drawn = torch.rand(6, len(images), generator=generator)
    mirror = 1 - 2 * (drawn[:2] < 0.5).float()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, [0, 1], [0, 1]] = mirror.T
    theta[:, :, 2] = (2 * drawn[2:4].T - 1) * 8 / SIDE
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    bright, contrast = (0.8 + 0.4 * drawn[4:]).view(2, -1, 1, 1, 1)
    middle = moved.mean(dim=(1, 2, 3), keepdim=True)
    return ((middle + contrast * (moved - middle)) * bright).clamp(0, 1)


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for incoming, outgoing in ((3, 12), (12, 24), (24, 48)):
        layers += [nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1), nn.BatchNorm2d(outgoing), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 6 * 6, 4))


def regression() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 12 * 12, 4))


def trained(model: nn.Module, images: Tensor, labels: Tensor, seed: int, augmentation: object = None) -> nn.Module:
    generator = torch_generator(seed, "training")
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * -(-len(images) // 32))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(32):
            batch = images[chosen]
            if callable(augmentation):
                batch = augmentation(batch, generator)
            optimiser.zero_grad()
            F.cross_entropy(model.train()(batch), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def one_run(seed: int) -> Run:
    generator = torch_generator(seed, "cells")
    images, labels = cells(TRAIN_IMAGES, generator)
    test, truth = cells(TEST_IMAGES, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        base, first = regression(), network()

    def fresh() -> nn.Module:
        copy = network()
        copy.load_state_dict(first.state_dict())
        return copy

    models = {
        "base": trained(base, images, labels, seed),
        "plain": trained(fresh(), images, labels, seed),
        "generic": trained(fresh(), images, labels, seed, generic),
    }
    for fold in FOLDS:
        models[fold] = trained(fresh(), images, labels, seed, MedicalAugmentation("blood", without=(fold,)))

    @torch.no_grad()
    def error(model: nn.Module, batch: Tensor) -> float:
        return balanced_error(model(batch).argmax(1).numpy(), truth.numpy())

    random, ids = SampleRandom(seed, "medmnist-c"), [str(index) for index in range(len(test))]
    clean = {name: error(model, test) for name, model in models.items()}
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in ("base", "plain", "generic", "targeted")}
    for artefact, shift in SHIFTS.items():
        for severity in SEVERITIES:
            damaged = shift(test, severity, random.generators(ids, artefact)).clamp(0, 1)
            for name, row in rows.items():
                model = models[shift.group if name == "targeted" else name]
                row.setdefault(artefact, []).append(error(model, damaged))
    baseline = BalancedErrors(clean["base"], rows["base"])
    score = {n: balanced_corruption_error(BalancedErrors(0.0, row), baseline).value for n, row in rows.items()}
    targeted = float(np.mean([clean[fold] for fold in FOLDS]))
    return Run(
        score["plain"], score["generic"], score["targeted"], 1 - clean["plain"], 1 - clean["generic"], 1 - targeted
    )


def replicate(seed: int) -> list[Claim]:
    runs = [one_run(RUNS * seed + index) for index in range(RUNS)]
    better = sum(run.targeted <= 0.85 * run.generic for run in runs)
    similar = sum(abs(run.clean_targeted - run.clean_generic) <= 0.02 for run in runs)

    def listed(values: list[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values)

    return [
        Claim(
            "Targeted augmentation without the judged fold has at most 0.85 of the balanced error of a generic one",
            f"in at least {NEEDED} of {RUNS} runs",
            f"in {better} of {RUNS} runs; BE targeted {listed([run.targeted for run in runs])};"
            f" generic {listed([run.generic for run in runs])}; none {listed([run.plain for run in runs])}",
            better >= NEEDED,
        ),
        Claim(
            "Clean balanced accuracy is the same within 0.02",
            f"in at least {NEEDED} of {RUNS} runs",
            f"in {similar} of {RUNS} runs; targeted {listed([run.clean_targeted for run in runs])};"
            f" generic {listed([run.clean_generic for run in runs])};"
            f" none {listed([run.clean_plain for run in runs])}",
            similar >= NEEDED,
        ),
    ]
