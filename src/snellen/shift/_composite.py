"""Taking an object out of an image and putting it, or something else, back in.

Places are continuous pixel coordinates (x, y): the picture spans [0, W] x [0, H] and pixel (row i, column j) has its
centre at (j + 0.5, i + 0.5), as boxes do. Everything is differentiable in the images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.shift._blur import gaussian_blur

FEATHER = 2 / 224
"""Width of a soft edge as a share of the shorter side: 2 px at 224 px, a hard edge at 32 px."""
SMOOTHING = 2
"""Rounds of diffusion inside a hole at every level of the pyramid."""
COARSE = 1 / 16
"""Sigma of what counts as the coarse layout of a background, as a share of the shorter side."""
GAIN = 4.0
"""Factor on the fine frequencies of a background at complexity +20, its inverse at -20."""


def dilated(masks: Tensor, pixels: int) -> Tensor:
    """Bool `[B, H, W]` grown by so many pixels in every direction, diagonals too."""
    if pixels == 0:
        return masks
    side = 2 * pixels + 1
    along = F.max_pool2d(masks[:, None].float(), (1, side), stride=1, padding=(0, pixels))
    return F.max_pool2d(along, (side, 1), stride=1, padding=(pixels, 0))[:, 0] > 0


def feather_width(height: int, width: int) -> int:
    """Pixels of the soft edge around an object."""
    return round(FEATHER * min(height, width))


def feathered(masks: Tensor, pixels: int) -> Tensor:
    """Opacity `[B, 1, H, W]`: exactly 1 on the mask, a ramp down to 0 over `pixels` outside it.

    The ramp lies outside, so that thin objects stay opaque and no pixel of an object changes.
    """
    rings = [dilated(masks, step).float() for step in range(pixels + 1)]
    return (torch.stack(rings).sum(dim=0) / (pixels + 1))[:, None]


def over(front: Tensor, alpha: Tensor, back: Tensor) -> Tensor:
    """`front` (not premultiplied) over `back`; bit for bit `front` where alpha is 1 and `back` where it is 0."""
    return front * alpha + back * (1 - alpha)


def filled(images: Tensor, holes: Tensor) -> Tensor:
    """Images `[B, C, H, W]` whose `holes` (bool `[B, H, W]`) are filled from their surroundings; the rest stays bit for
    bit.

    Push-pull (Gortler et al., 1996) with diffusion: known colours are averaged down a pyramid; on the way back up what
    is unknown starts from the coarser level and is diffused with the known held fast. Smooth: no texture comes back, so
    a hole on a busy background shows.
    """
    known = (~holes)[:, None]
    weight = known.to(images.dtype)
    colour = torch.where(known, images, torch.zeros_like(images))
    levels = [(colour, weight)]
    while max(weight.shape[-2:]) > 1:
        colour, weight = F.avg_pool2d(colour, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)
        levels.append((colour, weight))

    result = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for colour, weight in reversed(levels[:-1]):
        own, there = colour / weight.clamp(min=1e-6), weight > 0
        guess = F.interpolate(result, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        result = torch.where(there, own, guess)
        for _ in range(SMOOTHING):
            result = torch.where(there, own, _neighbourhood(result))
    return result


def _neighbourhood(images: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels, the border repeated; sums of slices take half the time of a pooling."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def complexity(images: Tensor) -> Tensor:
    """Mean magnitude of the spectrum over all frequencies and channels, `[B]` (ImageNet-E, 2023); differentiable."""
    magnitudes: Tensor = torch.fft.fft2(images).abs()
    return magnitudes.mean(dim=(1, 2, 3))


def with_complexity(images: Tensor, strength: float) -> Tensor:
    """Fine frequencies of `[B, C, H, W]` scaled by `GAIN ** (strength / 20)`, the coarse layout and all phases kept."""
    coarse = gaussian_blur(images, COARSE * min(images.shape[-2:]), "reflect")
    gain: float = GAIN ** (strength / 20)
    return (coarse + gain * (images - coarse)).clamp(0, 1)


def warp(
    images: Tensor, matrices: Tensor, size: tuple[int, int], padding: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """Bilinear images `[B, C, *size]` of `[B, C, h, w]` under homographies, differentiable.

    matrices: `[B, 3, 3]` from places of the source to places of the result. Opacities and premultiplied colours fade
    correctly with zeros outside.
    """
    height, width = size
    inverse = torch.linalg.inv(matrices.double()).to(images)
    y = torch.arange(height, device=images.device, dtype=images.dtype) + 0.5
    x = torch.arange(width, device=images.device, dtype=images.dtype) + 0.5
    columns = inverse[:, None, None, :, 0] * x[:, None]
    rows = inverse[:, None, None, :, 1] * y[:, None, None]
    projected = columns + rows + inverse[:, None, None, :, 2]
    depth = projected[..., 2:]
    limits = torch.tensor([images.shape[-1], images.shape[-2]], device=images.device, dtype=images.dtype)
    grid = 2 * projected[..., :2] / depth.clamp(min=1e-6) / limits - 1
    grid = torch.where(depth > 1e-6, grid, torch.full_like(grid, 3.0))  # behind the viewer
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def warp_down(images: Tensor, matrices: Tensor, zooms: Tensor) -> Tensor:
    """`warp` at the images' own size without aliasing when `zooms` `[B]` of the matrices lie below one half.

    Bilinear sampling reads two pixels either way, so images are averaged to the next power of two first.
    """
    size = (images.shape[-2], images.shape[-1])
    levels = [max(0, math.floor(-math.log2(zoom) + 1e-6)) for zoom in zooms.tolist()]
    result = torch.empty_like(images)
    for level in sorted(set(levels)):
        rows = torch.tensor([i for i, mine in enumerate(levels) if mine == level], device=images.device)
        factor = 2**level
        source = F.avg_pool2d(images[rows], factor, ceil_mode=True) if level else images[rows]
        larger = torch.diag(torch.tensor([factor, factor, 1], dtype=matrices.dtype, device=matrices.device))
        result[rows] = warp(source, matrices[rows] @ larger, size)
    return result


def scaling(zooms: Tensor, fixed_x: Tensor, fixed_y: Tensor) -> Tensor:
    """Matrices `[B, 3, 3]`, float64, that enlarge by `zooms` about a fixed point; each argument `[B]`."""
    return turning(torch.zeros_like(zooms), fixed_x, fixed_y, zooms)


def turning(degrees: Tensor, fixed_x: Tensor, fixed_y: Tensor, zooms: Tensor | None = None) -> Tensor:
    """Matrices `[B, 3, 3]`, float64, that turn clockwise (rows run down) and enlarge about a fixed point."""
    x, y = fixed_x.double(), fixed_y.double()
    angle = torch.deg2rad(degrees.double())
    zoom = torch.ones_like(angle) if zooms is None else zooms.double()
    cos, sin, zero, one = angle.cos() * zoom, angle.sin() * zoom, torch.zeros_like(x), torch.ones_like(x)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)
