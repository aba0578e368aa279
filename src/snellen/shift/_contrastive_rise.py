"""Which pixels speak for one class and against another, from answers to randomly masked images alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput


def contrastive_rise(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    class_a: int,
    class_b: int,
    generator: Generator,
    *,
    masks: int = 1000,
    cells: int = 8,
    keep: float = 0.5,
    batch_size: int = 64,
) -> Tensor:
    """Importance of each pixel for `class_a` against `class_b`, `[H, W]` (Patch Mixing, 2023; RISE, 2018).

    The image is dimmed by random soft masks m, and S = mean of (d - mean d) m / keep with d the difference of the two
    probabilities. RISE averages d m / keep; taking the mean of d away changes S by nearly a constant, removes most of
    its noise, and makes a model that cannot tell the classes apart score 0 everywhere.

    model: images `[B, C, H, W]` to logits `[B, K]`; plain scores are enough. image: `[C, H, W]` in [0, 1]. masks: how
    many, 1,000 here and 4,000 in RISE. cells: of the coarse mask along a side. keep: chance that a cell stays, (0, 1).
    Black is what a masked pixel becomes: a class that goes with darkness is favoured. Raises InvalidInput.
    """
    if image.ndim != 3:
        raise InvalidInput(f"image must be [C, H, W], got {list(image.shape)}")
    if class_a == class_b or min(class_a, class_b) < 0:
        raise InvalidInput(f"class_a and class_b must be two different outputs, got {class_a} and {class_b}")
    if masks < 2 or cells < 2 or batch_size < 1 or not 0 < keep < 1:
        raise InvalidInput(
            "masks and cells must be 2 or more, batch_size 1 or more and keep in (0, 1),"
            f" got {masks}, {cells}, {batch_size} and {keep}"
        )
    total, weighted, contrasts = torch.zeros_like(image[0]), torch.zeros_like(image[0]), 0.0
    for start in range(0, masks, batch_size):
        drawn = _soft_masks(min(batch_size, masks - start), image, cells, keep, generator)
        with torch.no_grad():
            logits = model(image * drawn[:, None])
        if max(class_a, class_b) >= logits.shape[1]:
            raise InvalidInput(f"class_a and class_b must be below {logits.shape[1]}, got {class_a} and {class_b}")
        probabilities = logits.softmax(dim=1)
        contrast = probabilities[:, class_a] - probabilities[:, class_b]
        weighted += torch.einsum("n,nhw->hw", contrast, drawn)
        total += drawn.sum(dim=0)
        contrasts += float(contrast.sum())
    return (weighted - contrasts / masks * total) / (masks * keep)


def selectivity_score(importance: Tensor, in_context: Tensor) -> float:
    """Share of the positive importance `[H, W]` that lies on `in_context` bool `[H, W]`, in [0, 1].

    1 when the answer rests on the image's own patches alone; compare it with their share of the area, which a map
    without preference scores. NaN when nothing is positive.
    """
    if importance.shape != in_context.shape or in_context.dtype != torch.bool:
        raise InvalidInput(
            f"in_context must be bool {list(importance.shape)}, got {in_context.dtype} {list(in_context.shape)}"
        )
    positive = importance.clamp(min=0)
    return float(positive[in_context].sum() / positive.sum())


def _soft_masks(count: int, image: Tensor, cells: int, keep: float, generator: Generator) -> Tensor:
    """RISE's masks `[count, H, W]` in [0, 1]: coarse on-off cells, blown up and shifted by less than a cell."""
    height, width = image.shape[-2:]
    tall, wide = -(-height // cells), -(-width // cells)
    coarse = (torch.rand(count, 1, cells + 1, cells + 1, generator=generator) < keep).float()
    down = torch.randint(tall, (count,), generator=generator)
    right = torch.randint(wide, (count,), generator=generator)
    size = ((cells + 1) * tall, (cells + 1) * wide)
    blown = F.interpolate(coarse.to(image.device), size=size, mode="bilinear", align_corners=False)[:, 0]
    rows = (down[:, None] + torch.arange(height)).to(image.device)
    columns = (right[:, None] + torch.arange(width)).to(image.device)
    return blown[torch.arange(count, device=image.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
