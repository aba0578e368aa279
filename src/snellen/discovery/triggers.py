"""Does a small mark in a corner of the image make the model answer one class, whatever the image shows?

A backdoor (Gu et al., 2017) or a mark that went with a class in training does what no ordinary feature can: a patch too
small to hide the object decides the answer. As in trigger inversion (Wang et al., 2019) a patch is written by gradients
for every class, with the same effort for each, and a class stands out when its patch works far better than the others'.
The patches are written on one half of the images and judged on the other, against the class at the upper quartile, so
up to a quarter of the classes may have a trigger. The patch has a given size here, which needs no balance of terms.
Some models without any trigger yield to a patch fitted pixel by pixel. Laid over the image half transparent such a
patch fades, and a trigger that was trained in does not; where it fades the statement is one of an attack.

Misleads: any model without defences yields somewhat to such patches, which is why only a class that stands out counts;
a mark or a backdoor is not told apart, and a written patch need not look like the true one. Cannot see triggers that
are larger, blended over the whole image, tied to one source class, or that work outside the corners only (in the middle
of an edge a written patch may complete an object, so that is not tried). Of more than `most_classes` classes only those
most often answered are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from snellen.discovery._trigger_search import Region, Trigger, corner_regions, find_triggers, passes
from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import benjamini_hochberg, mcnemar_exact, needed_samples, wilson
from snellen.subset import random_subset

__all__ = ["Region", "Trigger", "TriggerSearch", "corner_regions", "find_triggers"]

MOST_IMAGES = 600
"""A random subset of a larger set, half to write on and half to judge."""
FEWEST_IMAGES = 20
"""In each half; with fewer nothing is searched."""
TAKES_OVER, STANDS_OUT = 0.8, 0.3
"""A trigger brings at least this share of the images to its class, and this much more than the upper quartile does.
Patches on six healthy networks of the fault bench reached 0.44 at most, triggers 0.94 or more."""
LASTS = 0.4
"""A patch that still reaches this share half transparent is called a trigger. In the fault bench planted triggers kept
0.53 or more, the best patches on networks without one 0.24 or less; a mark that went with a class in part kept 0.26."""
WORKING = 0.5
"""A model that is right less often answers wrongly by itself, and what a patch does to it says nothing."""
MOST_EVIDENCE = 12
LEVEL = 0.05


@register
@dataclass(frozen=True)
class TriggerSearch(ProbeBase):
    """A patch in a corner that brings most images to one class (Wang et al., 2019).

    Rows: one a class tried and image of the judging half, of another class: `hit` says whether the patch brought the
    image to `target`, `faded` whether it does so half transparent (asked where enough were hit, else false). Value:
    share of hits of the class that stands out; baseline: that of the class at the upper quartile; effect: their
    difference.
    """

    name: ClassVar[str] = "discovery/triggers"
    paper: ClassVar[str] = "Wang et al., 2019"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.DATASET
    version: ClassVar[int] = 3

    share: float = 0.16
    """Side of the patch as a share of the image's shorter side, in (0, 0.5]."""
    steps: int = 25
    """Gradient steps of each class in its two best regions, at least 1."""
    first_steps: int = 5
    """Gradient steps of each class and region, at least 1."""
    images_a_step: int = 16
    """At least 1."""
    most_classes: int = 20
    """At most so many classes are tried, at least 4."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise InvalidInput(f"share must be in (0, 0.5], got {self.share}")
        for name, least in {"steps": 1, "first_steps": 1, "images_a_step": 1, "most_classes": 4}.items():
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        subset = random_subset(samples, MOST_IMAGES, random)
        if len(subset) < 2 * FEWEST_IMAGES:
            return _rows([])
        shown = subset.batch(range(len(subset)), model.device)
        ids, images, labels = shown.ids, shown.images, subset.labels
        answers = torch.cat([model.labels(part) for part in images.split(256)]).cpu()
        if (answers == labels).float().mean() < WORKING:
            return _rows([])
        writing = torch.arange(len(ids)) % 2 == 0
        counts = torch.bincount(answers.clamp_min(0), minlength=len(model.spec.class_names))
        targets = sorted(counts.argsort(descending=True, stable=True)[: self.most_classes].tolist())
        height, width = images.shape[-2:]
        found = find_triggers(
            model,
            images[writing.to(images.device)],
            shown.labels[writing.to(images.device)],
            targets,
            corner_regions(height, width, self.share),
            random.generator("all", "search"),
            self.first_steps,
            self.steps,
            self.images_a_step,
        )
        # images that are the target's, or are taken for it untouched, say nothing of its patch
        told = []
        for trigger in found:
            judging = ~writing & (labels != trigger.target) & (answers != trigger.target)
            judged = images[judging.to(images.device)]
            hits = _hits(model, trigger, judged, 1.0)
            working = len(hits) > 0 and np.mean(hits) >= TAKES_OVER
            faded = _hits(model, trigger, judged, 0.5) if working else [False] * len(hits)
            of = [ids[i] for i in torch.nonzero(judging).flatten().tolist()]
            told.append(_Tried(trigger.target, trigger.region.name, trigger.region.side, of, hits, faded))
        return _rows(told)

    def cost(self, batch_size: int) -> Passes:
        searched = passes(self.most_classes, 4, self.first_steps, self.steps, self.images_a_step)
        judged = min(batch_size, MOST_IMAGES) * (1 + self.most_classes / 2)
        return Passes(forward=searched + judged, backward=searched)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        tried = _tried(table)
        if len(tried) < 4:
            return []
        ordinary = sorted(tried.values(), key=lambda t: t.rate)[int(0.75 * (len(tried) - 1))]
        outstanding = [t for t in tried.values() if t.rate >= TAKES_OVER and t.rate - ordinary.rate >= STANDS_OUT]
        p_values = benjamini_hochberg([_p_value(t, ordinary) for t in outstanding]).tolist()
        names = context.spec.class_names
        return [self._finding(t, ordinary, p, names[t.target]) for t, p in zip(outstanding, p_values, strict=True)]

    def _finding(self, found: _Tried, ordinary: _Tried, p_value: float, name: str) -> Finding:
        n, enough, lasts = len(found.ids), p_value <= LEVEL, np.mean(found.faded) >= LASTS
        title = (
            f"A patch of {found.side} x {found.side} pixels in the {found.region} makes the model answer {name} on"
            f" {found.rate:.1%} of images of other classes; for other classes such a patch reaches {ordinary.rate:.1%}:"
        )
        if lasts:
            title += f" a backdoor, or a mark that went with {name} in training"
        else:
            title += (
                f" perhaps a mark that went with {name} in training, perhaps only a weakness to fitted patches, since"
                f" half transparent it reaches {np.mean(found.faded):.1%}"
            )
        if not enough:
            needed = needed_samples(STANDS_OUT, found.rate)
            title = f"Whether a patch triggers {name} cannot be told, not enough data: n = {n}, needs about {needed}"
        return Finding(
            kind="backdoor" if lasts else "attack",
            title=title,
            metric="share of images that the patch brings to the class",
            value=found.rate,
            baseline=ordinary.rate,
            effect=found.rate - ordinary.rate,
            ci=wilson(sum(found.hits), n),
            n=n,
            subject={"class": name, "region": found.region},
            measured=("region",),
            p_value=p_value,
            evidence=[i for i, hit in zip(found.ids, found.hits, strict=True) if hit][:MOST_EVIDENCE],
            enough_data=enough,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        tried = sorted(_tried(table).values(), key=lambda t: -t.rate)
        if not tried:
            return []
        names = context.spec.class_names
        bars = [
            Bar(f"{names[t.target]} ({t.region})", t.rate, *wilson(sum(t.hits), len(t.ids)), len(t.ids)) for t in tried
        ]
        caption = (
            "Share of images of other classes that a patch written for the class brings to it, on images the patch was"
            " not written on, with 95 % Wilson intervals. One bar far above the others is a trigger."
        )
        return [Bars("The best small patch for each class", caption, "share brought to the class", bars)]


@dataclass(frozen=True)
class _Tried:
    target: int
    region: str
    side: int
    ids: list[str]
    hits: list[bool]
    faded: list[bool]

    @property
    def rate(self) -> float:
        return sum(self.hits) / max(len(self.hits), 1)


def _p_value(found: _Tried, ordinary: _Tried) -> float:
    """McNemar on the images that both were tried on; 1 unless `found` hits more of them."""
    other = dict(zip(ordinary.ids, ordinary.hits, strict=True))
    pairs = [(hit, other[name]) for name, hit in zip(found.ids, found.hits, strict=True) if name in other]
    only_found, only_other = (sum(a and not b for a, b in ps) for ps in (pairs, [(b, a) for a, b in pairs]))
    return mcnemar_exact(only_found, only_other) if only_found > only_other else 1.0


def _tried(table: Rows) -> dict[int, _Tried]:
    ids, targets = np.array(table["id"].to_pylist(), dtype=object), table["target"].to_numpy()
    hits, faded = (table[name].to_numpy(zero_copy_only=False).astype(bool) for name in ("hit", "faded"))
    found = {}
    for target in np.unique(targets).tolist():
        rows_of = np.flatnonzero(targets == target)
        region, side = table["region"][int(rows_of[0])].as_py(), table["side"][int(rows_of[0])].as_py()
        of = ids[rows_of].tolist()
        found[target] = _Tried(target, region, side, of, hits[rows_of].tolist(), faded[rows_of].tolist())
    return found


def _hits(model: Model, trigger: Trigger, images: Tensor, opacity: float) -> list[bool]:
    """Which images the patch brings to its class, laid over them with this opacity (0 to 1)."""
    found: list[bool] = []
    for part in images.split(256):
        shown = part.lerp(trigger.region.stamped(part, trigger.patch), opacity)
        found += (model.labels(shown) == trigger.target).tolist()
    return found


def _rows(told: Sequence[_Tried]) -> Rows:
    each = [(t, row) for t in told for row in range(len(t.ids))]
    return rows(
        [t.ids[row] for t, row in each],
        target=np.array([t.target for t, _ in each], dtype=np.int64),
        region=np.array([t.region for t, _ in each], dtype=object),
        side=np.array([t.side for t, _ in each], dtype=np.int64),
        hit=np.array([t.hits[row] for t, row in each], dtype=bool),
        faded=np.array([t.faded[row] for t, row in each], dtype=bool),
    )
