"""Yes-or-no answers sample by sample, read from stored rows by the names of their columns.

| metric | columns that make it | told apart by |
|---|---|---|
| accuracy | correct, confidence | |
| robust_accuracy | robust | norm and eps, where the rows have them |
| shift_accuracy | correct | shift, severity |
| coverage | covered | method |
| certified_accuracy | predicted, label, radius, p_lower | radius |

A plug-in whose rows have these columns is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from snellen.errors import InvalidInput
from snellen.probe import Rows

CERTIFIED = "certified_accuracy"


@dataclass(frozen=True)
class Outcome:
    """What was found out under one condition. right: sample id -> yes or no."""

    metric: str
    condition: Mapping[str, str | float]
    right: Mapping[str, bool]


@dataclass(frozen=True)
class _Signature:
    metric: str
    answer: str
    conditions: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


_SIGNATURES = (
    _Signature("robust_accuracy", "robust", optional=("norm", "eps")),
    _Signature("shift_accuracy", "correct", ("shift", "severity")),
    _Signature("coverage", "covered", ("method",)),
    _Signature("accuracy", "correct", also=("confidence",)),
)


def outcomes(table: Rows) -> list[Outcome]:
    """All outcomes of a probe's rows, none where no metric fits its columns; certificates at radius 0."""
    if has_certificates(table):
        return [certified(table, 0.0)]
    signature = next((known for known in _SIGNATURES if _fits(table, known)), None)
    if signature is None:
        return []
    optional = [name for name in signature.optional if name in table.column_names]
    keys = [*signature.conditions, *optional]
    found = []
    for condition in _distinct(table, keys):
        part = table
        for name, value in condition.items():
            part = part.filter(pc.equal(part[name], value))
        right = _by_sample(part["id"].to_pylist(), part[signature.answer].to_pylist())
        if right:
            found.append(Outcome(signature.metric, condition, right))
    return found


def has_certificates(table: Rows) -> bool:
    return {"id", "label", "predicted", "radius", "p_lower"} <= set(table.column_names)


def certified(table: Rows, radius: float) -> Outcome:
    """Whether the answer is right and proved unchangeable within `radius` (pixel units)."""
    holds = pc.and_(pc.equal(table["predicted"], table["label"]), pc.greater_equal(table["radius"], radius))
    return Outcome(CERTIFIED, {"radius": radius}, _by_sample(table["id"].to_pylist(), holds.to_pylist()))


def _fits(table: Rows, signature: _Signature) -> bool:
    wanted = {"id", signature.answer, *signature.conditions, *signature.also}
    return wanted <= set(table.column_names) and pa.types.is_boolean(table.schema.field(signature.answer).type)


def _distinct(table: Rows, keys: list[str]) -> list[dict[str, str | float]]:
    if not keys:
        return [{}]
    rows: list[dict[str, str | float]] = table.group_by(keys, use_threads=False).aggregate([]).to_pylist()
    return sorted(rows, key=lambda row: [(isinstance(value, str), value) for value in row.values()])


def _by_sample(ids: list[str], answers: list[bool | None]) -> dict[str, bool]:
    """Rows without an id or an answer are no samples. The same job may be stored twice, but must say the same."""
    found: dict[str, bool] = {}
    for sample, answer in zip(ids, answers, strict=True):
        if sample and answer is not None and found.setdefault(sample, answer) != answer:
            raise InvalidInput(
                f"its rows contradict each other about sample {sample!r}: the run directory holds rows of different"
                " models, seeds or settings; run the audit into a directory of its own"
            )
    return found
