"""Scores of all crops of an image, exact to the last bit, and the choice of the best one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

LOG_SIGMA, LOG_RADIUS, LOG_UNIT = 1.5, 6, 4096
GREY = (299.0, 587.0, 114.0)


class Selection(NamedTuple):
    """tops, lefts: int64 `[B]`, where the best crop starts. tied: bool `[B]`, several crops share the best score."""

    tops: Tensor
    lefts: Tensor
    tied: Tensor


def log_kernel() -> Tensor:
    """A Laplacian of Gaussian, sigma 1.5 px, `[13, 13]`, in whole numbers that sum to zero."""
    axis = torch.arange(-LOG_RADIUS, LOG_RADIUS + 1, dtype=torch.float64)
    squared = axis[:, None] ** 2 + axis**2
    kernel = (squared / (2 * LOG_SIGMA**2) - 1) * torch.exp(-squared / (2 * LOG_SIGMA**2))
    kernel = (kernel * LOG_UNIT).round()
    kernel[LOG_RADIUS, LOG_RADIUS] -= kernel.sum()
    return kernel


def crop_scores(images: Tensor, crop: int, kernel: Tensor | None = None) -> Tensor:
    """The score of every crop of side `crop`, float64 `[B, H - crop + 1, W - crop + 1]`.

    images: `[B, C, H, W]` in [0, 1]; their 8-bit grey levels are what counts. kernel: `[crop, crop]` whole numbers
    that a crop is multiplied with; None takes a Laplacian of Gaussian at the crop's centre. All numbers are whole and
    their sums below 2^53, so a score is exact and cannot depend on where its crop lies, which rounding would spoil.
    """
    height, width = images.shape[-2:]
    if not 0 < crop < min(height, width):
        raise InvalidInput(f"crop must be a side between 1 and {min(height, width) - 1} px, got {crop}")
    weights = torch.tensor(GREY[: images.shape[1]], dtype=torch.float64, device=images.device)
    levels = (images.double() * 255).round()
    grey = (levels * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    if kernel is None:
        kernel = log_kernel()
        # The kernel sits at the crop's centre; a crop smaller than it uses the kernel's middle.
        radius = min(LOG_RADIUS, (crop - 1) // 2)
        inner = slice(LOG_RADIUS - radius, LOG_RADIUS + radius + 1)
        kernel, first = kernel[inner, inner], crop // 2 - radius
        grey = grey[..., first : height - crop + first + 2 * radius + 1, first : width - crop + first + 2 * radius + 1]
    elif tuple(kernel.shape) != (crop, crop) or not torch.equal(kernel, kernel.round()):
        raise InvalidInput(f"kernel must be [{crop}, {crop}] whole numbers, got {list(kernel.shape)}")
    kernel = kernel.double().to(images.device)
    if kernel.numel() <= 400:
        return F.conv2d(grey, kernel[None, None])[:, 0]
    size = grey.shape[-2:]
    spectrum = torch.fft.rfft2(grey[:, 0]) * torch.fft.rfft2(kernel, s=size).conj()
    valid = torch.fft.irfft2(spectrum, s=size)[:, : size[0] - crop + 1, : size[1] - crop + 1]
    exact: Tensor = valid.round()
    return exact


def select_crops(scores: Tensor) -> Selection:
    """The first position, in reading order, of the best score `[B, Ky, Kx]`; the centre where all scores are equal."""
    if scores.ndim != 3 or not scores.isfinite().all():
        raise InvalidInput(f"scores must be finite, [B, Ky, Kx], got {list(scores.shape)}")
    flat = scores.flatten(1)
    best = flat.max(dim=1, keepdim=True).values
    # argmax promises no order among equals; the first of them is found by its index.
    index = torch.arange(flat.shape[1], device=scores.device).expand_as(flat)
    first = index.masked_fill(flat != best, flat.shape[1]).min(dim=1).values
    constant = (flat == best).all(dim=1)
    centre = (scores.shape[1] - 1) // 2 * scores.shape[2] + (scores.shape[2] - 1) // 2
    chosen = first.masked_fill(constant, centre)
    return Selection(chosen // scores.shape[2], chosen % scores.shape[2], (flat == best).sum(dim=1) > 1)


def take_crops(images: Tensor, selection: Selection, crop: int) -> Tensor:
    """The chosen crops `[B, C, crop, crop]`."""
    places = zip(images, selection.tops.tolist(), selection.lefts.tolist(), strict=True)
    return torch.stack([image[:, top : top + crop, left : left + crop] for image, top, left in places])


def certified(scores: Tensor, shift: int) -> Tensor:
    """Whether the crop chosen in the middle window stays chosen for every move by up to `shift` px, bool `[B]`. Exact.

    scores: `[B, Ky + 2 shift, Kx + 2 shift]` of the image with its margin, from which the windows are cut. The winner
    over all positions must be unique and lie in every window.
    """
    if not shift >= 0 or 2 * (2 * shift) >= min(scores.shape[-2:]):
        raise InvalidInput(f"scores must have more than {4 * shift} positions an axis, got {list(scores.shape)}")
    tops, lefts, tied = select_crops(scores)
    height, width = scores.shape[-2:]
    inside = (tops >= 2 * shift) & (tops < height - 2 * shift) & (lefts >= 2 * shift) & (lefts < width - 2 * shift)
    return inside & ~tied
