"""What a severity and a pixel mean to transforms whose paper gives ranges instead of five strengths.

A strength rises in straight lines from the identity at severity 0 to the middle of the paper's range at 3 and its
upper end at 5. A length in pixels is meant at 224 px; it grows with the short side above and shrinks with the square
root of it below, because a pattern that shrank with the image would vanish between its pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

REFERENCE_SIDE = 224


def rising(severity: float, middle: float, upper: float, start: float = 0.0) -> float:
    """`start` at severity 0, `middle` at 3, `upper` at 5, linear between."""
    return float(np.interp(severity, (0, 3, 5), (start, middle, upper)))


def length(pixels: float, images: Tensor) -> float:
    """What `pixels` at 224 px are at the size of `images` `[B, C, H, W]`."""
    share = min(images.shape[-2:]) / REFERENCE_SIDE
    return pixels * (share if share > 1 else math.sqrt(share))


def spread(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers from U(0, 1) as numbers from U(low, high)."""
    return low + (high - low) * numbers


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """`[B]` as `[B, 1, 1]` on the device of `like`, one value an image."""
    return numbers.view(-1, 1, 1).to(like.device)


def pixel_rows(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers `[H, 1]` and column numbers `[1, W]`, float on the device of `images`."""
    height, width = images.shape[-2:]
    down = torch.arange(height, dtype=torch.float32, device=images.device)[:, None]
    return down, torch.arange(width, dtype=torch.float32, device=images.device)[None]


def stripes(images: Tensor, period: Tensor, angle: Tensor, phase: Tensor, share: float) -> Tensor:
    """Which pixels lie in the first `share` of each period, bool `[B, 1, H, W]`.

    period: `[B]` in pixels. angle: `[B]` in radians, across the stripes, 0 for columns. phase: `[B]` in periods.
    """
    y, x = pixel_rows(images)
    period, angle, phase = (column(values, images) for values in (period, angle, phase))
    place = (x * angle.cos() + y * angle.sin()) / period + phase
    return (place % 1 < share)[:, None]
