"""The robustness index of every attribute of a data set, in words and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.discovery._robustness_index import (
    Attribution,
    Codes,
    attribute_errors,
    chance_index,
    count_kinds,
    resampled_index,
    shuffled_within,
    wrong_votes,
)
from snellen.exhibits import Grid
from snellen.probe import Context, Finding, Rows
from snellen.sequences import Texts
from snellen.stats import Interval, attribute_groups, bias_corrected_interval, exceedance_p_value

GROUPS = ("patient", "patient_id", "subject", "subject_id", "slide", "slide_id", "group")
VALUES = (2, 20)
FEWEST = 100
MOST_EVIDENCE = 12
RESAMPLES = 1000
LEVEL = 0.05
TELLING_LOSS = 0.02


@dataclass(frozen=True)
class Measured:
    """One attribute. lost: accuracy points of the vote. p_value: of `lost`. index is nan where no neighbour decides."""

    attribute: str
    n: int
    index: float
    interval: Interval
    chance: float
    errors: Attribution
    lost: float
    p_value: float
    evidence: tuple[str, ...]

    @property
    def orders(self) -> bool:
        """Whether it orders the features more than the class does. Below chance too: an attribute of two values that
        means nothing to the model is shared by half of all neighbours, and its index is low wherever the class is weak.
        """
        return self.interval.high < min(0.5, self.chance)

    @property
    def reported(self) -> bool:
        return self.orders or (self.p_value <= LEVEL and self.lost >= TELLING_LOSS)


def measured(table: Rows, context: Context, k: int, permutations: int, rng: np.random.Generator) -> list[Measured]:
    """Every attribute that has 2 to 20 values and enough images; the others are left out."""
    ids, labels = Texts(table["id"]), table["label"].to_numpy()
    width = len(table["neighbours"][0])
    stored = table["neighbours"].combine_chunks().flatten().to_numpy().astype(np.int64).reshape(len(labels), width)
    groups = _groups(table["id"], context)
    found = []
    for name in context.attributes:
        if name.casefold() in GROUPS:
            continue
        values = context.samples[name]
        if pa.types.is_null(values.type) or not VALUES[0] <= len(values.drop_null().unique()) <= VALUES[1]:
            continue
        confounder = attribute_groups(table["id"], context.samples, (name,))[name].codes
        queries, neighbours = _permitted(stored, labels, confounder, groups, k)
        if len(queries) >= FEWEST:
            found.append(_measure(name, queries, neighbours, labels, confounder, groups, permutations, rng, ids))
    return [one for one in found if np.isfinite(one.index)]


def _permitted(
    stored: Codes, labels: Codes, confounder: Codes, groups: Codes | None, k: int
) -> tuple[NDArray[np.int64], Codes]:
    """Rows that can be asked and their first k permitted neighbours: of known value and of another group. A class that
    occurs with one value only cannot have a neighbour of the same class and another value, so it is not asked."""
    allowed = confounder[stored] >= 0
    if groups is not None:
        allowed &= (groups[stored] != groups[:, None]) | (groups[:, None] < 0)
    several = [
        label for label in np.unique(labels) if len(np.unique(confounder[(labels == label) & (confounder >= 0)])) > 1
    ]
    asked = np.flatnonzero((allowed.sum(axis=1) >= k) & (confounder >= 0) & np.isin(labels, several))
    first = np.argsort(~allowed[asked], axis=1, kind="stable")[:, :k]
    return asked, np.take_along_axis(stored[asked], first, axis=1)


def _measure(
    name: str,
    queries: NDArray[np.int64],
    neighbours: Codes,
    labels: Codes,
    confounder: Codes,
    groups: Codes | None,
    permutations: int,
    rng: np.random.Generator,
    ids: Texts,
) -> Measured:
    known = np.flatnonzero(confounder >= 0)
    kinds = count_kinds(neighbours, labels, confounder, queries)
    so, os = int(kinds.so.sum()), int(kinds.os.sum())
    index = so / (so + os) if so + os else float("nan")
    unit = None if groups is None else groups[queries]
    drawn = resampled_index(kinds, unit, rng, RESAMPLES)
    interval = bias_corrected_interval(index, drawn) if so + os else Interval(0.0, 1.0)

    voted = wrong_votes(neighbours, labels, queries)
    errors = attribute_errors(neighbours, labels, confounder, queries, voted)
    shuffled = confounder.copy()
    by_chance = np.empty(permutations)
    for turn in range(permutations):
        shuffled[known] = shuffled_within(labels[known], confounder[known], rng)
        by_chance[turn] = attribute_errors(neighbours, labels, shuffled, queries, voted).lost.mean()
    lost = float(errors.lost.mean())
    worst = np.argsort(-errors.lost, kind="stable")[:MOST_EVIDENCE]
    evidence = tuple(ids[int(queries[row])] for row in worst if errors.lost[row] > 0)
    chance = chance_index(labels[known], confounder[known], None if groups is None else groups[known])
    p_value = exceedance_p_value(lost, by_chance)
    return Measured(name, len(queries), index, interval, chance, errors, lost, p_value, evidence)


def _groups(ids: pa.ChunkedArray, context: Context) -> Codes | None:
    """Codes of the first attribute that names patients, slides, subjects or groups, -1 where it is missing."""
    names = [name for name in context.attributes if name.casefold() in GROUPS]
    if not names:
        return None
    name = min(names, key=lambda name: GROUPS.index(name.casefold()))
    column = context.samples[name].take(pc.index_in(ids, value_set=context.samples["id"])).combine_chunks()
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return np.asarray(pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy())


def index_finding(one: Measured, k: int) -> Finding:
    low, high = one.interval
    index = f"robustness index {one.index:.2f}, {low:.2f} to {high:.2f}"
    vote = f"a vote of the {k} nearest is wrong on {one.errors.errors:.1%} of {one.n} images"
    points = f"{max(one.lost, 0):.1%} of all images because of neighbours that share the {one.attribute}"
    ordered = f"Nearest neighbours in the model's features partly go by {one.attribute} ({index}): {vote}, {points}."
    if one.orders:
        ordered = (
            f"{one.attribute} orders the model's features more than the class does: of the {k} nearest neighbours that"
            f" share one of the two, {1 - one.index:.0%} share {one.attribute} ({index}); {vote}, {points}."
        )
    return Finding(
        kind="shortcut",
        title=ordered,
        metric="robustness index",
        value=one.index,
        baseline=0.5,
        effect=max(one.lost, 0.0),
        ci=(low, high),
        p_value=one.p_value,
        n=one.n,
        subject={"attribute": one.attribute},
        evidence=one.evidence,
    )


def short_finding(n: int) -> Finding:
    return Finding(
        kind="shortcut",
        title=f"Not enough data to see whether an attribute orders the features: n = {n}, needs about {FEWEST}.",
        metric="robustness index",
        value=None,
        effect=0.0,
        n=n,
        enough_data=False,
    )


def index_grid(found: Sequence[Measured], k: int) -> Grid:
    return Grid(
        title="What orders the model's features, the class or an attribute?",
        caption=f"Robustness index: of the {k} nearest neighbours that share exactly one of class and attribute, the"
        " share that has the class; 0.5 is break-even, chance is the index of neighbours drawn at random. Lost: images"
        " that a vote of the neighbours gets wrong because voters share the attribute; p is of that share.",
        columns=["attribute", "n", "index", "low", "high", "chance", "wrong votes", "lost", "p"],
        rows=[
            [o.attribute, o.n, o.index, *o.interval, o.chance, o.errors.errors, o.lost, o.p_value]
            for o in sorted(found, key=lambda o: (-o.lost, o.index))
        ],
    )
