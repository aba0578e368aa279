"""Groups of samples by class or attribute value, each against all other samples, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.probe import Rows
from snellen.stats import Interval, benjamini_hochberg, fisher_exact, wilson

MOST_EVIDENCE = 12
NO_ANSWER = "no finite output"

SCHEMA = pa.schema(
    {
        "dimension": pa.string(),
        "value": pa.string(),
        "n": pa.int64(),
        "correct": pa.int64(),
        "rest_n": pa.int64(),
        "rest_correct": pa.int64(),
        "p_value": pa.float64(),
        "confused_with": pa.list_(pa.string()),
        "confused_count": pa.list_(pa.int64()),
        "evidence": pa.list_(pa.string()),
        "accuracy": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
    }
)


@dataclass(frozen=True)
class Answers:
    """ids: n strings. predicted: int64 `[n]`, -1 for none. correct: bool `[n]`. confidence: float `[n]` or NaN."""

    ids: Sequence[str]
    predicted: NDArray[np.int64]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float32]

    def mistakes(self) -> NDArray[np.int64]:
        """Rows of the wrong answers, the most confident first: those tell most."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-np.nan_to_num(self.confidence[wrong], nan=-1.0), kind="stable")]


@dataclass(frozen=True)
class Group:
    """Samples that share a class or an attribute value.

    dimension: "overall", "class" or the attribute's name. rest_n, rest_correct: all other samples that have a value
    in this dimension. p_value: of "no worse than the rest", adjusted over all groups of the run, None where it was not
    tested. confused_with: wrong answers and how often each was given, most frequent first (classes only). evidence:
    ids of mistakes, the most confident first.
    """

    dimension: str
    value: str
    n: int
    correct: int
    rest_n: int
    rest_correct: int
    p_value: float | None = None
    confused_with: tuple[str, ...] = ()
    confused_count: tuple[int, ...] = ()
    evidence: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def rest_accuracy(self) -> float | None:
        return self.rest_correct / self.rest_n if self.rest_n else None

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy."""
        return wilson(self.correct, self.n)


def overall_group(answers: Answers) -> Group:
    evidence = tuple(answers.ids[row] for row in answers.mistakes()[:MOST_EVIDENCE])
    return Group("overall", "", len(answers.ids), int(answers.correct.sum()), 0, 0, evidence=evidence)


def groups_of(
    answers: Answers,
    codes: NDArray[np.int64],
    names: Sequence[str],
    dimension: str,
    answer_names: Sequence[str] = (),
) -> list[Group]:
    """One group a code that occurs. codes: `[n]` into `names`, -1 for samples that belong to no group.

    answer_names: class names, given when the wrong answers are to be counted.
    """
    member = codes >= 0
    n = np.bincount(codes[member], minlength=len(names))
    right = np.bincount(codes[member & answers.correct], minlength=len(names))
    mistakes = answers.mistakes()
    mistakes = mistakes[np.argsort(codes[mistakes], kind="stable")]
    bounds = np.searchsorted(codes[mistakes], np.arange(len(names) + 1))
    groups = []
    for g in np.flatnonzero(n).tolist():
        here = mistakes[bounds[g] : bounds[g + 1]]
        wrong = answers.predicted[here].tolist() if answer_names else []
        confused = Counter(answer_names[p] if p >= 0 else NO_ANSWER for p in wrong).most_common()
        groups.append(
            Group(
                dimension,
                names[g],
                int(n[g]),
                int(right[g]),
                int(n.sum() - n[g]),
                int(right.sum() - right[g]),
                confused_with=tuple(name for name, _ in confused),
                confused_count=tuple(count for _, count in confused),
                evidence=tuple(answers.ids[row] for row in here[:MOST_EVIDENCE]),
            )
        )
    return groups


def tested(groups: Sequence[Group], min_count: int) -> list[Group]:
    """The groups with p-values against their rest (Fisher, one-sided), adjusted over all that were tested."""
    fit = [i for i, group in enumerate(groups) if min(group.n, group.rest_n) >= min_count]
    p_values = [
        fisher_exact(groups[i].correct, groups[i].n, groups[i].rest_correct, groups[i].rest_n, "less") for i in fit
    ]
    adjusted = dict(zip(fit, benjamini_hochberg(p_values).tolist(), strict=True))
    return [replace(group, p_value=adjusted.get(i)) for i, group in enumerate(groups)]


def to_rows(groups: Sequence[Group]) -> Rows:
    records = [{**asdict(g), "accuracy": g.accuracy, "low": g.interval.low, "high": g.interval.high} for g in groups]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def from_rows(table: Rows) -> list[Group]:
    return [
        Group(
            row["dimension"],
            row["value"],
            row["n"],
            row["correct"],
            row["rest_n"],
            row["rest_correct"],
            row["p_value"],
            tuple(row["confused_with"]),
            tuple(row["confused_count"]),
            tuple(row["evidence"]),
        )
        for row in table.to_pylist()
    ]
