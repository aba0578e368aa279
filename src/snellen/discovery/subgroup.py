"""For which groups of images does the model fail, and do its answers depend on what should not matter?

Worst groups over single attributes, pairs of attributes, and class x attribute value, guarded against chance by a
permutation of the whole search and against restating a parent group (see `_subgroups.py`), and the worst part of each
class by finer cuts (see `_within_class.py`). Beside it SkewSize (2024):
whether, given the true class, *which* answer is given depends on the attribute, which no accuracy shows (see
`_skewsize.py`). Misleads where an attribute goes together with the true cause, and by silence where groups are small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.discovery._skewsize import following_mistakes, skewsize
from snellen.discovery._subgroup_report import (
    group_finding,
    group_grid,
    mistake_finding,
    skewsize_grid,
    small_finding,
    v_bars,
)
from snellen.discovery._subgroup_rows import (
    FINER,
    Row,
    from_rows,
    group_row,
    mistakes_row,
    skewsize_rows,
    smallest_row,
    to_rows,
)
from snellen.discovery._subgroups import LEVEL, Subgroup, search
from snellen.discovery._within_class import FEWEST, number_columns, within_classes
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register
from snellen.sequences import Texts
from snellen.stats import Grouping, attribute_groups, benjamini_hochberg

MOST_EVIDENCE = 12
MOST_LISTED = 30
MUCH_MORE = 1.5
"""A finer cut is told beside groups of the same class and attribute if it holds so many times their images."""


@dataclass(frozen=True)
class Answers:
    """The columns of `predictions` sorted by id, so that the order of shards does not matter."""

    ids: pa.ChunkedArray
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @classmethod
    def read(cls, predictions: Rows) -> Answers:
        names = ("label", "predicted", "confidence")
        table = predictions.select(["id", *names]).sort_by("id")
        columns = [table[name].to_numpy() for name in names]
        return cls(table["id"], *columns)

    def mistakes(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Ids of the wrong answers among `rows`, the most confident first, at most 12."""
        wrong = rows[self.labels[rows] != self.predicted[rows]]
        doubt = -np.nan_to_num(self.confidence[wrong], nan=-1.0)
        first = wrong[np.argsort(doubt, kind="stable")][:MOST_EVIDENCE]
        return tuple(Texts(self.ids)[row] for row in first.tolist())


def _about(group: Subgroup) -> tuple[str, ...]:
    """The class, if there is one, and the attributes; not their values."""
    return tuple(value if key == "class" else key for key, value in group.where)


@register
@dataclass(frozen=True)
class SubgroupAnalysis(ProbeBase):
    """Worst groups and SkewSize of every attribute.

    Effect of a group: accuracy elsewhere (for finer cuts: in the rest of the class) minus that in the group; `ci` is
    the interval of the latter. Effect of mistakes that follow an attribute: the share of all answers that are wrong
    and, beyond chance, follow it; `ci` is the interval of that share. p-values are adjusted within the probe.
    """

    name: ClassVar[str] = "subgroup"
    paper: ClassVar[str] = "SkewSize, 2024"
    card: ClassVar[str | None] = "skewsize"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("predictions",)
    version: ClassVar[int] = 2

    bins: int = 5
    """Quantile bins for a number with many values, at least 2."""
    min_group: int = 20
    """Smallest group of the search, at least 2."""
    min_effect: float = 0.05
    """Differences to the rest below this many accuracy points (0 to 1) are not reported."""
    min_share: float = 0.02
    """Shares of answers that are mistakes following an attribute below this (0 to 1) are not reported."""
    min_count: int = 0
    """SkewSize: answers given less often in a class are merged; 0 merges none, the card's choice is 5."""
    permutations: int = 999
    """At least 99."""
    max_findings: int = 20
    """At most so many groups, the worst first; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (
            ("bins", 2), ("min_group", 2), ("min_count", 0), ("permutations", 99), ("max_findings", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("min_effect", "min_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        if tables["predictions"].num_rows == 0 or not context.attributes:
            return to_rows([])
        answers = Answers.read(tables["predictions"])
        right = answers.labels == answers.predicted
        attributes = attribute_groups(answers.ids, context.samples, context.attributes, self.bins)
        rng = context.random(self.name)
        labels = Grouping(answers.labels, context.spec.class_names)
        limits = self.min_effect, self.permutations
        groups = search(labels, attributes, right, rng, self.min_group, *limits)
        numbers = number_columns(context.samples, answers.ids, context.attributes)
        told: Counter[tuple[str, ...]] = Counter()
        for group in groups:
            told[_about(group)] += group.n * group.reported
        finer = within_classes(labels, attributes, numbers, right, rng, max(self.min_group, FEWEST), *limits)
        finer = [group for group in finer if group.n > MUCH_MORE * told[_about(group)]]
        rows = [
            group_row(group, answers.mistakes(group.rows))
            for rank, group in enumerate(groups)
            if group.reported or rank < MOST_LISTED
        ]
        first = sum(group.reported for group in groups)
        rows[first:first] = [group_row(group, answers.mistakes(group.rows), FINER) for group in finer]
        rows.append(Row("overall", "", n=len(right), correct=int(right.sum())))
        for name, grouping in attributes.items():
            smallest = smallest_row(name, grouping)
            if smallest is not None:
                rows += [smallest, *self._skewsize(name, grouping, answers, context.spec.class_names, rng)]
        return to_rows(rows)

    def _skewsize(
        self,
        name: str,
        grouping: Grouping,
        answers: Answers,
        class_names: Sequence[str],
        rng: np.random.Generator,
    ) -> list[Row]:
        known = np.flatnonzero(grouping.codes >= 0)
        labels, predicted, values = answers.labels[known], answers.predicted[known], grouping.codes[known]
        try:
            named = np.array(class_names)[labels]
            found = skewsize(named, predicted, values, rng, self.permutations, min_count=self.min_count)
        except InvalidInput as error:  # too few classes or values for a skewness is a fact to list, not a failure
            rows = [Row("skipped", name, name="SkewSize", reason=str(error))]
        else:
            rows = skewsize_rows(name, found)
        mistakes = following_mistakes(labels, predicted, values, rng, self.permutations)
        if mistakes is not None:
            evidence = answers.mistakes(known[labels == mistakes.strongest])
            rows.append(mistakes_row(name, mistakes, len(known), class_names[mistakes.strongest], evidence))
        return rows

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        rows = from_rows(table)
        groups = [row for row in rows if row.part == "group" and row.reported]
        found = [group_finding(row) for row in groups[: self.max_findings]]
        mistakes = [row for row in rows if row.part == "mistakes"]
        adjusted = benjamini_hochberg([row.p_value or 0.0 for row in mistakes]).tolist()
        for row, p_value in zip(mistakes, adjusted, strict=True):
            if p_value <= LEVEL and (row.measure or 0.0) >= self.min_share:
                of = {r.name or "": r for r in rows if r.part == "skewsize" and r.key == row.key}
                found.append(mistake_finding(row, p_value, of))
        accuracy = next((row.accuracy for row in rows if row.part == "overall"), 0.0)
        small = [row for row in rows if row.part == "smallest" and row.n < self.min_group]
        return found + [small_finding(row, self.min_group, accuracy) for row in small]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        rows = from_rows(table)
        groups = [row for row in rows if row.part == "group"]
        shown: list[Exhibit] = [group_grid(groups, self.min_group)] if groups else []
        for attribute in context.attributes:
            of = [r for r in rows if r.key == attribute and r.part in ("skewsize", "class", "skipped")]
            if of:
                shown.append(skewsize_grid(attribute, of))
            classes = [row for row in of if row.part == "class"]
            if classes:
                shown.append(v_bars(attribute, classes))
        return shown
