"""The table of the subgroup probe: one kind of row a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from snellen.discovery._skewsize import FollowingMistakes, SkewSize
from snellen.discovery._subgroups import Subgroup
from snellen.probe import Rows
from snellen.stats import Grouping

FINER = "within its class"
"""Name of groups whose cut was searched, so that the value differs from data to data."""


@dataclass(frozen=True)
class Row:
    """part: "group" (a subgroup), "skewsize" (one of an attribute's measures, in `name`), "class" (one class's table),
    "skipped" (a class or attribute without one, and why), "mistakes" (those that follow an attribute), "smallest"
    (an attribute's rarest value) or "overall". Columns that a part does not use are null.
    """

    part: str
    key: str
    value: str | None = None
    second_key: str | None = None
    second_value: str | None = None
    n: int = 0
    correct: int = 0
    rest_n: int = 0
    rest_correct: int = 0
    p_value: float | None = None
    """Groups: adjusted over the search. Mistakes: over the classes."""
    q_value: float | None = None
    reported: bool = False
    name: str | None = None
    measure: float | None = None
    low: float | None = None
    high: float | None = None
    v: float | None = None
    corrected_v: float | None = None
    chi2: float | None = None
    dof: int | None = None
    sparse: bool = False
    reason: str | None = None
    evidence: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def rest_accuracy(self) -> float | None:
        return self.rest_correct / self.rest_n if self.rest_n else None

    @property
    def where(self) -> dict[str, str]:
        """Dimension to value, one entry or two."""
        pairs = ((self.key, self.value), (self.second_key, self.second_value))
        return {key: value for key, value in pairs if key is not None and value is not None}


_TEXT = ("part", "key", "value", "second_key", "second_value", "name", "reason")
_WHOLE = ("n", "correct", "rest_n", "rest_correct", "dof")
SCHEMA = pa.schema(
    {name: pa.string() for name in _TEXT}
    | {name: pa.int64() for name in _WHOLE}
    | {name: pa.float64() for name in ("p_value", "q_value", "measure", "low", "high", "v", "corrected_v", "chi2")}
    | {"reported": pa.bool_(), "sparse": pa.bool_(), "evidence": pa.list_(pa.string())}
)


def to_rows(rows: Sequence[Row]) -> Rows:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def from_rows(table: Rows) -> list[Row]:
    return [Row(**{**record, "evidence": tuple(record["evidence"])}) for record in table.to_pylist()]


def group_row(group: Subgroup, evidence: tuple[str, ...], name: str | None = None) -> Row:
    (key, value), *second = group.where
    second_key, second_value = second[0] if second else (None, None)
    return Row(
        "group",
        key,
        value,
        second_key,
        second_value,
        group.n,
        group.correct,
        group.rest_n,
        group.rest_correct,
        group.p_value,
        reported=group.reported,
        name=name,
        high=group.high,
        evidence=evidence,
    )


def skewsize_rows(attribute: str, result: SkewSize) -> list[Row]:
    skew_low, skew_high = result.skewsize_interval or (None, None)
    mean_low, mean_high = result.mean_corrected_v_interval
    defined = not result.reason
    measures = [
        ("SkewSize", result.skewsize if defined else None, skew_low, skew_high),
        ("SkewSize of corrected V", _known(result.corrected_skewsize), None, None),
        ("mean V", result.mean_v, None, None),
        ("largest V", result.max_v, None, None),
        ("mean corrected V", result.mean_corrected_v, mean_low, mean_high),
    ]
    rows = [
        Row("skewsize", attribute, name=name, measure=measure, low=low, high=high)
        for name, measure, low, high in measures
    ]
    if result.reason:
        rows.append(Row("skipped", attribute, name="SkewSize", reason=result.reason))
    for name, found in result.per_class.items():
        rows.append(
            Row(
                "class",
                attribute,
                name=name,
                n=found.n,
                p_value=found.p_value,
                q_value=found.q_value,
                v=found.v,
                corrected_v=found.corrected_v,
                chi2=found.chi2,
                dof=found.dof,
                sparse=found.sparse,
            )
        )
    return rows + [Row("skipped", attribute, name=name, reason=why) for name, why in result.skipped.items()]


def mistakes_row(attribute: str, found: FollowingMistakes, n: int, strongest: str, evidence: tuple[str, ...]) -> Row:
    """correct counts the mistakes that could be tested, name is the class in which they follow most surely."""
    return Row(
        "mistakes",
        attribute,
        n=n,
        correct=n - found.n,
        p_value=found.p_value,
        name=strongest,
        measure=found.share,
        low=found.interval.low,
        high=found.interval.high,
        evidence=evidence,
    )


def smallest_row(attribute: str, grouping: Grouping) -> Row | None:
    """The attribute's rarest value, None when it has none."""
    counts = np.bincount(grouping.codes[grouping.codes >= 0], minlength=len(grouping.names))
    if not counts.any():
        return None
    rarest = int(np.where(counts > 0, counts, np.iinfo(np.int64).max).argmin())
    return Row("smallest", attribute, grouping.names[rarest], n=int(counts[rarest]))


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
