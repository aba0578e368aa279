"""Adversarial patches made against a surrogate network (Stimberg et al., 2023; patches as in Brown et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.shift._obfuscate_overlay import patches

LARGEST_AREA = 0.2


def adversarial_patches(
    images: Tensor,
    labels: Tensor,
    surrogate: Callable[[Tensor], Tensor],
    generators: Sequence[Generator],
    *,
    area: float = 0.1,
    steps: int = 20,
    step_size: float = 0.1,
) -> Tensor:
    """Images with 1 to 4 square patches whose pixels raise the surrogate's cross-entropy of the label.

    images: float32 `[B, C, H, W]` in [0, 1]. labels: int64 `[B]`, in the surrogate's classes. surrogate: images to
    logits `[B, K]`, differentiable, and NOT the model that is examined: the benchmark transfers its patches.
    generators: one an image, for number, places and first texture. area: largest share of the image, up to 0.2.
    steps: of projected gradient ascent by `step_size` in pixel units. Costs `steps` forward and backward images each.

    Returns new images that differ only in the patches. Raises InvalidInput. Misleads with a surrogate unlike the
    examined model: then the patches are only loud.
    """
    if not 0 < area <= LARGEST_AREA or steps < 1 or not step_size > 0:
        raise InvalidInput(
            f"area must be in (0, {LARGEST_AREA}], steps at least 1 and step_size positive,"
            f" got {area}, {steps} and {step_size}"
        )
    if labels.shape != images.shape[:1] or len(generators) != len(images):
        raise InvalidInput(
            f"labels and generators must be one an image: {len(images)}, got {list(labels.shape)} and {len(generators)}"
        )
    masks, pixels = patches(images, area, generators)
    for _ in range(steps):
        with torch.enable_grad():
            pixels.requires_grad_()
            logits = surrogate(pixels.where(masks, images))
            if logits.ndim != 2 or not logits.requires_grad:
                raise InvalidInput(
                    f"surrogate must return logits [B, K] that carry gradients, got {list(logits.shape)}"
                )
            # Summed: an image's patch must not depend on how many others are in the batch.
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)
        pixels = pixels.detach().add(gradient.sign(), alpha=step_size).clamp_(0, 1)
    return pixels.where(masks, images)
