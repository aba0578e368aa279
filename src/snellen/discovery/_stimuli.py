"""Images without texture, without layout, or with the texture of another class, and the score of cue conflict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import torch_generator
from snellen.stats import wilson


def tile_order(grid: int) -> Tensor:
    """A fixed permutation int64 `[grid * grid]` that leaves no tile in its place, the same in every run."""
    if grid < 2:
        raise InvalidInput(f"grid must be at least 2 tiles a side, got {grid}")
    tiles = grid * grid
    # Sattolo's walk gives one cycle through all tiles, hence none stays.
    order, generator = torch.arange(tiles), torch_generator("tile order", grid)
    for last in range(tiles - 1, 0, -1):
        other = int(torch.randint(last, (), generator=generator))
        order[[last, other]] = order[[other, last]]
    return order


def scramble(images: Tensor, order: Tensor | Sequence[int]) -> Tensor:
    """`[B, C, H, W]` cut in p x p tiles that are permuted: place i shows tile `order[i]`, row by row.

    order: a permutation of p * p. Raises InvalidInput when it is none or p does not divide both sides.
    """
    tiles = torch.as_tensor(order, device=images.device)
    grid = round(len(tiles) ** 0.5)
    if grid * grid != len(tiles) or not torch.equal(tiles.sort().values, torch.arange(len(tiles), device=tiles.device)):
        raise InvalidInput(f"order must be a permutation of 0 to p * p - 1, got {tiles.tolist()}")
    batch, channels, height, width = images.shape
    if height % grid or width % grid:
        raise InvalidInput(f"a grid of {grid} must divide both sides of the images, got {height} x {width} px")
    down, right = height // grid, width // grid
    cut = images.view(batch, channels, grid, down, grid, right).transpose(3, 4).flatten(2, 3)[:, :, tiles]
    shown: Tensor = cut.reshape(batch, channels, grid, grid, down, right).transpose(3, 4).reshape(images.shape)
    return shown


def silhouette(images: Tensor, masks: Tensor) -> Tensor:
    """The object black on white, `[B, C, H, W]`. masks: bool `[B, H, W]`."""
    _check_masks(images, masks)
    return (~masks).unsqueeze(1).to(images.dtype).expand_as(images)


def contour(images: Tensor, masks: Tensor) -> Tensor:
    """The outline of the object, a pixel wide and black on white, `[B, C, H, W]`. masks: bool `[B, H, W]`."""
    _check_masks(images, masks)
    outside = F.pad((~masks).float().unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    line = masks & (F.max_pool2d(outside, 3, stride=1)[:, 0] > 0)
    return (~line).unsqueeze(1).to(images.dtype).expand_as(images)


def cue_conflict(images: Tensor, masks: Tensor, textures: Tensor, texture_masks: Tensor) -> Tensor:
    """The object of each image filled with the texture of another's object, on mid grey, `[B, C, H, W]`.

    The texture is the square around the donor object's innermost pixel that fits into its mask, repeated as a mirror
    over the image. masks: bool `[B, H, W]`. Raises InvalidInput for sizes that differ; a donor without a mask lends
    the single pixel in its upper left corner.
    """
    _check_masks(images, masks)
    _check_masks(textures, texture_masks)
    if images.shape != textures.shape:
        raise InvalidInput(f"images and textures need one shape, got {list(images.shape)} and {list(textures.shape)}")
    row, column, reach = _innermost(texture_masks)
    height, width = images.shape[-2:]
    down = _mirrored(height, row, reach)
    right = _mirrored(width, column, reach)
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    fill = textures.permute(0, 2, 3, 1)[batch, down.unsqueeze(2), right.unsqueeze(1)].permute(0, 3, 1, 2)
    return torch.where(masks.unsqueeze(1), fill, torch.full_like(images, 0.5))


class ShapeBias(NamedTuple):
    """shape, texture: answers for each. bias: shape / (shape + texture), NaN without either; low, high: Wilson's."""

    shape: int
    texture: int
    bias: float
    low: float
    high: float


def shape_bias(answers: Tensor, shape: Tensor, texture: Tensor) -> ShapeBias:
    """Share of answers for the shape among those for shape or texture, all int64 `[n]` (Geirhos et al., 2019).

    Raises InvalidInput for an image whose shape and texture are of one class, which is no conflict.
    """
    if not answers.shape == shape.shape == texture.shape or answers.ndim != 1:
        raise InvalidInput("answers, shape and texture must be lists of one length")
    if (shape == texture).any():
        raise InvalidInput("shape and texture must be of different classes in every image of a cue conflict")
    by_shape, by_texture = int((answers == shape).sum()), int((answers == texture).sum())
    decided = by_shape + by_texture
    return ShapeBias(by_shape, by_texture, by_shape / decided if decided else float("nan"), *wilson(by_shape, decided))


def coarse_answers(logits: Tensor, groups: Tensor, average: bool = False) -> Tensor:
    """The coarse class `[B]` with the most probability. logits: `[B, K]`. groups: coarse class of each fine one, -1 for
    none, `[K]`. average: the mean over a coarse class's fine classes instead of the sum."""
    if groups.shape != logits.shape[1:] or groups.min() < -1 or groups.max() < 0:
        raise InvalidInput(f"groups must hold a coarse class, or -1, for each of {logits.shape[1]} classes")
    known = groups >= 0
    member = F.one_hot(groups[known]).to(logits.dtype)
    sums = logits.softmax(dim=1)[:, known] @ member
    sizes = member.sum(dim=0).clamp_min(1)
    return (sums / sizes if average else sums).argmax(dim=1)


def _innermost(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and reach `[B]` of the largest square of odd side inside each mask."""
    left, depth = masks.float().unsqueeze(1), torch.zeros_like(masks, dtype=torch.int64)
    while left.any():
        depth += left[:, 0].long()
        left = -F.max_pool2d(F.pad(-left, (1, 1, 1, 1)), 3, stride=1)  # padded with 0: the border cuts the mask
    place = depth.flatten(1).argmax(dim=1)
    width = masks.shape[2]
    return place // width, place % width, (depth.flatten(1).amax(dim=1) - 1).clamp_min(0)


def _mirrored(length: int, centre: Tensor, reach: Tensor) -> Tensor:
    """For every pixel of a side the place it shows, `[B, length]`: to and fro within `centre` +- `reach`."""
    side = 2 * reach.unsqueeze(1) + 1
    step = torch.arange(length, device=centre.device).unsqueeze(0) % (2 * side)
    inside = torch.where(step < side, step, 2 * side - 1 - step)
    return (centre - reach).unsqueeze(1) + inside


def _check_masks(images: Tensor, masks: Tensor) -> None:
    if masks.dtype != torch.bool or masks.shape != (len(images), *images.shape[-2:]):
        raise InvalidInput(
            f"masks must be bool of the images' size {list(images.shape[-2:])}, got {masks.dtype} {list(masks.shape)}"
        )
