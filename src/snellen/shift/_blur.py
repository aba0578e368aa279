"""The blur corruptions of ImageNet-C (Hendrycks & Dietterich, 2019): defocus, glass, motion and zoom blur.

Images `[B, C, H, W]` in [0, 1], a severity in [0, 5] and, where chance plays a part, one generator a sample; the
result has the same shape, device and range and is not yet cut to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Generator, Tensor

from snellen.shift._noise import draw
from snellen.shift._severity import SeverityTable

DEFOCUS_BLUR = SeverityTable(  # radius of the disk, sigma that softens its rim (always a matter of one pixel)
    identity=(0.0, 0.0),
    imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    growth=(1, 0),
)
GLASS_BLUR = SeverityTable(  # sigma, reach of an exchange, rounds of exchanges
    identity=(0.0, None, 0.0),
    imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    growth=(1, 1, 0),
)
MOTION_BLUR = SeverityTable(  # radius, sigma
    identity=(None, 0.0),
    imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    growth=(1, 1),
)
ZOOM_BLUR = SeverityTable(  # end (excluded) and step of the factors
    identity=(1.0, None),
    imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    cifar=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    growth=(0, 0),
)

CACHED_VALUES = 2**18


def defocus_blur(images: Tensor, severity: float) -> Tensor:
    """Convolution with a disk, borders mirrored."""
    return disk_blur(images, *DEFOCUS_BLUR.at(severity, images))


def disk_blur(images: Tensor, radius: float, rim_sigma: float) -> Tensor:
    """`defocus_blur` by its constants."""
    kernel = disk_kernel(radius, rim_sigma)
    reach = len(kernel) // 2
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach,) * 4, mode="reflect")

    # In the spectrum the cost does not depend on the radius; the pad already keeps the wrap-around outside.
    size = [int(next_fast_len(side + 2 * reach, real=True)) for side in (height, width)]
    spectrum = torch.fft.rfft2(padded, s=size).mul_(_disk_spectrum(kernel, size).to(images.device))
    blurred = torch.fft.irfft2(spectrum, s=size)
    result: Tensor = blurred[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width].clamp(0, 1)
    return result


def disk_kernel(radius: float, rim_sigma: float) -> NDArray[np.float64]:
    """A disk that sums to 1, then softened by a Gaussian of 3x3 taps (5x5 beyond a radius of 8), zeros cut off."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    disk /= disk.sum()
    if rim_sigma > 0:
        half = 1 if radius <= 8 else 2
        taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * rim_sigma**2))
        taps /= taps.sum()
        # The kernel image is itself mirrored at its edge, so a disk that touches the edge does not keep sum 1.
        for axis_number in (0, 1):
            mirrored = np.pad(disk, [(half, half) if n == axis_number else (0, 0) for n in (0, 1)], "reflect")
            disk = np.apply_along_axis(np.convolve, axis_number, mirrored, taps, "valid")
    used = int(np.abs(axis)[disk.max(axis=0) > 1e-12].max())
    return disk[reach - used : reach + used + 1, reach - used : reach + used + 1]


def _disk_spectrum(kernel: NDArray[np.float64], size: list[int]) -> Tensor:
    spectrum: Tensor = torch.fft.rfft2(torch.from_numpy(kernel), s=size)
    return spectrum.to(torch.complex64)


def glass_blur(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Blur, let neighbouring pixels change places, blur again.

    The published files were made by a loop whose exchange copies: two NumPy views of one array are assigned
    crosswise, so (h, w) takes the neighbour's value and the neighbour keeps its own. That is what is done here. A
    reach or a number of rounds between two integers is met on average: offsets are the floor of U(-reach, reach),
    and in a part of a round every pixel moves with that probability.
    """
    sigma, reach, rounds = GLASS_BLUR.at(severity, images)
    smooth = (gaussian_blur(images, sigma, "nearest") * 255 + 1e-3).floor_().div_(255)

    # Rounds of exchanges
    sources = exchange_offsets(images, reach, rounds, generators)
    margin = math.ceil(reach)
    where: Tensor | None = None
    for step in sources.unbind(1):
        origin = exchange_sources(step, margin)
        where = origin if where is None else where.gather(1, origin)
    if where is not None:
        index = where[:, None].expand(-1, images.shape[1], -1)
        smooth = smooth.flatten(2).gather(2, index).view_as(images)

    return gaussian_blur(smooth, sigma, "nearest").clamp_(0, 1)


def exchange_offsets(images: Tensor, reach: float, rounds: float, generators: Sequence[Generator]) -> Tensor:
    """Draws the offsets (dy, dx) of every pixel in every round: int64 `[B, rounds, 2, H, W]`."""
    whole, part = int(rounds), rounds - int(rounds)
    shape = (whole + (part > 0), 2, *images.shape[-2:])
    offsets = draw(generators, lambda g: torch.rand(shape, generator=g, device=g.device), images)
    offsets = offsets.mul_(2 * reach).sub_(reach).floor_().long().clamp_(-math.ceil(reach), math.ceil(reach) - 1)
    if part > 0:
        shape = images.shape[-2:]
        moves = draw(generators, lambda g: torch.rand(shape, generator=g, device=g.device), images) < part
        offsets[:, -1] *= moves[:, None]
    return offsets


def exchange_sources(offsets: Tensor, margin: int) -> Tensor:
    """Which pixel's value each pixel holds after one round, int64 `[B, H * W]` into the flattened image.

    offsets: `[B, 2, H, W]`. The loop runs from the last pixel to the first, each taking the value its neighbour has
    by then: the old one where the neighbour comes later in the loop, otherwise what the neighbour has taken itself.
    So pixels form chains that end at the first neighbour not yet visited; doubling the links follows all at once.
    """
    height, width = offsets.shape[-2:]
    device = offsets.device
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (rows > margin) & (rows <= height - margin) & (columns > margin) & (columns <= width - margin)
    here = rows * width + columns
    target = here + (offsets[:, 0] * width + offsets[:, 1]) * inside
    visited = (target > here) & inside.flatten()[target]

    target = target.flatten(1)
    link = torch.where(visited.flatten(1), target, here.reshape(1, -1))
    while True:
        further = link.gather(1, link)
        if torch.equal(further, link):
            return target.gather(1, link)
        link = further


def motion_blur(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """One-sided Gaussian streak at an angle drawn from U(-45, 45) degrees."""
    radius, sigma = MOTION_BLUR.at(severity, images)
    return streak(images, radius, sigma, draw_angles(generators, -45.0, 45.0)).clamp_(0, 1)


def streak(images: Tensor, radius: float, sigma: float, angles: Sequence[float]) -> Tensor:
    """Weighted sum of copies moved along one angle (degrees) an image, edge pixels repeated.

    Copies 0 to 2 * radius weigh exp(-i² / 2 sigma²); the rest is dropped without renormalising once a copy has left
    the image, as `imagecorruptions` does (the original calls ImageMagick).
    """
    height, width = images.shape[-2:]
    length = np.arange(math.ceil(2 * radius + 1))
    # A radius between two half integers gives its last copy only a part of its weight.
    weights = np.exp(-(length**2) / (2 * max(sigma, 1e-6) ** 2)) * np.clip(2 * radius + 1 - length, 0, 1)
    weights /= weights.sum()

    blurred = torch.zeros_like(images)
    for image, out, angle in zip(images, blurred, angles, strict=True):
        moves = _moves(len(length), angle, height, width)
        left, right = (max(max(sign * dx for dx, _ in moves), 0) for sign in (1, -1))
        top, bottom = (max(max(sign * dy for _, dy in moves), 0) for sign in (1, -1))
        padded = F.pad(image, (left, right, top, bottom), mode="replicate")
        for (dx, dy), weight in zip(moves, weights, strict=False):
            if weight > 1e-7:
                y, x = top - dy, left - dx
                out.add_(padded[:, y : y + height, x : x + width], alpha=float(weight))
    return blurred


def _moves(copies: int, angle: float, height: int, width: int) -> list[tuple[int, int]]:
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    moves = []
    for i in range(copies):
        dx, dy = -math.ceil(i * cosine - 0.5), -math.ceil(i * sine - 0.5)
        if abs(dx) >= width or abs(dy) >= height:
            break
        moves.append((dx, dy))
    return moves


def draw_angles(generators: Sequence[Generator], low: float, high: float) -> list[float]:
    drawn = [float(torch.rand((), generator=g, device=g.device, dtype=torch.float64)) for g in generators]
    return [low + (high - low) * value for value in drawn]


def zoom_blur(images: Tensor, severity: float) -> Tensor:
    """Mean of the image and of its centre enlarged by a row of factors."""
    return mean_zoom(images, *ZOOM_BLUR.at(severity, images))


def mean_zoom(images: Tensor, end: float, step: float) -> Tensor:
    """`zoom_blur` by its constants: factors 1, 1 + step, ... below `end`."""
    factors = np.arange(1, end, step)
    total = images.clone()
    # A dozen passes over one image stay in the processor's cache, over a batch they do not.
    together = len(images) if images.is_cuda else max(1, CACHED_VALUES // images[0].numel())
    for part, images_part in zip(total.split(together), images.split(together), strict=True):
        for factor in factors:
            part += images_part if factor == 1 else zoom(images_part, factor)
    return total.div_(len(factors) + 1).clamp_(0, 1)


def zoom(images: Tensor, factor: float) -> Tensor:
    """The centre of `[B, C, H, W]` enlarged by `factor` >= 1 to fill the image."""
    height, width = images.shape[-2:]
    rows, columns = zoom_centre(height, width, factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    return enlarge(images[..., top : top + rows, left : left + columns], factor, height, width)


def zoom_centre(height: int, width: int, factor: float) -> tuple[int, int]:
    """Rows and columns that are left to see at a zoom of `factor`."""
    return math.ceil(height / factor), math.ceil(width / factor)


def enlarge(centre: Tensor, factor: float, height: int, width: int) -> Tensor:
    """Bilinear with corner pixels on corner pixels, as scipy.ndimage.zoom, trimmed to `[B, C, height, width]`."""
    rows, columns = (max(round(n * factor), side) for n, side in zip(centre.shape[-2:], (height, width), strict=True))
    enlarged = F.interpolate(centre, size=(rows, columns), mode="bilinear", align_corners=True)
    top, left = (rows - height) // 2, (columns - width) // 2
    return enlarged[..., top : top + height, left : left + width]


def gaussian_blur(images: Tensor, sigma: float, border: Literal["nearest", "reflect"], truncate: float = 4.0) -> Tensor:
    """Gaussian filter of the two last dimensions, as scipy.ndimage's with `mode=border`."""
    if sigma == 0:
        return images.clone()
    vertical, horizontal = (
        _filter_matrix(side, sigma, border, truncate).to(images.device) for side in images.shape[-2:]
    )
    return vertical @ (images @ horizontal.T)


@lru_cache(maxsize=64)
def _filter_matrix(size: int, sigma: float, border: str, truncate: float) -> Tensor:
    # Folding the border into a matrix serves every sigma, also one wider than the image.
    reach = int(truncate * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    rows = np.repeat(np.arange(size)[:, None], len(offsets), axis=1)
    columns = rows + offsets
    if border == "reflect":
        columns = columns % (2 * size)
        columns = np.minimum(columns, 2 * size - 1 - columns)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (rows, columns.clip(0, size - 1)), np.broadcast_to(weights, rows.shape))
    return torch.from_numpy(matrix).float()
