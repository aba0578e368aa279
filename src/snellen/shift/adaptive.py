"""From which severity on does accuracy fall, to a given precision, with as few queries as possible?

Ours; the curve is that of Hendrycks & Dietterich (2019). A fixed grid asks for every image at every severity. Here each
severity gets as many images as its own drop needs: a pilot tells the variance of the paired difference, which is small
where little is lost, and the rest is drawn at once. Severities are tried where the curve is uncertain: first the
strongest, then the middle of the widest gap, until the gaps between neighbours are small enough for a straight line.

When it misleads: bounds for severities that were left out take it that accuracy does not rise with severity, which
saturate, glass blur and elastic transform do not promise; ask for them by `monotone = false`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.exhibits import Curve, CurvePoint, Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, SHIFTS, check_name, check_severities, corrupt
from snellen.shift._curve import CLEAN
from snellen.shift._levels import Level, discordant, drop_curve, level_of, levels_of
from snellen.shift._trials import HARM
from snellen.stats import mcnemar_exact, needed_samples
from snellen.subset import Subset, random_subset

__all__ = ["AdaptiveCurve", "Level", "drop_curve"]

CHUNK = 32
WORST = 0.25 * 1.96**2
"""Variance of a proportion times the squared quantile: images for half-width 1 when nothing is known."""


@register
@dataclass(frozen=True)
class AdaptiveCurve(ProbeBase):
    """The drop in accuracy along each shift to a given precision, with queries placed where they tell most."""

    name: ClassVar[str] = "shift/adaptive"
    paper: ClassVar[str] = "ours; curves of Hendrycks and Dietterich, 2019"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET

    names: tuple[str, ...] = CORRUPTIONS
    """Which shifts of the catalogue."""
    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Where the drop is wanted, each in (0, 5], ascending."""
    precision: float = 0.05
    """In (0, 0.5): half of the 95 % interval's width at severities that are asked, and the most that a straight line
    between them can be off."""
    pilot: int = 60
    """Images that tell the variance at a severity."""
    monotone: bool = True
    """Take it that more severity never helps; severities between two known ones can then be left out."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        check_severities(self.severities)
        if not 0 < self.precision < 0.5:
            raise InvalidInput(f"precision must be in (0, 0.5), got {self.precision}")
        if self.pilot < 20:
            raise InvalidInput(f"pilot must be 20 images or more, got {self.pilot}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        # A paired difference can vary more than a proportion, but then few answers are alike and the fall is plain.
        subset = random_subset(samples, max(math.ceil(WORST / self.precision**2), self.pilot), random)
        if not len(subset):
            return pa.table({})
        asking = _Asking(model, subset, random)
        for name in self.names:
            self._trace(asking, name)
        return asking.table()

    def cost(self, batch_size: int) -> Passes:
        # Every image untouched, every shift at its strongest with the pilot: the least it can do.
        return Passes(forward=batch_size + len(self.names) * min(self.pilot, batch_size))

    def _trace(self, asking: _Asking, name: str) -> None:
        known: dict[float, Level] = {0.0: Level(0.0, 0.0, 0.0, 0.0, 0)}
        severity: float | None = self.severities[-1]
        while severity is not None:
            correct = asking.correct(name, severity, self.pilot)
            b, c, n = discordant(asking.clean[: len(correct)], correct)
            drop = (b - c) / n
            variance = (b + c + 1) / (n + 2) - drop**2
            needed = math.ceil(variance * (1.96 / self.precision) ** 2)
            correct = asking.correct(name, severity, needed)
            known[severity] = level_of(severity, asking.clean[: len(correct)], correct)
            severity = self._next(known)

    def _next(self, known: Mapping[float, Level]) -> float | None:
        """The wanted severity in the widest gap, None when interpolation is off by `precision` at most everywhere."""
        measured = sorted(known)

        def gap(severity: float) -> float:
            if not self.monotone:
                return 1.0
            above = next(other for other in measured if other > severity)
            below = max(other for other in measured if other < severity)
            return known[above].drop - known[below].drop

        open_ = [severity for severity in self.severities if severity not in known]
        uncertain = [severity for severity in open_ if gap(severity) / 2 > self.precision]
        if not uncertain:
            return None
        widest = max(gap(severity) for severity in uncertain)
        inside = [severity for severity in uncertain if gap(severity) == widest]
        return inside[len(inside) // 2]

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        found = []
        for name, known in levels_of(table).items():
            levels = drop_curve(known, self.severities, self.monotone)
            found.append(self._fall(name, levels, _lost(table, name, levels[-1].severity)))
        return [*([self._spent(table)] if found else []), *found]

    def _fall(self, name: str, levels: list[Level], evidence: list[str]) -> Finding:
        spoken, last = name.replace("_", " "), levels[-1]
        start = next((level.severity for level in levels if level.low >= HARM), None)
        asked = sum(level.n for level in levels)
        mean = float(np.trapezoid([0.0, *(level.drop for level in levels)], [0.0, *(v.severity for v in levels)]))
        if start is not None:
            title = (
                f"Accuracy has fallen by {HARM:.2f} or more under {spoken} at severity {start:g}"
                f" and by {last.drop:.2f} at {last.severity:g}, told by {asked} queries"
            )
        elif last.high - last.low <= 2 * self.precision + 0.02:
            title = (
                f"Accuracy shows no sure fall of {HARM:.2f} under {spoken}: {last.drop:+.2f} lost at severity"
                f" {last.severity:g}, told by {asked} queries"
            )
        else:
            needed = needed_samples(HARM, 0.9)
            title = (
                f"Whether accuracy falls under {spoken} cannot be told, not enough data: n = {last.n},"
                f" needs about {needed}"
            )
        return Finding(
            kind="shift",
            title=title,
            metric="accuracy drop",
            value=last.drop,
            effect=float(np.clip(mean / last.severity, 0, 1)),
            n=last.n,
            subject={"corruption": name, "severity": last.severity, **({"starts_at": start} if start else {})},
            measured=("severity", "starts_at"),
            ci=(last.low, last.high),
            p_value=mcnemar_exact(last.only_shifted, last.only_clean),
            evidence=evidence,
            enough_data="not enough data" not in title,
        )

    def _spent(self, table: Rows) -> Finding:
        clean = int((table["shift"].to_numpy() == CLEAN).sum())
        spent, grid = (
            table.num_rows,
            (1 + len(self.names) * len(self.severities)) * math.ceil(WORST / self.precision**2),
        )
        return Finding(
            kind="shift",
            title=(
                f"{len(self.names)} curves to a precision of {self.precision:g} took {spent:,} queries;"
                f" a grid sized for it beforehand takes {grid:,}"
            ),
            metric="share of the grid's queries",
            value=spent / grid,
            effect=0.0,
            n=clean,
            subject={"corruption": "all"},
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        points: dict[str, list[CurvePoint]] = {}
        for name, known in levels_of(table).items():
            line = [Level(0.0, 0.0, 0.0, 0.0, 0), *drop_curve(known, self.severities, self.monotone)]
            points.setdefault(SHIFTS[name].group, []).extend(
                CurvePoint(level.severity, level.drop, level.low, level.high, name.replace("_", " ")) for level in line
            )
        caption = "Drop on the same images with 95 % intervals; where no image was asked, bounds by neighbours."
        return [
            Curve(f"Accuracy lost against severity: {group}", caption, "severity", "accuracy lost", members)
            for group, members in points.items()
        ]


def _lost(table: Rows, name: str, severity: float) -> list[str]:
    """Images right untouched and wrong at `severity`, at most 12."""
    ids, shifts = (np.array(table[column].to_pylist(), dtype=object) for column in ("id", "shift"))
    at, correct = table["severity"].to_numpy(), table["correct"].to_numpy(zero_copy_only=False)
    right = set(ids[(shifts == CLEAN) & correct])
    return [i for i in ids[(shifts == name) & (at == severity) & ~correct] if i in right][:12]


class _Asking:
    """Answers of one model on one subset, each asked once: the first n images of every shift and severity."""

    def __init__(self, model: Model, subset: Subset, random: SampleRandom) -> None:
        self._model, self._subset, self._random = model, subset, random
        self._answers: dict[tuple[str, float], NDArray[np.int64]] = {}
        self._labels = subset.labels.numpy()
        self.clean = self.correct(CLEAN, 0.0, len(subset))

    def correct(self, name: str, severity: float, wanted: int) -> NDArray[np.bool_]:
        """Right or wrong on at least the first `wanted` images, or on all there are."""
        answers = self._answers.get((name, severity), np.zeros(0, dtype=np.int64))
        wanted = min(wanted, len(self._subset))
        parts = [answers]
        for start in range(len(answers), wanted, CHUNK):
            batch = self._subset.batch(range(start, min(start + CHUNK, wanted)), self._model.device)
            images = batch.images
            if name != CLEAN:
                images = corrupt(images, name, severity, self._random.generators(batch.ids, name))
            parts.append(self._model.labels(images).cpu().numpy())
        self._answers[name, severity] = answers = np.concatenate(parts)
        right: NDArray[np.bool_] = answers == self._labels[: len(answers)]
        return right

    def table(self) -> Rows:
        """One row an answer."""
        parts = []
        for (name, severity), answers in self._answers.items():
            n = len(answers)
            labels = self._labels[:n]
            parts.append(
                rows(
                    list(self._subset.ids[:n]), label=labels, shift=[name] * n, severity=np.full(n, float(severity)),
                    predicted=answers, correct=answers == labels,
                )
            )  # fmt: skip
        return pa.concat_tables(parts)
