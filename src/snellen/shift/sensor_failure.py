"""How much of a fused segmentation survives when sensors go blind, flicker or get noisy?

Paper: Liao et al., 2025 (sensor failures in multi-modal segmentation). Every proper subset of the sensors fails, wholly
(EMM) or in a random part of its elements (RMM); all sensors get salt-and-pepper and Gaussian noise (NM). The plain mean
over the subsets and its expectation under a failure rate p answer different questions, and models rank differently by
them. Ours in addition: a rate for each sensor, what a failed sensor delivers, and the Shapley value of a sensor.

When it misleads: sensors are taken to fail independently, a real failure delivers neither zeros nor white noise, and a
class that few images show makes mIoU jump between resamples, so its interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import SampleRandom, normal, uniform
from snellen.shift._multimodal import (
    CLEAN,
    Condition,
    Failed,
    Fill,
    Inputs,
    MultiModel,
    Score,
    bootstrap_score,
    check_inputs,
    failure_subsets,
    failure_weights,
    fill_frames,
    place,
    shapley_weights,
    with_failed,
)

__all__ = [
    "CLEAN",
    "Condition",
    "FailureTable",
    "Score",
    "SensorFailure",
    "evaluate",
    "failure_weights",
    "random_missing",
    "salt_and_pepper",
]

NOISE: Mapping[str, tuple[float, float]] = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}
"""Density of salt and pepper, then the standard deviation of the Gaussian, in units of the normalised tensor."""

Metric = Literal["miou", "mf1", "macc", "accuracy"]
"""Means over the classes that occur in the labels of IoU, F1 and recall; and the share of pixels that are right."""

Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class SensorFailure:
    """Which failures are tried (Liao et al., 2025)."""

    classes: int
    """K, at least 2."""
    ignore_index: int | None = 255
    """Label that is not counted; DELIVER's 255."""
    rates: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of lost elements under RMM, in [0, 1]."""
    levels: tuple[str, ...] = ("low", "mid", "high")
    """Steps of NM."""
    no_gaussian: tuple[str, ...] = ("event",)
    """Sensors that get salt and pepper only; the paper's event camera."""
    fill: Fill = "zero"
    """What a failed sensor delivers: zeros (the paper), its mean, or the frame before, data being in order of time."""
    means: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """For fill "mean": one value a channel and sensor, after normalisation."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InvalidInput(f"classes must be at least 2, got {self.classes}")
        if not all(0 <= rate <= 1 for rate in self.rates):
            raise InvalidInput(f"rates must be in [0, 1], got {list(self.rates)}")
        if not set(self.levels) <= set(NOISE):
            raise InvalidInput(f"levels must be among {', '.join(NOISE)}, got {list(self.levels)}")
        if self.fill not in get_args(Fill):
            raise InvalidInput(f"fill must be one of {', '.join(get_args(Fill))}, got {self.fill!r}")


def random_missing(frames: Tensor, fill: Tensor, rate: float, generators: Sequence[Generator]) -> Tensor:
    """RMM: every element of `frames` `[B, C, H, W]` becomes that of `fill` with probability `rate`, on its own.

    A generator gives the same draws at every rate, so what is lost at one rate is lost at every higher one.
    """
    if len(generators) != len(frames):
        raise InvalidInput(f"generators must be one a sample, {len(frames)}, got {len(generators)}")
    lost = uniform(generators, frames.shape[1:]).to(frames.device) < rate
    return torch.where(lost, fill, frames)


def salt_and_pepper(frames: Tensor, density: float, generators: Sequence[Generator]) -> Tensor:
    """NM: ceil(density * size / 2) positions a sample become its maximum, then as many its minimum.

    Positions are drawn with replacement, so the effective density is a little lower. The published code takes extremes
    and positions over the whole batch; here a sample does not depend on its neighbours.
    """
    flat = frames.flatten(1).clone()
    low, high = flat.aminmax(dim=1, keepdim=True)
    size = flat.shape[1]
    drawn = [torch.randint(size, (2, math.ceil(density * size / 2)), generator=each) for each in generators]
    salt, pepper = torch.stack(drawn, dim=1).to(frames.device)
    flat.scatter_(1, salt, high.expand_as(salt)).scatter_(1, pepper, low.expand_as(pepper))
    return flat.view_as(frames)


@torch.no_grad()
def evaluate(model: MultiModel, data: Iterable[tuple[Inputs, Tensor]], settings: SensorFailure) -> FailureTable:
    """Run `model` under every failure and count its pixels.

    model: dict of sensor tensors -> class scores `[B, K, H, W]` or class maps int `[B, H, W]`. data: pairs of inputs,
    sensor -> float `[B, C_m, H, W]` normalised as the model wants them, and labels int `[B, H, W]`. Per image there is
    one pass for the clean input, 2^N - 1 for missing sensors, 2^N - 2 a rate and one a noise level. A sample's noise
    depends on the seed and its place in the data only. Raises InvalidInput.
    """
    sensors: tuple[str, ...] = ()
    conditions: list[Condition] = []
    previous: dict[str, Tensor] = {}
    confusion = torch.zeros(0, dtype=torch.int64)
    tallies: list[Counts] = []
    seen = 0
    for inputs, labels in data:
        sensors = sensors or tuple(inputs)
        size = check_inputs(inputs, sensors)
        _check_maps(inputs, labels, settings)
        fills = fill_frames(inputs, settings.fill, settings.means, previous)
        ids = [str(seen + row) for row in range(size)]

        batch = {
            condition: _confusion(model, given, labels, settings)
            for condition, given in _failures(sensors, inputs, fills, settings, ids)
        }
        conditions, counted = list(batch), torch.stack(list(batch.values()))
        confusion = counted.sum(1) if not seen else confusion + counted.sum(1)
        tallies.append(np.stack([counted.diagonal(dim1=2, dim2=3), counted.sum(2), counted.sum(3)], axis=-1))
        previous = {name: frames[-1:].clone() for name, frames in inputs.items()}
        seen += size
    if not seen or not int(confusion.sum()):
        raise InvalidInput(f"data must hold at least one labelled pixel, got {seen} images without any")
    by_image = np.concatenate(tallies, axis=1).swapaxes(0, 1)
    return FailureTable(sensors, tuple(conditions), confusion.numpy(), by_image, settings.seed)


@dataclass(frozen=True, eq=False)
class FailureTable:
    """Counts under every condition; images are the unit of all intervals.

    confusion: `[conditions, K, K]`, rows are labels, columns predictions. tallies: `[n, conditions, K, 3]`, per image
    and class the pixels that are right, predicted and labelled.
    """

    sensors: tuple[str, ...]
    conditions: tuple[Condition, ...]
    confusion: Counts
    tallies: Counts
    seed: int

    def score(self, condition: Condition, metric: Metric = "miou") -> Score:
        return self._weighted({condition: 1.0}, metric)

    def rows(self, metric: Metric = "miou") -> list[tuple[Condition, Score]]:
        return [(condition, self.score(condition, metric)) for condition in self.conditions]

    def drop(self, condition: Condition, metric: Metric = "miou") -> Score:
        """Clean score minus the score under `condition`, on the same images."""
        return self._weighted({CLEAN: 1.0, condition: -1.0}, metric)

    def average(self, scenario: str = "missing", metric: Metric = "miou") -> Score:
        """Avg: the plain mean over the 2^N - 1 proper subsets. scenario: "missing" or "random RATE"."""
        subsets = failure_subsets(self.sensors)[:-1]
        return self._weighted({_named(scenario, failed): 1 / len(subsets) for failed in subsets}, metric)

    def expected(self, p: float | Mapping[str, float], scenario: str = "missing", metric: Metric = "miou") -> Score:
        """E: the mean over the proper subsets when each sensor fails with probability p, given that not all fail."""
        weights = failure_weights(self.sensors, p)
        total = sum(weights.values())
        return self._weighted({_named(scenario, failed): w / total for failed, w in weights.items()}, metric)

    def shapley(self, metric: Metric = "miou") -> dict[str, Score]:
        """What each sensor adds, averaged over the orders in which sensors are joined; sums to full minus none."""

        def value(sensor: str) -> Score:
            weights = shapley_weights(self.sensors, sensor)
            return self._weighted({_named("missing", failed): w for failed, w in weights.items()}, metric)

        return {sensor: value(sensor) for sensor in self.sensors}

    def class_iou(self, condition: Condition) -> NDArray[np.float64]:
        """IoU `[K]` of every class, NaN where no pixel is labelled so."""
        right, predicted, labelled = self.tallies[:, place(condition, self.conditions)].sum(0).T
        return np.where(labelled > 0, right / np.maximum(predicted + labelled - right, 1), np.nan)

    def _weighted(self, weights: Mapping[Condition, float], metric: Metric) -> Score:
        """All figures are weighted sums of condition scores, so one bootstrap over images serves them all."""
        if metric not in get_args(Metric):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
        shares = np.array(list(weights.values()))
        counts = self.tallies[:, [place(condition, self.conditions) for condition in weights]].astype(np.float64)
        rng = SampleRandom(self.seed, "shift/sensor-failure").numpy("bootstrap")
        return bootstrap_score(counts, lambda sums: np.asarray(_metric(sums, metric) @ shares), rng)


def _named(scenario: str, failed: Failed) -> Condition:
    return Condition(scenario, failed) if failed else CLEAN


def _metric(tallies: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """One figure for counts `[..., K, 3]`: right, predicted, labelled."""
    right, predicted, labelled = np.moveaxis(tallies, -1, 0)
    if metric == "accuracy":
        return np.asarray(right.sum(-1) / np.maximum(labelled.sum(-1), 1))
    whole = {"miou": predicted + labelled - right, "mf1": (predicted + labelled) / 2, "macc": labelled}[metric]
    # Classes without labels are left out: which classes count must not depend on what a condition makes up.
    occurs = labelled > 0
    share = np.where(occurs, right / np.maximum(whole, 0.5), 0)
    return np.asarray(share.sum(-1) / np.maximum(occurs.sum(-1), 1))


def _failures(
    sensors: Failed, inputs: Inputs, fills: Inputs, settings: SensorFailure, ids: Sequence[str]
) -> Iterator[tuple[Condition, dict[str, Tensor]]]:
    random = SampleRandom(settings.seed, "shift/sensor-failure")
    subsets = failure_subsets(sensors)
    yield CLEAN, with_failed(inputs, inputs, ())
    for failed in subsets[1:]:  # all missing at once is for the Shapley value only
        yield Condition("missing", failed), with_failed(inputs, fills, failed)
    for rate in settings.rates:
        streams = {name: random.generators(ids, "missing", name) for name in sensors}
        damaged = {name: random_missing(inputs[name], fills[name], rate, streams[name]) for name in sensors}
        for failed in subsets[1:-1]:
            yield Condition(f"random {rate:g}", failed), with_failed(inputs, damaged, failed)
    for level in settings.levels:
        density, std = NOISE[level]
        noisy = {}
        for name in sensors:
            generators = random.generators(ids, "noise", name, level)
            noisy[name] = salt_and_pepper(inputs[name], density, generators)
            if name not in settings.no_gaussian:
                noisy[name] += normal(generators, inputs[name].shape[1:], std).to(noisy[name])
        yield Condition(f"noise {level}", sensors), noisy


def _confusion(model: MultiModel, inputs: dict[str, Tensor], labels: Tensor, settings: SensorFailure) -> Tensor:
    """Pixels `[B, K, K]` by label and prediction, on the CPU."""
    size, k = len(labels), settings.classes
    answer = model(inputs)
    shape = [size, k, *labels.shape[1:]] if answer.is_floating_point() else list(labels.shape)
    if list(answer.shape) != shape:
        raise InvalidInput(f"model must return scores or class maps of shape {shape}, got {list(answer.shape)}")
    predicted = answer.argmax(1) if answer.is_floating_point() else answer.long()
    low, high = (int(value) for value in predicted.aminmax())
    if low < 0 or high >= k:
        raise InvalidInput(f"model must predict classes in 0..{k - 1}, got {low} to {high}")

    image = torch.arange(size, device=labels.device).view(-1, 1, 1)
    cell = (image * k + labels.long()) * k + predicted.to(labels.device)
    if settings.ignore_index is not None:
        cell = cell[labels != settings.ignore_index]
    return torch.bincount(cell.flatten(), minlength=size * k * k).view(size, k, k).cpu()


def _check_maps(inputs: Inputs, labels: Tensor, settings: SensorFailure) -> None:
    shapes = {name: list(frames.shape) for name, frames in inputs.items()}
    sides = {tuple(frames.shape[2:]) for frames in inputs.values()}
    if len(sides) > 1 or any(frames.ndim != 4 for frames in inputs.values()):
        raise InvalidInput(f"inputs must be [B, C, H, W] with one height and width, got {shapes}")
    if labels.is_floating_point() or [*labels.shape] != [len(next(iter(inputs.values()))), *next(iter(sides))]:
        raise InvalidInput(f"labels must be integers [B, H, W] that fit {shapes}, got {labels.dtype} {[*labels.shape]}")
    wrong = ((labels < 0) | (labels >= settings.classes)) & (labels != settings.ignore_index)
    if bool(wrong.any()):
        accepted = f"in 0..{settings.classes - 1} or the ignored {settings.ignore_index}"
        raise InvalidInput(f"labels must be {accepted}, got {int(labels[wrong][0])}")


register_functions(
    "shift/sensor-failure",
    paper="Liao et al., 2025",
    card="sensor-failure-segmentation",
    access=Access.LABELS,
    data="several sensors, class maps",
    module=__name__,
)
