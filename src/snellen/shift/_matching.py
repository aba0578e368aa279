"""Which detection answers which object, and what went wrong where none does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.shift._boxes import Detections, Objects, Overlap, overlaps

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100
"""Per image and category, the highest scores first, as COCO counts."""
SURE = 0.5
"""Detections scored below this are not counted as errors: a detector may list what it hardly believes."""
TOUCHING = 0.1
HIT = 0.5


class ImageMatches(NamedTuple):
    """One image, D detections. hit, ignored: bool `[10, D]` by IoU threshold. truths: labels of the objects."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truths: NDArray[np.int64]


class Errors(NamedTuple):
    """Counts over images: detections by their fate, then objects that no detection explains.

    poor_mask: right class and box (IoU >= .5), mask below .5. wrong_class: IoU >= .5 with an object of another class.
    misplaced: IoU of .1 to .5. duplicate: a second detection of an object. background: nothing there. missed: objects
    neither found nor pointed at by a poor mask, a wrong class or a misplaced detection.
    """

    correct: int = 0
    poor_mask: int = 0
    wrong_class: int = 0
    misplaced: int = 0
    duplicate: int = 0
    background: int = 0
    missed: int = 0

    def plus(self, other: Errors) -> Errors:
        return Errors(*(a + b for a, b in zip(self, other, strict=True)))


def match_image(found: Detections, truth: Objects, overlap: Overlap) -> ImageMatches:
    """COCO's greedy matching: by falling score, each detection takes the free object of its class it covers best."""
    table = overlaps(found, truth, overlap).numpy()
    labels, truths = found.labels.numpy(), truth.labels.numpy()
    crowd = truth.crowds.numpy()
    falling = np.argsort(-found.scores.numpy(), kind="stable")

    kept, hits, ignored = [], [], []
    for label in np.unique(labels):
        own = falling[labels[falling] == label][:MAX_DETECTIONS]
        same = truths == label
        hit, ignore = _match(table[np.ix_(own, same)], crowd[same])
        kept.append(own)
        hits.append(hit)
        ignored.append(ignore)
    empty = np.zeros((len(IOU_THRESHOLDS), 0), dtype=bool)
    order = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    return ImageMatches(
        labels[order],
        found.scores.double().numpy()[order],
        np.concatenate([empty, *hits], axis=1),
        np.concatenate([empty, *ignored], axis=1),
        truths[~crowd],
    )


def _match(table: NDArray[np.float64], crowd: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """table: `[D, G]`, one class, detections by falling score. Returns hit and ignored, `[10, D]`."""
    levels = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    taken = np.zeros((len(levels), len(crowd)), dtype=bool)
    hit, ignored = (np.zeros((len(levels), len(table)), dtype=bool) for _ in range(2))
    if len(crowd) == 0:
        return hit, ignored
    for d, row in enumerate(table):
        reached = row >= levels
        open_to = np.where(reached & ~taken & ~crowd, row, -1.0)
        # COCO lets the last of equals win.
        best = len(crowd) - 1 - open_to[:, ::-1].argmax(axis=1)
        hit[:, d] = open_to.max(axis=1) >= 0
        taken[hit[:, d], best[hit[:, d]]] = True
        ignored[:, d] = ~hit[:, d] & (reached & crowd).any(axis=1)
    return hit, ignored


def image_errors(found: Detections, truth: Objects, overlap: Overlap, sure: float = SURE) -> Errors:
    """Splits what went wrong in one image; detections scored below `sure` in [0, 1] and crowd regions do not count."""
    order = found.scores.argsort(descending=True, stable=True)
    found, crowd_free = found.keep(order[found.scores[order] >= sure]), truth.keep(~truth.crowds)
    in_crowd = overlaps(found, truth.keep(truth.crowds), overlap).ge(HIT).any(dim=1)
    by_overlap = overlaps(found, crowd_free, overlap)
    by_box = overlaps(found, crowd_free, "box")
    same = found.labels[:, None] == crowd_free.labels
    free = torch.ones(len(crowd_free.labels), dtype=torch.bool)
    explained = ~free
    counts = dict.fromkeys(Errors._fields, 0)

    for d in range(len(found.labels)):
        fate, place = _fate(by_overlap[d], by_box[d], same[d], free)
        if fate == "background" and bool(in_crowd[d]):
            continue
        counts[fate] += 1
        if place is not None:
            explained[place] = True
        if fate == "correct" and place is not None:
            free[place] = False
    counts["missed"] = int((~explained).sum())
    return Errors(**counts)


def _fate(row: Tensor, box_row: Tensor, same: Tensor, free: Tensor) -> tuple[str, int | None]:
    for fate, eligible, reached, floor in (
        ("correct", same & free, row, HIT),
        ("duplicate", same & ~free, row, HIT),
        ("poor_mask", same, box_row, HIT),
        ("wrong_class", ~same, row, HIT),
        ("misplaced", torch.ones_like(same), row, TOUCHING),
    ):
        value = torch.where(eligible, reached, -torch.ones_like(reached))
        if len(value) and float(value.max()) >= floor:
            return fate, int(value.argmax())
    return "background", None
