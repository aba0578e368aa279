"""How few pixels does a classifier need, and is it robust or only no better than guessing?

Paper: LR0.FM, 2025. Images are reduced to 16 to 128 px on the short side, enlarged again and predicted. The share of
the full accuracy that is left (relative robustness, gamma) flatters models near chance, which have nothing to lose;
improved relative robustness (Gamma) discounts it by 1 - exp(-alpha eps²), eps being full accuracy above chance. Over
many data sets SAR is its mean and WAR a weighted mean that ranks models as the single data sets do.

When it misleads: the constant alpha and the way the weights are searched are reconstructed; full accuracy is the
reference, so images that are soft to begin with look robust. The whole image is reduced, where the published code
cuts a square from its middle. The paper's remedy, trained tokens for low resolution (LR-TK0), waits for `repair`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._curve import ShiftCurve, curves_of
from snellen.shift._dataset_panel import (
    WEIGHTS,
    Agreement,
    agreement,
    search_weights,
    simple_aggregate,
    weighted_aggregate,
)
from snellen.shift._transform import Shift
from snellen.shift._trials import HARM, ShiftProbe, first_lost
from snellen.stats import bootstrap_bca, needed_samples

__all__ = [
    "ALPHA",
    "LOW_RESOLUTION",
    "WEIGHTS",
    "Agreement",
    "LowResolution",
    "agreement",
    "improved_relative_robustness",
    "layer_distances",
    "reduce_resolution",
    "relative_robustness",
    "search_weights",
    "simple_aggregate",
    "weighted_aggregate",
]

ALPHA = 200.0


def reduce_resolution(images: Tensor, side: int) -> Tensor:
    """Reduces the short side to `side` pixels and enlarges again, bicubic with antialiasing (torch's interpolate).

    images: float `[B, C, H, W]` in [0, 1]. side: 1 to the short side, which gives the images themselves. Returns the
    same shape in [0, 1]; the overshoot of the cubic is cut. Raises InvalidInput.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if not 1 <= side <= short:
        raise InvalidInput(f"side must be from 1 to the images' short side of {short} px, got {side}")
    if side == short:
        return images.clone()
    small = [max(round(length * side / short), 1) for length in (height, width)]
    reduced = F.interpolate(images, size=small, mode="bicubic", antialias=True, align_corners=False).clamp_(0, 1)
    return F.interpolate(reduced, size=(height, width), mode="bicubic", antialias=True, align_corners=False).clamp_(
        0, 1
    )


def low_resolution(images: Tensor, severity: float) -> Tensor:
    """`reduce_resolution` by severity: 2, 3, 4, 5 are 128, 64, 32, 16 of 224 px; geometric between, in whole pixels.

    Resampling to almost the same size already blurs, so below severity 1 the reduced image is faded in.
    """
    first = math.log2(224 / 128)
    halvings = first * severity / 2 if severity <= 2 else first + severity - 2
    reduced = reduce_resolution(images, max(round(min(images.shape[-2:]) * 2**-halvings), 1))
    return reduced if severity >= 1 else torch.lerp(images, reduced, severity)


LOW_RESOLUTION: Mapping[str, Shift] = {"low_resolution": Shift("resolution", low_resolution)}


def relative_robustness(accuracy: float, full_accuracy: float) -> float:
    """gamma: the share of the accuracy at full resolution that is left; accuracies in [0, 1], the full one above 0."""
    if not (0 <= accuracy <= 1 and 0 < full_accuracy <= 1):
        raise InvalidInput(
            f"accuracy must be in [0, 1] and full_accuracy in (0, 1], got {accuracy} and {full_accuracy}"
        )
    return accuracy / full_accuracy


def improved_relative_robustness(accuracy: float, full_accuracy: float, chance: float, alpha: float = ALPHA) -> float:
    """Gamma: gamma * (1 - exp(-alpha eps²)), eps = full_accuracy - chance, 0 where the model is not above chance.

    chance: accuracy of guessing, 1 / classes, in (0, 0.5]. At alpha = 200 an eps of 0.1 keeps 0.86, one of 0.05 keeps
    0.39. Raises InvalidInput.
    """
    if not (0 < chance <= 0.5 and alpha > 0):
        raise InvalidInput(
            f"chance must be in (0, 0.5], for 2 classes or more, and alpha above 0, got {chance}, {alpha}"
        )
    above = max(full_accuracy - chance, 0.0)
    return relative_robustness(accuracy, full_accuracy) * -math.expm1(-alpha * above**2)


def layer_distances(full: Sequence[Tensor], reduced: Sequence[Tensor]) -> list[float]:
    """Mean cosine distance per layer between features of the full and of the reduced images, in [0, 2].

    full, reduced: one `[B, P, C]` a layer (P patches), averaged over patches first. Needs features, not only labels.
    """
    if len(full) != len(reduced) or any(a.shape != b.shape or a.ndim != 3 for a, b in zip(full, reduced, strict=True)):
        raise InvalidInput("full and reduced must hold the same layers [B, P, C], got other shapes")
    pairs = zip(full, reduced, strict=True)
    return [float(1 - F.cosine_similarity(a.mean(1), b.mean(1), dim=-1).mean()) for a, b in pairs]


@register
@dataclass(frozen=True)
class LowResolution(ShiftProbe):
    """Accuracy against the pixels that an image has, with the discount for chance (LR0.FM, 2025)."""

    name: ClassVar[str] = "shift/low-resolution"
    paper: ClassVar[str] = "LR0.FM, 2025"
    card: ClassVar[str | None] = "lr0-fm"
    axis: ClassVar[str] = "log2 reduction"

    sides: tuple[int, ...] = (16, 32, 64, 128)
    """Pixels on the short side, ascending; those not below the images' are left out."""

    def __post_init__(self) -> None:
        if not self.sides or not all(a < b for a, b in zip((0, *self.sides), self.sides, strict=False)):
            raise InvalidInput(f"sides must be above 0 and ascending, got {list(self.sides)}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        short = min(batch.images.shape[-2:])
        smaller = [side for side in self.sides if side < short]
        if not smaller:
            raise InvalidInput(
                f"sides must hold one below the images' short side of {short} px, got {list(self.sides)}"
            )
        for side in reversed(smaller):
            strength = round(math.log2(short / side), 3)
            yield Condition("low_resolution", strength, reduce_resolution(batch.images, side))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(self.sides)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        curves = [curve for curve in curves_of(table) if curve.ids]
        return [*super().findings(table, context), *(f for curve in curves for f in self._shares(curve, context))]

    def _shares(self, curve: ShiftCurve, context: Context) -> Iterator[Finding]:
        """Gamma at every side; where no image is right at full resolution it does not exist."""
        clean, n, chance = curve.correct[0], len(curve.ids), 1 / len(context.spec.class_names)
        full = float(clean.mean())
        if full == 0 or n < 2:
            return
        needed = needed_samples(min(HARM, full), full)
        # The conditions went from the largest of the sides in use to the smallest of all.
        sides = tuple(reversed(self.sides[: len(curve.severities) - 1]))
        for side, reduced in zip(sides, curve.correct[1:], strict=True):
            accuracy = float(reduced.mean())
            value = improved_relative_robustness(accuracy, full, chance)
            pairs = np.stack([reduced, clean], axis=1)
            interval = bootstrap_bca(
                pairs, lambda drawn: _improved(drawn, chance), context.random(f"{self.name} {side}")
            )
            title = (
                f"At {side} px {relative_robustness(accuracy, full):.2f} of the accuracy of {full:.2f} is left,"
                f" {value:.2f} after the discount for a model near chance"
            )
            if n < needed:
                title = f"Robustness at {side} px cannot be told, not enough data: n = {n}, needs about {needed}"
            yield Finding(
                kind="shift",
                title=title,
                metric="improved relative robustness",
                value=value,
                effect=0.0,  # information: the harm is counted in the fall of accuracy
                n=n,
                subject={"corruption": curve.shift, "pixels": side},
                ci=(interval.low, interval.high),
                evidence=first_lost(curve),
                enough_data=n >= needed,
            )


def _improved(pairs: NDArray[np.generic], chance: float) -> float:
    accuracy, full = pairs.mean(axis=0, dtype=np.float64)
    return improved_relative_robustness(float(accuracy), float(full), chance) if full > 0 else 0.0
