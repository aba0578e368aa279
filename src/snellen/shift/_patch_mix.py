"""Patch Mixing: training images with patches of another image, and labels that follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.shift._patches import patch_side, random_patches, replaced


class MixedBatch(NamedTuple):
    """images: `[B, C, H, W]`. targets: soft labels `[B, K]`, rows summing to 1. pixels: bool `[B, H, W]`, True where
    the partner shows. share: of patches that are the partner's, the same for the batch. partners: int64 `[B]`, whose.
    """

    images: Tensor
    targets: Tensor
    pixels: Tensor
    share: float
    partners: Tensor


def patch_mix(
    images: Tensor,
    labels: Tensor,
    generator: Generator,
    *,
    num_classes: int | None = None,
    share: float | None = None,
    patch: int | None = None,
    smoothing: float = 0.1,
) -> MixedBatch:
    """Replace random patches of every image by those of a partner and mix the labels alike (Patch Mixing, 2023).

    images: float `[B, C, H, W]`, B at least 2; the partner is another image of the batch, drawn anew. labels: int64
    `[B]` with `num_classes`, or soft `[B, K]`. generator: on the CPU. share: of patches to replace, in [0, 1]; drawn
    uniformly once for the batch when None. The labels follow the realised share, a whole number of patches. patch: side
    in pixels, dividing the image's; up to an eighth of the height when None. smoothing: of the mixed label, in [0, 1).

    For training with cross-entropy on soft targets, which makes a CNN as selective as a ViT; the paper applies it to
    about half of the batches. Recipe of the draw from memory of the paper. Raises InvalidInput.
    """
    batch, _, height, width = images.shape
    if batch < 2:
        raise InvalidInput(f"images must be at least 2, since each needs a partner, got {batch}")
    if share is not None and not 0 <= share <= 1:
        raise InvalidInput(f"share must be in [0, 1], got {share}")
    if not 0 <= smoothing < 1:
        raise InvalidInput(f"smoothing must be in [0, 1), got {smoothing}")
    targets = _soft(labels, num_classes, batch)
    side = patch_side(height, width, patch, height // 8)

    # partners along a random circle, so that nobody meets himself
    circle = torch.randperm(batch, generator=generator)
    partners = torch.empty_like(circle)
    partners[circle] = circle.roll(1)

    wanted = float(torch.rand((), generator=generator)) if share is None else share
    cells = (height // side) * (width // side)
    count = round(wanted * cells)
    (pixels,) = random_patches([generator] * batch, height, width, side, (count,))
    realised = count / cells

    partners, pixels = partners.to(images.device), pixels.to(images.device)
    mixed = (1 - realised) * targets + realised * targets[partners]
    mixed = (1 - smoothing) * mixed + smoothing / targets.shape[1]
    return MixedBatch(replaced(images, images[partners], pixels), mixed, pixels, realised, partners)


def _soft(labels: Tensor, num_classes: int | None, batch: int) -> Tensor:
    if labels.ndim == 2 and labels.is_floating_point() and len(labels) == batch:
        return labels
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != batch:
        raise InvalidInput(
            f"labels must be int64 [{batch}] or soft [{batch}, K], got {labels.dtype} {list(labels.shape)}"
        )
    if num_classes is None:
        raise InvalidInput("num_classes must be given with whole-number labels, got None")
    lowest, highest = (int(bound) for bound in labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise InvalidInput(f"labels must be in 0 to {num_classes - 1}, got {lowest} to {highest}")
    return F.one_hot(labels, num_classes).float()
