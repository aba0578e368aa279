"""The table of the label-error probe: samples, the whole, pairs of label and sure class, sure mistakes, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from snellen.discovery._confident_learning import Labels
from snellen.discovery._label_noise import Contradictions, expected_pairs, strength
from snellen.discovery._mislabelled_groups import MislabelledGroup
from snellen.discovery._sure_mistakes import SureMistakes
from snellen.probe import Rows
from snellen.stats import bootstrap_bca, exceedance_p_value

FEWEST_OF_PAIR = 3
MOST_PAIRS = 100
LEVEL = 0.05

SCHEMA = pa.schema(
    {
        "part": pa.string(),  # "sample", "whole", "pair", "sure" or "group"
        "id": pa.string(),
        "label": pa.int64(),
        "suggested": pa.int64(),
        "self_confidence": pa.float64(),
        "margin": pa.float64(),
        "issue": pa.bool_(),
        "sure_of": pa.int64(),
        "confirmed": pa.bool_(),
        "n": pa.int64(),
        "agreement": pa.float64(),
        "joint_share": pa.float64(),
        "judged": pa.bool_(),
        "attribute": pa.string(),
        "group": pa.string(),
        "elsewhere": pa.float64(),
        "area": pa.float64(),
        "evidence": pa.list_(pa.string()),
        "flagged": pa.int64(),
        "by_chance": pa.float64(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "p_value": pa.float64(),
    }
)


@dataclass(frozen=True)
class Whole:
    """agreement: share of answers that are the label. joint_share: off-diagonal share of the calibrated joint.

    judged: whether there was enough to test. flagged, by_chance: sure contradictions seen and expected; value: their
    difference as a share of n, with its 95 % interval.
    """

    n: int
    agreement: float
    joint_share: float
    judged: bool = False
    flagged: int = 0
    by_chance: float = 0.0
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p_value: float = 1.0


@dataclass(frozen=True)
class Pair:
    """Images labelled `label` (n of them) on which the model is sure of `sure_of`; p_value: for the whole search."""

    label: int
    sure_of: int
    n: int
    flagged: int
    by_chance: float
    value: float
    p_value: float = 1.0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Doubt:
    """A confirmed contradiction."""

    id: str
    label: int
    sure_of: int
    self_confidence: float


class Stored(NamedTuple):
    """doubts: the least probable label first. pairs, sure: the largest share first. groups: the surest first."""

    whole: Whole
    pairs: list[Pair]
    sure: list[SureMistakes]
    groups: list[MislabelledGroup]
    doubts: list[Doubt]
    issues: int


Kind = TypeVar("Kind", Whole, Pair, SureMistakes, MislabelledGroup)


def whole_of(found: Contradictions, agreement: float, joint_share: float, rng: np.random.Generator) -> Whole:
    chance = found.chance.sum(axis=1)
    excess = found.flagged - chance
    low, high = bootstrap_bca(excess, lambda v: float(v.mean()), rng, resamples=1000)
    return Whole(
        n=len(excess),
        agreement=agreement,
        joint_share=joint_share,
        judged=True,
        flagged=int(found.flagged.sum()),
        by_chance=float(chance.sum()),
        value=float(excess.mean()),
        low=low,
        high=high,
        p_value=found.p_value,
    )


def pairs_of(labels: Labels, found: Contradictions, rng: np.random.Generator) -> list[Pair]:
    """Every pair that was seen, the largest excess first, at most 100."""
    classes = found.chance.shape[1]
    codes = labels[found.flagged] * classes + found.sure_of[found.flagged]
    seen, counts = np.unique(codes, return_counts=True)
    expected = expected_pairs(found.chance, found.sure_of).reshape(-1)[seen]
    strengths = strength(counts.astype(float), expected)
    of_label = np.bincount(labels, minlength=classes)
    pairs = []
    for at in np.argsort(expected - counts, kind="stable")[:MOST_PAIRS].tolist():
        label, surely = divmod(int(seen[at]), classes)
        count, by_chance, n = int(counts[at]), float(expected[at]), int(of_label[label])
        p_value, low, high = 1.0, None, None
        if count >= FEWEST_OF_PAIR:
            p_value = exceedance_p_value(float(strengths[at]), found.strongest)
        if p_value <= LEVEL:
            here = found.sure_of == surely
            excess = (found.flagged & (labels == label))[here] - found.chance[here, label]
            scale = len(excess) / n
            interval = bootstrap_bca(excess, lambda v: float(v.mean()), rng, resamples=1000)
            low, high = interval.low * scale, min(interval.high * scale, 1.0)
        pairs.append(Pair(label, surely, n, count, by_chance, (count - by_chance) / n, p_value, low, high))
    return pairs


def to_rows(
    samples: pa.Table,
    whole: Whole,
    pairs: Sequence[Pair] = (),
    sure: Sequence[SureMistakes] = (),
    groups: Sequence[MislabelledGroup] = (),
) -> Rows:
    records = [{"part": "whole", **asdict(whole)}, *({"part": "pair", **asdict(pair)} for pair in pairs)]
    records += [{"part": "sure", **asdict(pair)} for pair in sure]
    records += [{"part": "group", **asdict(group)} for group in groups]
    samples = samples.add_column(0, "part", pa.array(["sample"] * samples.num_rows))
    empty = {field.name: pa.nulls(samples.num_rows, field.type) for field in SCHEMA}
    filled = empty | {name: samples[name] for name in samples.column_names}
    return pa.concat_tables([pa.table(filled, schema=SCHEMA), pa.Table.from_pylist(records, schema=SCHEMA)])


def from_rows(table: Rows) -> Stored:
    """Raises ValueError on an empty table."""

    def read(part: str, kind: type[Kind]) -> list[Kind]:
        names = [field.name for field in fields(kind)]
        found = []
        for row in table.filter(pc.equal(table["part"], part)).to_pylist():
            values: dict[str, Any] = {name: tuple(row[name]) if name == "evidence" else row[name] for name in names}
            found.append(kind(**values))
        return found

    (whole,) = read("whole", Whole)
    doubts = table.filter(pc.fill_null(table["confirmed"], False)).to_pylist()
    return Stored(
        whole,
        read("pair", Pair),
        read("sure", SureMistakes),
        read("group", MislabelledGroup),
        sorted(
            (Doubt(**{field.name: row[field.name] for field in fields(Doubt)}) for row in doubts),
            key=lambda doubt: (doubt.self_confidence, doubt.id),
        ),
        pc.sum(table["issue"]).as_py() or 0,
    )
