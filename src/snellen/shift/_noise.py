"""The noise corruptions of ImageNet-C (Hendrycks & Dietterich, 2019): gaussian, shot and impulse noise.

Every function takes images `[B, C, H, W]` in [0, 1], a severity in [0, 5] and one generator a sample, and returns
images of the same shape, device and range, not yet cut to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from snellen.shift._severity import SeverityTable

GAUSSIAN_NOISE = SeverityTable(  # standard deviation
    identity=(0.0,),
    imagenet=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    cifar=((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    growth=(0,),
)
SHOT_NOISE = SeverityTable(  # 1 / photons at white: the variance, which is 0 without noise
    identity=(0.0,),
    imagenet=((1 / 60,), (1 / 25,), (1 / 12,), (1 / 5,), (1 / 3,)),
    cifar=((1 / 500,), (1 / 250,), (1 / 100,), (1 / 75,), (1 / 50,)),
    growth=(0,),
)
IMPULSE_NOISE = SeverityTable(  # share of channel values replaced
    identity=(0.0,),
    imagenet=((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    cifar=((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    growth=(0,),
)


def draw(generators: Sequence[Generator], sample: Callable[[Generator], Tensor], like: Tensor) -> Tensor:
    """`sample(generator)` for every generator, stacked to `[B, ...]` on the device of `like`."""
    return torch.stack([sample(generator) for generator in generators]).to(like.device)


def gaussian_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds N(0, std) to every channel value."""
    return add_noise(images, generators, *GAUSSIAN_NOISE.at(severity, images))


def add_noise(images: Tensor, generators: Sequence[Generator], std: float) -> Tensor:
    """`gaussian_noise` by its constant."""
    return _normal(images, generators).mul_(std).add_(images).clamp_(0, 1)


def add_speckle(images: Tensor, generators: Sequence[Generator], std: float) -> Tensor:
    """Adds x N(0, std) to every channel value."""
    return _normal(images, generators).mul_(std).add_(1).mul_(images).clamp_(0, 1)


def _normal(images: Tensor, generators: Sequence[Generator]) -> Tensor:
    shape = images.shape[1:]
    return draw(generators, lambda g: torch.randn(shape, generator=g, device=g.device), images)


def shot_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Counts photons: Poisson(x * photons) / photons.

    Unlike the other draws, those of two neighbouring severities are not the same noise at two strengths.
    """
    return count_photons(images, generators, *SHOT_NOISE.at(severity, images))


def count_photons(images: Tensor, generators: Sequence[Generator], variance: float) -> Tensor:
    """`shot_noise` by its constant, 1 / photons at white."""
    if variance == 0:
        return images.clone()

    def count(rate: Tensor, generator: Generator) -> Tensor:
        return torch.poisson(rate.to(generator.device), generator=generator)

    # torch draws Poisson numbers on one core; samples do not share a generator, so they may share the cores.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        counts = list(pool.map(count, images / variance, generators))
    return torch.stack(counts).to(images.device).mul_(variance).clamp_(0, 1)


def impulse_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Salt and pepper: channel values become 1 or 0, each with half of the amount."""
    return salt_and_pepper(images, generators, *IMPULSE_NOISE.at(severity, images))


def salt_and_pepper(images: Tensor, generators: Sequence[Generator], amount: float) -> Tensor:
    """`impulse_noise` by its constant."""
    shape = images.shape[1:]
    chance = draw(generators, lambda g: torch.rand(shape, generator=g, device=g.device), images)
    salted = images.masked_fill(chance < amount / 2, 1.0)
    return salted.masked_fill_((chance >= amount / 2) & (chance < amount), 0.0)
