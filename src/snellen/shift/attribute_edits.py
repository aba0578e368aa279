"""With the object held fixed, which single attribute breaks the model: background, size, position or direction?

Paper: ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing (2023). The object under each image's
mask is lifted off, its place is filled in, and it is put back before a simpler, a more complex or a foreign background,
at 10, 8 and 5 % of the image's pixels or as large as the frame allows, at a random place, or turned by up to 45
degrees. Accuracies are compared on the same images; an edit that cannot be made of an image (its size is not reached,
there is no other place, less than 1 % of the image would show it) has no row.

The paper synthesises backgrounds by diffusion; here holes are filled by a push-pull pyramid and complexity scales the
detail that is there. Its adversarial background is left out: it needs gradients, and these edits ask for answers only.

When it misleads: masks that cut into the object or miss parts of it charge every edit; filled places are smooth, so
that what position and direction cost includes the trace that is left behind; donors are two photographs unless others
are given; images whose edit failed may be the harder ones (the counts stand on the chart). GrabCut takes the object to
be in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._composite import complexity
from snellen.shift._curve import ShiftCurve, curves_of, mean_estimate
from snellen.shift._donors import Donors
from snellen.shift._edits import (
    Edit,
    Separated,
    Size,
    moved,
    separate,
    turned,
    with_background,
    with_background_complexity,
    with_direction,
    with_position,
    with_size,
)
from snellen.shift._masks import EstimatedMasks, grabcut_masks
from snellen.shift._trials import HARM, ShiftProbe, summary_finding
from snellen.stats import mcnemar_exact, needed_samples

__all__ = [
    "AttributeEdits",
    "Edit",
    "EstimatedMasks",
    "Separated",
    "complexity",
    "grabcut_masks",
    "moved",
    "separate",
    "turned",
    "with_background",
    "with_background_complexity",
    "with_direction",
    "with_position",
    "with_size",
]

Attribute = Literal["background", "size", "position", "direction"]
ATTRIBUTES: tuple[Attribute, ...] = ("background", "size", "position", "direction")
MOST_COMPLEX = 40.0


@register
@dataclass(frozen=True)
class AttributeEdits(ShiftProbe):
    """Accuracy when one attribute of the object is edited and the rest stays (ImageNet-E, 2023)."""

    name: ClassVar[str] = "shift/attribute-edits"
    paper: ClassVar[str] = "ImageNet-E, 2023"
    card: ClassVar[str | None] = "imagenet-e"

    attributes: tuple[Attribute, ...] = ATTRIBUTES
    """Which attributes are edited."""
    complexities: tuple[float, ...] = (-20.0, 20.0)
    """Of the image's own background, in [-40, 40], ascending; the paper's two. 0 shows what compositing alone costs."""
    sizes: tuple[Size, ...] = ("full", 0.10, 0.08, 0.05)
    """Share of the image's pixels that the object takes, in (0, 1), or "full"; the paper's four."""
    largest_angle: int = 45
    """Degrees either way, 1 to 180; the paper's 45."""
    masks: Literal["given", "grabcut"] = "given"
    """given: the data set's. grabcut: those, and an estimate where there is none (needs `snellen[masks]`)."""
    donors: tuple[str, ...] = ()
    """Image files that give foreign backgrounds; none = scikit-learn's two photographs."""

    def __post_init__(self) -> None:
        known = set(self.attributes) <= set(ATTRIBUTES)
        if not self.attributes or not known or len(set(self.attributes)) != len(self.attributes):
            raise InvalidInput(
                f"attributes must be different ones of {', '.join(ATTRIBUTES)}, got {list(self.attributes)}"
            )
        rising = all(a < b for a, b in zip(self.complexities, self.complexities[1:], strict=False))
        if not rising or not all(abs(strength) <= MOST_COMPLEX for strength in self.complexities):
            raise InvalidInput(f"complexities must be in [-40, 40] and ascending, got {list(self.complexities)}")
        valid = all(size == "full" or (isinstance(size, float) and 0 < size < 1) for size in self.sizes)
        if not valid or len(set(self.sizes)) != len(self.sizes) or ("size" in self.attributes and not self.sizes):
            raise InvalidInput(f"sizes must be different shares in (0, 1) or 'full', got {list(self.sizes)}")
        if not 1 <= self.largest_angle <= 180:
            raise InvalidInput(f"largest_angle must be 1 to 180 degrees, got {self.largest_angle}")
        if self.masks not in ("given", "grabcut"):
            raise InvalidInput(f"masks must be 'given' or 'grabcut', got {self.masks!r}")

    @property
    def needs_masks(self) -> bool:
        return self.masks == "given"

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        masks, trusted = self._masks(batch)
        parts = separate(batch.images, masks)
        for name, edit in self._edits(parts, batch, random):
            yield Condition(name, 1.0, edit.images, edit.kept & trusted)

    def _masks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Bool `[B, H, W]`, and which of them to trust."""
        if self.masks == "given":
            if batch.masks is None:
                raise InvalidInput(
                    "the data set has no object masks: give a column mask_file_name in its metadata, or set"
                    " masks=grabcut to estimate them"
                )
            return batch.masks, torch.ones(len(batch), dtype=torch.bool, device=batch.images.device)
        if batch.masks is None:
            estimated = grabcut_masks(batch.images)
            return estimated.masks, estimated.kept
        masks, trusted = batch.masks.clone(), batch.masks.flatten(1).any(dim=1)
        missing = torch.nonzero(~trusted).flatten()
        if len(missing):
            estimated = grabcut_masks(batch.images[missing])
            masks[missing], trusted[missing] = estimated.masks, estimated.kept
        return masks, trusted

    def _edits(self, parts: Separated, batch: Batch, random: SampleRandom) -> Iterator[tuple[str, Edit]]:
        if "background" in self.attributes:
            for strength in self.complexities:
                yield f"background {strength:+g}", with_background_complexity(parts, strength)
            foreign = Donors(self.donors).drawn(random.generators(batch.ids, "background"), batch.images)
            yield "background foreign", with_background(parts, foreign)
        if "size" in self.attributes:
            for size in self.sizes:
                yield f"size {size}", with_size(parts, size)
        if "position" in self.attributes:
            yield "position", with_position(parts, random.generators(batch.ids, "position"))
        if "direction" in self.attributes:
            generators = random.generators(batch.ids, "direction")
            yield "direction", with_direction(parts, generators, self.largest_angle)

    def cost(self, batch_size: int) -> Passes:
        """Of a batch of which every edit can be made."""
        edits = {"background": len(self.complexities) + 1, "size": len(self.sizes)}
        return Passes(forward=batch_size * (1 + sum(edits.get(attribute, 1) for attribute in self.attributes)))

    def group(self, shift: str) -> str:
        return shift.split()[0]

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        curves = [curve for curve in curves_of(table) if curve.ids]
        if not curves:
            return []
        summary = summary_finding(curves, context, self.name)
        families = [[curve for curve in curves if self.group(curve.shift) == name] for name in ATTRIBUTES]
        found = [family_finding(name, own, context) for name, own in zip(ATTRIBUTES, families, strict=True) if own]
        return [*([summary] if summary else []), *found, costliest_finding(curves)]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        curves = [curve for curve in curves_of(table) if curve.ids]
        if not curves:
            return []
        total = len(set(table["id"].to_pylist()))
        bars = [Bar(curve.shift, float(drop_of(curve)), *curve.drop(1), n=len(curve.ids)) for curve in curves]
        caption = (
            "Accuracy lost by each edit on the same images, with 95 % intervals (Tango). n is how many of the"
            f" {total} images the edit could be made of."
        )
        return [Bars("What each edit of the object costs", caption, "accuracy drop", bars, reference=0.0)]


class Pairs(NamedTuple):
    """Samples lost and won by an edit, and the exact p-value that it changes nothing."""

    lost: int
    won: int
    p_value: float


def pairs_of(curve: ShiftCurve) -> Pairs:
    clean, edited = curve.correct
    lost, won = int((clean & ~edited).sum()), int((edited & ~clean).sum())
    return Pairs(lost, won, mcnemar_exact(lost, won))


def drop_of(curve: ShiftCurve) -> float:
    """Accuracy untouched minus edited, on the samples of which the edit could be made."""
    return float(curve.accuracy[0] - curve.accuracy[1])


def family_finding(attribute: str, curves: Sequence[ShiftCurve], context: Context) -> Finding:
    """What the edits of one attribute cost on average.

    A sample counts with the mean over the edits that could be made of it. p_value: that none of them changes anything,
    Bonferroni over McNemar's exact tests.
    """
    lost: dict[str, list[float]] = {}
    clean: dict[str, bool] = {}
    for curve in curves:
        untouched, edited = curve.correct
        for sample_id, before, after in zip(curve.ids, untouched.tolist(), edited.tolist(), strict=True):
            clean[sample_id] = before
            lost.setdefault(sample_id, []).append(float(before) - float(after))
    by_sample = {sample_id: float(np.mean(changes)) for sample_id, changes in lost.items()}
    mean = mean_estimate(np.array(list(by_sample.values())), context.random(attribute))
    p_value = min(1.0, len(curves) * min(pairs_of(curve).p_value for curve in curves))

    worst = max(curves, key=drop_of)
    accuracy = float(np.mean(list(clean.values())))
    needed = needed_samples(min(HARM, accuracy), accuracy) if accuracy > 0 else 0
    enough = p_value < 0.05 or mean.n >= needed
    if not enough:
        title = f"What {attribute} edits cost cannot be told, not enough data: n = {mean.n}, needs about {needed}"
    elif mean.value > 0 and p_value < 0.05:
        before, after = worst.accuracy
        most = f", most at {worst.shift}" if len(curves) > 1 else ""
        title = f"Editing the {attribute} of the object costs {mean.value:.2f} of accuracy{most}"
        title += f": {before:.2f} untouched, {after:.2f} edited"
    else:
        title = f"Editing the {attribute} of the object shows no cost in accuracy: {mean.value:+.2f} on {mean.n} images"
    order = sorted((i for i in by_sample if by_sample[i] > 0), key=lambda i: -by_sample[i])
    low, high = (mean.low, mean.high) if len(curves) > 1 else worst.drop(1)
    return Finding(
        kind="shift",
        title=title,
        metric="mean accuracy drop" if len(curves) > 1 else "accuracy drop",
        value=mean.value,
        effect=max(mean.value, 0.0),
        n=mean.n,
        subject={"attribute": attribute, "worst": worst.shift},
        measured=("worst",),
        ci=(low, high) if mean.n >= 2 else None,
        p_value=p_value,
        evidence=order[:12],
        enough_data=enough,
    )


def costliest_finding(curves: Sequence[ShiftCurve]) -> Finding:
    """Which single edit costs most, and whether the second is told apart from it on the images of both."""
    first, *others = sorted(curves, key=drop_of, reverse=True)
    drop, n, accuracy = drop_of(first), len(first.ids), float(first.accuracy[0])
    needed = needed_samples(min(HARM, accuracy), accuracy) if accuracy > 0 else 0
    # The costliest is picked among all edits, so its test is held to its share of 5 %.
    enough = n >= needed or pairs_of(first).p_value < 0.05 / len(curves)
    title = f"Of {len(curves)} edits {first.shift} costs most: {drop:.2f} of accuracy on {n} images"
    if not enough:
        title = f"Which edit costs most cannot be told, not enough data: n = {n}, needs about {needed}"
    elif drop <= 0:
        title = f"None of {len(curves)} edits costs accuracy on the images that it could be made of"
    elif others:
        second = others[0]
        there = {sample_id: i for i, sample_id in enumerate(second.ids)}
        common = [i for i, sample_id in enumerate(first.ids) if sample_id in there]
        a, b = first.correct[1, common], second.correct[1, [there[first.ids[i]] for i in common]]
        apart = mcnemar_exact(int((a & ~b).sum()), int((b & ~a).sum())) < 0.05
        title += f"; second is {second.shift} with {drop_of(second):.2f}, {'' if apart else 'not '}told apart from it"
    return Finding(
        kind="shift",
        title=title,
        metric="accuracy drop of the costliest edit",
        value=drop,
        baseline=0.0,
        effect=0.0,  # information: the attributes' findings count the harm
        n=n,
        subject={"attribute": "costliest", "worst": first.shift},
        measured=("worst",),
        ci=first.drop(1),
        evidence=[first.ids[i] for i in np.flatnonzero(first.correct[0] & ~first.correct[1])[:12]],
        enough_data=enough,
    )
