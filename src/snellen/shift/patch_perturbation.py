"""If a few patches of the image are damaged, does the model overlook them or lose its answer?

Paper: Are Vision Transformers Robust to Patch Perturbations? (2022). A cell of the transformer's grid is replaced by
the same cell of the corrupted image (the 15 corruptions of ImageNet-C at severity 5), at a place drawn once for each
image, the same for every model and corruption. The fooling rate is the share of initially right images that turn
wrong. `shift/adversarial-patch` lets an attacker write the same cell.

The axis is the number of patches and not the corruption's severity: the paper fixes severity 5, where one cell is
damaged as badly as it can be, and asks how many of them a model bears. The patches of a smaller number are among those
of a larger one.

When it misleads: cells agree with the model's tokens only where the images come in the model's own input size and
`patch` is its patch side. The rate counts no wrong answer that a patch puts right; the accuracy curves do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, SHIFTS, check_name, check_severity, corrupt
from snellen.shift._curve import ShiftCurve, curves_of, mean_estimate
from snellen.shift._patches import patch_side, random_patches, replaced
from snellen.shift._trials import HARM, ShiftProbe
from snellen.stats import needed_samples, wilson

SUFFIX = "_patches"


@register
@dataclass(frozen=True)
class PatchPerturbation(ShiftProbe):
    """Accuracy and fooling rate with a few naturally corrupted patches (2022)."""

    name: ClassVar[str] = "shift/patch-perturbation"
    paper: ClassVar[str] = "Are Vision Transformers Robust to Patch Perturbations?, 2022"
    card: ClassVar[str | None] = "vit-patch-perturbation"
    axis: ClassVar[str] = "count"

    names: tuple[str, ...] = CORRUPTIONS
    """Which corruptions of the catalogue fill the patches; the paper's 15."""
    counts: tuple[int, ...] = (1, 4)
    """How many patches, ascending; the paper's 1, up to 8."""
    severity: float = 5.0
    """Of the corruption inside a patch, in (0, 5]; the paper's 5."""
    patch: int | None = None
    """Side in pixels, dividing the image's sides; the paper's 16 at 224 px. None: a fourteenth of the shorter side, or
    4 px where that is more."""
    aligned: bool = True
    """On the transformer's grid; otherwise half a patch off in both axes, so that four tokens share the damage."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InvalidInput(f"names must be one or more different shifts, got {list(self.names)}")
        if not self.counts or not all(a < b for a, b in zip((0, *self.counts), self.counts, strict=False)):
            raise InvalidInput(f"counts must be whole numbers above 0, ascending, got {list(self.counts)}")
        if check_severity(self.severity) == 0:
            raise InvalidInput("severity must be above 0, got 0")
        if self.patch is not None and self.patch < 2:
            raise InvalidInput(f"patch must be 2 px or more, or None, got {self.patch}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        images = batch.images
        height, width = images.shape[-2:]
        side = patch_side(height, width, self.patch)
        places = random_patches(random.generators(batch.ids, "cells"), height, width, side, self.counts, self.aligned)
        for name in self.names:
            corrupted = corrupt(images, name, self.severity, random.generators(batch.ids, name))
            for count, pixels in zip(self.counts, places, strict=True):
                yield Condition(name + SUFFIX, count, replaced(images, corrupted, pixels))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(self.names) * len(self.counts)))

    def group(self, shift: str) -> str:
        return SHIFTS[shift.removesuffix(SUFFIX)].group

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        curves = [curve for curve in curves_of(table) if curve.correct[0].any()]
        rates = [self._rate(curves, 1 + step, context) for step in range(len(self.counts))] if curves else []
        return [*rates, *super().findings(table, context)]

    def _rate(self, curves: list[ShiftCurve], step: int, context: Context) -> Finding:
        """The mean over the corruptions, on the images that all of them have."""
        count = int(curves[0].severities[step])
        fooled: dict[str, list[bool]] = {}
        for curve in curves:
            right = np.flatnonzero(curve.correct[0])
            for i in right.tolist():
                fooled.setdefault(curve.ids[i], []).append(not curve.correct[step, i])
        shares = {key: float(np.mean(row)) for key, row in fooled.items() if len(row) == len(curves)}
        rate = mean_estimate(np.array(list(shares.values())), context.random(f"{self.name} {count}"))

        needed = needed_samples(HARM, 1 - HARM)
        enough = rate.n >= needed or rate.low > HARM
        patches = "one corrupted patch" if count == 1 else f"{count} corrupted patches"
        if not enough:
            title = (
                f"How often the model falls to {patches} cannot be told, not enough data: n = {rate.n},"
                f" needs about {needed}"
            )
        else:
            title = (
                f"{patches.capitalize()} {'costs' if count == 1 else 'cost'} the model {rate.value:.1%} of its right"
                f" answers, over {len(curves)} corruption{'' if len(curves) == 1 else 's'}"
            )
        return Finding(
            kind="shift",
            title=title,
            metric="fooling rate",
            value=rate.value if rate.n else None,
            effect=0.0,  # information: the harm is counted corruption by corruption
            n=rate.n,
            subject={"corruption": "all patches", "severity": count},
            ci=(rate.low, rate.high) if rate.n >= 2 else None,
            evidence=[key for key, share in sorted(shares.items(), key=lambda item: -item[1]) if share > 0][:12],
            enough_data=enough,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return [*self._rates(curves_of(table)), *super().exhibits(table, context)]

    def _rates(self, curves: list[ShiftCurve]) -> list[Exhibit]:
        bars = []
        for curve in curves:
            clean, count = curve.correct[0], int(curve.severities[1])
            right, fooled = int(clean.sum()), int((clean & ~curve.correct[1]).sum())
            if right:
                low, high = wilson(fooled, right)
                bars.append(Bar(curve.shift.replace("_", " "), fooled / right, low, high, right))
        if not bars:
            return []
        caption = (
            f"Share of the images answered right before that {count} corrupted patch"
            f"{' turns' if count == 1 else 'es turn'} wrong; 95 % Wilson intervals."
        )
        return [Bars("Fooling rate by corruption", caption, "fooling rate", bars)]
