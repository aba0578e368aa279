"""The search for groups of samples in which errors are too frequent to be chance.

Searched are the values of single attributes, of pairs of attributes, and classes crossed with attribute values. Two
tests guard it, and a group must pass all that apply:

1. The whole search against chance: the right and wrong answers are shuffled over all samples, the largest statistic of
   all single values and that of all pairs are noted each time, and a group's p-value is twice (for the two kinds) how
   often the one of its kind reaches it (Westfall and Young, 1993). The statistic is the signed root of the binomial
   deviance from the overall error rate, which makes small and large groups comparable far out in the tail. This holds
   the chance of even one false group in the whole search below 5 %.
2. A pair against what it is made of: it must be worse than the rest of each of its two parents (Fisher's exact test,
   one-sided; the larger of the two p-values, adjusted over all pairs searched by Benjamini-Hochberg). Otherwise every
   pair that contains a bad value would be reported again.

Conversely a single value is dropped when, without the pairs reported in it, it is no longer worse than the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snellen.stats import Grouping, benjamini_hochberg, fisher_exact

LEVEL = 0.05

Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Subgroup:
    """One group of the search. `where` holds one (dimension, value) for singles and two for pairs.

    rest_n, rest_correct: all other samples with a known value in these dimensions. p_value: adjusted as the module
    says; 1 where it was too small a difference to be tested.
    """

    where: tuple[tuple[str, str], ...]
    n: int
    correct: int
    rest_n: int
    rest_correct: int
    p_value: float
    rows: Codes
    """Which samples, as indices; empty where the search against chance was not passed."""
    reported: bool = False
    high: float | None = None
    """Upper end of the accuracy's interval where it was widened for the search."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def drop(self) -> float:
        """Accuracy of the rest minus accuracy of the group; 0 without a rest."""
        return self.rest_correct / self.rest_n - self.accuracy if self.rest_n else 0.0


@dataclass(frozen=True)
class Dimension:
    """One partition of the samples: codes `[n]` into `groups` cells, -1 for none; names and parents of each cell."""

    keys: tuple[str, ...]
    codes: Codes
    n: Codes
    wrong: Codes
    values: tuple[tuple[str, ...], ...]


def search(
    labels: Grouping,
    attributes: Mapping[str, Grouping],
    correct: Bools,
    rng: np.random.Generator,
    min_count: int = 20,
    min_effect: float = 0.05,
    permutations: int = 999,
) -> list[Subgroup]:
    """All groups of at least `min_count` samples, those to report first and otherwise by p-value.

    `reported` are those whose adjusted p-value is at most 0.05, that are at least `min_effect` below the rest and echo
    no other. labels: the true classes; correct: bool `[n]`; attributes: by name.
    """
    wrong = ~correct
    singles = [_dimension((name,), grouping.codes, grouping.names, wrong) for name, grouping in attributes.items()]
    classes = _dimension(("class",), labels.codes, labels.names, wrong)
    pairs = [_crossed(a, b, wrong) for a, b in itertools.combinations([classes, *singles], 2)]
    if not singles or not wrong.any() or wrong.all():
        return []
    found = []
    for kind in (singles, pairs):
        chance = _largest_by_chance(kind, wrong, min_count, rng, permutations)
        for dimension in kind:
            statistic = deviance(dimension.wrong, dimension.n, wrong.mean())
            reached = len(chance) - np.searchsorted(chance, statistic - 1e-9, side="left")
            p_values = np.minimum(2 * (1 + reached) / (1 + len(chance)), 1.0)
            for cell in np.flatnonzero(dimension.n >= min_count).tolist():
                found.append(_subgroup(dimension, cell, correct, float(p_values[cell])))
    return _without_echoes(found, {d.keys[0]: d for d in (classes, *singles)}, correct, min_effect)


def _dimension(keys: tuple[str, ...], codes: Codes, names: Sequence[str], wrong: Bools) -> Dimension:
    return _counted(keys, codes, tuple((name,) for name in names), wrong)


def _crossed(a: Dimension, b: Dimension, wrong: Bools) -> Dimension:
    codes = np.where((a.codes >= 0) & (b.codes >= 0), a.codes * len(b.values) + b.codes, -1)
    values = tuple((*one, *other) for one in a.values for other in b.values)
    return _counted((*a.keys, *b.keys), codes, values, wrong)


def _counted(keys: tuple[str, ...], codes: Codes, values: tuple[tuple[str, ...], ...], wrong: Bools) -> Dimension:
    n = np.bincount(codes[codes >= 0], minlength=len(values))
    bad = np.bincount(codes[(codes >= 0) & wrong], minlength=len(values))
    return Dimension(keys, codes, n, bad, values)


def deviance(wrong: NDArray[Any], n: Codes, rate: float) -> NDArray[np.float64]:
    """Signed root of twice the binomial log-likelihood ratio of wrong / n against `rate`; positive for more errors."""
    size = np.maximum(n, 1)
    share = wrong / size
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(share > 0, share * np.log(share / rate), 0.0)
        gain += np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - rate)), 0.0)
    return np.asarray(np.sign(share - rate) * np.sqrt(2 * size * np.maximum(gain, 0.0)))


def _largest_by_chance(
    dimensions: Sequence[Dimension], wrong: Bools, min_count: int, rng: np.random.Generator, permutations: int
) -> NDArray[np.float64]:
    """The largest statistic of these dimensions, sorted, for each shuffling of right and wrong answers.

    Only the rarer kind of answer is placed and counted, so the time goes with the number of errors, not of samples.
    """
    n, rate = len(wrong), float(wrong.mean())
    place_wrong = rate <= 0.5
    placed = int(wrong.sum()) if place_wrong else n - int(wrong.sum())

    # All dimensions counted at once: each cell of each dimension has its own number, cell 0 collects the unknown.
    offsets = np.cumsum([1, *(len(d.values) for d in dimensions)])
    cells = np.stack(
        [np.where(d.codes >= 0, d.codes + offset, 0) for d, offset in zip(dimensions, offsets[:-1], strict=True)],
        axis=1,
    ).astype(np.int32)
    sizes = np.concatenate([[0], *(d.n for d in dimensions)])
    large = sizes >= min_count
    if not large.any():
        return np.full(permutations, np.inf)
    largest = np.empty(permutations)
    for k in range(permutations):
        rows = rng.choice(n, placed, replace=False, shuffle=False)
        counts = np.bincount(cells[rows].ravel(), minlength=len(sizes))
        bad = counts if place_wrong else sizes - counts
        largest[k] = deviance(bad[large], sizes[large], rate).max()
    return np.sort(largest)


def _subgroup(dimension: Dimension, cell: int, correct: Bools, p_value: float) -> Subgroup:
    n, bad = int(dimension.n[cell]), int(dimension.wrong[cell])
    rest_n = int(dimension.n.sum()) - n
    return Subgroup(
        where=tuple(zip(dimension.keys, dimension.values[cell], strict=True)),
        n=n,
        correct=n - bad,
        rest_n=rest_n,
        rest_correct=rest_n - (int(dimension.wrong.sum()) - bad),
        p_value=p_value,
        rows=np.flatnonzero(dimension.codes == cell) if p_value <= LEVEL else np.empty(0, dtype=np.int64),
    )


def _without_echoes(
    found: Sequence[Subgroup], parents: Mapping[str, Dimension], correct: Bools, min_effect: float
) -> list[Subgroup]:
    singles = [group for group in found if len(group.where) == 1]
    pairs = [group for group in found if len(group.where) == 2]
    own = benjamini_hochberg([_worse_than_parents(group, parents) for group in pairs]).tolist()
    pairs = [replace(g, p_value=max(g.p_value, p)) for g, p in zip(pairs, own, strict=True)]
    pairs = [replace(g, reported=_passes(g, min_effect)) for g in pairs]
    explained = np.zeros(len(correct), dtype=bool)
    for group in pairs:
        if group.reported:
            explained[group.rows] = True
    singles = [
        replace(
            g,
            reported=_passes(g, min_effect)
            and _stands_alone(parents[g.where[0][0]], g, explained, correct, min_effect),
        )
        for g in singles
    ]
    return sorted(pairs + singles, key=lambda g: (not g.reported, g.p_value, -g.drop * np.sqrt(g.n)))


def _passes(group: Subgroup, min_effect: float) -> bool:
    return group.p_value <= LEVEL and group.drop >= min_effect


def _worse_than_parents(pair: Subgroup, parents: Mapping[str, Dimension]) -> float:
    """The larger p-value of "no worse than the rest of the parent" over both parents."""
    p_values = []
    for key, value in pair.where:
        parent = parents[key]
        cell = parent.values.index((value,))
        n, right = int(parent.n[cell]), int(parent.n[cell] - parent.wrong[cell])
        p_values.append(fisher_exact(pair.correct, pair.n, right - pair.correct, n - pair.n, "less"))
    return max(p_values)


def _stands_alone(dimension: Dimension, group: Subgroup, explained: Bools, correct: Bools, min_effect: float) -> bool:
    """Whether the group is worse than the rest also without the samples that a reported pair explains."""
    if not explained[group.rows].any():
        return True
    inside = np.zeros(len(correct), dtype=bool)
    inside[group.rows] = True
    here, rest = inside & ~explained, ~inside & ~explained & (dimension.codes >= 0)
    if not here.any() or not rest.any():
        return False
    counts = (int(correct[here].sum()), int(here.sum()), int(correct[rest].sum()), int(rest.sum()))
    drop = counts[2] / counts[3] - counts[0] / counts[1]
    return drop >= min_effect and fisher_exact(*counts, "less") <= LEVEL
