"""An object behind another: occluders of a chosen size pasted over the object's centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.randomness import uniform
from snellen.shift._donors import PHOTOGRAPHS, Donors
from snellen.shift._patches import replaced

WAVES = 4
"""Harmonics of an occluder's outline."""
RAGGED = 0.35
"""Depth of the first harmonic as a share of the radius; harmonic k has RAGGED / k."""


class Occlusion(NamedTuple):
    """images: `[B, C, H, W]`. coverage, object_covered: share of the image and of the object that is hidden, `[B]`.
    pixels: bool `[B, H, W]`, the occluder. kept: bool `[B]`, False for samples without an object, which are unchanged.
    """

    images: Tensor
    coverage: Tensor
    object_covered: Tensor
    pixels: Tensor
    kept: Tensor


def occluded(
    images: Tensor, masks: Tensor, share: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Occlusion:
    """Paste a ragged piece of a photograph over the centre of each object (superimposed masked dataset, 2023).

    images: float `[B, C, H, W]` in [0, 1]. masks: bool `[B, H, W]`, True on the object, nowhere where there is none.
    share: of the image's pixels that the occluder takes, in (0, 1), exact to a pixel; the paper's are about 0.1 to 0.3.
    A larger occluder of the same generator contains the smaller. donors: where its texture is cut from, by default the
    two photographs that scikit-learn ships. Generated outlines stand for the paper's cut-out objects, so a model misled
    by *recognisable* foreign objects looks better here. Raises InvalidInput.
    """
    batch, _, height, width = images.shape
    if masks.dtype != torch.bool or tuple(masks.shape) != (batch, height, width):
        raise InvalidInput(
            f"masks must be bool [B, H, W] = {[batch, height, width]}, got {masks.dtype} {list(masks.shape)}"
        )
    if not 0 < share < 1:
        raise InvalidInput(f"share must be in (0, 1), got {share}")
    if len(generators) != batch:
        raise InvalidInput(f"generators must hold one a sample: {batch}, got {len(generators)}")
    kept = masks.flatten(1).any(dim=1)
    if not batch:
        return Occlusion(images, kept.float(), kept.float(), masks, kept)

    # how far out a pixel lies, in radii of the outline in its direction
    outline = uniform(generators, (2, WAVES)).to(images.device)
    texture = donors.drawn(generators, images)
    centre_y, centre_x = _centres(masks)
    y = torch.arange(height, device=images.device)[:, None] - centre_y[:, None, None]
    x = torch.arange(width, device=images.device)[None, :] - centre_x[:, None, None]
    reach = torch.hypot(y, x) / _radius(torch.atan2(y, x), outline)

    # the nearest pixels, as many as the share asks for
    count = max(1, round(share * height * width))
    order = reach.flatten(1).argsort(dim=1, stable=True)
    pixels = torch.zeros_like(masks).flatten(1).scatter_(1, order[:, :count], True).view_as(masks)
    pixels &= kept[:, None, None]
    size = masks.flatten(1).sum(dim=1).clamp(min=1)
    return Occlusion(
        replaced(images, texture, pixels),
        pixels.flatten(1).float().mean(dim=1),
        (pixels & masks).flatten(1).sum(dim=1) / size,
        pixels,
        kept,
    )


def _centres(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each object's centre of mass to the nearest pixel, `[B]`; 0 where there is no object."""
    on = masks.float()
    size = on.sum(dim=(1, 2)).clamp(min=1)
    rows, columns = (torch.arange(n, device=masks.device, dtype=torch.float32) for n in masks.shape[1:])
    return (on.sum(dim=2) @ rows / size).round(), (on.sum(dim=1) @ columns / size).round()


def _radius(angle: Tensor, outline: Tensor) -> Tensor:
    """The outline's radius, around 1, in the directions `angle` `[B, H, W]`. outline: `[B, 2, WAVES]` in [0, 1)."""
    radius = torch.ones_like(angle)
    for k in range(WAVES):
        depth, phase = outline[:, 0, k], 2 * math.pi * outline[:, 1, k]
        radius += (RAGGED / (k + 1) * depth)[:, None, None] * torch.cos((k + 1) * angle - phase[:, None, None])
    return radius
