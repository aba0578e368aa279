"""Parts of an image that can be taken from another one: tiles, frame and centre, frequencies, colour, background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput

Part = Literal["region", "low", "high", "colour", "luminance", "background", "object"]
CUT = 0.1
"""Cycles a pixel at which half the amplitude counts as coarse, half as fine (Nyquist is 0.5)."""
FRAME = 8
"""The frame is an eighth of the image wide on every side."""
GROWN = 16
"""Masks are grown by a sixteenth of the shorter side: their soft rim would show the object."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Block:
    """name: in words. region: bool `[H, W]` for regions. rim: a region at the border, where objects seldom are."""

    name: str
    part: Part
    region: Tensor | None = None
    rim: bool = False


def blocks_of(channels: int, height: int, width: int, grid: int, masks: bool) -> list[Block]:
    """The parts that images of a size have; without colour for one channel, without background where no masks are."""
    if grid < 2 or min(height, width) < 2 * grid:
        raise InvalidInput(f"a grid of {grid} needs images of {2 * grid} px or more a side, got {height} x {width}")
    tops, lefts = ([round(side * i / grid) for i in range(grid + 1)] for side in (height, width))
    found = []
    for i in range(grid):
        for j in range(grid):
            region = torch.zeros(height, width, dtype=torch.bool)
            region[tops[i] : tops[i + 1], lefts[j] : lefts[j + 1]] = True
            corner = i in (0, grid - 1) and j in (0, grid - 1)
            name = f"{'lower' if i else 'upper'} {'right' if j else 'left'} corner"
            found.append(Block(name if corner else f"tile in row {i + 1}, column {j + 1}", "region", region, corner))
    down, right = max(height // FRAME, 1), max(width // FRAME, 1)
    centre = torch.zeros(height, width, dtype=torch.bool)
    centre[down : height - down, right : width - right] = True
    found += [Block("frame", "region", ~centre, True), Block("centre", "region", centre)]
    found += [Block("coarse structure", "low"), Block("fine structure", "high")]
    if channels == 3:
        found += [Block("colour", "colour"), Block("luminance", "luminance")]
    if masks:
        found += [Block("background", "background"), Block("object", "object")]
    return found


class Exchange(NamedTuple):
    """images `[B, C, H, W]`. area: share of the pixels exchanged, `[B]`. clear: bool `[B]`, no object was brought."""

    images: Tensor
    area: Tensor
    clear: Tensor


def exchange(
    images: Tensor, donors: Tensor, block: Block, masks: Tensor | None = None, donor_masks: Tensor | None = None
) -> Exchange:
    """`images` with one part taken from `donors`, both `[B, C, H, W]` in [0, 1].

    masks: grown object masks bool `[B, H, W]`. Background is what lies outside the boxes of both objects: cut along
    the outline, the donor's object would still show its shape as a hole. Regions are exchanged as they are, and `clear`
    says that they bring nothing of the donor's object; without masks nothing is known to be clear.
    """
    every = torch.ones(len(images), device=images.device)
    nothing = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    if block.part in ("low", "high"):
        coarse, other = _coarse(images), _coarse(donors)
        mixed = images - coarse + other if block.part == "low" else coarse + donors - other
        return Exchange(mixed.clamp(0, 1), every, nothing)
    if block.part in ("colour", "luminance"):
        grey, other = _luma(images), _luma(donors)
        mixed = grey + donors - other if block.part == "colour" else images - grey + other
        return Exchange(mixed.clamp(0, 1), every, nothing)
    clear = nothing
    if block.region is not None:
        pixels = block.region.to(images.device).expand(len(images), -1, -1)
        if donor_masks is not None:
            clear = ~(donor_masks & pixels).flatten(1).any(dim=1)
    else:
        if masks is None or donor_masks is None:
            raise InvalidInput(f"the {block.name} can only be exchanged where both images have object masks")
        boxes = _box(masks) | _box(donor_masks)
        pixels = boxes if block.part == "object" else ~boxes
        clear = (pixels if block.part == "background" else nothing.view(-1, 1, 1)).flatten(1).any(dim=1)
    return Exchange(torch.where(pixels.unsqueeze(1), donors, images), pixels.float().mean(dim=(1, 2)), clear)


def grown(masks: Tensor) -> Tensor:
    """Masks bool `[B, H, W]` with a rim of a sixteenth of the shorter side around them."""
    reach = max(min(masks.shape[1:]) // GROWN, 1)
    return F.max_pool2d(masks.float().unsqueeze(1), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0


def donors_of(answers: Tensor, generators: Sequence[Generator], foreign: bool, rows: Tensor | None = None) -> Tensor:
    """For each of `rows` (default all) another row of `answers` `[n]` with another (`foreign`) or the same answer.

    generators: one for each of `rows`. -1 where there is no such row.
    """
    asked = torch.arange(len(answers)) if rows is None else rows
    chosen = torch.full_like(asked, -1)
    for place, (row, generator) in enumerate(zip(asked.tolist(), generators, strict=True)):
        fits = (answers != answers[row]) if foreign else (answers == answers[row])
        fits[row] = False
        candidates = torch.nonzero(fits).flatten()
        if len(candidates):
            chosen[place] = candidates[torch.randint(len(candidates), (), generator=generator)]
    return chosen


def _box(masks: Tensor) -> Tensor:
    """The pixels of each mask's bounding box, bool `[B, H, W]`."""
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    return _between(rows).unsqueeze(2) & _between(columns).unsqueeze(1)


def _between(flags: Tensor) -> Tensor:
    """True `[B, L]` from the first to the last True."""
    counted = flags.long()
    return (counted.cumsum(1) > 0) & (counted.flip(1).cumsum(1).flip(1) > 0)


def _coarse(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    down = torch.fft.fftfreq(height, device=images.device).view(-1, 1)
    right = torch.fft.rfftfreq(width, device=images.device).view(1, -1)
    kept = 0.5 ** ((down**2 + right**2) / CUT**2)
    coarse: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(height, width))
    return coarse


def _luma(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
