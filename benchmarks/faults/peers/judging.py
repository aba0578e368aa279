"""When a peer has named a fault, and the table of what it named.

A peer's statement names the planted fault when

(a) its words do: the words that the bench asks of our own titles, class and attribute value. Numbers that are no class
    (scores, shares, counts, bounds) are taken out first, lest a "7%" stand for class 7; or
(b) at least 0.6 of the images of the group that it reports are images the fault strikes. The group must be reported as
    weak or conspicuous. Images reported as wrongly labelled count for wrong labels alone, and images reported as near
    duplicates for copies and leaks alone.

So a peer without sentences loses nothing by that, and a peer may say as much as it likes: one right statement is
enough. Of a healthy network each statement is counted as a report, whether or not it would hold on other images.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from benchmarks.faults.cases import FAMILIES, OF_EVIDENCE, STRENGTHS, Case, names_the_fault
from benchmarks.faults.subjects import images_of

from snellen.demo.digits import DemoImages

STRIKES = ("struck", "data")
"""How the cost is measured of faults that strike some images; the others strike all alike, and only words name them."""
SAID_OF_A_LEAK = r"leak|duplicate|same picture|cop(y|ies)"
"""The bench's word for leakage is "train", which peers say of any comparison of a training with a test set."""
SCORE = re.compile(r"\d+\.\d+%?|\d+%")
NO_CLASS = re.compile(r"(?<!class )(?<!['\"\w.])\d+(?!['\"\w])")
"""A whole number is taken for a class where the tool writes "class 7" or quotes it."""


@dataclass(frozen=True)
class Statement:
    """check: which part of the tool said it. images: rows of the group it names, empty where it names none.

    about: what is said of that group: it fails or is conspicuous; its labels are wrong; it holds copies; or that
    disturbed images cost accuracy, which holds of healthy networks too and is no alarm, as with our own findings.
    """

    check: str
    text: str
    images: Sequence[int] = ()
    about: Literal["group", "labels", "copies", "shift"] = "group"


@dataclass(frozen=True)
class Told:
    """What one tool said of one case. seconds: processor time, without the network's passes where it takes none."""

    tool: str
    statements: Sequence[Statement]
    seconds: float


def names(case: Case, statement: Statement, made: DemoImages) -> bool:
    """Whether the statement names the case's fault; `made` are the case's images, to whose rows it refers."""
    fault, kind = case.fault, case.type
    if fault is None or kind is None:
        return False
    words = NO_CLASS.sub(" ", SCORE.sub(" ", statement.text))
    allowed = fault != "leakage" or re.search(SAID_OF_A_LEAK, words, re.IGNORECASE) is not None
    if allowed and names_the_fault(case, words, [made.ids[row] for row in statement.images], made):
        return True
    if kind.measure not in STRIKES or len(statement.images) == 0 or not _fits(statement, fault):
        return False
    return float(struck(case, made)[list(statement.images)].mean()) >= OF_EVIDENCE


def _fits(statement: Statement, fault: str) -> bool:
    if statement.about == "group":
        return True
    of = ("test-labels",) if statement.about == "labels" else ("contradicting-copies", "leakage")
    return fault in of


def struck(case: Case, made: DemoImages) -> np.ndarray:
    """The images that the fault strikes, bool `[N]`; of a pair of copies both, for either is a right answer."""
    if case.fault == "contradicting-copies":
        copied = {name.removesuffix("-b") for name in made.ids if name.endswith("-b")}
        return np.array([name.removesuffix("-b") in copied for name in made.ids])
    if case.fault in ("test-labels", "leakage"):
        clean = images_of(replace(case, fault=None))
        if case.fault == "test-labels":
            return made.labels != clean.labels
        changed = (made.images != clean.images).flatten(1).any(1).numpy()
        return changed | (made.attributes["split"] == "train")
    return case.family.struck(case.fault or "", made, case.target)[0]


def table(told: Mapping[Case, Told]) -> tuple[list[list[str]], str]:
    """Rows of named / run, by fault and strength, of what was run, and a sentence on healthy networks and time."""
    named = {
        case: any(names(case, statement, made) for statement in told[case].statements)
        for case in told
        if case.fault
        for made in [images_of(case)]
    }
    rows = []
    for family, fault in [*((name, fault) for name, of in FAMILIES.items() for fault in of.types), ("all", "")]:
        cells = []
        for strength in STRENGTHS:
            of = [
                hit
                for case, hit in named.items()
                if case.strength == strength and (family == "all" or (case.family_name, case.fault) == (family, fault))
            ]
            cells.append(f"{sum(of)} / {len(of)}" if of else "not run")
        if set(cells) != {"not run"}:
            rows.append([f"{family}, {fault}" if fault else family, *cells])
    return rows, _of_healthy(told)


def _of_healthy(told: Mapping[Case, Told]) -> str:
    healthy = [{s.check for s in of.statements if s.about != "shift"} for case, of in told.items() if not case.fault]
    by_check = Counter(check for checks in healthy for check in checks)
    reported = ", ".join(f"{check} on {count}" for check, count in by_check.most_common()) or "none"
    seconds = statistics.median(of.seconds for of in told.values())
    return (
        f"Healthy networks with a reported issue: {sum(map(bool, healthy))} of {len(healthy)}"
        f" ({reported}). Median processor time {seconds:.1f} s."
    )
