"""Average precision of one condition: the published summary, and bootstrap values from stored matches.

The summary is torchmetrics', which asks COCO's own evaluation. Resampling images would repeat its matching two
hundred times, although a match does not depend on which other images are drawn; so the matches of each image are kept
and only their counting is repeated. Both agree to rounding (`tests/shift/test_detection.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._boxes import Detections, Objects, Overlap
from snellen.shift._matching import IOU_THRESHOLDS, Errors, ImageMatches, image_errors, match_image

RECALLS = np.linspace(0, 1, 101)
CHUNK = 20_000_000
"""Numbers held at once while resampling."""


class Summary(NamedTuple):
    """AP in [0, 1]: mean over IoU .50:.05:.95, at .50, at .75, of small (< 32² px), medium and large (> 96²) objects,
    and of boxes, for comparison when masks or boundaries are judged. NaN where there is no such object, and for sizes
    and boxes under the boundary overlap."""

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    box_ap: float


class Tally:
    """Collects one condition image by image; masks are not kept."""

    def __init__(self, overlap: Overlap) -> None:
        self.overlap = overlap
        self.matches: list[ImageMatches] = []
        self.errors = Errors()
        try:
            from torchmetrics.detection import MeanAveragePrecision

            self._metric = MeanAveragePrecision(
                # With masks alone torchmetrics leaves out images without objects, false alarms and all.
                iou_type="bbox" if overlap == "box" else ("bbox", "segm"),
                # torchmetrics' own marks are float32 and miss a recall that meets one exactly, as 29 of 100 does.
                iou_thresholds=IOU_THRESHOLDS.tolist(),
                rec_thresholds=RECALLS.tolist(),
            )
        except ImportError as missing:
            raise InvalidInput(
                "average precision needs torchmetrics and pycocotools: install the extra `snellen[detection]`"
            ) from missing
        self._metric.warn_on_many_detections = False

    def add(self, found: Detections, truth: Objects) -> None:
        """One image."""
        self.matches.append(match_image(found, truth, self.overlap))
        self.errors = self.errors.plus(image_errors(found, truth, self.overlap))
        if self.overlap == "boundary":
            return
        prediction = {"boxes": found.boxes.float(), "labels": found.labels, "scores": found.scores.float()}
        target = {"boxes": truth.boxes.float(), "labels": truth.labels.long(), "iscrowd": truth.crowds.long()}
        if self.overlap == "mask" and found.masks is not None and truth.masks is not None:
            prediction["masks"], target["masks"] = found.masks, truth.masks
        self._metric.update([prediction], [target])

    def summary(self) -> Summary:
        """Raises InvalidInput when no image has an object."""
        if not any(len(image.truths) for image in self.matches):
            raise InvalidInput("truth must hold at least one object that is not a crowd, got none in any image")
        if self.overlap == "boundary":
            curve = precision_by_threshold(self.matches, torch.ones(1, len(self.matches)))[0]
            return Summary(float(curve.mean()), float(curve[0]), float(curve[5]), *[math.nan] * 4)
        found = self._metric.compute()
        prefix = "" if self.overlap == "box" else "segm_"
        names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
        keys = [*(prefix + name for name in names), "map" if self.overlap == "box" else "bbox_map"]
        # COCO answers -1 where there is nothing to find.
        return Summary(*(math.nan if float(found[key]) < 0 else float(found[key]) for key in keys))

    def resampled(self, weights: Tensor) -> NDArray[np.float64]:
        """AP `[B]` with every image counted `weights` `[B, images]` times; NaN where no object was drawn."""
        return precision_by_threshold(self.matches, weights).mean(dim=1).numpy()


def bootstrap_weights(images: int, resamples: int, rng: np.random.Generator) -> Tensor:
    """How often each image is drawn, float `[resamples, images]`."""
    return torch.from_numpy(rng.multinomial(images, np.full(images, 1 / images), resamples)).float()


def precision_by_threshold(matches: Sequence[ImageMatches], weights: Tensor) -> Tensor:
    """101-point AP averaged over the categories that occur, float64 `[B, 10]`, images counted `weights` times.

    A detection counted w times moves the curve as w copies of its image would: copies share one score, and the
    envelope of the curve only sees the end of such a run.
    """
    images = np.repeat(np.arange(len(matches)), [len(image.labels) for image in matches])
    labels = np.concatenate([image.labels for image in matches])
    scores = np.concatenate([image.scores for image in matches])
    hit = torch.from_numpy(np.concatenate([image.hit for image in matches], axis=1))
    ignored = torch.from_numpy(np.concatenate([image.ignored for image in matches], axis=1))

    total = torch.zeros(len(weights), len(IOU_THRESHOLDS), dtype=torch.float64)
    occurring = torch.zeros(len(weights), 1, dtype=torch.float64)
    for category in np.unique(np.concatenate([image.truths for image in matches])):
        per_image = torch.tensor([float((image.truths == category).sum()) for image in matches])
        objects = weights @ per_image
        own = np.flatnonzero(labels == category)
        own = own[np.argsort(-scores[own], kind="stable")]
        step = max(1, CHUNK // max(1, len(own) * len(IOU_THRESHOLDS)))
        areas = [
            _area_under(some[:, torch.from_numpy(images[own])], hit[:, own], ignored[:, own], count)
            for some, count in zip(weights.split(step), objects.split(step), strict=True)
        ]
        drawn = (objects > 0)[:, None]
        total += torch.where(drawn, torch.cat(areas), 0.0)
        occurring += drawn
    return total / occurring  # 0 / 0 is NaN: nothing to find in this resample


def _area_under(weights: Tensor, hit: Tensor, ignored: Tensor, objects: Tensor) -> Tensor:
    """weights: `[B, D]` by falling score, hit and ignored: `[10, D]`, objects: `[B]`. Returns `[B, 10]`."""
    if weights.shape[1] == 0:
        return torch.zeros(len(weights), len(hit), dtype=torch.float64)
    counted = weights.double()[:, None, :]
    true = (counted * hit).cumsum(dim=2)
    false = (counted * (~hit & ~ignored)).cumsum(dim=2)
    recall = true / objects.double().clamp(min=1)[:, None, None]
    precision = true / (true + false).clamp(min=1e-12)
    envelope = precision.flip(2).cummax(dim=2).values.flip(2)
    marks = torch.from_numpy(RECALLS).expand(*recall.shape[:2], -1).contiguous()
    places = torch.searchsorted(recall.contiguous(), marks)
    padded = torch.cat([envelope, torch.zeros_like(envelope[..., :1])], dim=2)
    return padded.gather(2, places).mean(dim=2)
