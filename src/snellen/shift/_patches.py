"""The square cells of an image: which of them are chosen, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput

SMALLEST_CELL = 4
"""Pixels of a cell's side below which a default is not chosen; at 224 px the default is 16, a ViT's patch."""
CELLS_A_SIDE = 14


def patch_side(height: int, width: int, wanted: int | None = None, most: int | None = None) -> int:
    """Side of a cell in pixels.

    None takes the largest divisor of both sides up to `most`, by default a fourteenth of the shorter side, or 4 px
    where that is more: 16 at 224 px, 4 at 32 px. Where no divisor comes near, it is `most`, and a strip at the right
    and lower border belongs to no cell. Raises InvalidInput for a `wanted` that does not divide both sides.
    """
    common = math.gcd(height, width)
    if wanted is not None:
        if wanted < 1 or common % wanted:
            raise InvalidInput(f"patch must divide both sides of {height} x {width} px, got {wanted}")
        return wanted
    most = max(min(height, width) // CELLS_A_SIDE, SMALLEST_CELL) if most is None else most
    side = max(divisor for divisor in range(1, max(most, 1) + 1) if common % divisor == 0)
    side = side if 2 * side > most else most
    if side < 2:
        raise InvalidInput(f"images of {height} x {width} px are too small for patches; resize them")
    return side


def cell_ranks(generators: Sequence[Generator], cells: int) -> Tensor:
    """Each cell's place in a random order, int64 `[B, cells]`, row i from `generators[i]` alone.

    `ranks < n` chooses n cells uniformly without replacement, and more cells contain fewer.
    """
    return torch.stack([torch.randperm(cells, generator=generator) for generator in generators])


def cell_count(height: int, width: int, side: int, aligned: bool = True) -> int:
    """How many cells there are; the misaligned grid lies between the cells and has one less either way."""
    less = 0 if aligned else 1
    return (height // side - less) * (width // side - less)


def pixels_of(chosen: Tensor, height: int, width: int, side: int, aligned: bool = True) -> Tensor:
    """The pixels of the chosen cells, bool `[B, H, W]`. chosen: bool `[B, cells]`, row by row of the grid.

    aligned: the grid starts in the corner, as a transformer's does; otherwise half a cell further in both axes.
    """
    if not aligned and side < 2:
        raise InvalidInput(f"misaligned patches need a side of 2 px or more, got {side}")
    less = 0 if aligned else 1
    grid = chosen.view(len(chosen), height // side - less, width // side - less)
    pixels = grid.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    whole = torch.zeros(len(chosen), height, width, dtype=torch.bool, device=chosen.device)
    start = 0 if aligned else side // 2
    whole[:, start : start + pixels.shape[1], start : start + pixels.shape[2]] = pixels
    return whole


def random_patches(
    generators: Sequence[Generator], height: int, width: int, side: int, counts: Sequence[int], aligned: bool = True
) -> list[Tensor]:
    """For each count the pixels of so many random cells a sample, bool `[B, H, W]` on the CPU, nested.

    Raises InvalidInput for a count beyond the cells there are.
    """
    if not 1 <= side <= min(height, width):
        raise InvalidInput(f"side must be 1 to {min(height, width)} px, got {side}")
    cells = cell_count(height, width, side, aligned)
    if counts and not (min(counts) >= 0 and max(counts) <= cells):
        raise InvalidInput(
            f"counts must be 0 to {cells} patches of {side} px in {height} x {width}, got {list(counts)}"
        )
    ranks = cell_ranks(generators, cells)
    return [pixels_of(ranks < count, height, width, side, aligned) for count in counts]


def replaced(images: Tensor, donors: Tensor, pixels: Tensor) -> Tensor:
    """`donors` where `pixels` bool `[B, H, W]` says so and `images` elsewhere, bit by bit; both `[B, C, H, W]`."""
    return torch.where(pixels.to(images.device)[:, None], donors, images)


def dropped(images: Tensor, pixels: Tensor) -> Tensor:
    """The mean colour of each image `[B, C, H, W]` in place of its `pixels` bool `[B, H, W]`."""
    return replaced(images, images.mean(dim=(2, 3), keepdim=True), pixels)


def shuffled(images: Tensor, grid: int, generators: Sequence[Generator]) -> Tensor:
    """Images `[B, C, H, W]` cut into `grid` x `grid` tiles that change places at random; 1 is the identity.

    Raises InvalidInput where `grid` does not divide both sides.
    """
    batch, channels, height, width = images.shape
    if grid < 1 or height % grid or width % grid:
        raise InvalidInput(f"grid must divide both sides of {height} x {width} px, got {grid}")
    order = cell_ranks(generators, grid * grid).to(images.device)
    tall, wide = height // grid, width // grid
    tiles = images.reshape(batch, channels, grid, tall, grid, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = tiles[torch.arange(batch, device=images.device)[:, None], order]
    moved = moved.view(batch, grid, grid, channels, tall, wide).permute(0, 3, 1, 4, 2, 5)
    return moved.reshape(batch, channels, height, width)
