"""How fast does accuracy fall under 15 everyday degradations, from barely visible to severe?

Paper: Hendrycks & Dietterich, 2019 (ImageNet-C, with the CIFAR-C constants for small images). Every image is degraded
by noise, blur, weather and digital processing at five published severities, and predicted again; accuracies are
compared on the same images. Severity is continuous here, and constants follow the image size.

When it misleads: accuracy under synthetic corruption predicts accuracy under natural shift only loosely, a model
trained on one of the noises looks robust against its neighbours, and frost is a procedural texture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.exhibits import Curve, CurvePoint, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, GROUPS, check_name, check_severity, corrupt
from snellen.shift._mce import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CorruptionError,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from snellen.stats import bootstrap_bca, mcnemar_exact, needed_samples, paired_difference, wilson

__all__ = [
    "ALEXNET_CLEAN_ERROR",
    "ALEXNET_ERRORS",
    "CORRUPTIONS",
    "GROUPS",
    "CorruptionError",
    "Corruptions",
    "corrupt",
    "mean_corruption_error",
    "relative_mean_corruption_error",
]

CLEAN = "clean"
HARM = 0.05
"""A drop in accuracy below this is not called the start of a fall."""


@register
@dataclass(frozen=True)
class Corruptions(ProbeBase):
    """Accuracy under the 15 corruptions of ImageNet-C against severity (Hendrycks & Dietterich, 2019)."""

    name: ClassVar[str] = "shift/corruptions"
    paper: ClassVar[str] = "Hendrycks and Dietterich, 2019"
    card: ClassVar[str | None] = "imagenet-c-core"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    names: tuple[str, ...] = CORRUPTIONS
    """Which corruptions; the paper's 15."""
    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Each in (0, 5], ascending; the paper's 1 to 5."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InvalidInput(f"names must be one or more different corruptions, got {list(self.names)}")
        for severity in self.severities:
            check_severity(severity)
        ascending = all(a < b for a, b in zip((0.0, *self.severities), self.severities, strict=False))
        if not self.severities or not ascending:
            raise InvalidInput(f"severities must be above 0 and ascending, got {list(self.severities)}")

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        conditions = [(CLEAN, 0.0), *((name, float(s)) for name in self.names for s in self.severities)]
        predicted = []
        for name, severity in conditions:
            # One stream for all severities of a corruption: a sample's curve is the same rain falling harder.
            images = batch.images
            if name != CLEAN:
                images = corrupt(images, name, severity, random.generators(batch.ids, name))
            predicted.append(model.labels(images))

        table = torch.stack(predicted).cpu()
        labels = batch.labels.cpu()
        size = len(batch)
        return rows(
            list(batch.ids) * len(conditions),
            label=labels.repeat(len(conditions)),
            corruption=[name for name, _ in conditions for _ in range(size)],
            severity=np.repeat([severity for _, severity in conditions], size),
            predicted=table.flatten(),
            correct=(table == labels).flatten(),
        )

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(self.names) * len(self.severities)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        grid = _grid(table, self.names, self.severities)
        if not len(grid.ids):
            return []
        falls = [self._fall(grid, index) for index in range(len(self.names))]
        return [self._summary(grid, context), *falls]

    def _fall(self, grid: _Grid, index: int) -> Finding:
        corruption = self.names[index]
        spoken = corruption.replace("_", " ")
        clean, corrupted = grid.clean, grid.corrupted[index]
        n, accuracy = len(clean), float(clean.mean())
        drops = accuracy - corrupted.mean(axis=1)

        p_values = [mcnemar_exact(int((~c & clean).sum()), int((c & ~clean).sum())) for c in corrupted]
        # The start is picked among all severities, so each test is held to its share of 5 %.
        significant = [drop >= HARM and p < 0.05 / len(p_values) for drop, p in zip(drops, p_values, strict=True)]
        start = self.severities[significant.index(True)] if any(significant) else None

        middle = (len(self.severities) - 1) // 2
        severity = self.severities[middle]
        there = float(corrupted[middle].mean())
        subject: dict[str, str | int | float] = {"corruption": corruption, "severity": severity}
        needed = needed_samples(min(HARM, accuracy), accuracy) if accuracy > 0 else 0
        enough = start is not None or n >= needed
        if start is not None:
            subject["starts_at"] = start
            title = _fall_title(spoken, severity, start, accuracy, there)
        elif enough:
            title = (
                f"Accuracy shows no drop of {HARM:.2f} or more under {spoken} up to severity"
                f" {self.severities[-1]:g}: {accuracy:.2f} clean, {there:.2f} at severity {severity:g}"
            )
        else:
            title = (
                f"Whether accuracy falls under {spoken} cannot be told, not enough data: n = {n}, needs about {needed}"
            )
        interval = paired_difference(clean, corrupted[middle])
        return Finding(
            kind="shift",
            title=title,
            metric="accuracy drop",
            value=float(drops[middle]),
            effect=float(np.clip(drops.mean(), 0, 1)),
            n=n,
            subject=subject,
            ci=(interval.low, interval.high),
            p_value=p_values[middle],
            evidence=_first_lost(grid.ids, clean, corrupted),
            enough_data=enough,
        )

    def _summary(self, grid: _Grid, context: Context) -> Finding:
        by_sample = grid.corrupted.mean(axis=(0, 1))
        mean, n = float(by_sample.mean()), len(by_sample)
        ci = None
        if n >= 2:
            low, high = bootstrap_bca(by_sample, _mean_accuracy, context.random(self.name))
            ci = (low, high)
        conditions = f"{len(self.names)} corruptions and {len(self.severities)} severities"
        return Finding(
            kind="shift",
            title=f"Mean accuracy over {conditions} is {mean:.2f}, against {grid.clean.mean():.2f} clean",
            metric="mean corrupted accuracy",
            value=mean,
            baseline=float(grid.clean.mean()),
            effect=0.0,  # information: the harm is counted corruption by corruption
            n=n,
            subject={"corruption": "all"},
            ci=ci,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        grid = _grid(table, self.names, self.severities)
        if not len(grid.ids):
            return []
        charts: list[Exhibit] = []
        for group, members in GROUPS.items():
            shown = [index for index, name in enumerate(self.names) if name in members]
            points = [point for index in shown for point in self._curve(grid, index)]
            if points:
                charts.append(
                    Curve(
                        title=f"Accuracy against severity: {group}",
                        caption=(
                            f"{len(grid.ids)} images, the same at every point. Severity 0 is the clean image, 1 to 5"
                            " are the published steps; bands are 95 % Wilson intervals."
                        ),
                        x_label="severity",
                        y_label="accuracy",
                        points=points,
                    )
                )
        return charts

    def _curve(self, grid: _Grid, index: int) -> list[CurvePoint]:
        series = self.names[index].replace("_", " ")
        curve = [grid.clean, *grid.corrupted[index]]
        points = []
        for severity, correct in zip((0.0, *self.severities), curve, strict=True):
            low, high = wilson(int(correct.sum()), len(correct))
            points.append(CurvePoint(float(severity), float(correct.mean()), low, high, series))
        return points


class _Grid(NamedTuple):
    """Samples in one order. clean: bool `[n]`. corrupted: bool `[corruptions, severities, n]`."""

    ids: list[str]
    clean: NDArray[np.bool_]
    corrupted: NDArray[np.bool_]


def _grid(table: Rows, names: Sequence[str], severities: Sequence[float]) -> _Grid:
    ids, corruption, severity = (
        np.array(table[column].to_pylist(), dtype=dtype)
        for column, dtype in (("id", object), ("corruption", object), ("severity", float))
    )
    correct = np.array(table["correct"].to_pylist(), dtype=bool)

    def condition(name: str, strength: float) -> dict[str, bool]:
        chosen = (corruption == name) & (severity == strength)
        return dict(zip(ids[chosen], correct[chosen], strict=True))

    columns = [condition(CLEAN, 0.0)] + [condition(name, s) for name in names for s in severities]
    # A budget may have cut the run inside a batch: only samples seen under all conditions are comparable.
    order = [i for i in columns[0] if all(i in column for column in columns)]
    values = np.array([[column[i] for i in order] for column in columns], dtype=bool).reshape(len(columns), -1)
    return _Grid(order, values[0], values[1:].reshape(len(names), len(severities), -1))


def _first_lost(ids: Sequence[str], clean: NDArray[np.bool_], corrupted: NDArray[np.bool_]) -> list[str]:
    """Images right when clean and wrong from the lowest severity on, at most 12."""
    lost = clean & ~corrupted.all(axis=0)
    first, times = np.argmin(corrupted, axis=0), (~corrupted).sum(axis=0)
    order = sorted(np.flatnonzero(lost).tolist(), key=lambda i: (first[i], -times[i]))
    return [ids[i] for i in order[:12]]


def _mean_accuracy(values: NDArray[np.generic]) -> float:
    return float(values.astype(float).mean())


def _fall_title(spoken: str, severity: float, start: float, accuracy: float, there: float) -> str:
    if there < accuracy:
        fall = f"Accuracy falls from {accuracy:.2f} to {there:.2f} under {spoken} of severity {severity:g}"
    else:
        fall = f"Accuracy holds at {there:.2f} under {spoken} of severity {severity:g}"
    return f"{fall}; {'it starts' if there < accuracy else 'a fall starts'} at severity {start:g}"
