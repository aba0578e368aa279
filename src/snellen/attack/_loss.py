"""What an attacker climbs: per-image losses `[B]` of logits `[B, K]`, higher the more wrong.

Cross-entropy depends on the scale of the logits, and in float32 its gradient is exactly zero once the margin passes
about 100: a model can hide that way. The difference-of-logits ratio (Croce and Hein, 2020) does not change under
shifts and positive rescaling of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

LossName = Literal["ce", "dlr"]

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits `[B, K]` and labels `[B]` to a loss `[B]` that the attack raises."""

EPS = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy `[B]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference-of-logits ratio `[B]`: -(z_y - max_{i≠y} z_i) / (z_(1) - z_(3)); positive once fooled."""
    _need_classes(logits, 3, "dlr")
    top, classes = logits.topk(3, dim=1)
    best_other = top[:, 0].where(classes[:, 0] != labels, top[:, 1])
    return (best_other - _at(logits, labels)) / (top[:, 0] - top[:, 2] + EPS)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted ratio `[B]`: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2); raises class `targets` over `labels`."""
    _need_classes(logits, 4, "targeted dlr")
    top = logits.topk(4, dim=1).values
    return (_at(logits, targets) - _at(logits, labels)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + EPS)


def loss_function(loss: LossName | LossFunction) -> LossFunction:
    """The loss of that name; a function is returned as it is."""
    if callable(loss):
        return loss
    if loss not in ("ce", "dlr"):
        raise InvalidInput(f"loss must be 'ce', 'dlr' or a function of logits and labels, got {loss!r}")
    return cross_entropy if loss == "ce" else dlr


def input_gradient(losses: Tensor, points: Tensor) -> Tensor:
    """Gradient of the losses `[B]`, each by its own image of `points`; the parameters get none."""
    # Summed, not averaged: an image's gradient must not depend on how many others are in the batch.
    (gradient,) = torch.autograd.grad(losses.sum(), points, allow_unused=True)
    if gradient is None:
        raise InvalidInput(
            "model gives no gradients by the images (it detaches them); a gradient attack needs a differentiable model"
        )
    return gradient


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _need_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise InvalidInput(
            f"the {name} loss needs at least {least} classes, the model has {logits.shape[1]}; use loss='ce'"
        )
