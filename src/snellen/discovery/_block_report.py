"""Which part of an image decides, judged, in words and as charts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.exhibits import Bar, Bars
from snellen.probe import Context, Finding, Rows
from snellen.sequences import Texts
from snellen.stats import benjamini_hochberg, mcnemar_exact, paired_difference, wilson

MOST_EVIDENCE = 12
MOST_CLAIMS = 10
LEVEL = 0.05
FEWEST = 10
"""Exchanges below which nothing is picked."""

Bools = NDArray[np.bool_]


class Pull(NamedTuple):
    """How often an exchange brought the donor's answer, and how often the control brought that same answer by chance.

    area: mean share of the pixels. moved: ids whose answer became the donor's and did not in the control.
    """

    block: str
    answer: int | None
    n: int
    brought: int
    by_chance: int
    area: float
    p_value: float
    moved: tuple[str, ...]

    @property
    def rate(self) -> float:
        return self.brought / self.n if self.n else 0.0

    @property
    def chance(self) -> float:
        return self.by_chance / self.n if self.n else 0.0

    @property
    def excess(self) -> float:
        return self.rate - self.chance


def pull_of(table: Rows, block: str, answer: int | None = None) -> Pull:
    """The pull of one part over all rows of `table`, or over donors with one answer."""
    rows = table.filter(pc.equal(table["block"], block))
    if answer is not None:
        rows = rows.filter(pc.equal(rows["brought"], answer))
    brought = rows["brought"].to_numpy()
    became, control = rows["foreign"].to_numpy() == brought, rows["control"].to_numpy() == brought
    only, other = became & ~control, control & ~became
    ids = Texts(rows["id"])
    moved = tuple(ids[row] for row in np.flatnonzero(only)[:MOST_EVIDENCE].tolist())
    area = float(rows["area"].to_numpy().mean()) if rows.num_rows else 0.0
    p_value = mcnemar_exact(int(only.sum()), int(other.sum()))
    return Pull(block, answer, rows.num_rows, int(became.sum()), int(control.sum()), area, p_value, moved)


def claims(table: Rows, context: Context, min_effect: float) -> list[Finding]:
    """Parts without an object that carry the answer: picked on the discovery half, tested on the other."""
    masked = bool(table["masked"][0].as_py())
    suspects = table.filter(table["clear"] if masked else table["rim"])
    first, second = (suspects.filter(pc.equal(suspects["half"], half)) for half in ("discovery", "confirmation"))

    def harm(pull: Pull) -> float:
        return pull.excess - (0.0 if masked else pull.area)

    picked: list[Pull] = []
    for block in pc.unique(suspects["block"]).to_pylist():
        tried = [pull_of(first, block, answer) for answer in pc.unique(first["brought"]).to_pylist()]
        chosen = [pull for pull in tried if pull.n >= FEWEST and harm(pull) >= min_effect and pull.p_value <= LEVEL]
        if not chosen:  # with many classes each has too few donors; all of them together may still tell
            pull = pull_of(first, block)
            chosen = [pull] if pull.n >= FEWEST and harm(pull) >= min_effect and pull.p_value <= LEVEL else []
        picked += chosen
    tested = [pull_of(second, pull.block, pull.answer) for pull in picked]
    adjusted = benjamini_hochberg([pull.p_value for pull in tested]).tolist()
    confirmed: dict[int | None, list[tuple[Pull, float]]] = {}
    for pull, p_value in zip(tested, adjusted, strict=True):
        if pull.n >= FEWEST and p_value <= LEVEL and harm(pull) >= min_effect:
            confirmed.setdefault(pull.answer, []).append((pull, p_value))
    found = []
    for pulls in confirmed.values():
        # A corner lies in the frame and in the background: the smallest part that does at least half of it is told.
        strong = max(harm(pull) for pull, _ in pulls) / 2
        pull, p_value = min((one for one in pulls if harm(one[0]) >= strong), key=lambda one: one[0].area)
        found.append(_claim(pull, p_value, harm(pull), masked, context))
    return sorted(found, key=lambda finding: -finding.effect)[:MOST_CLAIMS]


def _claim(pull: Pull, p_value: float, effect: float, masked: bool, context: Context) -> Finding:
    ci = wilson(pull.brought, pull.n)
    subject: dict[str, str | int | float] = {"part": pull.block}
    shown = f"{pull.rate:.0%} ({ci.low:.2f} to {ci.high:.2f}) of {pull.n}"
    if pull.answer is not None:
        name = subject["answer"] = context.spec.class_names[pull.answer]
        title = (
            f"The {pull.block} decides for {name}: taken from images answered {name} into images of other classes it"
            f" brings the answer {name} in {shown}"
        )
    else:
        title = f"The {pull.block} decides: taken from another image it brings that image's answer in {shown}"
    title += f", against {pull.chance:.0%} when it comes from an image answered alike"
    if not masked:
        title += f"; a suspected shortcut, since it is {pull.area:.0%} of the area"
    return Finding(
        kind="shortcut",
        title=title + ".",
        metric="share of right answers turned into the donor's",
        value=pull.rate,
        baseline=pull.chance,
        effect=min(max(effect, 0.0), 1.0),
        n=pull.n,
        subject=subject,
        ci=(ci.low, ci.high),
        p_value=p_value,
        evidence=pull.moved,
    )


def decisive_finding(table: Rows) -> Finding:
    """Which part decides most, of all: information, since it may well be the object."""
    first, second = (table.filter(pc.equal(table["half"], half)) for half in ("discovery", "confirmation"))
    best = max((pull_of(first, block) for block in _blocks(first)), key=lambda pull: pull.excess)
    pull = pull_of(second, best.block)
    ci = wilson(pull.brought, pull.n)
    return Finding(
        kind="explanation",
        title=f"Of {len(_blocks(first))} parts of the image, {best.block} decides most: taken from another image it"
        f" brings that image's answer in {pull.rate:.0%} ({ci.low:.2f} to {ci.high:.2f}) of {pull.n}.",
        metric="share of right answers turned into the donor's",
        value=pull.rate,
        baseline=pull.chance,
        effect=0.0,
        n=pull.n,
        subject={"part": "most decisive", "which": pull.block},
        measured=("which",),
        ci=(ci.low, ci.high),
        evidence=pull.moved,
    )


def short_finding(n: int, needed: int) -> Finding:
    return Finding(
        kind="explanation",
        title=f"Not enough data to tell which part of the image decides: n = {n}, needs about {needed} right answers.",
        metric="share of right answers turned into the donor's",
        value=None,
        effect=0.0,
        n=n,
        subject={"part": "most decisive"},
        enough_data=False,
    )


def pull_bars(table: Rows) -> Bars:
    pulls = sorted((pull_of(table, block) for block in _blocks(table)), key=lambda pull: -pull.excess)
    return Bars(
        title="Which part of the image carries the answer",
        caption="How often a right answer becomes the answer of the image from which the part was taken, with 95 %"
        " Wilson intervals; on all images answered rightly, strongest first.",
        value_label="share that takes the donor's answer",
        bars=[Bar(_label(pull), pull.rate, *wilson(pull.brought, pull.n), pull.n) for pull in pulls],
        reference=0.0,
    )


def drop_bars(table: Rows) -> Bars:
    bars = []
    for block in _blocks(table):
        rows = table.filter(pc.equal(table["block"], block))
        label = rows["label"].to_numpy()
        control: Bools = rows["control"].to_numpy() == label
        foreign: Bools = rows["foreign"].to_numpy() == label
        drop = float(control.mean() - foreign.mean())
        bars.append(Bar(_label(pull_of(rows, block)), drop, *paired_difference(control, foreign), len(label)))
    return Bars(
        title="Accuracy lost by a foreign part, beyond a part that fits",
        caption="Accuracy with the part of an image that was answered alike minus accuracy with the part of one that"
        " was answered otherwise, on the same images, with 95 % intervals (Tango).",
        value_label="accuracy drop beyond the control",
        bars=sorted(bars, key=lambda bar: -bar.value),
        reference=0.0,
    )


def _blocks(table: Rows) -> list[str]:
    return sorted(pc.unique(table["block"]).to_pylist())


def _label(pull: Pull) -> str:
    return f"{pull.block} ({pull.area:.0%} of the area)" if pull.area < 1 else pull.block
