"""Obfuscations that move pixels: turns, shifted lines, perspective, swirls and waves (after Stimberg et al., 2023).

Reconstructed from names and published pictures: the authors keep their generators to themselves. Ranges are ours. All
take images float32 `[B, C, H, W]` in [0, 1], a severity in (0, 5] and one generator a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from snellen.randomness import uniform
from snellen.shift._digital import displace
from snellen.shift._donors import PHOTOGRAPHS, Donors
from snellen.shift._strength import column, length, pixel_rows, rising, spread


def rotate_image(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """A turn by U(-reach, reach), up to 90 degrees at severity 3 and 180 at 5; corners mirrored or black."""
    turn, corners = uniform(generators, (2,)).to(images.device).unbind(1)
    angle = column((2 * turn - 1) * math.radians(rising(severity, 90, 180)), images)
    y, x = _centred(images)
    moved = torch.stack((x * angle.cos() - y * angle.sin() - x, x * angle.sin() + y * angle.cos() - y), dim=1)
    turned = displace(images, moved)
    black = (corners < 0.5).view(-1, 1, 1, 1) & ~_inside(images, moved)
    return turned.masked_fill_(black, 0.0)


def rotate_blocks(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Square cells, 2 to 6 along the short side, turned by 90, 180 or 270 degrees.

    Three quarters of the cells are turned at severity 3, as if each were turned at random, and all at 5, in steps of
    whole cells. The pixels keep their values; what is left over at the lower and right edge stays.
    """
    share = rising(severity, 0.75, 1.0)
    result = images.clone()
    for out, generator in zip(result, generators, strict=True):
        grid = 2 + int(torch.rand((), generator=generator) * 5)
        side = min(out.shape[-2:]) // grid
        rows, columns = out.shape[-2] // side, out.shape[-1] // side
        chosen = torch.rand(rows, columns, generator=generator) < share
        turns = torch.randint(1, 4, (rows, columns), generator=generator).where(chosen, 0).to(out.device)

        whole = out[:, : rows * side, : columns * side]
        cells = whole.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).clone()
        for quarter in (1, 2, 3):
            mine = turns == quarter
            cells[mine] = cells[mine].rot90(quarter, (-2, -1))
        whole.copy_(cells.permute(2, 0, 3, 1, 4).reshape(whole.shape))
    return result


def line_shift(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Bands 2 to 8 px high rolled sideways by whole pixels, up to W / 12 at severity 3 and W / 6 at 5."""
    height, width = images.shape[-2:]
    bands, moves = uniform(generators, (height + 1,)).split((1, height), dim=1)
    thickness = spread(bands, length(2, images), length(8, images)).round().clamp(min=1)
    band = (torch.arange(height) / thickness).long()
    moved = ((2 * moves.gather(1, band) - 1) * rising(severity, width / 12, width / 6)).round().long()
    source = (torch.arange(width) - moved[:, :, None]) % width
    return images.gather(3, source[:, None].expand_as(images).to(images.device))


def perspective_transform(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Corners moved inwards by up to 12.5 % of the side at severity 3 and 25 % at 5; mirrored or black around."""
    numbers = uniform(generators, (9,))
    moved = _perspective(images, severity, numbers[:, :8])
    black = (numbers[:, 8] < 0.5).view(-1, 1, 1, 1).to(images.device) & ~_inside(images, moved)
    return displace(images, moved).masked_fill_(black, 0.0)


def perspective_composition(
    images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """As `perspective_transform`, pasted on a donor."""
    moved = _perspective(images, severity, uniform(generators, (8,)))
    return displace(images, moved).where(_inside(images, moved), donors.drawn(generators, images))


def swirl_warp(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """A whirl of 4 rad at severity 3 and 6 at 5 near the centre, gone at 0.4 to 0.6 of the short side."""
    side, down, right, size = uniform(generators, (4,)).unbind(1)
    short = min(images.shape[-2:])
    y, x = _centred(images)
    y = y - column(spread(down, -0.1, 0.1) * short, images)
    x = x - column(spread(right, -0.1, 0.1) * short, images)
    radius = column(spread(size, 0.4, 0.6) * short, images)
    angle = (1 - (x.square() + y.square()).sqrt() / radius).clamp(min=0) * rising(severity, 4, 6)
    angle = angle * column((side < 0.5) * 2.0 - 1, images)
    sine, cosine = angle.sin(), angle.cos() - 1
    return displace(images, torch.stack((x * cosine - y * sine, x * sine + y * cosine), dim=1))


def wavy_color_warp(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Sine waves of 6.5 px at severity 3 and 10 at 5 along both axes, and a wave of hue that swings by 90 and 180
    degrees. Grey images have no hue and only bend."""
    numbers = uniform(generators, (9,)).to(images.device)
    short = min(images.shape[-2:])
    wave = column(2 * math.pi / (spread(numbers[:, 0], 0.15, 0.4) * short), images)
    reach = length(rising(severity, 6.5, 10), images)
    phase = [column(2 * math.pi * number, images) for number in numbers[:, 1:4].unbind(1)]
    y, x = pixel_rows(images)
    across = ((y * wave + phase[0]).sin() * reach).expand(len(images), *images.shape[-2:])
    along = ((x * wave + phase[1]).sin() * reach).expand_as(across)
    bent = displace(images, torch.stack((across, along), dim=1))
    if images.shape[1] == 1:
        return bent

    # Hue: a turn about the grey axis, which keeps the mean of the channels
    direction = column(2 * math.pi * numbers[:, 4], images)
    hue = ((x * direction.cos() + y * direction.sin()) * wave / 2 + phase[2]).sin()[:, None]
    hue = hue * math.radians(rising(severity, 90, 180))
    mean = bent.mean(dim=1, keepdim=True)
    colour = bent - mean
    crossed = (colour.roll(1, dims=1) - colour.roll(-1, dims=1)) / math.sqrt(3)
    return mean + colour * hue.cos() + crossed * hue.sin()


def _centred(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates about the centre, y `[H, 1]` and x `[1, W]`."""
    y, x = pixel_rows(images)
    return y - (images.shape[-2] - 1) / 2, x - (images.shape[-1] - 1) / 2


def _inside(images: Tensor, moved: Tensor) -> Tensor:
    """Where pixel + `moved` `[B, 2, H, W]` is on the image, bool `[B, 1, H, W]`."""
    y, x = pixel_rows(images)
    height, width = images.shape[-2:]
    right, down = moved[:, 0] + x, moved[:, 1] + y
    return ((down >= -0.5) & (down <= height - 0.5) & (right >= -0.5) & (right <= width - 0.5))[:, None]


def _perspective(images: Tensor, severity: float, numbers: Tensor) -> Tensor:
    """Where the content of each pixel comes from, as a displacement `[B, 2, H, W]`. numbers: `[B, 8]` in [0, 1)."""
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float64)
    corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    # Half to all of the reach, so that no draw leaves the image as it was.
    inwards = spread(numbers.double().view(-1, 4, 2), 0.5, 1.0) * rising(severity, 0.125, 0.25)
    seen = (corners + inwards * (1 - 2 * corners)) * size
    matrix = _homography(seen, (corners * size).expand_as(seen)).to(images.device, torch.float32)

    y, x = pixel_rows(images)
    u, v = x + 0.5, y + 0.5
    first, second, third = matrix[..., None, None].permute(1, 2, 0, 3, 4)
    scale = third[0] * u + third[1] * v + third[2]
    source_x = (first[0] * u + first[1] * v + first[2]) / scale
    source_y = (second[0] * u + second[1] * v + second[2]) / scale
    return torch.stack((source_x - u, source_y - v), dim=1)


def _homography(start: Tensor, end: Tensor) -> Tensor:
    """`[B, 3, 3]` that takes four points (x, y) to four others, both float64 `[B, 4, 2]`."""
    x, y = start.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    to_x = torch.stack((x, y, one, zero, zero, zero, -x * end[..., 0], -y * end[..., 0]), dim=-1)
    to_y = torch.stack((zero, zero, zero, x, y, one, -x * end[..., 1], -y * end[..., 1]), dim=-1)
    solved = torch.linalg.solve(torch.cat((to_x, to_y), dim=1), torch.cat((end[..., 0], end[..., 1]), dim=1))
    return torch.cat((solved, one[:, :1]), dim=1).view(-1, 3, 3)
