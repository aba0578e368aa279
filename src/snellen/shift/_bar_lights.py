"""The three lights of ImageNet-C-bar (Mintun et al., 2021): sparkles, their inverse, refraction under moving water."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from snellen.shift._bar_patterns import chances, levels, pixel_grid
from snellen.shift._blur import gaussian_blur
from snellen.shift._digital import displace
from snellen.shift._noise import draw
from snellen.shift._transform import Shift

SPARKLES = levels((1, 2, 3, 5, 6), (0.7, 3.5, 5.6, 6.3, 7))
INVERSE_SPARKLES = levels((1, 2, 4, 9, 10), (1, 1.5, 2.5, 4.5, 5))
CAUSTIC_REFRACTION = levels((2.35, 3.2, 4.9, 6.6, 9.15))
STARS, MOST_RAYS = 5, 199
ETA = 4.0
"""Ratio of the refractive indices."""


def sparkles(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Whitens five stars of 50 to 199 rays of uneven length."""
    (level,) = SPARKLES.at(severity, images)
    radius = 0.01 * level * min(images.shape[-2:])
    result = images
    for top, left, lengths, rays in _stars(images, generators, STARS):
        weight = _glow(images, top, left, lengths, rays, radius, exponent=1.0)
        # A star of radius 0 is still one white pixel, so it fades in up to the first severity.
        result = torch.lerp(result, torch.ones_like(result), weight.unsqueeze(1) * min(severity, 1.0))
    return result


def inverse_sparkles(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Leaves the image to be seen in one star in the middle half and whitens the rest."""
    (level,) = INVERSE_SPARKLES.at(severity, images)
    ((top, left, lengths, rays),) = _stars(images, generators, 1)
    middle = 0.25 + 0.5 * top, 0.25 + 0.5 * left
    weight = _glow(images, *middle, lengths, rays, 0.25 * min(images.shape[-2:]), exponent=0.13 * level)
    # Between its rays the star dims the image even at level 0, so it fades in up to the first severity.
    weight = 1 + min(severity, 1.0) * (weight - 1)
    return 1 + weight.unsqueeze(1) * (images - 1)


def _stars(images: Tensor, generators: Sequence[Generator], count: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Place (shares of height and width), ray lengths in standard deviations `[B, 200]` and number of rays of each."""
    stars = []
    for _ in range(count):
        top, left, rays = chances(generators, 3, images)
        lengths = draw(generators, lambda g: torch.randn(MOST_RAYS + 1, generator=g), images)
        stars.append((top, left, lengths, 50 + (150 * rays).floor()))
    return stars


def _glow(
    images: Tensor, top: Tensor, left: Tensor, lengths: Tensor, rays: Tensor, radius: float, exponent: float
) -> Tensor:
    """How strongly a star shines at every pixel, `[B, H, W]` in [0, 1]."""
    rows, columns = pixel_grid(images)
    down, right = rows - top * images.shape[-2], columns - left * images.shape[-1]
    place = (torch.atan2(down, right) / (2 * math.pi)).remainder(1.0) * rays
    ray = place.floor()
    between = place - ray
    reach = (radius * (1 + 0.25 * lengths)).clamp_min(1.0)
    this = (ray.remainder(rays)).long().flatten(1)
    following = ((ray + 1).remainder(rays)).long().flatten(1)
    length = torch.lerp(reach.gather(1, this).view_as(place), reach.gather(1, following).view_as(place), between)
    falling = (length**2 / (down**2 + right**2 + 1e-4)) ** exponent
    return ((1 - (between - 0.5) ** 2) * falling).clamp_(0, 1)


def caustic_refraction(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Bends the image and lights it up as a wavy water surface would."""
    (level,) = CAUSTIC_REFRACTION.at(severity, images)
    surface = _water(images, generators)
    side = min(images.shape[-2:])

    # Slopes
    padded = torch.nn.functional.pad(surface.unsqueeze(1), (1, 1, 1, 1), mode="replicate")[:, 0]
    along_rows = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    along_columns = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]

    # Refraction
    norm = torch.sqrt(along_rows**2 + along_columns**2 + 1)
    cosine = 1 / norm
    bent = torch.sqrt(1 - (1 - cosine**2) / ETA**2) - cosine / ETA
    bent = torch.where(cosine >= 0.999, torch.zeros_like(bent), bent) / norm
    displacement = 0.05 * level * side * torch.stack((along_rows * bent, along_columns * bent), dim=1)
    seen = displace(images, displacement)

    # Light
    return seen + 0.2 * level * (along_rows - along_columns).unsqueeze(1)


def _water(images: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Brightness of the caustic pattern, `[B, H, W]` in [0, 1]."""
    size, time = chances(generators, 2, images)
    size, time = (0.75 + 0.5 * size) * min(images.shape[-2:]), 0.5 + 1.5 * time
    rows, columns = pixel_grid(images)
    shape = (len(images), *images.shape[-2:])
    first, second = (((axis / size).frac() * (2 * math.pi) - 250).expand(shape) for axis in (columns, rows))
    q0, q1 = first, second
    total = torch.ones(shape, device=images.device)
    for n in range(5):
        t = time * (1 - 3.5 / (n + 1))
        q0, q1 = first + torch.cos(t - q0) + torch.sin(t + q1), second + torch.sin(t - q1) + torch.cos(t + q0)
        total += torch.rsqrt((0.005 * first / torch.sin(q0 + t)) ** 2 + (0.005 * second / torch.cos(q1 + t)) ** 2)
    light = (1.17 - (total / 5) ** 1.4).abs().clamp_max(1.0) ** 8
    return gaussian_blur(light, 1.0, "nearest")


BAR_LIGHTS: Mapping[str, Shift] = {
    "sparkles": Shift("c-bar lights", random=sparkles),
    "inverse_sparkles": Shift("c-bar lights", random=inverse_sparkles),
    "caustic_refraction": Shift("c-bar lights", random=caustic_refraction),
}
