"""Slices in words, as findings and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snellen.discovery._slices import LEVEL, Bools, Codes, Slice
from snellen.exhibits import Bar, Bars
from snellen.probe import Context, Finding, Rows
from snellen.sequences import Texts
from snellen.stats import Grouping, attribute_groups, needed_samples, newcombe_difference, wilson

MOST_EVIDENCE = 12
TELLING_SHARE = 0.1
"""A value is over-represented when its share is surely (95 %) so much larger in the slice than elsewhere."""


@dataclass(frozen=True)
class Described:
    """words, subject: what is in the slice, in both halves. evidence: its mistakes, the most typical first."""

    slice: Slice
    words: str
    subject: Mapping[str, str]
    evidence: tuple[str, ...]


def describe(tried: Sequence[Slice], table: Rows, context: Context) -> list[Described]:
    slices, labels, predicted = (table[name].to_numpy() for name in ("slice", "label", "predicted"))
    responsibility, correct, ids = table["responsibility"].to_numpy(), table["correct"].to_numpy(), Texts(table["id"])
    groups = attribute_groups(table["id"], context.samples, context.attributes) if tried else {}
    names = context.spec.class_names
    told = []
    for found in tried:
        inside = slices == found.number
        words, subject = _attribute(groups, inside, ~inside & np.isin(labels, labels[inside]))

        main, count = _commonest(labels[inside])
        share = count / inside.sum()
        words.append(f"class {names[main]} ({share:.0%})" if share > 0.5 else "several classes")
        if share > 0.5:
            subject["class"] = names[main]

        wrong = np.flatnonzero(inside & ~correct)
        if len(wrong):
            answer, count = _commonest(predicted[wrong])
            words.append(f"most often answered {names[answer]} ({count} of {len(wrong)} mistakes)")
            subject["answer"] = names[answer]
        typical = wrong[np.argsort(-responsibility[wrong], kind="stable")][:MOST_EVIDENCE]
        told.append(Described(found, ", ".join(words), subject, tuple(ids[row] for row in typical.tolist())))
    return told


def _attribute(groups: Mapping[str, Grouping], inside: Bools, outside: Bools) -> tuple[list[str], dict[str, str]]:
    """Words and subject of the surely over-represented value with the largest lift over other images of the classes."""
    best, words, subject = 1.0, [], {}
    for attribute, group in groups.items():
        a, b = group.codes[inside], group.codes[outside]
        for code, value in enumerate(group.names):
            here, there = int((a == code).sum()), int((b == code).sum())
            if len(b) == 0 or newcombe_difference(here, len(a), there, len(b)).low < TELLING_SHARE:
                continue
            share, elsewhere = here / len(a), there / len(b)
            lift = share / max(elsewhere, 1 / len(b))
            if lift > best:
                often = "mostly" if share >= 0.5 else "often"
                words = [f"{often} {attribute} = {value} ({share:.0%} of the slice, {elsewhere:.0%} elsewhere)"]
                best, subject = lift, {attribute: value}
    return words, subject


def _commonest(codes: Codes) -> tuple[int, int]:
    values, counts = np.unique(codes, return_counts=True)
    return int(values[counts.argmax()]), int(counts.max())


def slice_finding(told: Described) -> Finding:
    found = told.slice
    return Finding(
        kind="slice",
        title=f"The model is right on {found.accuracy:.1%} of {found.n} images that are alike to it, against"
        f" {found.baseline:.1%} for others of the same classes: {told.words}.",
        metric="accuracy",
        value=found.accuracy,
        baseline=found.baseline,
        effect=max(found.drop, 0.0),
        n=found.n,
        subject={**told.subject, "slice": found.number},
        measured=("slice",),
        ci=wilson(found.correct, found.n),
        p_value=found.p_value,
        evidence=told.evidence,
    )


def unconfirmed_finding(doubtful: Sequence[Described], samples: int) -> Finding:
    """One statement about all slices that were worse on the discovery half only, or not surely on the other.

    How many samples would settle it is reckoned from the drop on the confirmation half, which no search flattered.
    """
    likeliest = max(doubtful, key=lambda told: told.slice.drop * told.slice.n**0.5)
    found = likeliest.slice
    several = f"{len(doubtful)} suspected slice{'s' * (len(doubtful) > 1)}"
    title = f"Not confirmed: {several} of mistakes did not come again on the other half of {samples} images."
    unsettled = found.drop > 0
    if unsettled:
        needed = max(needed_samples(min(found.drop, found.baseline), found.baseline), found.n + 1)
        more = round(samples * (needed / found.n - 1))
        title = (
            f"Not enough data to confirm {several}; the likeliest ({likeliest.words}) has n = {found.n} at"
            f" {found.accuracy:.1%} against {found.baseline:.1%}, needs about {needed}, which is {more} more images."
        )
    return Finding(
        kind="slice",
        title=title,
        metric="suspected slices",
        value=float(len(doubtful)),
        effect=0.0,
        n=samples,
        enough_data=not unsettled,
    )


def short_finding(n: int, needed: int) -> Finding:
    return Finding(
        kind="slice",
        title=f"Not enough data to look for slices of mistakes: n = {n}, needs about {needed}.",
        metric="accuracy",
        value=None,
        effect=0.0,
        n=n,
        enough_data=False,
    )


def slice_bars(tried: Sequence[Described], table: Rows) -> Bars:
    confirmation = np.asarray(table["half"].to_numpy() == "confirmation")
    bars = []
    for told in sorted(tried, key=lambda told: told.slice.accuracy):
        found = told.slice
        confirmed = "confirmed" if found.p_value <= LEVEL else "not confirmed"
        label = f"slice {found.number}, {confirmed}: {told.words}"
        bars.append(Bar(label, found.accuracy, *wilson(found.correct, found.n), found.n))
    return Bars(
        title="Accuracy of suspected slices",
        caption="Slices worse than the rest of their classes on the discovery half, judged on the other half, lowest"
        " first, with 95 % Wilson intervals; the line is that half's accuracy. Confirmed: adjusted p at most 0.05.",
        value_label="accuracy",
        bars=bars,
        reference=float(table["correct"].to_numpy()[confirmation].mean()),
    )
