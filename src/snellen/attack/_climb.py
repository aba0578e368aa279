"""The state of Auto-PGD: every image's position, best point and step, and the rule that halves the step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

RHO = 0.75
"""A step is kept while the loss rose in more than this part of the steps since the last checkpoint."""


@dataclass
class Climb:
    """What belongs to an image still under attack; the first dimension of every tensor is the image."""

    index: Tensor
    labels: Tensor
    targets: Tensor
    x: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best_x: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    checkpoint_loss: Tensor

    def keep(self, rows: Tensor) -> Climb:
        return Climb(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def start_climb(x: Tensor, labels: Tensor, targets: Tensor, eps: float) -> Climb:
    """Before the first pass: no loss known, step twice eps."""
    unknown = torch.full((len(x),), float("-inf"), device=x.device, dtype=x.dtype)
    return Climb(
        index=torch.arange(len(x), device=x.device),
        labels=labels,
        targets=targets,
        x=x,
        previous=x,
        gradient=x,
        loss=unknown,
        best_x=torch.empty_like(x),
        best_gradient=torch.empty_like(x),
        best_loss=unknown.clone(),
        step=torch.full((len(x), 1, 1, 1), 2 * eps, device=x.device, dtype=x.dtype),
        rises=torch.zeros_like(labels),
        halved=torch.ones_like(labels, dtype=torch.bool),  # at the first checkpoint only the rises decide
        checkpoint_loss=unknown.clone(),
    )


def remember_best(climb: Climb, loss: Tensor, first: bool) -> None:
    """Take note of the loss `[b]` at `climb.x`; `first`: there is nothing to compare it with."""
    better = loss > climb.best_loss
    wide = _wide(better | first)  # a NaN loss at the start is never better, but the start is all there is
    torch.where(wide, climb.x, climb.best_x, out=climb.best_x)
    torch.where(wide, climb.gradient, climb.best_gradient, out=climb.best_gradient)
    climb.best_loss = loss.where(better, climb.best_loss)
    if first:
        climb.checkpoint_loss = climb.best_loss
    else:
        climb.rises += loss > climb.loss
    climb.loss = loss


def halve_where_stuck(climb: Climb, window: int) -> None:
    """Checkpoint: halve the step of images whose ascent stalled and send them back to their best point."""
    oscillates = climb.rises <= RHO * window
    stands_still = ~climb.halved & (climb.best_loss <= climb.checkpoint_loss)
    halve = oscillates | stands_still

    climb.step = torch.where(_wide(halve), climb.step / 2, climb.step)
    climb.x = torch.where(_wide(halve), climb.best_x, climb.x)
    climb.gradient = torch.where(_wide(halve), climb.best_gradient, climb.gradient)
    climb.loss = torch.where(halve, climb.best_loss, climb.loss)
    climb.halved, climb.checkpoint_loss = halve, climb.best_loss
    climb.rises = torch.zeros_like(climb.rises)


def _wide(rows: Tensor) -> Tensor:
    return rows[:, None, None, None]
