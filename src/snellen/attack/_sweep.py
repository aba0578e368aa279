"""What every attack returns, and the sweep over nested balls that turns an attack into rows.

A ball of radius eps lies in every larger one, so an image fooled at a small eps counts as fooled at all larger ones
and is not attacked again: robust accuracy cannot rise with eps, and no pass is spent on what is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import Model, labels_of
from snellen.probe import Batch, Rows, rows
from snellen.randomness import SampleRandom


class AttackResult(NamedTuple):
    """What an attack found, image by image.

    images: `[B, C, H, W]`, the adversarial images, or the last tries where the attack failed. success: bool `[B]`,
    the answer is not the label. predicted: int64 `[B]`, the answer to `images` (-1 where it is not finite).
    distance: `[B]`, from the clean image in the attack's norm. zero_gradient: bool `[B]`, the first gradient was
    zero or not finite everywhere, so nothing was learnt from it. forwards, backwards: images sent through.
    """

    images: Tensor
    success: Tensor
    predicted: Tensor
    distance: Tensor
    zero_gradient: Tensor
    forwards: int
    backwards: int


Attack: TypeAlias = Callable[[Tensor, Tensor, float, Sequence[Generator]], AttackResult]
"""Images, labels, eps and one generator an image to a result."""


def sweep(
    model: Model, batch: Batch, epsilons: Sequence[float], norm: str, attack: Attack, random: SampleRandom
) -> Rows:
    """One row a (sample, eps). Only correctly classified samples are attacked, at each eps only the survivors.

    Columns: id, label, eps, norm, clean_correct, robust (clean_correct and not fooled at this eps or a smaller one),
    adversarial_label (the answer to the image found, the label where robust), distance (0 for clean errors, null
    where robust), zero_gradient (robust, but the attack had no gradient to follow), probabilities (the model's
    outputs look like probabilities, not logits).
    """
    clean = model.scores(batch.images)
    predicted = labels_of(clean)
    correct = predicted == batch.labels
    flagged = look_like_probabilities(clean)

    fooled = ~correct
    answer, distance = predicted.clone(), torch.zeros(len(batch), device=predicted.device)
    blind = torch.zeros_like(fooled)
    parts: list[Rows] = []
    for eps in sorted(epsilons):
        alive = (~fooled).nonzero().flatten()
        if len(alive) > 0:
            everyone = len(alive) == len(batch)
            result = attack(
                batch.images if everyone else batch.images[alive],
                batch.labels[alive],
                eps,
                random.generators([batch.ids[i] for i in alive.tolist()], eps),
            )
            fell = alive[result.success]
            fooled[fell] = True
            answer[fell] = result.predicted[result.success]
            distance[fell] = result.distance[result.success].to(distance.dtype)
            blind[alive] = result.zero_gradient & ~result.success
        found = [d if f else None for d, f in zip(distance.tolist(), fooled.tolist(), strict=True)]
        part = rows(
            batch.ids,
            label=batch.labels,
            eps=[eps] * len(batch),
            norm=[norm] * len(batch),
            clean_correct=correct,
            robust=~fooled,
            adversarial_label=answer.clone(),  # Arrow keeps the memory, which the next radius writes to
            zero_gradient=blind.clone(),
            probabilities=flagged,
        )
        # The type is given because a column of nulls alone would have none, and shards must agree.
        parts.append(part.append_column("distance", pa.array(found, pa.float64())))
    return pa.concat_tables(parts)


def look_like_probabilities(outputs: Tensor) -> Tensor:
    """Bool `[B]`: rows of `outputs` `[B, K]` without negatives that sum to 1 within 1e-3."""
    return (outputs >= 0).all(1) & ((outputs.sum(1) - 1).abs() < 1e-3)


def zero_rows(gradient: Tensor) -> Tensor:
    """Bool `[B]`: gradients `[B, C, H, W]` without one usable number."""
    return ~(gradient.abs().amax((1, 2, 3)) > 0)  # NaN compares as false and is as useless as zero


def check_epsilons(epsilons: Sequence[float]) -> None:
    """Refuse an empty grid, repeated or non-positive radii."""
    if not epsilons or len(set(epsilons)) < len(epsilons) or not all(0 < eps < math.inf for eps in epsilons):
        raise InvalidInput(f"eps must be one or more different positive numbers in pixel units, got {tuple(epsilons)}")


def in_turn(stages: Sequence[Callable[[Tensor], AttackResult]], labels: Tensor) -> AttackResult:
    """Attacks one after another, each on the rows that the former ones left standing.

    stages: at least one, each takes row numbers int64 `[b]` and attacks those. labels: `[B]`, for the device.
    """
    result = stages[0](torch.arange(len(labels), device=labels.device))
    for stage in stages[1:]:
        rows = (~result.success).nonzero().flatten()
        if len(rows) == 0:
            break
        later = stage(rows)
        for merged, new in zip(result[:4], later[:4], strict=True):
            merged[rows] = new
        result.zero_gradient[rows] &= later.zero_gradient  # one loss with a gradient is enough to be trusted
        result = result._replace(
            forwards=result.forwards + later.forwards, backwards=result.backwards + later.backwards
        )
    return result
