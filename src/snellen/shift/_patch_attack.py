"""The attack of `shift/adversarial-patch`: pixels of a patch climb the loss until the answer is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import labels_of
from snellen.randomness import uniform


class PatchAttack(NamedTuple):
    """images: `[B, C, H, W]`, the last tried where the answer held. fooled: bool `[B]`. predicted: int64 `[B]`.
    gradients: int64 `[B]`, backward passes spent on each image.
    """

    images: Tensor
    fooled: Tensor
    predicted: Tensor
    gradients: Tensor


def adversarial_patch(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    pixels: Tensor,
    generators: Sequence[Generator],
    *,
    steps: int = 200,
    step_size: float = 8 / 255,
    momentum: float = 0.9,
    restarts: int = 3,
    eps: float | None = None,
) -> PatchAttack:
    """Write the pixels of a patch so that the answer becomes wrong (2022; momentum of Dong et al., 2018).

    model: images `[B, C, H, W]` in [0, 1] to logits `[B, K]`, differentiable, normalisation inside. labels: int64
    `[B]`, the true classes. pixels: bool `[B, H, W]`, the patch; nothing outside changes. generators: one an image, for
    its starts. steps: gradient steps a start. step_size: in pixel units. eps: largest change inside the patch, for
    patches nobody should see; None lets the pixels go anywhere in [0, 1]. Raises InvalidInput.
    """
    _check_attack(images, labels, pixels, generators, steps, restarts, eps)
    found, answer = images.clone(), labels.clone()
    gradients = torch.zeros_like(labels)
    low = torch.zeros_like(images) if eps is None else (images - eps).clamp(min=0)
    high = torch.ones_like(images) if eps is None else (images + eps).clamp(max=1)
    inside = pixels.to(images.device)[:, None]
    standing = torch.arange(len(images), device=images.device)

    for _ in range(restarts):
        # random start
        noise = uniform([generators[i] for i in standing.tolist()], images.shape[1:]).to(images)
        start = torch.lerp(low[standing], high[standing], noise)
        x = torch.where(inside[standing], start, images[standing])
        velocity = torch.zeros_like(x)

        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                logits = model(x.requires_grad_(step < steps))
            predicted = labels_of(logits.detach())
            found[standing], answer[standing] = x.detach(), predicted
            holds = predicted == labels[standing]
            if step == steps or not holds.any():
                break

            # leave the fooled
            loss = _loss(logits, labels[standing], holds)
            (gradient,) = torch.autograd.grad(loss, x)
            standing, x, gradient, velocity = standing[holds], x.detach()[holds], gradient[holds], velocity[holds]
            gradients[standing] += 1

            # ascend inside the patch
            gradient = gradient * inside[standing]
            length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            velocity = momentum * velocity + gradient / length
            moved = (x + step_size * velocity.sign()).clamp(low[standing], high[standing])
            x = torch.where(inside[standing], moved, x)

        standing = standing[holds]
        if not len(standing):
            break
    return PatchAttack(found, answer != labels, answer, gradients)


def _loss(logits: Tensor, labels: Tensor, holds: Tensor) -> Tensor:
    if not logits.requires_grad:
        raise InvalidInput("model must be differentiable, but its logits have no gradient; give it gradients access")
    if int(labels.max()) >= logits.shape[1]:
        raise InvalidInput(f"labels must be below the {logits.shape[1]} outputs, got {int(labels.max())}")
    with torch.enable_grad():
        return F.cross_entropy(logits[holds], labels[holds], reduction="sum")


def _check_attack(
    images: Tensor,
    labels: Tensor,
    pixels: Tensor,
    generators: Sequence[Generator],
    steps: int,
    restarts: int,
    eps: float | None,
) -> None:
    batch, _, height, width = images.shape
    if pixels.dtype != torch.bool or tuple(pixels.shape) != (batch, height, width):
        raise InvalidInput(
            f"pixels must be bool [B, H, W] = {[batch, height, width]}, got {pixels.dtype} {list(pixels.shape)}"
        )
    if len(labels) != batch or len(generators) != batch or not batch:
        raise InvalidInput(
            f"labels and generators must be one an image, got {len(labels)} and {len(generators)} for {batch}"
        )
    lowest, highest = (float(bound) for bound in images.aminmax())
    if not (lowest >= 0 and highest <= 1):
        raise InvalidInput(f"images must lie in [0, 1], got values from {lowest} to {highest}")
    if steps < 0 or restarts < 1:
        raise InvalidInput(f"steps must be 0 or more and restarts 1 or more, got {steps} and {restarts}")
    if eps is not None and not 0 < eps <= 1:
        raise InvalidInput(f"eps must be in (0, 1], or None for a free patch, got {eps}")
