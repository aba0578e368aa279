"""The same detector at other scales and on another data set."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.randomness import SampleRandom
from snellen.shift._boxes import Detector, Scene
from snellen.shift._detection_run import Change, DetectionSettings, Estimate, condition_table, estimate, judge

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


def resized(scene: Scene, scale: float) -> Scene:
    """The scene at `scale` > 0: image bilinear (averaged when it shrinks), masks nearest, boxes multiplied."""
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidInput(f"scale must be above 0, got {scale}")
    if scale == 1:
        return scene
    height, width = (max(1, round(side * scale)) for side in scene.image.shape[-2:])
    image = F.interpolate(scene.image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    masks = scene.truth.masks
    if masks is not None:
        masks = F.interpolate(masks[None].float(), (height, width), mode="nearest-exact")[0] > 0.5
    factors = torch.tensor([width, height, width, height]) / torch.tensor(scene.image.shape[-2:]).flip(0).repeat(2)
    boxes: Tensor = scene.truth.boxes * factors.to(scene.truth.boxes)
    return replace(scene, image=image.clamp(0, 1), truth=replace(scene.truth, boxes=boxes, masks=masks))


def resolution_curve(
    detector: Detector,
    scenes: Sequence[Scene],
    settings: DetectionSettings | None = None,
    scales: Sequence[float] = SCALES,
) -> Rows:
    """AP with every image scaled by each of `scales`: a row a scale. An object can fall to an empty mask; COCO counts
    it as missed. Misleads for detectors that resize by themselves: they only lose what the resampling lost."""
    run = judge(detector, scenes, {scale: _scaling(scale) for scale in scales}, settings or DetectionSettings())
    return condition_table({"scale": list(run.results)}, list(run.results.values()), len(run.ids))


def _scaling(scale: float) -> Change:
    return lambda scene: resized(scene, scale)


class Transfer(NamedTuple):
    """AP on the shared classes, at home and abroad; ratio: abroad / home, NaN when home is 0."""

    home: Estimate
    abroad: Estimate
    ratio: Estimate


def transfer(
    detector: Detector,
    home: Sequence[Scene],
    abroad: Sequence[Scene],
    class_map: Mapping[int, int],
    settings: DetectionSettings | None = None,
) -> Transfer:
    """AP on another data set, both restricted to the shared classes.

    class_map: label of the detector and of `home` -> label of `abroad`, one to one. Detections and objects of other
    classes are left out on both sides, so an object called by a class that is not shared counts as missed only.
    """
    if not class_map or len(set(class_map.values())) != len(class_map):
        raise InvalidInput(f"class_map must be one to one with at least one class, got {dict(class_map)}")
    used = replace(settings or DetectionSettings(), categories=None)
    at_home, away = (
        judge(_only(detector, mapping), scenes, {"": _keeping(set(mapping.values()))}, used).results[""]
        for scenes, mapping in ((home, {label: label for label in class_map}), (abroad, class_map))
    )
    value = away.summary.ap / at_home.summary.ap if at_home.summary.ap > 0 else math.nan
    # The two sets are independent samples; the draws of one say nothing about those of the other.
    shuffled = SampleRandom(used.seed, "shift/detection").numpy("transfer").permutation(away.drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Transfer(at_home.ap, away.ap, estimate(value, shuffled / at_home.drawn))


def _only(detector: Detector, mapping: Mapping[int, int]) -> Detector:
    def shared(images: list[Tensor]) -> list[Mapping[str, Tensor]]:
        answers: list[Mapping[str, Tensor]] = []
        for output in detector(images):
            labels = output["labels"]
            known = torch.tensor([label in mapping for label in labels.tolist()], dtype=torch.bool)
            kept = {key: value[known.to(value.device)] for key, value in output.items() if len(value) == len(labels)}
            kept["labels"] = torch.tensor([mapping[label] for label in kept["labels"].tolist()], dtype=torch.long)
            answers.append(kept)
        return answers

    return shared


def _keeping(labels: Collection[int]) -> Change:
    def change(scene: Scene) -> Scene:
        known = [label in labels for label in scene.truth.labels.tolist()]
        return replace(scene, truth=scene.truth.keep(torch.tensor(known, dtype=torch.bool)))

    return change
