"""Which images does a network hold to be the same, and could a person tell them apart?

Harrington and Deza (2022). A metamer of a model is an image with other pixels and the same features: from noise,
normalised gradient steps lower L = |g(x) - g(x*)| / |g(x*)|. Features of adversarially trained networks give metamers
that pass in peripheral vision, those of standard networks give noise that is seen at once. The same synthesis with
statistics pooled in windows gives texforms, the yardstick. Whether they pass is decided by people: `balanced_trials`
makes the table of an odd-one-out and a two-choice task, `write_trials` and `write_stimuli` hand it over, `read_answers`
takes the answers back, and `score` counts them.

    made = synthesise(encoder, targets, ids)
    trials = balanced_trials("resnet50", ids, eccentricities=(5, 10, 20, 30))
    scores = score(trials, read_answers(path, trials))

`simulate_answers` answers a table by a model of the periphery. It is a rehearsal of the study and NO SUBSTITUTE FOR
PEOPLE. Misleads further where synthesis did not converge: such images differ in features too, hence `converged`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snellen.discovery._metamer_scores import AccuracyCell, MetamerScores, Slope, score
from snellen.discovery._metamer_trials import (
    Answer,
    Trial,
    balanced_trials,
    check_balance,
    read_answers,
    read_trials,
    stimulus_name,
    write_answers,
    write_stimuli,
    write_trials,
)
from snellen.discovery._simulated_observer import calibrate_noise, simulate_answers
from snellen.discovery._window_statistics import window_statistics
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import torch_generator, uniform

__all__ = [
    "AccuracyCell", "Answer", "MetamerScores", "MetamerSynthesis", "Metamers", "Slope", "Trial", "acceptance_level",
    "balanced_trials", "calibrate_noise", "check_balance", "metamer_loss", "read_answers", "read_trials", "score",
    "simulate_answers", "stimulus_name", "synthesise", "texforms", "window_statistics", "write_answers",
    "write_stimuli", "write_trials",
]  # fmt: skip

Encoder = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` to features, with gradients."""
LOGGED = 50


@dataclass(frozen=True)
class MetamerSynthesis:
    """How metamers are made."""

    steps: int = 10_000
    """At least 0; the paper's recipe as far as known, 500 to 2000 do for small images."""
    rate: float = 1.0
    """L2 length of a step in pixel units, above 0; 1 is for 224 to 256 px. It falls linearly to zero."""
    accept: float = 0.1
    """Largest loss of a metamer that counts as converged; see also `acceptance_level`."""
    copies: int = 2
    """Metamers of each target, from noise of their own; at least 1."""
    batch: int = 64
    """Images at once, at least 1."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.copies < 1 or self.batch < 1:
            raise InvalidInput(
                "steps must be at least 0, copies and batch at least 1,"
                f" got {self.steps}, {self.copies} and {self.batch}"
            )
        if not (0 < self.rate < math.inf and 0 < self.accept < math.inf):
            raise InvalidInput(f"rate and accept must be above 0, got {self.rate} and {self.accept}")


@dataclass(frozen=True)
class Metamers:
    """images: `[n, copies, C, H, W]` in [0, 1], those with the lowest loss met. loss, start_loss: `[n, copies]`.
    converged: bool `[n, copies]`, loss at most `accept`. log: `[n, copies, L]`, the lowest loss so far, at the start,
    every 50 steps, and at the end."""

    images: Tensor
    loss: Tensor
    start_loss: Tensor
    converged: Tensor
    log: Tensor

    @property
    def excluded(self) -> int:
        """Metamers that did not converge, which no study should show."""
        return int((~self.converged).sum())


def metamer_loss(encoder: Encoder, images: Tensor, goal: Tensor) -> Tensor:
    """L `[B]`: distance of the features to `goal` `[B, D]` over the length of `goal`."""
    distance: Tensor = (encoder(images).flatten(1) - goal).norm(dim=1) / goal.norm(dim=1)
    return distance


def synthesise(
    encoder: Encoder,
    targets: Tensor,
    ids: Sequence[str],
    settings: MetamerSynthesis | None = None,
    *,
    start: Tensor | None = None,
    seed: int = 0,
) -> Metamers:
    """Images with the features of the targets, from uniform noise.

    encoder: float32 `[B, C, H, W]` in [0, 1] to features, differentiable, in evaluation mode. targets: `[n, C, H, W]`.
    ids: n names that seed the noise, so that an image does not depend on the batch. start: `[n, copies, C, H, W]` in
    place of noise. Raises InvalidInput for an encoder without gradients and for targets whose features are zero.
    """
    settings = settings or MetamerSynthesis()
    _check_images(targets)
    if len(ids) != len(targets) or len(set(ids)) < len(ids):
        raise InvalidInput(f"ids must be {len(targets)} different names, got {len(ids)} with {len(set(ids))} different")
    shape = (len(targets), settings.copies, *targets.shape[1:])
    if start is None:
        streams = [torch_generator(seed, "metamers", name, copy) for name in ids for copy in range(settings.copies)]
        start = uniform(streams, targets.shape[1:]).to(targets).view(shape)
    if start.shape != shape:
        raise InvalidInput(f"start must be {list(shape)}, got {list(start.shape)}")
    _check_images(start.flatten(0, 1))
    repeated = targets.repeat_interleave(settings.copies, dim=0)
    parts = [
        _descend(encoder, first, target, settings)
        for first, target in zip(start.flatten(0, 1).split(settings.batch), repeated.split(settings.batch), strict=True)
    ]
    images, log = (torch.cat(column) for column in zip(*parts, strict=True))
    log = log.view(*shape[:2], -1)
    return Metamers(images.view(shape), log[..., -1], log[..., 0], log[..., -1] <= settings.accept, log)


def texforms(
    targets: Tensor, ids: Sequence[str], diameter: float, settings: MetamerSynthesis | None = None, *, seed: int = 0
) -> Metamers:
    """Images with the statistics of the targets in windows of a diameter in px, see `window_statistics`."""
    return synthesise(lambda images: window_statistics(images, diameter), targets, ids, settings, seed=seed)


def acceptance_level(encoder: Encoder, images: Tensor, labels: Tensor, percentile: float = 1.0) -> float:
    """The percentile (0 to 100) of L between different images of a class: a metamer should lie below it.

    Raises InvalidInput where no class has two images.
    """
    if not 0 <= percentile <= 100:
        raise InvalidInput(f"percentile must be in [0, 100], got {percentile}")
    with torch.no_grad():
        features = encoder(images).flatten(1)
    pairs = (labels.view(-1, 1) == labels.view(1, -1)).fill_diagonal_(False)
    if not bool(pairs.any()):
        raise InvalidInput("labels must hold a class with two images, got none")
    losses = torch.cdist(features, features) / features.norm(dim=1).clamp_min(1e-12)
    return float(np.percentile(losses[pairs].double().cpu().numpy(), percentile))


def _descend(encoder: Encoder, start: Tensor, targets: Tensor, settings: MetamerSynthesis) -> tuple[Tensor, Tensor]:
    """The best images and the log `[B, L]` of the lowest loss."""
    with torch.no_grad():
        goal = encoder(targets).flatten(1)
    if not bool((goal.norm(dim=1) > 0).all()) or not bool(goal.isfinite().all()):
        raise InvalidInput("encoder must give finite features other than zero for every target")
    images = best = start
    lowest = torch.full((len(start),), math.inf, device=start.device, dtype=goal.dtype)
    log = []
    for step in range(settings.steps + 1):
        moving = images.detach().requires_grad_()
        loss = metamer_loss(encoder, moving, goal)
        if not loss.requires_grad:
            raise InvalidInput("encoder must be differentiable in the images, its features carry no gradient")
        with torch.no_grad():
            better = loss < lowest
            best = torch.where(better.view(-1, 1, 1, 1), images, best)
            lowest = torch.minimum(lowest, loss)
        if step % LOGGED == 0 or step == settings.steps:
            log.append(lowest)
        if step < settings.steps:
            (slope,) = torch.autograd.grad(loss.sum(), moving)
            # At the target itself the slope is zero, and 0 / 0 must not move the image.
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            rate = settings.rate * (1 - step / settings.steps)
            images = (images - rate * slope / length).clamp(0, 1)
    return best, torch.stack(log, dim=1)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0 or not bool(((images >= 0) & (images <= 1)).all()):
        raise InvalidInput(f"images must be [n, C, H, W], finite and in [0, 1], got {list(images.shape)}")


register_functions(
    "discovery/metamers",
    paper="Harrington and Deza, 2022",
    card="metameric-robust-features",
    access=Access.GRADIENTS,
    data="images with an encoder, and answers of people",
    module=__name__,
)
