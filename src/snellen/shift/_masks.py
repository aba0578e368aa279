"""Object masks: where they come from when the data set has none, and which of them can be trusted."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from snellen.errors import InvalidInput

SMALLEST, LARGEST = 0.01, 0.90
"""Shares of the image between which an object can be edited."""
WORKING_SIDE = 96
"""Longer side in pixels at which GrabCut runs; its time grows with the pixels."""
MARGINS = (0.05, 0.15)
"""The two initialisations: a rectangle so far inside the image's edges, as a share of each side."""
ROUNDS = 3
LEAST_AGREEMENT = 0.75
"""Intersection over union of the masks from the two initialisations."""
MAIN_SHARE = 0.8
"""Of a mask's pixels that its largest component must hold."""


class EstimatedMasks(NamedTuple):
    """masks: bool `[B, H, W]`. kept: bool `[B]`, whether the mask passed every check. agreement: `[B]` in [0, 1],
    intersection over union of the masks from two initialisations."""

    masks: Tensor
    kept: Tensor
    agreement: Tensor


def editable(masks: Tensor) -> Tensor:
    """Bool `[B]`: an object is there and leaves some background, 1 % to 90 % of the image."""
    share = masks.flatten(1).float().mean(dim=1)
    return (share >= SMALLEST) & (share <= LARGEST)


def boxes_of(masks: Tensor) -> Tensor:
    """Bounding boxes int64 `[B, 4]` as x1, y1, x2, y2 (ends exclusive) of bool `[B, H, W]`; the whole image where a
    mask is empty."""
    height, width = masks.shape[-2:]
    masks = masks | ~masks.flatten(1).any(dim=1)[:, None, None]
    columns, rows = masks.any(dim=1).long(), masks.any(dim=2).long()
    return torch.stack(
        [columns.argmax(1), rows.argmax(1), width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)], dim=1
    )


def grabcut_masks(images: Tensor) -> EstimatedMasks:
    """Object masks of images `[B, C, H, W]` in [0, 1] by GrabCut (Rother et al., 2004), with a check of each.

    Takes the object to be in the middle: everything within 5 % (second run: 15 %) of the image's edge starts as
    background. A mask is refused when it covers less than 1 % or more than 90 %, when its largest component holds less
    than 80 % of it, or when the two runs agree by an intersection over union below 0.75. Misleads where something else
    is in the middle: the check sees whether the mask is stable, not whether it is the labelled object. Needs OpenCV
    (`snellen[masks]`), else InvalidInput; about 110 ms an image.
    """
    cv2 = _opencv()
    height, width = images.shape[-2:]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    small = F.interpolate(
        images.detach().float().cpu(), size=(max(round(scale * height), 1), max(round(scale * width), 1)),
        mode="bilinear", antialias=True,
    )  # fmt: skip
    pixels = (small.expand(-1, 3, -1, -1) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    masks, kept, agreement = [], [], []
    for picture in pixels.contiguous().numpy():
        first, second = (_grabcut(cv2, picture, margin) for margin in MARGINS)
        common, union = first & second, first | second
        agreement.append(float(common.sum() / max(union.sum(), 1)))
        main = _largest_component(first)
        whole = min(_share(_largest_component(mask), mask) for mask in (first, second))
        kept.append(
            agreement[-1] >= LEAST_AGREEMENT and whole >= MAIN_SHARE and SMALLEST <= float(main.mean()) <= LARGEST
        )
        masks.append(torch.from_numpy(main))
    full = F.interpolate(torch.stack(masks)[:, None].float(), size=(height, width), mode="nearest")[:, 0] > 0
    device = images.device
    return EstimatedMasks(full.to(device), torch.tensor(kept, device=device), torch.tensor(agreement, device=device))


def _opencv() -> ModuleType:
    try:
        return importlib.import_module("cv2")
    except ImportError as missing:
        raise InvalidInput("masks=grabcut needs OpenCV: install the extra `snellen[masks]`") from missing


def _grabcut(cv2: ModuleType, picture: NDArray[np.uint8], margin: float) -> NDArray[np.bool_]:
    height, width = picture.shape[:2]
    down, right = max(1, round(margin * height)), max(1, round(margin * width))
    states = np.zeros((height, width), np.uint8)
    rectangle = (right, down, width - 2 * right, height - 2 * down)
    # GrabCut's clustering draws from OpenCV's own stream; one seed an image keeps a row free of its batch.
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(picture, states, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # a picture of one colour has no two clusters
        return np.zeros((height, width), dtype=np.bool_)
    found: NDArray[np.bool_] = (states == cv2.GC_FGD) | (states == cv2.GC_PR_FGD)
    return found


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    components, count = ndimage.label(mask)
    if not count:
        return mask
    largest: NDArray[np.bool_] = components == 1 + np.bincount(components.ravel())[1:].argmax()
    return largest


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(part.sum() / max(whole.sum(), 1))
