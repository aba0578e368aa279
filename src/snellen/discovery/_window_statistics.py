"""What a model of the periphery keeps of an image: statistics pooled in windows (Freeman and Simoncelli, 2011).

Smaller than the published texture model: one scale and a half instead of a steerable pyramid, four orientations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

ORIENTATIONS = 4


def filter_bank() -> Tensor:
    """A Laplacian and four oriented Gabor filters of zero mean and unit norm, `[5, 1, 7, 7]`."""
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * 1.5**2))
    angles = [math.pi * turn / ORIENTATIONS for turn in range(ORIENTATIONS)]
    waves = [torch.sin((x * math.cos(a) + y * math.sin(a)) * math.pi / 2.5) * envelope for a in angles]
    laplacian = (x**2 + y**2 - 2) * torch.exp(-(x**2 + y**2) / 2)
    filters = torch.stack([laplacian, *waves])
    filters = filters - filters.mean(dim=(1, 2), keepdim=True)
    bank: Tensor = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1)
    return bank.unsqueeze(1)


def window_statistics(images: Tensor, diameter: float) -> Tensor:
    """Statistics of the grey image in Gaussian windows, `[B, S]`, with gradients.

    images: `[B, C, H, W]`. diameter: of a window (four standard deviations) in px, at least 1; windows are half of it
    apart. In each: means and standard deviations of grey and of five filter responses, their correlations with the
    neighbours to the right and below, and correlations of the energy of the four orientations. Raises InvalidInput for
    an image smaller than the window.
    """
    if images.ndim != 4 or not diameter >= 1 or diameter > min(images.shape[-2:]):
        raise InvalidInput(
            f"images must be [B, C, H, W] and the window at least 1 px and not larger than they, got"
            f" {list(images.shape)} and {diameter} px"
        )
    grey = images.mean(dim=1, keepdim=True)
    responses = F.conv2d(F.pad(grey, (3, 3, 3, 3), mode="reflect"), filter_bank().to(grey))
    maps = torch.cat([grey, responses], dim=1)
    window, step = _window(diameter, maps), max(1, round(diameter / 2))

    mean = _pooled(maps, window, step)
    variance = (_pooled(maps.square(), window, step) - mean.square()).clamp_min(0)
    # Deviations below a grey level of 255 are none; without the floor correlations there would be noise.
    spread = (variance + (1 / 255) ** 2).sqrt()
    neighbours = []
    for down, right in ((0, 1), (1, 0)):
        moved = maps.roll((-down, -right), (2, 3))
        neighbours.append((_pooled(maps * moved, window, step) - mean.square()) / spread.square())
    energy = responses[:, 1:].abs()
    level = _pooled(energy, window, step)
    crossed = [
        (_pooled(energy[:, a] * energy[:, b], window, step, flat=True) - level[:, a] * level[:, b])
        / (spread[:, a + 2] * spread[:, b + 2])
        for a in range(ORIENTATIONS)
        for b in range(a)
    ]
    # Correlations are on a scale of 1 and grey levels hardly above 0.3; a tenth keeps either from ruling alone.
    return torch.cat([mean, spread, *(0.1 * n for n in neighbours), 0.1 * torch.stack(crossed, 1)], 1).flatten(1)


def _window(diameter: float, like: Tensor) -> Tensor:
    """A normalised Gaussian `[k]` with standard deviation of a quarter of the diameter."""
    sigma = diameter / 4
    reach = max(1, math.ceil(2 * sigma))
    weights = torch.exp(-(torch.arange(-reach, reach + 1).to(like) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _pooled(maps: Tensor, window: Tensor, step: int, flat: bool = False) -> Tensor:
    """Windowed means of `[B, C, H, W]`, or with `flat` of `[B, H, W]`, at every `step`-th pixel."""
    stacked = maps.unsqueeze(1) if flat else maps
    channels, reach = stacked.shape[1], len(window) // 2
    padded = F.pad(stacked, (reach, reach, reach, reach), mode="replicate")
    down = F.conv2d(padded, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), stride=(step, 1), groups=channels)
    both = F.conv2d(down, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), stride=(1, step), groups=channels)
    return both[:, 0] if flat else both
