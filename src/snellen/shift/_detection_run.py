"""The evaluation loop of the detection methods: every image is read once and every condition predicted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.randomness import SampleRandom
from snellen.shift._average_precision import Summary, Tally, bootstrap_weights
from snellen.shift._boxes import (
    Detector,
    Objects,
    Overlap,
    Scene,
    check_labels,
    read_detections,
    without_empty_masks,
)
from snellen.shift._matching import Errors
from snellen.stats import Interval, bias_corrected_interval

Key = TypeVar("Key")
Change = Callable[[Scene], Scene]

ENOUGH_IMAGES = 50
"""Below this an average precision rests on so few objects a category that its bootstrap covers too little."""


@dataclass(frozen=True)
class DetectionSettings:
    """How a detector is judged."""

    overlap: Overlap = "box"
    """Boxes, masks (COCO's AP of either), or masks and their outlines (Cheng et al., 2021)."""
    categories: tuple[int, ...] | None = None
    """The labels that may occur; any other is refused. None accepts all."""
    batch_size: int = 4
    """Images a call of the detector."""
    resamples: int = 200
    """Bootstrap draws of the images, shared by all conditions; the papers give no interval."""
    seed: int = 0
    """Of corruptions and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.overlap not in ("box", "mask", "boundary"):
            raise InvalidInput(f"overlap must be 'box', 'mask' or 'boundary', got {self.overlap!r}")
        if self.batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, got {self.batch_size}")
        if self.resamples < 20:
            raise InvalidInput(f"resamples must be at least 20 for an interval of 95 %, got {self.resamples}")


class Estimate(NamedTuple):
    """A figure and its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ConditionResult:
    """One condition. drawn: AP `[resamples]` on resampled images, the same images in every condition of one run."""

    summary: Summary
    errors: Errors
    drawn: NDArray[np.float64]

    @property
    def ap(self) -> Estimate:
        return estimate(self.summary.ap, self.drawn)


@dataclass(frozen=True)
class Run(Generic[Key]):
    """Results by condition. ids: of the images. dropped: objects left out because their mask was empty."""

    results: Mapping[Key, ConditionResult]
    ids: tuple[str, ...]
    dropped: int


def judge(
    detector: Detector, scenes: Sequence[Scene], conditions: Mapping[Key, Change], settings: DetectionSettings
) -> Run[Key]:
    """Predicts every scene under every condition. A sequence that decodes on access keeps memory small."""
    if len(scenes) == 0:
        raise InvalidInput("scenes must hold at least one image, got none")
    tallies = {key: Tally(settings.overlap) for key in conditions}
    ids: list[str] = []
    dropped = 0
    for start in range(0, len(scenes), settings.batch_size):
        batch: list[Scene] = []
        for index in range(start, min(start + settings.batch_size, len(scenes))):
            scene, empty = without_empty_masks(scenes[index])
            check_labels(scene.truth.labels, settings.categories, "truth")
            dropped += empty
            batch.append(scene)
        ids += [scene.id for scene in batch]
        for key, change in conditions.items():
            _judge_batch(detector, [change(scene) for scene in batch], tallies[key], settings)
    if len(set(ids)) != len(ids):
        raise InvalidInput(f"scene ids must differ, got {len(ids)} scenes with {len(set(ids))} ids")

    rng = SampleRandom(settings.seed, "shift/detection").numpy("images")
    weights = bootstrap_weights(len(ids), settings.resamples, rng)
    results = {key: ConditionResult(t.summary(), t.errors, t.resampled(weights)) for key, t in tallies.items()}
    return Run(results, tuple(ids), dropped)


def _judge_batch(detector: Detector, batch: Sequence[Scene], tally: Tally, settings: DetectionSettings) -> None:
    with torch.no_grad():
        outputs = detector([scene.image for scene in batch])
    if len(outputs) != len(batch):
        raise InvalidInput(f"the detector must answer every image, got {len(outputs)} answers for {len(batch)} images")
    for output, scene in zip(outputs, batch, strict=True):
        found = read_detections(output, scene, settings.overlap)
        check_labels(found.labels, settings.categories, "detections")
        tally.add(found, on_cpu(scene.truth))


def on_cpu(truth: Objects) -> Objects:
    """The truth where detections are compared with it."""
    masks = None if truth.masks is None else truth.masks.cpu()
    return Objects(truth.boxes.cpu(), truth.labels.cpu().long(), masks, truth.crowds.cpu())


def condition_table(
    keys: Mapping[str, Sequence[str | float]], results: Sequence[ConditionResult], images: int | Sequence[int]
) -> Rows:
    """An Arrow table: the keys, n images, AP with its interval, the summary, the errors, enough_data."""
    sizes = [images] * len(results) if isinstance(images, int) else list(images)
    estimates = [result.ap for result in results]
    columns: dict[str, Sequence[object]] = {**keys, "n": sizes}
    columns |= {"ap": [e.value for e in estimates], "low": [e.low for e in estimates]}
    columns |= {"high": [e.high for e in estimates]}
    for field in ("ap50", "ap75", "small", "medium", "large", "box_ap"):
        columns[field] = [getattr(result.summary, field) for result in results]
    for field in results[0].errors._fields if results else ():
        columns[field] = [getattr(result.errors, field) for result in results]
    return pa.table({**columns, "enough_data": [size >= ENOUGH_IMAGES for size in sizes]})


def unchanged(scene: Scene) -> Scene:
    """The condition of clean images."""
    return scene


def estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """A figure with the interval of its bootstrap values; NaN bounds where the figure itself is undefined."""
    if not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    interval: Interval = bias_corrected_interval(value, drawn)
    return Estimate(value, interval.low, interval.high)
