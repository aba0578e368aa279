"""Obfuscations that put the image together with others: collage, blend, bands, blurred surroundings, borrowed style.

Reconstructed after Stimberg et al., 2023, whose generators are not public; ranges are ours. All take images float32
`[B, C, H, W]` in [0, 1], a severity in (0, 5] and one generator a sample; foreign content comes from `Donors`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.randomness import uniform
from snellen.shift._blur import gaussian_blur, zoom
from snellen.shift._donors import NUMBERS, PHOTOGRAPHS, Donors
from snellen.shift._strength import length, rising, spread, stripes


def image_overlay(
    images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """A donor blended over with opacity 0.5 at severity 3 and 0.6 at 5."""
    return images.lerp(donors.drawn(generators, images), rising(severity, 0.5, 0.6))


def interleave(
    images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """Bands of 2 to 8 px, lying or standing, of a donor or of the mirrored image.

    At severity 3 every other band is foreign; the foreign share of the image is 1/2 there and 2/3 at 5.
    """
    numbers = uniform(generators, (4 + NUMBERS,))
    thickness, standing, phase, mirrored = numbers[:, :4].unbind(1)
    height, width = images.shape[-2:]
    foreign = images.flip(3)
    for i in torch.nonzero(mirrored < 0.5).flatten().tolist():
        foreign[i] = donors.crop(numbers[i, 4:], height, width, images)
    period = 2 * spread(thickness, length(2, images), length(8, images)).round().clamp(min=1)
    angle = torch.where(standing < 0.5, 0.0, math.pi / 2)
    taken = stripes(images, period, angle, phase, rising(severity, 1 / 2, 2 / 3))
    return foreign.where(taken, images)


def photo_composition(
    images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """The image in one cell of a collage: a cell of 2 x 2 at severity 3, a corner of 3 x 3 at 5.

    In between the cell shrinks towards its corner and the donors around it move in.
    """
    height, width = images.shape[-2:]
    # 1/3 as a float would leave a fourth row of cells one pixel high.
    share = rising(severity, 1 / 2, 1 / 3, start=1.0) - 1e-9
    tall, wide = math.ceil(height * share), math.ceil(width * share)
    numbers = uniform(generators, (9, NUMBERS))  # the first place is the image's own: its draws choose the corner
    small = _resized(images, tall, wide)
    result = torch.empty_like(images)
    for out, own, draws in zip(result, small, numbers, strict=True):
        low, right = (draws[0, :2] < 0.5).tolist()
        for cell in range(9):
            rows, columns = _cell(cell // 3, tall, height, low), _cell(cell % 3, wide, width, right)
            if rows is None or columns is None:
                continue
            content = own if cell == 0 else donors.crop(draws[cell], tall, wide, images)
            seen = content[:, -len(rows) :] if low else content[:, : len(rows)]
            seen = seen[..., -len(columns) :] if right else seen[..., : len(columns)]
            out[:, rows.start : rows.stop, columns.start : columns.stop] = seen
    return result


def background_blur_composition(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """The image shrunk to 0.6 at severity 3 and 0.5 at 5, somewhere on an enlarged, blurred copy of itself."""
    height, width = images.shape[-2:]
    share = rising(severity, 0.6, 0.5, start=1.0)
    tall, wide = round(height * share), round(width * share)
    places = uniform(generators, (2,)) * torch.tensor([height - tall + 1, width - wide + 1])
    result = gaussian_blur(zoom(images, 1.6), length(8, images), "reflect")
    for out, own, place in zip(result, _resized(images, tall, wide), places.long().tolist(), strict=True):
        top, left = place
        out[:, top : top + tall, left : left + wide] = own
    return result


def style_transfer(
    images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """A stand-in without a style network: the donor's Fourier amplitudes and channel statistics, the image's phases.

    Half of the way to the donor at severity 3 and all of it at 5. It transfers palette and texture statistics but no
    strokes, and fools networks less than a neural style would.
    """
    share = rising(severity, 0.5, 1.0)
    style = donors.drawn(generators, images)
    spectrum, foreign = torch.fft.rfft2(images), torch.fft.rfft2(style)
    gain = 1 - share + share * _amplitude(foreign) / _amplitude(spectrum).clamp(min=1e-12)
    styled: Tensor = torch.fft.irfft2(spectrum * gain, s=images.shape[-2:])

    # Channel statistics
    mean, std = (own.lerp(other, share) for own, other in zip(_statistics(images), _statistics(style), strict=True))
    middle, size = _statistics(styled)
    return (styled - middle) / size.clamp(min=1e-6) * std + mean


def _amplitude(spectrum: Tensor) -> Tensor:
    # complex abs() guards against overflow, which costs more than the transform
    return torch.view_as_real(spectrum).square().sum(dim=-1).sqrt_()


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


def _cell(number: int, side: int, whole: int, from_end: bool) -> range | None:
    """The pixels of the cell with that number, counted from the image's own corner; None where it is out of sight."""
    start, stop = number * side, min((number + 1) * side, whole)
    if start >= whole:
        return None
    return range(whole - stop, whole - start) if from_end else range(start, stop)
