"""`ShiftProbe`: what every probe shares that changes images and asks the model again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from snellen.exhibits import Curve, CurvePoint, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, ProbeBase, Rows, Scope, rows
from snellen.randomness import SampleRandom
from snellen.shift._curve import CLEAN, ShiftCurve, curves_of, mean_estimate, on_common_samples
from snellen.stats import mcnemar_exact, needed_samples

HARM = 0.05
"""A drop in accuracy below this is not called the start of a fall."""


class ShiftProbe(ProbeBase):
    """A probe that predicts every image untouched and under each of its `conditions`.

    Its rows: id, label, shift, severity, predicted, correct; "clean" at severity 0 first. Its findings say for every
    shift how far accuracy falls and from which severity on.
    """

    name: ClassVar[str]
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE
    axis: ClassVar[str] = "severity"
    """What the shift's strength is called in titles and on charts."""

    @abstractmethod
    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        """The batch under each shift and severity, one after the other."""

    def group(self, shift: str) -> str:
        """Which chart a shift is drawn in."""
        return "all"

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        return predict_conditions(model, batch, self.conditions(batch, random))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        curves = [curve for curve in curves_of(table) if curve.ids]
        summary = summary_finding(curves, context, self.name)
        return [*([summary] if summary else []), *(fall_finding(curve, self.axis) for curve in curves)]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        curves = [curve for curve in curves_of(table) if curve.ids]
        by_group: dict[str, list[ShiftCurve]] = {}
        for curve in curves:
            by_group.setdefault(self.group(curve.shift), []).append(curve)
        return [curve_exhibit(group, members, self.axis) for group, members in by_group.items()]


def predict_conditions(model: Model, batch: Batch, conditions: Iterable[Condition]) -> Rows:
    """Predictions on the untouched batch and on every condition, one row a sample and condition."""
    labels = batch.labels.cpu()
    parts = []
    for name, severity, images, kept in chain([Condition(CLEAN, 0.0, batch.images)], conditions):
        there = np.arange(len(batch)) if kept is None else np.flatnonzero(kept.cpu().numpy())
        if not len(there):
            continue
        if len(there) < len(batch):
            images = images[torch.from_numpy(there).to(images.device)]
        predicted, truth = model.labels(images).cpu(), labels[there]
        parts.append(
            rows(
                [batch.ids[i] for i in there.tolist()],
                label=truth,
                shift=[name] * len(there),
                severity=np.full(len(there), float(severity)),
                predicted=predicted,
                correct=predicted == truth,
            )
        )
    return pa.concat_tables(parts)


def fall_finding(curve: ShiftCurve, axis: str = "severity") -> Finding:
    """How far accuracy falls at the middle of the severities, and from which severity on it is significant."""
    spoken = curve.shift.replace("_", " ")
    severities, accuracies = curve.severities[1:], curve.accuracy
    clean, shifted = curve.correct[0], curve.correct[1:]
    n, accuracy = len(clean), float(accuracies[0])
    drops = accuracy - accuracies[1:]

    p_values = [mcnemar_exact(int((~row & clean).sum()), int((row & ~clean).sum())) for row in shifted]
    # The start is picked among all severities, so each test is held to its share of 5 %.
    significant = [drop >= HARM and p < 0.05 / len(p_values) for drop, p in zip(drops, p_values, strict=True)]
    start = float(severities[significant.index(True)]) if any(significant) else None

    middle = (len(severities) - 1) // 2
    severity, there = float(severities[middle]), float(accuracies[1 + middle])
    subject: dict[str, str | int | float] = {"corruption": curve.shift, "severity": severity}
    needed = needed_samples(min(HARM, accuracy), accuracy) if accuracy > 0 else 0
    enough = start is not None or n >= needed
    if start is not None:
        subject["starts_at"] = start
        title = _fall_title(spoken, axis, severity, start, accuracy, there)
    elif enough:
        title = (
            f"Accuracy shows no drop of {HARM:.2f} or more under {spoken} up to {axis} {severities[-1]:g}:"
            f" {accuracy:.2f} untouched, {there:.2f} at {axis} {severity:g}"
        )
    else:
        title = f"Whether accuracy falls under {spoken} cannot be told, not enough data: n = {n}, needs about {needed}"
    interval = curve.drop(1 + middle)
    return Finding(
        kind="shift",
        title=title,
        metric="accuracy drop",
        value=float(drops[middle]),
        effect=float(np.clip(drops.mean(), 0, 1)),
        n=n,
        subject=subject,
        measured=("starts_at",),
        ci=(interval.low, interval.high),
        p_value=p_values[middle],
        evidence=first_lost(curve),
        enough_data=enough,
    )


def summary_finding(curves: Sequence[ShiftCurve], context: Context, purpose: str) -> Finding | None:
    """Mean accuracy over all shifts and severities, on the samples that all of them share."""
    curves = on_common_samples(curves)
    if not curves:
        return None
    by_sample = np.concatenate([curve.correct[1:] for curve in curves]).mean(axis=0)
    clean = float(curves[0].accuracy[0])
    mean = mean_estimate(by_sample, context.random(purpose))
    steps = max(len(curve.severities) - 1 for curve in curves)
    return Finding(
        kind="shift",
        title=(
            f"Mean accuracy over {_count(len(curves), 'shift')} at {_count(steps, 'strength')} is {mean.value:.2f},"
            f" against {clean:.2f} untouched"
        ),
        metric="mean accuracy under shift",
        value=mean.value,
        baseline=clean,
        effect=0.0,  # information: the harm is counted shift by shift
        n=mean.n,
        subject={"corruption": "all"},
        ci=(mean.low, mean.high) if mean.n >= 2 else None,
    )


def curve_exhibit(group: str, curves: Sequence[ShiftCurve], axis: str = "severity") -> Curve:
    """Accuracy against strength, a line a shift with Wilson bands."""
    points = []
    for curve in curves:
        low, high = curve.band()
        series = curve.shift.replace("_", " ")
        for severity, accuracy, below, above in zip(curve.severities, curve.accuracy, low, high, strict=True):
            points.append(CurvePoint(float(severity), float(accuracy), float(below), float(above), series))
    sizes = sorted({len(curve.ids) for curve in curves})
    images = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return Curve(
        title=f"Accuracy against {axis}: {group}" if group else f"Accuracy against {axis}",
        caption=(f"{images} images, the same along a line; at 0 they are untouched. Bands are 95 % Wilson intervals."),
        x_label=axis,
        y_label="accuracy",
        points=points,
    )


def first_lost(curve: ShiftCurve) -> list[str]:
    """Samples right untouched and wrong from the lowest severity on, at most 12."""
    clean, shifted = curve.correct[0], curve.correct[1:]
    lost = clean & ~shifted.all(axis=0)
    first, times = np.argmin(shifted, axis=0), (~shifted).sum(axis=0)
    order = sorted(np.flatnonzero(lost).tolist(), key=lambda i: (first[i], -times[i]))
    return [curve.ids[i] for i in order[:12]]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _fall_title(spoken: str, axis: str, severity: float, start: float, accuracy: float, there: float) -> str:
    if there < accuracy:
        fall = f"Accuracy falls from {accuracy:.2f} to {there:.2f} under {spoken} of {axis} {severity:g}"
    else:
        fall = f"Accuracy holds at {there:.2f} under {spoken} of {axis} {severity:g}"
    return f"{fall}; {'it starts' if there < accuracy else 'a fall starts'} at {axis} {start:g}"
