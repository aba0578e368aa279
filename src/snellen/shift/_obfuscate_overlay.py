"""Obfuscations laid over the image: icons, words, triangles, a loud border, loud patches.

Reconstructed after Stimberg et al., 2023, whose generators are not public; ranges are ours. All take images float32
`[B, C, H, W]` in [0, 1], a severity in (0, 5] and one generator a sample. What is stamped is drawn on the CPU and moved
once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from snellen.randomness import uniform
from snellen.shift._strength import column, length, pixel_rows, rising, spread

STAMPS = 20
COVERED = 0.35
"""Largest share of the image under icons or words: each gets a twentieth of it at most, so any 20 keep to it."""
TRIANGLES = 60
WORDS = ("sample", "preview", "draft", "copy", "hello", "sale", "news", "party", "2024", "win", "free", "open")
GLYPH_SIDE = 48


def icon_overlay(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Icons of one colour: 12.5 with opacity 0.65 at severity 3, 20 with 0.9 at 5, on at most 35 % of the pixels.

    Half an icon is one of half the opacity.
    """
    return _stamped(images, severity, generators, icons())


def text_overlay(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Words instead of icons, as in `icon_overlay`; below about 64 px they are smudges."""
    return _stamped(images, severity, generators, words())


def _stamped(images: Tensor, severity: float, generators: Sequence[Generator], shapes: Sequence[Tensor]) -> Tensor:
    height, width = images.shape[-2:]
    count, opacity = rising(severity, 12.5, STAMPS), rising(severity, 0.65, 0.9)
    numbers = uniform(generators, (STAMPS, 7))
    layers = _empty_layers(images)
    for layer, stamps in zip(layers, numbers, strict=True):
        for i, stamp in enumerate(stamps[: math.ceil(count)]):
            which, size, down, right = stamp[:4].tolist()
            shape = shapes[int(which * len(shapes))]
            area = COVERED / STAMPS * height * width * (0.5 + 0.5 * size)
            tall = min(max(int(math.sqrt(area * shape.shape[0] / shape.shape[1])), 1), height)
            wide = min(max(int(area / tall), 1), width)
            mask = F.interpolate(shape[None, None], size=(tall, wide), mode="bilinear", antialias=True)[0, 0]
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            part = layer[:, top : top + tall, left : left + wide]
            _paint(part, mask * (opacity * min(count - i, 1.0)), stamp[4:])
    return _laid(images, layers)


@cache
def icons() -> tuple[Tensor, ...]:
    """Masks `[48, 48]` of a disk, a ring, a square, a cross, a triangle, a star, a heart and a crescent."""
    axis = torch.linspace(-1, 1, GLYPH_SIDE)
    y, x = axis[:, None], axis[None]
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(x, -y)
    shapes: tuple[Tensor, ...] = (
        radius < 0.95,
        (radius < 0.95) & (radius > 0.6),
        (x.abs() < 0.85) & (y.abs() < 0.85),
        (x.abs() < 0.3) | (y.abs() < 0.3),
        x.abs() < (y + 0.9) / 2,
        radius < 0.65 + 0.3 * (5 * angle).cos(),
        (x**2 + (0.35 - 1.2 * y - 0.8 * x.abs()) ** 2) < 0.75,
        (radius < 0.95) & (((x - 0.45) ** 2 + y**2).sqrt() > 0.75),
    )
    return tuple(shape.float() for shape in shapes)


@cache
def words() -> tuple[Tensor, ...]:
    """Masks `[h, w]` of `WORDS` in Pillow's own font."""
    font = ImageFont.load_default(GLYPH_SIDE)
    masks = []
    for word in WORDS:
        left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
        canvas = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(canvas).text((-left, -top), word, fill=255, font=font)
        masks.append(torch.from_numpy(np.array(canvas)).float() / 255)
    return tuple(masks)


def low_contrast_triangles(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Contrast cut to 0.3 at severity 3 and 0.2 at 5, then 40 and 60 translucent triangles."""
    height, width = images.shape[-2:]
    count, reach = rising(severity, 40, TRIANGLES), 0.3 * min(height, width)
    numbers = uniform(generators, (TRIANGLES, 12))
    corners = numbers[..., :2, None] * torch.tensor([[width], [height]])
    corners = corners + (2 * numbers[..., 2:8].unflatten(2, (2, 3)) - 1) * reach  # [B, triangles, x and y, 3]
    lows = corners.amin(3).long().clamp(min=0)
    highs = torch.minimum(corners.amax(3).long() + 1, torch.tensor([width, height]))
    opacity = spread(numbers[..., 11], 0.15, 0.45) * (count - torch.arange(TRIANGLES)).clamp(0, 1)

    layers = _empty_layers(images)
    down, right = (torch.arange(side) + 0.5 for side in (height, width))
    for b, layer in enumerate(layers):
        boxes = zip(lows[b].tolist(), highs[b].tolist(), strict=True)
        for i, ((left, top), (end, bottom)) in enumerate(itertools.islice(boxes, math.ceil(count))):
            if left < end and top < bottom:
                inside = _triangle(corners[b, i], right[left:end], down[top:bottom])
                _paint(layer[:, top:bottom, left:end], inside * opacity[b, i], numbers[b, i, 8:11])
    kept = rising(severity, 0.3, 0.2, start=1.0)
    return _laid(images.mean(dim=(1, 2, 3), keepdim=True).lerp(images, kept), layers)


def _triangle(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Which places lie in a triangle, bool `[len(y), len(x)]`. corners: `[2, 3]`, x above y."""
    sides = corners.roll(-1, dims=1) - corners
    turn = (sides[0, 0] * sides[1, 1] - sides[1, 0] * sides[0, 1]).sign()
    # Left of all three sides: the cross product of side and place, split into what x, y and the corner add
    across, along = (sides * turn).unbind(0)
    along_x, across_y = along[:, None, None] * x, across[:, None, None] * y[:, None]
    constant = (across * corners[1] - along * corners[0])[:, None, None]
    return (across_y - (along_x + constant)).amin(dim=0) > 0


def high_contrast_border(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """A frame of 17.5 % of the short side at severity 3 and 25 % at 5: checks or stripes of a colour and its
    negative."""
    height, width = images.shape[-2:]
    numbers = uniform(generators, (5,)).to(images.device)
    y, x = pixel_rows(images)
    edge = torch.minimum(torch.minimum(y, height - 1 - y), torch.minimum(x, width - 1 - x))
    frame = edge + 0.5 < rising(severity, 0.175, 0.25) * min(height, width)
    cell = column(spread(numbers[:, 0], length(4, images), length(16, images)).round().clamp(min=1), images)
    across, down = (x / cell).floor(), (y / cell).floor()
    diagonal = ((x + y) / cell).floor()
    light = torch.where(column(numbers[:, 1], images) < 0.5, across + down, diagonal) % 2 == 0
    # Black and white in grey; in colour any corner of the cube and the opposite one
    colour = (numbers[:, 2 : 2 + images.shape[1], None, None] < 0.5).float()
    pattern = colour.where(light[:, None], 1 - colour)
    return pattern.where(frame, images)


def patch_stand_in(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """1 to 4 squares of loud texture, 10 % of the image at severity 3 and 20 % at 5.

    Stands where the benchmark has adversarial patches, which need a network to be made against. These are aimed at
    none and fool less; `adversarial_patches` makes the real ones against a surrogate of one's own.
    """
    masks, texture = patches(images, rising(severity, 0.1, 0.2), generators)
    return texture.where(masks, images)


def patches(images: Tensor, area: float, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Where 1 to 4 patches lie, bool `[B, 1, H, W]`, and a loud texture as large as the image `[B, C, H, W]`.

    area: share of the image that they cover at most; patches may overlap.
    """
    height, width = images.shape[-2:]
    numbers = uniform(generators, (9,))
    masks = torch.zeros(len(images), 1, height, width, dtype=torch.bool)
    for mask, (count, *places) in zip(masks, numbers.tolist(), strict=True):
        number = 1 + int(4 * count)
        side = min(int(math.sqrt(area * height * width / number)), height, width)
        for down, right in zip(places[:number], places[4:], strict=False):
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            mask[:, top : top + side, left : left + side] = True
    blocks = uniform(generators, (images.shape[1], 32, 32)).round_()
    texture = F.interpolate(blocks, size=(height, width), mode="nearest")
    return masks.to(images.device), texture.to(images.device)


def _empty_layers(images: Tensor) -> Tensor:
    """Paint `[B, C + 1, H, W]` on the CPU: light that is added, and in the last channel what is let through."""
    layers = torch.zeros(len(images), images.shape[1] + 1, *images.shape[-2:])
    layers[:, -1] = 1
    return layers


def _paint(part: Tensor, opacity: Tensor, colour: Tensor) -> None:
    """Another coat on part `[C + 1, h, w]` of a layer. opacity: `[h, w]`. colour: `[3]`, the first for grey."""
    part.mul_(1 - opacity)
    for light, value in zip(part[:-1], colour.tolist(), strict=False):
        light.add_(opacity, alpha=value)


def _laid(images: Tensor, layers: Tensor) -> Tensor:
    layers = layers.to(images.device)
    return images * layers[:, -1:] + layers[:, :-1]
