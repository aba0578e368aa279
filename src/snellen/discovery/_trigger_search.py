"""Writing, for each class, the small patch in a corner of the image that brings most images to that class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

MOMENTUM = 0.5
STEP = 0.2
"""First step of a pixel in [0, 1]; it shrinks to zero over the climb."""
LONG_CLIMBS = 2
"""Regions of a class that get the longer climb; with one, a climb in six ended in a poor optimum."""


@dataclass(frozen=True)
class Region:
    """A square of `side` pixels; name: where it lies, in words."""

    name: str
    top: int
    left: int
    side: int

    def stamped(self, images: Tensor, patch: Tensor) -> Tensor:
        """`images` `[B, C, H, W]` with `patch` `[C, side, side]` laid over them, as a copy."""
        stamped = images.clone()
        stamped[:, :, self.top : self.top + self.side, self.left : self.left + self.side] = patch
        return stamped


@dataclass(frozen=True)
class Trigger:
    """The best patch found for a class. patch: `[C, side, side]` in [0, 1]."""

    target: int
    region: Region
    patch: Tensor


def corner_regions(height: int, width: int, share: float) -> list[Region]:
    """The four corners; `share` of the shorter side is the square's side, at least 2."""
    side = max(2, round(share * min(height, width)))
    return [
        Region(f"{vertical} {horizontal} corner", top, left, side)
        for vertical, top in (("upper", 0), ("lower", height - side))
        for horizontal, left in (("left", 0), ("right", width - side))
    ]


def find_triggers(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    regions: Sequence[Region],
    generator: torch.Generator,
    first_steps: int = 5,
    steps: int = 25,
    images_a_step: int = 16,
    batch_size: int = 256,
) -> list[Trigger]:
    """One trigger for each of `targets`.

    A short climb in every region decides in which two the longer climb of that class is made, and the better one
    counts; every class gets the same effort, so that classes can be compared. images: `[N, C, H, W]` in [0, 1]; labels:
    `[N]`, whose own class is skipped. logits: `[B, C, H, W]` to `[B, K]` with gradients. Passes: see `passes`.
    """
    if not targets or not regions or len(images) == 0:
        raise InvalidInput("a trigger search needs images, classes and regions, got none of one of them")
    climb = _Climb(logits, images, labels, images_a_step, batch_size, generator)
    every = [Trigger(target, region, _grey(images, region)) for target in targets for region in regions]
    losses, every = climb.climbed(every, first_steps)
    promising = []
    for first in range(0, len(every), len(regions)):
        of_class = sorted(range(first, first + len(regions)), key=losses.__getitem__)
        promising += [every[place] for place in of_class[:LONG_CLIMBS]]
    losses, promising = climb.climbed(promising, steps)
    best: dict[int, Trigger] = {}
    for place in sorted(range(len(promising)), key=losses.__getitem__):
        best.setdefault(promising[place].target, promising[place])
    return [best[target] for target in targets]


def passes(targets: int, regions: int, first_steps: int, steps: int, images_a_step: int) -> int:
    """Images sent forward, and as many backward, by `find_triggers`."""
    return targets * images_a_step * (regions * first_steps + min(LONG_CLIMBS, regions) * steps)


def _grey(images: Tensor, region: Region) -> Tensor:
    return images.new_full((images.shape[1], region.side, region.side), 0.5)


@dataclass(frozen=True)
class _Climb:
    logits: Callable[[Tensor], Tensor]
    images: Tensor
    labels: Tensor
    images_a_step: int
    batch_size: int
    generator: torch.Generator

    def climbed(self, triggers: Sequence[Trigger], steps: int) -> tuple[list[float], list[Trigger]]:
        """The triggers after `steps` signed steps of momentum, and the mean loss of each over the last half of them."""
        patches = [trigger.patch for trigger in triggers]
        velocity = [torch.zeros_like(patch) for patch in patches]
        losses = torch.zeros(len(triggers))
        at_once = max(1, self.batch_size // self.images_a_step)
        for step in range(steps):
            for start in range(0, len(triggers), at_once):
                some = range(start, min(start + at_once, len(triggers)))
                loss, gradients = self._gradients([triggers[i] for i in some], [patches[i] for i in some])
                if step >= steps // 2:
                    losses[start : start + len(loss)] += loss
                for i, gradient in zip(some, gradients, strict=True):
                    velocity[i] = MOMENTUM * velocity[i] + gradient / gradient.norm().clamp_min(1e-12)
                    patches[i] = (patches[i] - STEP * (1 - step / steps) * velocity[i].sign()).clamp(0, 1)
        found = [Trigger(t.target, t.region, patch) for t, patch in zip(triggers, patches, strict=True)]
        return losses.tolist(), found

    def _gradients(self, triggers: Sequence[Trigger], patches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        leaves = [patch.detach().requires_grad_() for patch in patches]
        stamped, wanted = [], []
        for trigger, leaf in zip(triggers, leaves, strict=True):
            drawn = self._others(trigger.target)
            stamped.append(trigger.region.stamped(self.images[drawn], leaf))
            wanted.append(torch.full((len(drawn),), trigger.target, device=self.images.device))
        loss = F.cross_entropy(self.logits(torch.cat(stamped)), torch.cat(wanted), reduction="none")
        sums = torch.stack([part.mean() for part in loss.split([len(w) for w in wanted])])
        return sums.detach().cpu(), list(torch.autograd.grad(sums.sum(), leaves))

    def _others(self, target: int) -> Tensor:
        """Indices of random images of other classes."""
        others = torch.nonzero(self.labels != target).flatten().cpu()
        chosen = torch.randint(len(others), (self.images_a_step,), generator=self.generator)
        return others[chosen].to(self.images.device)
