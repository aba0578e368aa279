"""Obfuscations that change colours in place: inverted stripes, coloured blocks, halftone, texture, pattern.

Reconstructed after Stimberg et al., 2023, whose generators are not public; ranges are ours. All take images float32
`[B, C, H, W]` in [0, 1], a severity in (0, 5] and one generator a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from snellen.randomness import uniform
from snellen.shift._noise import draw
from snellen.shift._strength import length, pixel_rows, rising, spread, stripes
from snellen.shift._weather import plasma

LEVELS = 1024


def invert_lines(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Stripes 2 to 8 px wide at any angle as negatives: every other one at severity 3, 2/3 of the image at 5.

    Applied twice with the same draws it gives the image back.
    """
    thickness, turn, phase = uniform(generators, (3,)).unbind(1)
    period = 2 * spread(thickness, length(2, images), length(8, images)).clamp(min=1)
    inverted = stripes(images, period, math.pi * turn, phase, rising(severity, 1 / 2, 2 / 3))
    return (1 - images).where(inverted, images)


def color_noise_blocks(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Blocks of 8 to 32 px get a colour added or multiplied, N(0, 0.3) at severity 3 and N(0, 0.5) at 5.

    The factors are 1 + twice such a number.
    """
    std = rising(severity, 0.3, 0.5)
    height, width = images.shape[-2:]
    result = images.clone()
    for out, generator in zip(result, generators, strict=True):
        size, kind = torch.rand(2, generator=generator)
        side = max(round(float(spread(size, length(8, images), length(32, images)))), 1)
        shape = (len(out), math.ceil(height / side), math.ceil(width / side))
        colour = torch.randn(shape, generator=generator).to(out.device) * std
        colour = colour.repeat_interleave(side, 1)[:, :height].repeat_interleave(side, 2)[..., :width]
        out.copy_(out + colour if kind < 0.5 else out * (1 + 2 * colour))
    return result


def halftoning(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Dots of ink in each channel, their area the darkness, on turned screens of 6 px at severity 3 and 8 at 5.

    Below severity 3 the print is mixed with the image. It keeps the mean of a flat image.
    """
    pitch = max(length(rising(severity, 6, 8, start=4), images), 2.0)
    numbers = uniform(generators, (images.shape[1], 3, 1, 1)).to(images.device)
    turn, phases = math.pi / 2 * numbers[:, :, 0], 2 * math.pi * numbers[:, :, 1:]
    y, x = pixel_rows(images)
    u = (x * turn.cos() + y * turn.sin()) * (2 * math.pi / pitch) + phases[:, :, 0]
    v = (y * turn.cos() - x * turn.sin()) * (2 * math.pi / pitch) + phases[:, :, 1]
    spot = (u.cos_() + v.cos_()).add_(2).mul_((LEVELS - 1) / 4).long()
    # The rank of a height makes the share of the screen below it its value, so ink covers what is dark.
    paper = (screen_ranks().to(images.device)[spot] < images).float()
    return images.lerp(paper, min(severity / 3, 1.0))


@cache
def screen_ranks() -> Tensor:
    """Share of a dot screen that is lower than each of `LEVELS` heights of cos u + cos v, from -2 to 2."""
    wave = torch.cos((torch.arange(LEVELS) + 0.5) * (2 * math.pi / LEVELS))
    heights = (wave[:, None] + wave).add(2).mul((LEVELS - 1) / 4).long().flatten()
    below = torch.bincount(heights, minlength=LEVELS).double().cumsum(0) / len(heights)
    return below.float()


def texturize(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Multiplied by the veins of a plasma texture with opacity 0.45 at severity 3 and 0.6 at 5."""
    height, width = images.shape[-2:]
    side = 1 << (max(height, width) - 1).bit_length()
    steps = draw(generators, lambda g: torch.rand(side * side - 1, generator=g), images)
    cloud = plasma(steps, side, 1.9)[:, None, :height, :width]
    veins = cloud.mul(12 * math.pi).sin_().add_(1).div_(2)
    return images * veins.sub_(1).mul_(rising(severity, 0.45, 0.6)).add_(1)


def color_pattern_overlay(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Crossed waves of 8 to 32 px in every channel, blended over with opacity 0.5 at severity 3 and 0.6 at 5."""
    numbers = uniform(generators, (images.shape[1], 2, 3, 1, 1)).to(images.device)
    period = spread(numbers[:, :, :, 0], length(8, images), length(32, images))
    angle, phase = (2 * math.pi * numbers[:, :, :, i] for i in (1, 2))
    y, x = pixel_rows(images)
    waves = ((x * angle.cos() + y * angle.sin()) * (2 * math.pi / period) + phase).sin_()
    pattern = waves.sum(dim=2).mul_(0.75).add_(0.5).clamp_(0, 1)
    return images.lerp(pattern, rising(severity, 0.5, 0.6))
