"""Every figure of a stored run that has an interval, found by name and condition.

Shares of samples come from the rows (see `outcomes`), also by class; shares by attribute from the table of groups; the
calibration error from its table; and whatever else a finding states with an interval goes by the finding's metric.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from snellen.audit.outcomes import CERTIFIED, Outcome, certified, has_certificates, outcomes
from snellen.audit.pairing import by_class
from snellen.audit.stored_run import Scalar, StoredRun
from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.stats import Interval, clopper_pearson

TOLERANCE = 1e-6
"""Relative, between a number in a policy and the one in the rows."""
LISTED = 12
_STATED_CONFIDENCE = 0.975
"""One-sided confidence of the bounds of a stated two-sided 95 % interval."""


@dataclass(frozen=True)
class Measure:
    """A figure: counts where it is a share of samples, else value and a stated 95 % interval.

    where: the condition it holds under. right: the samples themselves, where the rows have them.
    """

    metric: str
    probe: str
    where: Mapping[str, Scalar]
    n: int
    value: float | None
    count: int | None = None
    stated: Interval | None = None
    right: Mapping[str, bool] | None = None

    def bounds(self, confidence: float) -> Interval:
        """The one-sided bounds, each holding with `confidence`; exact for a share (Clopper and Pearson, 1934)."""
        if self.count is not None:
            return clopper_pearson(self.count, self.n, 2 * confidence - 1)
        if self.stated is None:
            return Interval(-math.inf, math.inf)
        if confidence > _STATED_CONFIDENCE:
            raise InvalidInput(
                f"the stored interval of {self.metric} is at 95 %, which gives one-sided bounds at a confidence up to"
                f" {_STATED_CONFIDENCE}; {confidence} was asked for"
            )
        return self.stated

    @property
    def interval(self) -> Interval | None:
        """At 95 %, None where nothing is known."""
        return clopper_pearson(self.count, self.n) if self.count is not None else self.stated

    @property
    def spoken(self) -> str:
        """Metric and condition in one line."""
        condition = ", ".join(f"{key} = {_figure(value)}" for key, value in self.where.items())
        return f"{self.metric} ({condition})" if condition else self.metric


@dataclass(frozen=True)
class MeasuredRun:
    """A run and its figures, counted once."""

    run: StoredRun

    @cached_property
    def measures(self) -> list[Measure]:
        """Everything the run can be asked for, certificates at radius 0."""
        found: list[Measure] = []
        for probe, table in self.run.tables.items():
            for outcome in outcomes(table):
                found.append(share(probe, outcome, outcome.condition, outcome.right))
                if outcome.metric == "accuracy":
                    for name, samples in by_class(self.run, outcome.right).items():
                        members = {sample: outcome.right[sample] for sample in samples}
                        found.append(share(probe, outcome, {"class": name}, members))
            found += [*_groups(probe, table), *_calibration(probe, table)]
        shares = {measure.metric for measure in found}
        for finding in self.run.findings:
            metric = name_of(finding.metric)
            if metric not in shares and (finding.interval is not None or finding.value is None):
                stated = None if finding.interval is None else Interval(*finding.interval)
                probe = finding.probe.partition("#")[0]
                found.append(Measure(metric, probe, finding.subject, finding.n, finding.value, stated=stated))
        return found

    def find(self, metric: str, probe: str | None, where: Mapping[str, Scalar]) -> Measure:
        """The one measure of that name under that condition; the error lists what the run has."""
        available = self.measures
        if name_of(metric) == CERTIFIED and "radius" in where:
            available = [m for m in available if m.metric != CERTIFIED] + _at_radius(self.run, where["radius"])
        named = [m for m in available if m.metric == name_of(metric) and probe in (None, m.probe)]
        fitting = [m for m in named if all(key in m.where and same(m.where[key], v) for key, v in where.items())]
        # "accuracy" without a condition is the overall one, not one of a class.
        least = [m for m in fitting if len(m.where) == len(where)] or fitting
        if len(least) == 1:
            return least[0]
        asked = f"{metric!r}" + (f" of {probe}" if probe else "") + (f" where {_condition(where)}" if where else "")
        if least:
            many = "; ".join(f"{m.probe}: {_condition(m.where)}" for m in least[:LISTED])
            raise InvalidInput(f"{asked} is ambiguous, name the probe or more of the condition (where): {many}")
        raise InvalidInput(f"the run has no {asked}; it has {_listed(named or available, bool(named))}")


def share(probe: str, outcome: Outcome, where: Mapping[str, str | float], right: Mapping[str, bool]) -> Measure:
    """The share of samples of an outcome that are right."""
    count = sum(right.values())
    return Measure(outcome.metric, probe, where, len(right), count / len(right), count, right=right)


def name_of(metric: str) -> str:
    """The one spelling of a metric's name: "calibration error" and "calibration_error" are the same."""
    return re.sub(r"[\s_-]+", "_", metric.strip()).lower()


def same(stored: Scalar, asked: Scalar) -> bool:
    """Whether a value of a policy means the one in the rows: 2/255 means 0.00784…, 3 means "3", yes means true."""
    if _text(stored) == _text(asked):
        return True
    left, right = number(stored), number(asked)
    return left is not None and right is not None and math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)


def _groups(probe: str, table: Rows) -> list[Measure]:
    """Attribute values from a table of groups; the whole and the classes are counted from the samples."""
    if not {"dimension", "value", "n", "correct"} <= set(table.column_names):
        return []
    columns = (table[name].to_pylist() for name in ("dimension", "value", "n", "correct"))
    return [
        Measure("accuracy", probe, {dimension: value}, n, correct / n, correct)
        for dimension, value, n, correct in dict.fromkeys(zip(*columns, strict=True))
        if dimension not in ("overall", "class") and n
    ]


def _calibration(probe: str, table: Rows) -> list[Measure]:
    if not {"part", "name", "value", "n"} <= set(table.column_names):
        return []
    rows = {row["name"]: row for row in table.to_pylist() if row["part"] == "measure"}
    if not {"calibration error", "low", "high"} <= set(rows):
        return []
    error = rows["calibration error"]
    stated = Interval(rows["low"]["value"], rows["high"]["value"])
    return [Measure("calibration_error", probe, {}, error["n"], error["value"], stated=stated)]


def _at_radius(run: StoredRun, radius: Scalar) -> list[Measure]:
    distance = number(radius)
    if distance is None or not distance >= 0:
        raise InvalidInput(f"radius must be a number from 0 up, in pixel units, got {radius!r}")
    found = []
    for probe, table in run.tables.items():
        if has_certificates(table):
            outcome = certified(table, distance)
            found.append(share(probe, outcome, outcome.condition, outcome.right))
    return found


def _listed(available: Sequence[Measure], with_conditions: bool) -> str:
    if with_conditions:
        shown = [f"{m.probe}: {_condition(m.where) or 'overall'}" for m in available]
    else:
        keys: dict[str, set[str]] = defaultdict(set)
        for measure in available:
            keys[measure.metric] |= set(measure.where)
        shown = [f"{name} (by {', '.join(sorted(by))})" if by else name for name, by in keys.items()]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED and with_conditions else ""
    return ("; ".join(shown[:LISTED] if with_conditions else shown) or "nothing with an interval") + more


def _condition(where: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key} = {_figure(value)}" for key, value in where.items())


def _figure(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value: Scalar) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def number(value: object) -> float | None:
    """A number, or a fraction as text (2/255); None for anything else."""
    if isinstance(value, str):
        above, slash, below = value.partition("/")
        try:
            return float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
