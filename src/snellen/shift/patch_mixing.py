"""Do pieces of another image change the answer more than the loss of what they cover?

Paper: Hardwiring ViT Patch Selectivity into CNNs using Patch Mixing (2023). A share of the patches is replaced by the
same patches of an image of another class, or, for comparison, by the image's mean colour. Both hide the same pixels;
what the foreign patches cost beyond that is distraction, the selectivity gap. Where the data has masks the same is
asked of occluders over the object's centre and of blanks of their shape; shuffled tiles complete the picture.
`patch_mix` is the training augmentation that closes the gap of CNNs, `contrastive_rise` shows where an answer comes
from.

When it misleads: a donor may itself show the class (other labels do not mean other content), mean colour is an
unusual sight too, so a gap of zero can also mean that both confuse the model, and accuracy alone may tell nothing
but that the object is gone: only the gaps are counted as harm. Donors are a few images a
class. Salient and non-salient patch drop are left out: ranking patches needs more than answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register
from snellen.randomness import SampleRandom
from snellen.shift._contrastive_rise import contrastive_rise, selectivity_score
from snellen.shift._curve import ShiftCurve, curves_of
from snellen.shift._donor_pool import DonorPool, donor_pool
from snellen.shift._occluders import Occlusion, occluded
from snellen.shift._patch_mix import MixedBatch, patch_mix
from snellen.shift._patches import dropped, patch_side, random_patches, replaced, shuffled
from snellen.shift._trials import curve_exhibit, fall_finding, predict_conditions
from snellen.stats import mcnemar_exact, needed_samples, paired_difference

__all__ = [
    "MixedBatch",
    "Occlusion",
    "PatchReplacement",
    "contrastive_rise",
    "occluded",
    "patch_mix",
    "selectivity_score",
]

FOREIGN, DROPPED, SHUFFLED = "foreign_patches", "dropped_patches", "shuffled_tiles"
OCCLUDED, BLANKED = "occluders", "blanks"
PAIRS = ((FOREIGN, DROPPED), (OCCLUDED, BLANKED))
WHAT = {FOREIGN: "Patches of another class in", OCCLUDED: "Occluders over"}


@register
@dataclass(frozen=True)
class PatchReplacement(ProbeBase):
    """Accuracy with foreign, dropped and shuffled patches, and the selectivity gap (Patch Mixing, 2023)."""

    name: ClassVar[str] = "shift/patch-replacement"
    paper: ClassVar[str] = "Hardwiring ViT Patch Selectivity into CNNs using Patch Mixing, 2023"
    card: ClassVar[str | None] = "patch-mixing"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Of the patches that are replaced and dropped, in (0, 1], ascending; the paper's nine."""
    patch: int | None = None
    """Side in pixels, dividing the image's sides; None: the largest up to an eighth of the height."""
    grids: tuple[int, ...] = (2, 4, 8, 16)
    """Tiles a side that are shuffled, ascending; those that do not divide the image are left out."""
    covers: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Share of the image behind an occluder, in (0, 1), ascending; only where the data has masks."""
    donors: int = 4
    """Images a class that lend patches, 1 or more."""

    def __post_init__(self) -> None:
        for name, values in (("shares", self.shares), ("covers", self.covers)):
            steps = (0.0, *values)
            if not values or values[-1] > 1 or not all(a < b for a, b in zip(steps, values, strict=False)):
                raise InvalidInput(f"{name} must be in (0, 1] and ascending, got {list(values)}")
        if self.covers[-1] == 1:
            raise InvalidInput("covers must be below 1, since something of the image must be left")
        if not all(a < b for a, b in zip((1, *self.grids), self.grids, strict=False)):
            raise InvalidInput(f"grids must be whole numbers above 1, ascending, got {list(self.grids)}")
        if self.patch is not None and self.patch < 1:
            raise InvalidInput(f"patch must be 1 px or more, or None, got {self.patch}")
        if self.donors < 1:
            raise InvalidInput(f"donors must be 1 image a class or more, got {self.donors}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        pool = donor_pool(samples, self.donors, random)
        parts = [predict_conditions(model, batch, self.altered(batch, pool, random)) for batch in samples.batches()]
        return pa.concat_tables(parts) if parts else pa.table({})

    def altered(self, batch: Batch, pool: DonorPool, random: SampleRandom) -> Iterator[Condition]:
        """The batch under every condition; foreign and dropped patches are the same cells."""
        images = batch.images
        height, width = images.shape[-2:]
        side = patch_side(height, width, self.patch, height // 8)
        cells = (height // side) * (width // side)
        counts = [round(share * cells) for share in self.shares]
        places = random_patches(random.generators(batch.ids, "cells"), height, width, side, counts)
        donors = pool.show(pool.foreign(batch.labels, random.generators(batch.ids, "donor")), images)
        for share, pixels in zip(self.shares, places, strict=True):
            yield Condition(FOREIGN, share, replaced(images, donors, pixels))
            yield Condition(DROPPED, share, dropped(images, pixels))
        for grid in self._grids(height, width):
            yield Condition(SHUFFLED, grid, shuffled(images, grid, random.generators(batch.ids, "tiles", grid)))
        if batch.masks is not None:
            for share in self.covers:
                hidden = occluded(images, batch.masks, share, random.generators(batch.ids, "occluder"))
                yield Condition(OCCLUDED, share, hidden.images, hidden.kept)
                yield Condition(BLANKED, share, dropped(images, hidden.pixels), hidden.kept)

    def _grids(self, height: int, width: int) -> list[int]:
        return [grid for grid in self.grids if height % grid == 0 and width % grid == 0]

    def cost(self, batch_size: int) -> Passes:
        """Without occluders, which only data with masks gets."""
        return Passes(forward=batch_size * (1 + 2 * len(self.shares) + len(self.grids)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        curves = {curve.shift: curve for curve in curves_of(table) if curve.ids}
        gaps = [_gap(curves[a], curves[b]) for a, b in PAIRS if a in curves and b in curves]
        areas = [self._area(curves[FOREIGN], context)] if FOREIGN in curves else []
        # The object itself goes with the patches, so a fall alone is information.
        falls = [replace(fall_finding(curve, _axis(name)), effect=0.0) for name, curve in curves.items()]
        return [*gaps, *areas, *falls]

    def _area(self, foreign: ShiftCurve, context: Context) -> Finding:
        area = foreign.area(context.random(self.name))
        return Finding(
            kind="shift",
            title=(
                f"Mean accuracy over shares of foreign patches up to {foreign.severities[-1]:.0%} is {area.value:.2f},"
                f" against {foreign.accuracy[0]:.2f} untouched"
            ),
            metric="area under the replacement curve",
            value=area.value,
            baseline=float(foreign.accuracy[0]),
            effect=0.0,  # information, for comparing models
            n=area.n,
            subject={"corruption": FOREIGN},
            ci=(area.low, area.high) if area.n >= 2 else None,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        by_axis: dict[str, list[ShiftCurve]] = {}
        for curve in curves_of(table):
            if curve.ids:
                by_axis.setdefault(_axis(curve.shift), []).append(curve)
        titles = {"share": "replaced, dropped and occluded patches", "grid": "shuffled tiles"}
        return [curve_exhibit(titles[axis], curves, axis) for axis, curves in by_axis.items()]


def _axis(shift: str) -> str:
    return "grid" if shift == SHUFFLED else "share"


def _gap(foreign: ShiftCurve, dropped_: ShiftCurve) -> Finding:
    """Accuracy with pixels lost less accuracy with something else in them: the same images, at the middle share."""
    step = 1 + (len(foreign.severities) - 2) // 2
    share, n = float(foreign.severities[step]), len(foreign.ids)
    distracted, deprived = foreign.correct[step], dropped_.correct[step]
    low, high = paired_difference(deprived, distracted)
    lost, gained = deprived & ~distracted, distracted & ~deprived
    p_value = mcnemar_exact(int(gained.sum()), int(lost.sum()))
    gap, baseline = float(deprived.mean() - distracted.mean()), float(deprived.mean())
    needed = needed_samples(min(0.05, baseline), baseline) if baseline > 0 else 0
    enough = p_value < 0.05 or n >= needed
    spoken = f"{WHAT[foreign.shift]} {share:.0%} of the image"
    if not enough:
        title = (
            f"Whether {foreign.shift.replace('_', ' ')} distract cannot be told, not enough data: n = {n},"
            f" needs about {needed}"
        )
    elif gap > 0 and p_value < 0.05:
        title = (
            f"{spoken} cost {gap:.2f} of accuracy more than the loss of the same pixels:"
            f" {distracted.mean():.2f} against {baseline:.2f}"
        )
    else:
        title = (
            f"{spoken} do not surely cost more than the loss of the same pixels:"
            f" {distracted.mean():.2f} against {baseline:.2f}"
        )
    return Finding(
        kind="shift",
        title=title,
        metric="selectivity gap",
        value=gap,
        baseline=0.0,
        effect=max(gap, 0.0),
        n=n,
        subject={"corruption": f"{foreign.shift} against {dropped_.shift}", "severity": share},
        ci=(low, high),
        p_value=p_value,
        evidence=[foreign.ids[i] for i in np.flatnonzero(lost & foreign.correct[0])[:12]],
        enough_data=enough,
    )
