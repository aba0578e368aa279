"""How often is the model right, and for which classes and attribute values clearly less often than for the rest?

Each group is compared with all other samples by Fisher's exact test, one-sided, and the p-values of the run are
adjusted together (Benjamini and Hochberg, 1995), so that of the groups reported at most one in twenty is expected to
be a false alarm. Numbers with many values are put in quantile bins. Misleads where attributes go together: a poor
value may be poor because of another attribute (see `subgroup`), and a class of few images cannot be judged at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit, Grid
from snellen.models import Access
from snellen.performance._groups import Answers, Group, from_rows, groups_of, overall_group, tested, to_rows
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register
from snellen.sequences import Texts
from snellen.stats import attribute_groups, minimal_detectable_effect, needed_samples

LEVEL = 0.05
MOST_BARS = 30
MOST_CONFUSIONS = 15
TELLING_DROP = 0.2
"""A group is too small when not even this drop would probably (power 0.8) have been seen."""
SURE_SAMPLES = 97
"""So many samples pin an accuracy to +- 10 points, whatever it is (Wilson, 95 %)."""


@register
@dataclass(frozen=True)
class Accuracy(ProbeBase):
    """Accuracy overall, per class and per attribute value.

    Statements are about the whole and about classes; values of attributes are listed here and judged by `subgroup`.
    Effect: accuracy of the rest minus accuracy of the class, and `ci` is the interval of the class's accuracy; for the
    overall accuracy the effect is 0 and `ci` the accuracy's own. p-values are adjusted within the probe.
    """

    name: ClassVar[str] = "accuracy"
    paper: ClassVar[str] = ""
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    bins: int = 5
    """Quantile bins for a number with many values, at least 2."""
    min_count: int = 10
    """Groups with fewer samples are listed but not judged, at least 1."""
    min_effect: float = 0.02
    """Differences to the rest below this share (accuracy points, 0 to 1) are not reported."""
    max_findings: int = 20
    """At most so many findings for classes, the worst first; at least 1."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise InvalidInput(f"bins must be at least 2, got {self.bins}")
        if min(self.min_count, self.max_findings) < 1:
            raise InvalidInput(
                f"min_count and max_findings must be at least 1, got {self.min_count} and {self.max_findings}"
            )
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        table = tables["predictions"]
        if table.num_rows == 0:
            return to_rows([])
        columns = {name: table[name].to_numpy() for name in ("label", "predicted", "correct", "confidence")}
        label = columns.pop("label")
        answers = Answers(Texts(table["id"]), **columns)
        class_names = context.spec.class_names

        groups = groups_of(answers, label, class_names, "class", class_names)
        groupings = attribute_groups(table["id"], context.samples, context.attributes, self.bins)
        for attribute, grouping in groupings.items():
            groups += groups_of(answers, grouping.codes, grouping.names, attribute)
        return to_rows([overall_group(answers), *tested(groups, self.min_count)])

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        groups = from_rows(table)
        if not groups:
            return []
        findings = [_overall_finding(groups[0])]
        classes = [group for group in groups[1:] if group.dimension == "class" and group.rest_n]
        worse = sorted(filter(self._is_worse, classes), key=lambda g: -_drop(g))
        findings += [_worse_finding(group) for group in worse[: self.max_findings]]
        small = [group for group in classes if self._is_small(group) and group not in worse]
        if small:
            findings.append(_small_finding(small, len(classes)))
        return findings

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        groups = from_rows(table)
        if not groups:
            return []
        classes = sorted((g for g in groups if g.dimension == "class"), key=lambda g: (g.accuracy, -g.n))
        shown: list[Exhibit] = [_class_bars(classes, groups[0].accuracy), _group_grid(groups)]
        return [*shown, _confusion_grid(classes)] if any(g.confused_with for g in classes) else shown

    def _is_worse(self, group: Group) -> bool:
        return group.p_value is not None and group.p_value <= LEVEL and _drop(group) >= self.min_effect

    def _is_small(self, group: Group) -> bool:
        baseline = group.rest_accuracy or 0.0
        return group.n < self.min_count or (
            minimal_detectable_effect(group.n, baseline, LEVEL) > min(TELLING_DROP, baseline)
        )


def _drop(group: Group) -> float:
    return (group.rest_accuracy or 0.0) - group.accuracy


def _overall_finding(group: Group) -> Finding:
    low, high = group.interval
    enough = high - low <= 0.3
    title = f"The model is right on {group.accuracy:.1%} of {group.n} images."
    if not enough:
        title = (
            f"Not enough data for the overall accuracy: n = {group.n}, needs about {SURE_SAMPLES}"
            f" (so far {group.correct} of {group.n} are right)."
        )
    return Finding(
        kind="accuracy",
        title=title,
        metric="accuracy",
        value=group.accuracy,
        effect=0.0,
        n=group.n,
        ci=(low, high),
        evidence=group.evidence,
        enough_data=enough,
    )


def _worse_finding(group: Group) -> Finding:
    rest = group.rest_accuracy or 0.0
    confusion = ""
    if group.confused_with:
        confusion = (
            f"; most often it answers {group.confused_with[0]}"
            f" ({group.confused_count[0]} of {group.n - group.correct} mistakes)"
        )
    return Finding(
        kind="accuracy",
        title=f"The model is right on {group.accuracy:.1%} of {group.n} images of class {group.value}, against"
        f" {rest:.1%} for all other classes{confusion}.",
        metric="accuracy",
        value=group.accuracy,
        baseline=rest,
        effect=rest - group.accuracy,
        ci=group.interval,
        n=group.n,
        subject={"class": group.value},
        p_value=group.p_value,
        evidence=group.evidence,
    )


def _small_finding(small: Sequence[Group], of: int) -> Finding:
    fewest = min(small, key=lambda group: group.n)
    baseline = max(fewest.rest_accuracy or 0.0, TELLING_DROP)
    needed = needed_samples(TELLING_DROP, baseline, LEVEL)
    return Finding(
        kind="accuracy",
        title=f"Not enough data to judge {len(small)} of {of} classes: {fewest.value} has n = {fewest.n},"
        f" needs about {needed} to see a drop of {TELLING_DROP:.0%}.",
        metric="accuracy",
        value=None,
        effect=0.0,
        n=fewest.n,
        subject={"class": fewest.value},
        enough_data=False,
    )


def _class_bars(classes: Sequence[Group], overall: float) -> Bars:
    more = f" The {MOST_BARS} lowest of {len(classes)} classes." if len(classes) > MOST_BARS else ""
    return Bars(
        title="Accuracy per class",
        caption=f"Lowest first, with 95 % Wilson intervals; the line is the overall accuracy.{more}",
        value_label="accuracy",
        bars=[Bar(g.value, g.accuracy, *g.interval, g.n) for g in classes[:MOST_BARS]],
        reference=overall,
    )


def _group_grid(groups: Sequence[Group]) -> Grid:
    return Grid(
        title="Accuracy by group",
        caption="Each group against all other samples; p is one-sided (Fisher) and adjusted over all groups"
        " (Benjamini-Hochberg), empty where a group is too small.",
        columns=["group", "value", "n", "accuracy", "low", "high", "accuracy of the rest", "adjusted p"],
        rows=[[g.dimension, g.value, g.n, g.accuracy, *g.interval, g.rest_accuracy, g.p_value] for g in groups],
    )


def _confusion_grid(classes: Sequence[Group]) -> Grid:
    pairs = [
        (g.value, answer, count, count / g.n)
        for g in classes
        for answer, count in zip(g.confused_with, g.confused_count, strict=True)
    ]
    pairs.sort(key=lambda pair: (-pair[2], -pair[3]))
    return Grid(
        title="Most frequent confusions",
        caption=f"The {MOST_CONFUSIONS} most frequent wrong answers, and their share of the true class's images.",
        columns=["true class", "answer", "images", "share of the class"],
        rows=[list(pair) for pair in pairs[:MOST_CONFUSIONS]],
    )
