"""Neighbour counts behind the robustness index; the method is in `robustness_index.py`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.errors import InvalidInput

Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Kinds(NamedTuple):
    """How many of each query's k neighbours have the same (S) or another (O) class, and the same or another
    confounder: int64 `[q]` each, `so` is same class, other confounder."""

    ss: Codes
    so: Codes
    os: Codes
    oo: Codes


def count_kinds(neighbours: Codes, classes: Codes, confounder: Codes, queries: Codes) -> Kinds:
    """neighbours: `[q, k]` row numbers of the rows `queries` `[q]`. classes, confounder: `[n]`."""
    same_class = classes[neighbours] == classes[queries, None]
    same_confounder = confounder[neighbours] == confounder[queries, None]
    return Kinds(
        (same_class & same_confounder).sum(axis=1),
        (same_class & ~same_confounder).sum(axis=1),
        (~same_class & same_confounder).sum(axis=1),
        (~same_class & ~same_confounder).sum(axis=1),
    )


def chance_index(classes: Codes, confounder: Codes, groups: Codes | None = None) -> float:
    """The index if each query's neighbours were drawn uniformly from those it may have; nan when none decides."""
    table = _table(classes, confounder)
    both = table[classes, confounder]
    so, os = table.sum(axis=1)[classes] - both, table.sum(axis=0)[confounder] - both
    if groups is not None:
        for rows in _members(groups):
            same_class = classes[rows][:, None] == classes[rows]
            same_confounder = confounder[rows][:, None] == confounder[rows]
            so[rows] -= (same_class & ~same_confounder).sum(axis=1)
            os[rows] -= (~same_class & same_confounder).sum(axis=1)
    total = float(so.sum() + os.sum())
    return float(so.sum()) / total if total else float("nan")


def resampled_index(kinds: Kinds, groups: Codes | None, rng: np.random.Generator, resamples: int) -> Floats:
    """The index of bootstrap samples `[resamples]` of whole groups, or of queries where there are none."""
    so: Floats = kinds.so.astype(np.float64)
    os: Floats = kinds.os.astype(np.float64)
    if groups is not None:
        unit = unit_codes(groups)
        so, os = (np.bincount(unit, weights=w).astype(np.float64) for w in (so, os))
    drawn = np.empty(resamples)
    for turn in range(resamples):
        rows = rng.integers(0, len(so), len(so))
        total = so[rows].sum() + os[rows].sum()
        drawn[turn] = so[rows].sum() / total if total else np.nan
    return drawn


def vote(neighbours: Codes, classes: Codes) -> Codes:
    """Majority class of each query's neighbours; of tied classes the one whose nearest member is nearest."""
    voted = classes[neighbours]
    n = len(voted)
    tally = np.zeros((n, int(classes.max()) + 1), dtype=np.int64)
    np.add.at(tally, (np.arange(n)[:, None], voted), 1)
    support = tally[np.arange(n)[:, None], voted]
    first: Codes = support.argmax(axis=1)  # argmax takes the leftmost, which is the nearest
    return voted[np.arange(n), first]


class Attribution(NamedTuple):
    """Wrong votes and what they share with the query.

    errors: share of queries whose majority vote is wrong. same: share of same-confounder images among the neighbours
    that voted for the wrong class, mean over wrong votes. expected: that share if these were drawn from all images of
    the class. lost: `[q]`, the part of each query's error beyond expectation (0 where the vote is right); its mean is
    the accuracy lost to the confounder.
    """

    errors: float
    same: float
    expected: float
    lost: Floats


class Vote(NamedTuple):
    """The vote of the k nearest, which no confounder enters. rows: queries that are voted wrong, as places `[w]` among
    the queries. answer: the class they got `[w]`. voters: bool `[w, k]`, the neighbours that voted so."""

    rows: Codes
    answer: Codes
    voters: Bools


def wrong_votes(neighbours: Codes, classes: Codes, queries: Codes) -> Vote:
    """neighbours: `[q, k]` row numbers of the rows `queries` `[q]`. classes: `[n]`."""
    answer = vote(neighbours, classes)
    rows = np.flatnonzero(answer != classes[queries])
    return Vote(rows, answer[rows], classes[neighbours[rows]] == answer[rows, None])


def attribute_errors(
    neighbours: Codes, classes: Codes, confounder: Codes, queries: Codes, voted: Vote | None = None
) -> Attribution:
    """Error attribution of the k-nearest-neighbour vote (the card's step 9); shapes as in `count_kinds`.

    voted: what `wrong_votes` says, for callers that ask about many confounders.
    """
    wrong, answer, voters = wrong_votes(neighbours, classes, queries) if voted is None else voted
    lost = np.zeros(len(queries))
    if len(wrong) == 0:
        return Attribution(0.0, float("nan"), float("nan"), lost)
    own = confounder[queries[wrong]]
    alike = confounder[neighbours[wrong]] == own[:, None]
    same = (voters & alike).sum(axis=1) / voters.sum(axis=1)
    table = _table(classes, confounder)
    expected = table[answer, own] / table[answer].sum(axis=1)
    lost[wrong] = same - expected
    return Attribution(len(wrong) / len(queries), float(same.mean()), float(expected.mean()), lost)


def _table(classes: Codes, confounder: Codes) -> Floats:
    """Counts by class and known confounder value."""
    table = np.zeros((classes.max() + 1, confounder.max() + 1))
    np.add.at(table, (classes[confounder >= 0], confounder[confounder >= 0]), 1)
    return table


def shuffled_within(classes: Codes, confounder: Codes, rng: np.random.Generator) -> Codes:
    """The confounder permuted among images of one class, which keeps every cell count."""
    shuffled = np.empty_like(confounder)
    order = np.argsort(classes, kind="stable")
    shuffled[order] = confounder[np.lexsort((rng.random(len(classes)), classes))]
    return shuffled


def unit_codes(groups: Codes) -> Codes:
    """Every row's independent unit: its group, or itself where the group is -1."""
    own = np.where(groups >= 0, groups, groups.max(initial=-1) + 1 + np.arange(len(groups)))
    return np.unique(own, return_inverse=True)[1].astype(np.int64)


def check_design(classes: Codes, confounder: Codes) -> None:
    """Refuse designs in which the index cannot be."""
    if len(np.unique(classes)) < 2 or len(np.unique(confounder)) < 2:
        raise InvalidInput(
            f"classes and confounder must have at least 2 values each, got {len(np.unique(classes))} and"
            f" {len(np.unique(confounder))}"
        )
    for code in np.unique(classes).tolist():
        if len(np.unique(confounder[classes == code])) < 2:
            raise InvalidInput(
                f"every class must occur with at least 2 values of the confounder, class {code} has one only"
            )


def _members(groups: Codes) -> list[Codes]:
    order = np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
