"""The digital corruptions of ImageNet-C (Hendrycks & Dietterich, 2019): contrast, elastic, pixelate, JPEG.

Images `[B, C, H, W]` in [0, 1], a severity in [0, 5] and, where chance plays a part, one generator a sample; the
result has the same shape, device and range.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from snellen.shift._blur import gaussian_blur
from snellen.shift._noise import draw
from snellen.shift._severity import SeverityTable

CONTRAST = SeverityTable(  # share of the distance to the mean that is kept
    identity=(1.0,),
    imagenet=((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    cifar=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    growth=(0,),
)
ELASTIC_TRANSFORM = SeverityTable(  # alpha, sigma, reach of the affine corners; 244 is the original's slip for 224
    identity=(0.0, None, 0.0),
    imagenet=(
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    cifar=(
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    # A wider sigma averages more noise away, so alpha grows with the square to keep the look.
    growth=(2, 1, 1),
)
PIXELATE = SeverityTable(  # factor of the smaller size
    identity=(1.0,),
    imagenet=((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    cifar=((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    growth=(0,),
)
JPEG_COMPRESSION = SeverityTable(  # quality of libjpeg, rounded
    identity=(100.0,),
    imagenet=((25,), (18,), (15,), (10,), (7,)),
    cifar=((80,), (65,), (58,), (50,), (40,)),
    growth=(0,),
)


def contrast(images: Tensor, severity: float) -> Tensor:
    """Moves every channel towards its mean."""
    (kept,) = CONTRAST.at(severity, images)
    means = images.mean(dim=(2, 3), keepdim=True)
    return torch.lerp(means, images, kept).clamp_(0, 1)


def elastic_transform(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """A random affine map of three points, then a smooth random displacement; borders mirrored."""
    alpha, sigma, reach = ELASTIC_TRANSFORM.at(severity, images)
    height, width = images.shape[-2:]
    corners = draw(generators, lambda g: torch.rand(3, 2, generator=g, device=g.device), images)
    moved = _affine(images, (corners.double() * 2 - 1) * reach)
    if alpha == 0:
        return moved.clamp_(0, 1)

    noise = draw(generators, lambda g: torch.rand(2, height, width, generator=g, device=g.device), images)
    displacement = gaussian_blur(noise.mul_(2).sub_(1), sigma, "reflect", truncate=3.0).mul_(alpha)
    return displace(moved, displacement).clamp_(0, 1)


def _affine(images: Tensor, shifts: Tensor) -> Tensor:
    """The map that takes three points around the centre to where `shifts` `[B, 3, 2]` (x, y) moves them."""
    height, width = images.shape[-2:]
    arm = min(height, width) // 3
    x, y = width // 2, height // 2
    corners = [[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]]
    points = torch.tensor(corners, dtype=torch.float64, device=images.device)

    # Sampling needs the inverse: where in the source a pixel of the result lies.
    homogeneous = F.pad(points + shifts, (0, 1), value=1.0)
    inverse = torch.linalg.solve(homogeneous, points.expand_as(shifts))
    columns = torch.arange(width, dtype=torch.float64, device=images.device)
    rows = torch.arange(height, dtype=torch.float64, device=images.device)[:, None]
    coefficients = inverse[:, :, :, None, None]
    places = columns * coefficients[:, 0] + rows * coefficients[:, 1] + coefficients[:, 2]
    limits = places.new_tensor([width - 1, height - 1]).view(2, 1, 1)
    grid = (2 * places / limits - 1).permute(0, 2, 3, 1).to(images.dtype)
    # Mirroring about pixel centres is OpenCV's reflect-101.
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


def displace(images: Tensor, displacement: Tensor) -> Tensor:
    """Bilinear samples at pixel + displacement `[B, 2, H, W]` (x, y in pixels), mirrored about the image's edge."""
    height, width = images.shape[-2:]
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    rows = torch.arange(height, dtype=images.dtype, device=images.device)[:, None]
    x = (displacement[:, 0] + columns + 0.5) * (2 / width) - 1
    y = (displacement[:, 1] + rows + 0.5) * (2 / height) - 1
    grid = torch.stack((x, y), dim=-1)
    # Mirroring about pixel edges is scipy's "reflect".
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def pixelate(images: Tensor, severity: float) -> Tensor:
    """Shrinks with Pillow's box filter, 8 bits a pass as Pillow does, and repeats pixels back to size."""
    return box_pixels(images, *PIXELATE.at(severity, images))


def box_pixels(images: Tensor, factor: float) -> Tensor:
    """`pixelate` by its constant."""
    height, width = images.shape[-2:]
    small_height, small_width = (max(int(side * factor), 1) for side in (height, width))
    box_rows = _box_matrix(height, small_height).to(images.device)
    box_columns = _box_matrix(width, small_width).to(images.device)

    level = (images * 255) @ box_columns.T
    level = box_rows @ level.add_(0.5 + 1e-4).floor_()
    level.add_(0.5 + 1e-4).floor_().div_(255)
    return level[..., _nearest(height, small_height), :][..., _nearest(width, small_width)]


@lru_cache(maxsize=64)
def _box_matrix(size: int, small: int) -> Tensor:
    # Pillow's box counts pixels whose centre lies in a cell: all or nothing, no partial pixels. Where the edge of a
    # cell hits a centre, its order of arithmetic and its window decide.
    scale = size / small
    centre = (torch.arange(small, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(size, dtype=torch.float64)
    distance = (pixel - centre + 0.5) * (1.0 / scale)
    first, end = ((centre + side * scale / 2 + 0.5).floor() for side in (-1, 1))
    inside = ((distance > -0.5) & (distance <= 0.5) & (pixel >= first) & (pixel < end)).double()
    return (inside / inside.sum(dim=1, keepdim=True)).float()


def _nearest(size: int, small: int) -> Tensor:
    return ((torch.arange(size, dtype=torch.float64) + 0.5) * (small / size)).long().clamp_(max=small - 1)


def jpeg_compression(images: Tensor, severity: float) -> Tensor:
    """Codes and decodes with libjpeg (baseline, 4:2:0) on the CPU."""
    return coded_jpeg(images, *JPEG_COMPRESSION.at(severity, images))


def coded_jpeg(images: Tensor, quality: float) -> Tensor:
    """`jpeg_compression` by its constant, rounded."""
    pixels = images.mul(255).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    coded = torch.from_numpy(np.stack([_through_jpeg(image, math.floor(quality + 0.5)) for image in pixels]))
    return coded.permute(0, 3, 1, 2).to(images.device, images.dtype, memory_format=torch.contiguous_format).div_(255)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """pixels: `[H, W, 1 or 3]`."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(pixels.shape)
