"""How often would the answer still change with one pixel if the model chose its own crop?

Paper: Lost in Translation (2024), Robust Inference by Crop Selection (RICS). Every crop of the image gets a score from
its own pixels alone, the best crop is classified and nothing else. When the camera moves, most crops only change
place, so the same crop wins and every number after it is the same, bit for bit. With K positions an axis, a move of d
pixels brings in and takes away d positions, so the winner changes with probability 2d / (K + d) an axis when scores
are exchangeable; natural images come close to that when neighbouring scores differ, hence the Laplacian of Gaussian.

When it misleads: the bound is over images and for nearly uncorrelated scores, so `border_rate` measures it on the data;
`certified` is exact for one image. The crop loses context, which costs accuracy where objects fill the image. The
paper's own score function and theorem were not available to us.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._crop_scores import Selection, certified, crop_scores, log_kernel, select_crops, take_crops
from snellen.shift._moves import translated
from snellen.shift.translations import DIRECTIONS
from snellen.stats import mcnemar_exact, paired_difference, wilson

__all__ = [
    "CropSelection",
    "RobustCropSelection",
    "Selection",
    "certified",
    "crop_scores",
    "expected_change_rate",
    "positions_for",
    "select_crops",
    "select_roll",
    "take_crops",
]


def select_roll(images: Tensor, kernel: Tensor | None = None) -> Tensor:
    """The images rolled so that their best position comes to the corner: the cyclic variant of RICS.

    Exactly invariant to all cyclic shifts wherever the best score is unique. The roll's seam lies across the object.
    """
    kernel = log_kernel() if kernel is None else kernel
    side = kernel.shape[-1]
    if min(images.shape[-2:]) < side:
        raise InvalidInput(f"images must have sides of {side} px or more, got {list(images.shape)}")
    wrapped = F.pad(images, (0, side - 1, 0, side - 1), mode="circular")
    tops, lefts, _ = select_crops(crop_scores(wrapped, side, kernel))
    pairs = zip(images, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([image.roll((-top, -left), (-2, -1)) for image, top, left in pairs])


def expected_change_rate(positions: int, shift: int) -> float:
    """2d / (K + d): how often the best of K exchangeable scores changes when the camera moves by d px on one axis."""
    if positions < 1 or shift < 0:
        raise InvalidInput(f"positions must be 1 or more and shift 0 or more, got {positions} and {shift}")
    return min(1.0, 2 * shift / (positions + shift))


def positions_for(change_rate: float, shift: int) -> int:
    """The fewest positions an axis for which `expected_change_rate` is at most `change_rate`."""
    if not 0 < change_rate < 1 or shift < 1:
        raise InvalidInput(f"change_rate must be in (0, 1) and shift 1 or more, got {change_rate} and {shift}")
    return math.ceil(shift * (2 / change_rate - 1) - 1e-9)


@dataclass(frozen=True)
class RobustCropSelection:
    """A classifier that reads only the crop it selects (RICS). Call it as the model: images to logits.

    model: any callable on images; it is given the crop, or the crop resized to the image's size. crop: side in pixels.
    """

    model: Callable[[Tensor], Tensor]
    crop: int
    resize: bool = True
    """Enlarge the crop to the image's size, for models of a fixed input size."""

    def selected(self, images: Tensor) -> Tensor:
        """What the model gets to see, `[B, C, crop, crop]` or `[B, C, H, W]`."""
        crops = take_crops(images, select_crops(crop_scores(images, self.crop)), self.crop)
        if not self.resize:
            return crops
        return F.interpolate(crops, size=images.shape[-2:], mode="bilinear", antialias=True, align_corners=False)

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(self.selected(images))


@register
@dataclass(frozen=True)
class CropSelection(ProbeBase):
    """What choosing its own crop would do for the model: fewer changed answers, at which price (RICS, 2024)."""

    name: ClassVar[str] = "shift/crop-selection"
    paper: ClassVar[str] = "Lost in Translation, 2024"
    card: ClassVar[str | None] = "small-translations-rics"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    crop_share: float = 0.9
    """Side of the crop as a share of the image's shorter side, in (0, 1)."""
    pixels: int = 1
    """How far the camera moves, in pixels of the model's input."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_share < 1:
            raise InvalidInput(f"crop_share must be in (0, 1), got {self.crop_share}")
        if self.pixels < 1:
            raise InvalidInput(f"pixels must be 1 or more, got {self.pixels}")

    def _crop(self, images: Tensor) -> int:
        side = min(images.shape[-2:])
        return max(3, min(int(self.crop_share * side), side - 4 * self.pixels - 1))

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        """What the model would see instead of the window, before and after each move."""
        wrapper = RobustCropSelection(lambda images: images, self._crop(batch.images))
        for dy, dx in ((0, 0), *DIRECTIONS):
            window = translated(batch.images, dy * self.pixels, dx * self.pixels, self.pixels)
            yield Condition("plain", float(bool(dy or dx)), window)
            yield Condition("selected crop", float(bool(dy or dx)), wrapper.selected(window))

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        answers: dict[str, list[Tensor]] = {"plain": [], "selected crop": []}
        for name, _, images, _ in self.conditions(batch, random):
            answers[name].append(model.labels(images).cpu())
        plain, selected = (torch.stack(answers[name]) for name in ("plain", "selected crop"))
        labels = batch.labels.cpu()
        return rows(
            batch.ids,
            label=labels,
            plain_correct=plain[0] == labels,
            selected_correct=selected[0] == labels,
            plain_changed=(plain != plain[0]).any(dim=0),
            selected_changed=(selected != selected[0]).any(dim=0),
            certified=certified(crop_scores(batch.images, self._crop(batch.images)), self.pixels).cpu(),
        )

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * 2 * (1 + len(DIRECTIONS)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        n = table.num_rows
        if not n:
            return []
        names = ("plain_correct", "selected_correct", "plain_changed", "selected_changed", "certified")
        plain, selected, plain_changed, selected_changed, proved = (
            table.column(name).to_numpy(zero_copy_only=False) for name in names
        )
        gain = paired_difference(plain_changed, selected_changed)
        saved, spoilt = plain_changed & ~selected_changed, selected_changed & ~plain_changed
        lost = paired_difference(plain, selected)
        p_value = mcnemar_exact(int(spoilt.sum()), int(saved.sum()))
        low, high = wilson(int(proved.sum()), n)
        ids = table.column("id").to_pylist()
        return [
            Finding(
                kind="repair",
                title=(
                    f"Choosing its own crop changes the share of answers that a move of {self.pixels} px flips from"
                    f" {plain_changed.mean():.1%} to {selected_changed.mean():.1%} and accuracy from"
                    f" {plain.mean():.2f} to {selected.mean():.2f} (loss {lost.low:+.2f} to {lost.high:+.2f});"
                    f" {proved.mean():.0%} of the images are certified ({low:.0%} to {high:.0%})"
                ),
                metric="share of flipped answers saved",
                value=float(plain_changed.mean() - selected_changed.mean()),
                effect=0.0,  # information about a remedy
                n=n,
                subject={"remedy": "crop selection", "pixels": self.pixels, "crop_share": self.crop_share},
                ci=(gain.low, gain.high),
                p_value=p_value,
                evidence=[ids[i] for i in np.flatnonzero(saved)[:12]],
            )
        ]
