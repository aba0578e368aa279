"""Edits of one attribute of an object while the rest stays: background, size, position, direction (ImageNet-E, 2023).

The object is lifted off its image once (`separate`), its place is filled in, and every edit puts it back differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.randomness import uniform
from snellen.shift._composite import (
    dilated,
    feather_width,
    feathered,
    filled,
    over,
    scaling,
    turning,
    warp,
    warp_down,
    with_complexity,
)
from snellen.shift._masks import SMALLEST, boxes_of, editable

Size = float | Literal["full"]
"""Share of the image's pixels that the object takes, in (0, 1), or as large as the frame allows."""

RATE_TOLERANCE = 0.015
RATE_AIM, STEPS = 0.002, 6
"""A zoom is corrected by the rate that it gave until that close, or so often; the paper stops at the tolerance."""
VISIBLE = 0.98
"""Share of a turned object that must still be inside the image."""


class Edit(NamedTuple):
    """images: `[B, C, H, W]`. masks: bool `[B, H, W]`, where the object is now. kept: bool `[B]`, False where the edit
    could not be made; the images there mean nothing."""

    images: Tensor
    masks: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Separated:
    """An object and what is behind it.

    alpha: its opacity `[B, 1, H, W]`. background: the images with the object filled in. boxes: int64 `[B, 4]` as x1,
    y1, x2, y2. kept: bool `[B]`, False where the mask holds less than 1 % of the image or more than 90 %.
    """

    images: Tensor
    masks: Tensor
    alpha: Tensor
    background: Tensor
    boxes: Tensor
    kept: Tensor

    @property
    def layers(self) -> Tensor:
        """Premultiplied colours, opacity and mask in one `[B, C + 2, H, W]`, to be moved together."""
        return torch.cat([self.images * self.alpha, self.alpha, self.masks[:, None].to(self.images)], dim=1)

    def put_back(self, layers: Tensor, unchanged: Tensor, kept: Tensor) -> Edit:
        """Moved `layers` over the filled background; the images themselves where `unchanged` `[B]` says so."""
        pasted = layers[:, :-2] + self.background * (1 - layers[:, -2:-1])
        same = unchanged[:, None, None]
        masks = torch.where(same, self.masks, layers[:, -1] > 0.5)
        images = torch.where(same[:, None], self.images, pasted).clamp_(0, 1)
        return Edit(images, masks, kept & self.kept & _visible(masks))


def separate(images: Tensor, masks: Tensor) -> Separated:
    """Lift the objects under `masks` (bool `[B, H, W]`) off images `[B, C, H, W]` in [0, 1]. Raises InvalidInput."""
    wanted = [len(images), *images.shape[-2:]]
    if images.ndim != 4 or masks.dtype != torch.bool or list(masks.shape) != wanted:
        raise InvalidInput(
            f"masks must be bool [B, H, W] for images [B, C, H, W] {list(images.shape)},"
            f" got {masks.dtype} {list(masks.shape)}"
        )
    soft = feather_width(images.shape[-2], images.shape[-1])
    # One pixel beyond the soft edge still has the object's colour mixed in.
    background = filled(images, dilated(masks, soft + 1))
    return Separated(images, masks, feathered(masks, soft), background, boxes_of(masks), editable(masks))


def with_background(parts: Separated, backgrounds: Tensor) -> Edit:
    """The object where it was, before other `backgrounds` `[B, C, H, W]`; its pixels are bit-identical."""
    images = over(parts.images, parts.alpha, backgrounds).clamp_(0, 1)
    return Edit(images, parts.masks, parts.kept & _visible(parts.masks))


def with_background_complexity(parts: Separated, strength: float) -> Edit:
    """The object before its own background with finer detail raised (strength > 0) or lowered (< 0); +-20 in the paper.

    Stands for the paper's guided diffusion: it scales detail that is there, and cannot invent what is not.
    """
    return with_background(parts, with_complexity(parts.background, strength))


def with_size(parts: Separated, size: Size) -> Edit:
    """The object at a share of the image's pixels, about its box's centre; not kept where that is missed by > 0.015.

    Smaller: the object shrinks before its filled background. Larger: the image is cropped, as far as the object stays
    whole; "full" is that limit.
    """
    if size != "full" and not 0 < size < 1:
        raise InvalidInput(f"size must be in (0, 1) or 'full', got {size}")
    height, width = parts.images.shape[-2:]
    zooms = _zooms(parts, size)
    matrices = _framed(parts.boxes, zooms, height, width)

    # shrink the object, or crop the image
    layers = torch.zeros_like(parts.layers)
    shrinks = torch.nonzero(zooms < 1).flatten()
    if len(shrinks):
        layers[shrinks] = warp_down(parts.layers[shrinks], matrices[shrinks], zooms[shrinks])
    shrunk = parts.put_back(layers, zooms == 1, parts.kept)
    images, masks = shrunk.images, shrunk.masks
    grown = torch.nonzero(zooms > 1).flatten()
    if len(grown):
        images[grown] = warp(parts.images[grown], matrices[grown], (height, width), padding="border")
        masks[grown] = _warped_masks(parts.masks[grown], matrices[grown])

    kept = parts.kept & _visible(masks)
    if size != "full":
        kept = kept & ((_rate(masks) - size).abs() <= RATE_TOLERANCE)
    return Edit(images, masks, kept)


def _zooms(parts: Separated, size: Size) -> Tensor:
    """Factor `[B]`, float64, that brings each object to its size, at most what the frame has room for."""
    height, width = parts.images.shape[-2:]
    x1, y1, x2, y2 = parts.boxes.double().unbind(dim=1)
    room = torch.minimum(height / (y2 - y1), width / (x2 - x1))
    if size == "full":
        return room
    zooms = torch.minimum((size / _rate(parts.masks)).sqrt(), room)
    best, least = zooms, torch.full_like(zooms, torch.inf)
    for _ in range(STEPS):
        rate = _rate(_warped_masks(parts.masks, _framed(parts.boxes, zooms, height, width)))
        # A few pixels of a small object appear all at once, so that the last zoom need not be the best.
        miss = (rate - size).abs()
        best, least = torch.where(miss < least, zooms, best), torch.minimum(miss, least)
        if bool((least <= RATE_AIM).all()):
            break
        # A sample that is there stands still, so that its zoom does not depend on its batch.
        corrected = torch.minimum(zooms * (size / rate).sqrt(), room).clamp(min=1e-2)
        zooms = torch.where(least <= RATE_AIM, zooms, corrected)
    return best


def with_position(parts: Separated, generators: Sequence[Generator]) -> Edit:
    """The object at a place drawn uniformly among all that keep it inside; not kept where there is only one."""
    height, width = parts.images.shape[-2:]
    drawn = uniform(generators, (2,)).to(parts.images.device)
    x1, y1, x2, y2 = parts.boxes.unbind(dim=1)
    free_x, free_y = width - (x2 - x1), height - (y2 - y1)
    right = (drawn[:, 0] * (free_x + 1)).long().clamp(max=free_x) - x1
    down = (drawn[:, 1] * (free_y + 1)).long().clamp(max=free_y) - y1
    return moved(parts, right, down, (free_x + free_y) > 0)


def moved(parts: Separated, right: Tensor, down: Tensor, kept: Tensor) -> Edit:
    """The object moved by whole pixels, int64 `[B]` each; a move of 0 is the identity."""
    height, width = parts.images.shape[-2:]
    rows = torch.arange(height, device=parts.images.device) - down[:, None]
    columns = torch.arange(width, device=parts.images.device) - right[:, None]
    there = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    sample = torch.arange(len(rows), device=rows.device)[:, None, None]
    layers = parts.layers.permute(0, 2, 3, 1)
    taken = layers[sample, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return parts.put_back(taken.permute(0, 3, 1, 2) * there[:, None], (right == 0) & (down == 0), kept)


def with_direction(parts: Separated, generators: Sequence[Generator], largest: int = 45) -> Edit:
    """The object turned about its box's centre by a whole angle drawn from -largest to largest degrees."""
    drawn = uniform(generators, (1,))[:, 0].to(parts.images.device)
    return turned(parts, (drawn * (2 * largest + 1)).floor().clamp(max=2 * largest) - largest)


def turned(parts: Separated, degrees: Tensor) -> Edit:
    """The object turned clockwise by `degrees` `[B]`; not kept where more than 2 % of it leave the image; 0 is the
    identity."""
    height, width = parts.images.shape[-2:]
    x1, y1, x2, y2 = parts.boxes.double().unbind(dim=1)
    matrices = turning(degrees, (x1 + x2) / 2, (y1 + y2) / 2)
    inside = _stays_inside(parts.masks, matrices) >= VISIBLE
    return parts.put_back(warp(parts.layers, matrices, (height, width)), degrees == 0, inside)


def _framed(boxes: Tensor, zooms: Tensor, height: int, width: int) -> Tensor:
    """Scaling about the boxes' centres, then the least shift that keeps an enlarged box inside the frame."""
    x1, y1, x2, y2 = boxes.double().unbind(dim=1)
    matrices = scaling(zooms, (x1 + x2) / 2, (y1 + y2) / 2)
    for axis, low, high, limit in ((0, x1, x2, width), (1, y1, y2, height)):
        offset = matrices[:, axis, 2]
        shift = (-(zooms * low + offset)).clamp(min=0) - (zooms * high + offset - limit).clamp(min=0)
        matrices[:, axis, 2] = offset + shift
    return matrices


def _warped_masks(masks: Tensor, matrices: Tensor) -> Tensor:
    return warp(masks[:, None].float(), matrices, (masks.shape[-2], masks.shape[-1]))[:, 0] > 0.5


def _rate(masks: Tensor) -> Tensor:
    return masks.flatten(1).double().mean(dim=1).clamp(min=1e-4)


def _visible(masks: Tensor) -> Tensor:
    return masks.flatten(1).float().mean(dim=1) >= SMALLEST


def _stays_inside(masks: Tensor, matrices: Tensor) -> Tensor:
    """Share of each mask's pixels `[B]` whose centres the affine `matrices` leave inside the image."""
    height, width = masks.shape[-2:]
    y = torch.arange(height, device=masks.device, dtype=torch.float64)[:, None] + 0.5
    x = torch.arange(width, device=masks.device, dtype=torch.float64) + 0.5
    m = matrices[:, :2, :, None, None]
    new_x, new_y = (m[:, axis, 0] * x + m[:, axis, 1] * y + m[:, axis, 2] for axis in (0, 1))
    inside = (new_x >= 0) & (new_x <= width) & (new_y >= 0) & (new_y <= height)
    return (inside & masks).flatten(1).sum(dim=1) / masks.flatten(1).sum(dim=1).clamp(min=1)
