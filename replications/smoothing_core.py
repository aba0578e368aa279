"""Smoothing certifies much for a network trained under noise, little for a clean one; a denoiser makes up for it.

Claim (Cohen et al., 2019; Salman et al., 2020): a classifier that never saw noise certifies almost nothing, one
trained under the same noise much, and a denoiser put before the frozen clean classifier recovers most of that.
Protocol: scikit-learn's 8x8 digits, 1,597 for training and 200 for the test; a CNN of three layers trained (a) clean,
(b) under noise, (c) as (a) with a convolutional denoiser in front, trained by squared error and then by the stability
loss. sigma 0.5, n0 = 100, n = 2,000, alpha 0.001, three seeds. Soundness: L2 PGD on the smoothed scores (32 noise
draws) with 0.99 of the certified radius must not flip the smoothed answer; alpha is allowed for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from snellen.attack.pgd import pgd
from snellen.certify.smoothing import Certificate, certify, predict, radius_curve
from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim

PAPER = (
    "Cohen et al., 2019, Certified adversarial robustness via randomized smoothing; Salman et al., 2020, Denoised"
    " smoothing: a provable defense for pretrained classifiers"
)
SIGMA, RADIUS, TEST = 0.5, 0.5, 200
ATTACKED = 40


class Figures(NamedTuple):
    """Certified accuracy at `RADIUS` and violations of soundness in one seed."""

    clean: float
    noise: float
    denoised: float
    violations: int
    attacked: int


def replicate(seed: int) -> list[Claim]:
    """Three trainings derived from `seed`; every claim must hold in each."""
    runs = [_figures(derive_seed(seed, "smoothing-core", run)) for run in range(3)]
    measured = "; ".join(
        f"clean {run.clean:.1%}, denoised {run.denoised:.1%}, noise-trained {run.noise:.1%}" for run in runs
    )
    violations, attacked = sum(run.violations for run in runs), sum(run.attacked for run in runs)
    return [
        Claim(
            "A prepended denoiser recovers certified accuracy of a clean classifier",
            "certified accuracy at radius 0.5: denoised >= clean + 15 points, in each of 3 seeds",
            measured,
            all(run.denoised >= run.clean + 0.15 for run in runs),
        ),
        Claim(
            "Training under noise certifies at least as much as the denoiser",
            "certified accuracy at radius 0.5: noise-trained >= denoised - 2 points, in each of 3 seeds",
            measured,
            all(run.noise >= run.denoised - 0.02 for run in runs),
        ),
        Claim(
            "No attack within the certified radius flips the smoothed answer",
            "0 flips",
            f"{violations} flips on {attacked} certified images",
            violations == 0,
        ),
    ]


def _figures(seed: int) -> Figures:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch_generator(seed, "split"))
    images = (torch.tensor(data.images, dtype=torch.float32)[:, None] / 16)[order]
    labels = torch.tensor(data.target)[order]
    test = images[:TEST], labels[:TEST]
    images, labels = images[TEST:], labels[TEST:]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clean = _classifier()
        _train(clean, images, lambda x, y: F.cross_entropy(clean(x), y), labels, epochs=20)
        noise = _classifier()
        _train(noise, images, lambda x, y: F.cross_entropy(noise(_noisy(x)), y), labels, epochs=40)
        denoiser = _denoiser()
        _train(denoiser, images, lambda x, _: F.mse_loss(denoiser(_noisy(x)), x), labels, epochs=40)
        clean.requires_grad_(False)
        denoised = nn.Sequential(denoiser, clean).eval()
        _train(
            denoiser, images, lambda x, _: F.cross_entropy(denoised(_noisy(x)), clean(x).argmax(1)), labels, epochs=20
        )

    certificates = {
        name: certify(network, test[0], SIGMA, _streams(seed, name), 10, n0=100, n=2000, alpha=0.001, chunk=512)
        for name, network in (("clean", clean), ("noise", noise), ("denoised", denoised))
    }
    accuracy = {
        name: float(radius_curve(c.predicted, c.radius, test[1], [RADIUS])[0]) for name, c in certificates.items()
    }
    violations, attacked = _violations(noise, test[0], certificates["noise"], seed)
    return Figures(**accuracy, violations=violations, attacked=attacked)


def _violations(network: nn.Module, images: Tensor, certificate: Certificate, seed: int) -> tuple[int, int]:
    """Certified images whose smoothed answer an attack inside the radius changes, and how many were attacked."""
    held = (certificate.radius > 0.1).nonzero().flatten()[:ATTACKED]
    noise = SIGMA * torch.randn(32, *images.shape[1:], generator=torch_generator(seed, "attack"))

    def smoothed(x: Tensor) -> Tensor:
        scores: Tensor = network((x[:, None] + noise).flatten(0, 1)).softmax(1)
        return scores.view(len(x), len(noise), -1).mean(1).log()

    flips = 0
    for row in held.split(1):
        budget = 0.99 * float(certificate.radius[row])
        image, label = images[row], certificate.predicted[row]
        attacked = pgd(smoothed, image, label, budget, "l2", steps=20, stop_early=False).images
        answer = predict(network, attacked, SIGMA, _streams(seed, "verify")[:1], 10, n=2000)
        flips += int(answer.item() not in (-1, label.item()))
    return flips, len(held)


def _streams(seed: int, method: str) -> list[Generator]:
    ids = [str(i) for i in range(TEST)]
    return SampleRandom(seed, method).generators(ids)


def _noisy(images: Tensor) -> Tensor:
    return images + SIGMA * torch.randn_like(images)


def _classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def _denoiser() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
        nn.Conv2d(16, 1, 5, padding=2),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def _train(
    network: nn.Module, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor, epochs: int
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            loss(images[rows], labels[rows]).backward()
            optimizer.step()
    network.eval()
