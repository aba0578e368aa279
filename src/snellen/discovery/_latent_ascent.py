"""Uphill in a generator's latents until the oracles object: the largest harm to a model that keeps the label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.discovery._latent_generators import LatentGenerator
from snellen.discovery._oracles import OraclePanel
from snellen.errors import InvalidInput
from snellen.randomness import normal, torch_generator

Scoring = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` to logits `[B, K]`."""


@dataclass(frozen=True)
class LatentAscent:
    """How images are changed."""

    steps: int = 50
    """The budget B, at least 0; the paper's is unknown to us."""
    rate: float = 0.1
    """L2 length of a step in the latents, above 0; to be chosen for each generator."""
    share: float = 0.25
    """Share of the latents that a step moves, those of the steepest slope; in (0, 1], 1 for all."""
    search: Literal["gradient", "random"] = "gradient"
    """"random" needs scores only: a random direction is taken where it raises the loss and the oracles agree."""
    batch: int = 256
    """Images at once, at least 1."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise InvalidInput(f"steps must be at least 0 and batch at least 1, got {self.steps} and {self.batch}")
        if not (0 < self.rate < math.inf and 0 < self.share <= 1):
            raise InvalidInput(f"rate must be above 0 and share in (0, 1], got {self.rate} and {self.share}")
        if self.search not in ("gradient", "random"):
            raise InvalidInput(f"search must be 'gradient' or 'random', got {self.search!r}")


class Ascended(NamedTuple):
    """images: `[B, C, H, W]`, of the accepted ones the image with the largest loss. loss, start_loss: `[B]`, there and
    on the reconstruction. steps: accepted ones, int64 `[B]`. failed_at: the first step with a wrong answer on an
    accepted image, 0 for the reconstruction, -1 for never, int64 `[B]`."""

    images: Tensor
    loss: Tensor
    start_loss: Tensor
    steps: Tensor
    failed_at: Tensor


def ascend(
    model: Scoring,
    generator: LatentGenerator,
    panel: OraclePanel,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    settings: LatentAscent,
    seed: int = 0,
) -> Ascended:
    """Change every image as far as the oracles tolerate. The panel must keep the reconstructions of all images."""
    rows = torch.arange(len(images)).split(settings.batch)
    parts = [
        _ascend(model, generator, panel, images[of], labels[of], [ids[row] for row in of.tolist()], settings, seed)
        for of in rows
    ]
    return Ascended(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _ascend(
    model: Scoring,
    generator: LatentGenerator,
    panel: OraclePanel,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    settings: LatentAscent,
    seed: int,
) -> Ascended:
    gradients = settings.search == "gradient" and settings.steps > 0
    streams = [torch_generator(seed, "latent-ascent", name) for name in ids]
    latents = generator.encode(images).detach()
    best, loss, wrong, slope = _judge(model, generator, latents, images, labels, gradients)
    best_loss = start_loss = loss
    steps = torch.zeros_like(labels)
    failed_at = torch.where(wrong, 0, -1)
    active = torch.ones_like(labels, dtype=torch.bool)

    for step in range(1, settings.steps + 1):
        direction = slope if gradients else normal(streams, latents.shape[1:]).to(latents)
        tried = latents + settings.rate * step_direction(direction, settings.share if gradients else 1.0)
        here = active.nonzero()[:, 0]
        shown, new_loss, new_wrong, new_slope = _judge(
            model, generator, tried[here], images[here], labels[here], gradients
        )
        accepted = panel.keeps(shown, labels[here])
        if gradients:
            active[here[~accepted]] = False  # the largest change that the oracles tolerate is the last accepted one
        else:
            accepted &= new_loss > loss[here]

        kept = here[accepted]
        latents[kept], slope[kept] = tried[kept], new_slope[accepted]
        loss = loss.index_copy(0, kept, new_loss[accepted])
        steps[kept] += 1
        failed_at[kept[new_wrong[accepted] & (failed_at[kept] == -1)]] = step
        higher = loss > best_loss
        fresh = shown.new_zeros(images.shape).index_copy(0, here, shown)
        best = torch.where(higher.view(-1, 1, 1, 1), fresh, best)
        best_loss = torch.maximum(best_loss, loss)
        if not bool(active.any()):
            break
    return Ascended(best, best_loss, start_loss, steps, failed_at)


def step_direction(slope: Tensor, share: float) -> Tensor:
    """Unit vectors `[B, d]` along the steepest `share` of the coordinates of `[B, d]`; zero where the slope is."""
    count = max(1, round(share * slope.shape[1]))
    if count < slope.shape[1]:
        top = slope.abs().topk(count, dim=1).indices
        slope = torch.zeros_like(slope).scatter(1, top, slope.gather(1, top))
    return F.normalize(slope, dim=1)


def decoded(generator: LatentGenerator, latents: Tensor, images: Tensor) -> Tensor:
    """The generator's images, refused where they are none."""
    shown = generator.decode(latents, images)
    if shown.shape != images.shape:
        raise InvalidInput(f"generator must decode to images {list(images.shape)}, got {list(shown.shape)}")
    if not bool(((shown >= 0) & (shown <= 1)).all()):  # catches NaN too
        raise InvalidInput("generator must decode to finite values in [0, 1], got others")
    return shown


def _judge(
    model: Scoring, generator: LatentGenerator, latents: Tensor, images: Tensor, labels: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, their loss `[B]`, whether the answer is wrong `[B]`, and the slope `[B, d]` (zero without gradients)."""
    with torch.set_grad_enabled(gradients):
        latents = latents.detach().requires_grad_(gradients)
        shown = decoded(generator, latents, images)
        logits = model(shown)
        loss = F.cross_entropy(logits, labels, reduction="none")
    if not gradients:
        return shown, loss, logits.argmax(dim=1) != labels, torch.zeros_like(latents)
    if not loss.requires_grad:
        raise InvalidInput("model and generator must be differentiable for search='gradient'; use search='random'")
    (slope,) = torch.autograd.grad(loss.sum(), latents)
    return shown.detach(), loss.detach(), logits.argmax(dim=1) != labels, torch.nan_to_num(slope)
