"""Evidence beside the object: judged on the confirmation half, in words, and as a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snellen.exhibits import Gallery, GalleryItem
from snellen.probe import Context, Finding, Rows
from snellen.sequences import Texts
from snellen.stats import (
    Grouping,
    attribute_groups,
    benjamini_hochberg,
    fisher_exact,
    newcombe_difference,
    permutation_test,
    wilson,
)

LEVEL = 0.05
MOST_EVIDENCE = 12
SHOWN = 4
TELLING_SHARE = 0.1

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Suspect:
    """A pattern that was off the object and less right on the discovery half; counts are of the confirmation half.

    on_object, elsewhere: share of the heat on the object, here and in other images of the answer. even: that of a map
    that is equally warm everywhere. p_value: of both "no less often right" and "no less on the object", adjusted.
    """

    answer: int
    pattern: int
    n: int
    right: int
    rest: int
    rest_right: int
    on_object: float
    elsewhere: float
    even: float
    p_value: float

    @property
    def drop(self) -> float:
        return self.rest_right / self.rest - self.right / self.n


@dataclass(frozen=True)
class Told:
    suspect: Suspect
    words: str
    subject: Mapping[str, str]
    rows: tuple[int, ...]


def suspects(table: Rows, min_count: int, rng: np.random.Generator) -> list[Suspect]:
    """Which are tested is decided on the discovery half."""
    pattern, predicted, labels, heat, even = (
        table[name].to_numpy() for name in ("pattern", "predicted", "label", "on_object", "even")
    )
    right: Bools = labels == predicted
    confirmation: Bools = table["half"].to_numpy() == "confirmation"
    tried = []
    for answer, number in sorted(set(zip(predicted.tolist(), pattern.tolist(), strict=True))):
        of_answer = (predicted == answer) & (pattern >= 0)
        halves = [(of_answer & half & (pattern == number), of_answer & half & (pattern != number))
                  for half in (~confirmation, confirmation)]  # fmt: skip
        if number < 0 or min(int(rows.sum()) for half in halves for rows in half) < min_count:
            continue
        (a, b), (inside, rest) = halves
        if not (right[a].mean() < right[b].mean() and heat[a].mean() < min(heat[b].mean(), even[a].mean())):
            continue
        hits, n, rest_hits, rest_n = (
            int(v) for v in (right[inside].sum(), inside.sum(), right[rest].sum(), rest.sum())
        )
        both = inside | rest

        def off_object(shares: NDArray[np.generic], group: NDArray[np.generic]) -> float:
            values = shares.astype(np.float64)
            return float(values[group == 0].mean() - values[group == 1].mean())

        off = permutation_test(off_object, heat[both], inside[both].astype(np.int64), rng)
        p_value = max(fisher_exact(hits, n, rest_hits, rest_n, "less"), off)
        on_object, elsewhere, area = (float(values.mean()) for values in (heat[inside], heat[rest], even[inside]))
        tried.append(Suspect(answer, number, n, hits, rest_n, rest_hits, on_object, elsewhere, area, p_value))
    adjusted = benjamini_hochberg([suspect.p_value for suspect in tried]).tolist()
    return [replace(suspect, p_value=p) for suspect, p in zip(tried, adjusted, strict=True)]


def confirmed(table: Rows, context: Context, min_count: int, min_effect: float, rng: np.random.Generator) -> list[Told]:
    """Gravest first; of those that read the same the worst."""
    found = [
        suspect
        for suspect in suspects(table, min_count, rng)
        if suspect.p_value <= LEVEL and suspect.drop >= min_effect and suspect.on_object < suspect.even
    ]
    groups = attribute_groups(table["id"], context.samples, context.attributes) if found else {}
    told: dict[str, Told] = {}
    for suspect in sorted(found, key=lambda suspect: -suspect.drop):
        one = _told(suspect, table, groups, context)
        told.setdefault(str(one.subject), one)
    return list(told.values())


def _told(suspect: Suspect, table: Rows, groups: Mapping[str, Grouping], context: Context) -> Told:
    pattern, predicted, labels, nearness = (
        table[name].to_numpy() for name in ("pattern", "predicted", "label", "nearness")
    )
    inside: Bools = (predicted == suspect.answer) & (pattern == suspect.pattern)
    words, companion = _companion(groups, inside)
    here = np.flatnonzero(inside & np.asarray(table["half"].to_numpy() == "confirmation"))
    order = np.lexsort((-nearness[here], labels[here] == suspect.answer))
    subject = {"answer": context.spec.class_names[suspect.answer], **companion}
    return Told(suspect, words, subject, tuple(here[order][:MOST_EVIDENCE].tolist()))


def _companion(groups: Mapping[str, Grouping], inside: Bools) -> tuple[str, dict[str, str]]:
    """The surely over-represented attribute value with the largest lift over all other images."""
    best, words, subject = 1.0, "", {}
    for attribute, group in groups.items():
        a, b = group.codes[inside], group.codes[~inside]
        for code, value in enumerate(group.names):
            here, there = int((a == code).sum()), int((b == code).sum())
            if len(b) == 0 or newcombe_difference(here, len(a), there, len(b)).low < TELLING_SHARE:
                continue
            lift = here / len(a) / max(there / len(b), 1 / len(b))
            if lift > best:
                words = f"; {attribute} = {value} on {here / len(a):.0%} of them, {there / len(b):.0%} elsewhere"
                best, subject = lift, {attribute: value}
    return words, subject


def suspect_finding(told: Told, table: Rows) -> Finding:
    found, name = told.suspect, told.subject["answer"]
    ids = Texts(table["id"])
    return Finding(
        kind="shortcut",
        title=f"The model answers {name} on {found.n} images for something beside the object:"
        f" {found.right / found.n:.1%} of these answers are right, against {found.rest_right / found.rest:.1%} of its"
        f" other {found.rest} answers {name}, and {found.on_object:.0%} of their heat map lies on the object, against"
        f" {found.elsewhere:.0%}{told.words}.",
        metric="share of these answers that are right",
        value=found.right / found.n,
        baseline=found.rest_right / found.rest,
        effect=max(found.drop, 0.0),
        n=found.n,
        subject={**told.subject, "pattern": found.pattern},
        measured=("pattern",),
        ci=wilson(found.right, found.n),
        p_value=found.p_value,
        evidence=[ids[row] for row in told.rows],
    )


def short_finding(n: int, needed: int) -> Finding:
    return Finding(
        kind="shortcut",
        title=f"Not enough data to look for evidence beside the object: n = {n} images got the commonest answer,"
        f" needs about {needed}.",
        metric="share of these answers that are right",
        value=None,
        effect=0.0,
        n=n,
        enough_data=False,
    )


def suspect_gallery(told: Sequence[Told], table: Rows, context: Context) -> Gallery:
    names, items = context.spec.class_names, []
    for one in told:
        for row in table.take(list(one.rows[:SHOWN])).to_pylist():
            heat = np.asarray(row["heat"]).reshape(row["height"], -1).tolist()
            note = f"labelled {names[row['label']]}, answered {names[row['predicted']]}, {row['on_object']:.0%} of the"
            items.append(GalleryItem(row["id"], f"{note} heat on the object", [("evidence", heat)]))
    return Gallery(
        title="Answers given for something beside the object",
        caption="Of each confirmed pattern of evidence the most typical images, wrong answers first, with the Grad-CAM"
        " map of the answer: what is warm spoke for it.",
        items=items,
    )
