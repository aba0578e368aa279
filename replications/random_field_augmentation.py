"""Random Field Augmentations (2023): smooth local jitter as an augmentation for self-supervised learning.

Claim: mild random fields on top of the usual augmentations improve a linear probe in and out of distribution; strong
ones hurt. Protocol: SimCLR (NT-Xent, temperature 0.1) with a small network on 1,300 of scikit-learn's digits at 32 px,
batch 256, 6 epochs; the usual augmentations are a random crop, a global turn and global brightness and contrast;
fields come on top at strength 0.5, 1 and 4. Linear probe: logistic regression on 500 labelled training images. Test:
the other digits as they are, and under elastic transforms, Gaussian noise and fog of severity 3. Two seeds a run, for
the sake of time; the first design of 15 epochs and five seeds was stopped after ten minutes without a result.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim
from snellen.shift.corruptions import corrupt
from snellen.shift.random_fields import random_field_augmentation
from snellen.shift.translations import rotated

PAPER = "Random Field Augmentations for Self-Supervised Representation Learning (2023)"
SEEDS, EPOCHS, BATCH, TEMPERATURE = 2, 6, 256, 0.1
STRENGTHS = (0.0, 0.5, 1.0, 4.0)
SHIFTED = ("elastic_transform", "gaussian_noise", "fog")


def replicate(seed: int) -> list[Claim]:
    runs = np.array([[probe_accuracies(seed * SEEDS + k, m) for m in STRENGTHS] for k in range(SEEDS)])
    inside, outside = runs[:, :, 0].mean(axis=0), runs[:, :, 1].mean(axis=0)
    mild = 1 + int(np.argmax(inside[1:3]))
    gains = inside[mild] - inside[0], outside[mild] - outside[0]
    per_strength = "; ".join(
        f"m = {m:g}: {a:.3f} in, {b:.3f} out" for m, a, b in zip(STRENGTHS, inside, outside, strict=True)
    )
    return [
        Claim(
            "The best mild strength beats the usual augmentations in distribution",
            "by 0.5 points or more, mean of the seeds",
            f"{100 * gains[0]:+.1f} points at m = {STRENGTHS[mild]:g} ({per_strength})",
            bool(gains[0] >= 0.005),
        ),
        Claim(
            "and out of distribution",
            "by 1 point or more, mean of the seeds",
            f"{100 * gains[1]:+.1f} points at m = {STRENGTHS[mild]:g}",
            bool(gains[1] >= 0.01),
        ),
        Claim(
            "Strong fields are worse than the best mild ones",
            "m = 4 at least 1 point below, in distribution",
            f"{100 * (inside[mild] - inside[3]):.1f} points below",
            bool(inside[mild] - inside[3] >= 0.01),
        ),
    ]


def probe_accuracies(seed: int, strength: float) -> tuple[float, float]:
    """Accuracy of a linear probe in distribution, and its mean under the shifts."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order] / 16).float().unsqueeze(1)
    images = F.interpolate(images, size=32, mode="bilinear").clamp(0, 1)
    labels = digits.target[order]
    network = learn(images[:1300], strength, seed)
    classifier = LogisticRegression(max_iter=300).fit(embed(network, images[:500]), labels[:500])
    test, random = images[1300:], SampleRandom(seed, "random-field-augmentation")
    ids = [str(i) for i in range(len(test))]
    accuracies = [
        classifier.score(embed(network, corrupt(test, name, 3, random.generators(ids, name))), labels[1300:])
        for name in SHIFTED
    ]
    return float(classifier.score(embed(network, test), labels[1300:])), float(np.mean(accuracies))


def learn(images: Tensor, strength: float, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "simclr"))
        encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
            nn.Linear(64 * 16, 64),
        )
        head = nn.Sequential(nn.ReLU(), nn.Linear(64, 64))
        optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 2e-3)
        for epoch in range(EPOCHS):
            for number, rows in enumerate(torch.randperm(len(images)).split(BATCH)):
                views = [view(images[rows], strength, (seed, epoch, number, side)) for side in (0, 1)]
                loss = contrast(F.normalize(head(encoder(torch.cat(views))), dim=1))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return encoder.eval()


def view(images: Tensor, strength: float, key: tuple[int, ...]) -> Tensor:
    """Random crop, one global turn and jitter a batch element group, then the fields."""
    generator = torch_generator("view", *key)
    turns = torch.empty(4).uniform_(-15, 15, generator=generator)
    made = []
    for part, turn in zip(images.chunk(4), turns.tolist(), strict=False):
        top, left = torch.randint(0, 7, (2,), generator=generator).tolist()
        cut = rotated(part, turn)[..., top : top + 26, left : left + 26]
        made.append(F.interpolate(cut, size=32, mode="bilinear"))
    gain, lift = (torch.rand(len(images), 1, 1, 1, generator=generator) for _ in range(2))
    jittered = (torch.cat(made) * (0.7 + 0.6 * gain) + 0.2 * (lift - 0.5)).clamp(0, 1)
    if strength == 0:
        return jittered
    generators = [torch_generator("fields", *key, i) for i in range(len(images))]
    return random_field_augmentation(jittered, generators, strength)


def contrast(embedded: Tensor) -> Tensor:
    """NT-Xent of `[2 B, D]`, the two views of an image being rows i and i + B."""
    half = len(embedded) // 2
    similarity = (embedded @ embedded.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarity, torch.arange(2 * half).roll(half))


@torch.no_grad()
def embed(network: nn.Module, images: Tensor) -> np.ndarray:
    return np.asarray(network(images))
