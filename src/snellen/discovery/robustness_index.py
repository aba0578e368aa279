"""Do images lie nearer to others of their class, or to others of their own site, scanner or background?

The robustness index (de Jong et al., 2025, made for pathology encoders and medical centres). Of each image's k nearest
neighbours in the model's features those of the same class and another confounder (SO) are counted against those of
another class and the same confounder (OS): R = SO / OS and RI = SO / (SO + OS). RI below 0.5 says that the confounder
orders the features more than the class does. Neighbours of the image's own group (patient, slide) do not count, and the
interval resamples whole groups.

Misleads as a statement about accuracy: a linear head may ignore what orders the neighbourhoods, so an RI near 0 can go
with a good model. The harm told here is therefore another figure: of the errors that a vote of the neighbours makes,
how many points come from voters that share the confounder, beyond their share among the images of that class. Where
class and confounder go together in the data, compare RI with its chance value, which needs no structure at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.discovery._neighbours import MOST_SAMPLES, drawn_ids, nearest, unit_rows
from snellen.discovery._robustness_index import (
    Codes,
    Kinds,
    chance_index,
    check_design,
    count_kinds,
    resampled_index,
    vote,
)
from snellen.discovery._robustness_index_report import (
    FEWEST,
    Measured,
    index_finding,
    index_grid,
    measured,
    short_finding,
)
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import Interval, bias_corrected_interval

__all__ = ["Index", "RobustnessIndex", "balanced_rows", "best_k", "robustness_index"]

KS = (1, 3, 5, 7, 9, 11, 21, 31, 41, 51)


class Index(NamedTuple):
    """ratio: R = SO / OS (inf when OS is 0). bounded: RI, 0 to 1. interval: of RI, 95 %. chance: RI of neighbours drawn
    at random. kinds: counts of each query. by_class: RI of the queries of each class code, nan where undefined.
    out_share: SO / (SO + OO), in_share: SS / (SS + OS), insensitivity: (SO + OO) / (SS + OS); nan or inf for 0."""

    ratio: float
    bounded: float
    interval: Interval
    chance: float
    k: int
    kinds: Kinds
    by_class: NDArray[np.float64]
    out_share: float
    in_share: float
    insensitivity: float


def robustness_index(
    embeddings: NDArray[np.floating],
    classes: NDArray[np.integer],
    confounder: NDArray[np.integer],
    k: int | None = 50,
    groups: NDArray[np.integer] | None = None,
    rng: np.random.Generator | None = None,
    resamples: int = 1000,
) -> Index:
    """R and RI of embeddings `[n, D]` (de Jong et al., 2025).

    classes, confounder: codes from 0 `[n]`. k: neighbours; None takes `best_k`. groups: `[n]`, -1 for none; neighbours
    of one's own group do not count, and groups are resampled for the interval. Raises `InvalidInput` for NaN or zero
    rows, unequal lengths, a single class or confounder, a class with one confounder only, too large a k, and where no
    neighbour decides (SO + OS = 0). Unbalanced cells shift RI: compare with `chance`, or see `balanced_rows`.
    """
    b, c = _codes("classes", classes, len(embeddings)), _codes("confounder", confounder, len(embeddings))
    g = None if groups is None else _codes("groups", groups, len(embeddings), least=-1)
    check_design(b, c)
    points = unit_rows(embeddings)
    k = best_k(points, b, g) if k is None else k
    kinds = count_kinds(nearest(points, k, g).rows, b, c, np.arange(len(b)))
    ss, so, os, oo = (int(count.sum()) for count in kinds)
    if so + os == 0:
        raise InvalidInput("the index is undefined: no neighbour differs in exactly one of class and confounder")
    drawn = resampled_index(kinds, g, rng or np.random.default_rng(0), resamples)
    by_class = np.full(int(b.max()) + 1, np.nan)
    for code in np.unique(b).tolist():
        here, total = kinds.so[b == code].sum(), (kinds.so + kinds.os)[b == code].sum()
        by_class[code] = here / total if total else np.nan
    return Index(
        _ratio(so, os), so / (so + os), bias_corrected_interval(so / (so + os), drawn), chance_index(b, c, g), k, kinds,
        by_class, _ratio(so, so + oo), _ratio(ss, ss + os), _ratio(so + oo, ss + os),
    )  # fmt: skip


def best_k(
    embeddings: NDArray[np.floating], classes: NDArray[np.integer], groups: NDArray[np.integer] | None = None
) -> int:
    """The k of 1, 3, ..., 51 whose neighbour vote has the best balanced accuracy, the smallest of equals.

    For a comparison of encoders take the median of their k.
    """
    b = _codes("classes", classes, len(embeddings))
    g = None if groups is None else _codes("groups", groups, len(embeddings), least=-1)
    largest = 1 if g is None or g.max() < 0 else int(np.bincount(g[g >= 0]).max())
    tried = [k for k in KS if k <= len(b) - largest] or [1]
    found = nearest(unit_rows(embeddings), tried[-1], g).rows

    def balanced_accuracy(k: int) -> float:
        right = vote(found[:, :k], b) == b
        return float(np.mean([right[b == code].mean() for code in np.unique(b)]))

    return max(tried, key=lambda k: (balanced_accuracy(k), -k))


def balanced_rows(
    classes: NDArray[np.integer], confounder: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of a subset with equally many images of every class and confounder value, ascending.

    Raises `InvalidInput` when a cell is empty: then take pairs of classes and values that are whole.
    """
    b, c = _codes("classes", classes, len(classes)), _codes("confounder", confounder, len(classes))
    cells = [np.flatnonzero((b == x) & (c == y)) for x in np.unique(b) for y in np.unique(c)]
    least = min(len(cell) for cell in cells)
    if least == 0:
        raise InvalidInput("every class must occur with every value of the confounder to be balanced")
    return np.sort(np.concatenate([rng.permutation(cell)[:least] for cell in cells]))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("inf") if part else float("nan")


def _codes(name: str, given: NDArray[np.integer], n: int, least: int = 0) -> Codes:
    codes = np.asarray(given)
    if codes.shape != (n,) or codes.dtype.kind not in "iu" or n == 0 or codes.min() < least:
        raise InvalidInput(f"{name} must be {n} integers from {least}, got {codes.dtype} {list(codes.shape)}")
    return codes.astype(np.int64)


@register
@dataclass(frozen=True)
class RobustnessIndex(ProbeBase):
    """The index of every categorical attribute (2 to 20 values) against the class, in the model's features.

    Columns: id, label, neighbours (row numbers in this table, nearest first; -1: too few images). Images whose features
    are not finite have no row. Value and `ci`: RI. Effect: points of accuracy that a vote of the k neighbours loses to
    voters with the image's own value, beyond their share in the class; p: values permuted within classes. It is the
    harm to the vote, not to the model.
    """

    name: ClassVar[str] = "discovery/robustness-index"
    paper: ClassVar[str] = "de Jong et al., 2025"
    card: ClassVar[str | None] = "robustness-index"
    access: ClassVar[Access] = Access.FEATURES
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    k: int = 20
    """Neighbours that count, at least 1; the paper's 50 is more than a class of a small set has."""
    kept: int = 100
    """Neighbours that are stored, at least k: those of one's own patient or slide fall away later."""
    permutations: int = 499
    """At least 99."""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("kept", self.k), ("permutations", 99)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        ids: list[str] = []
        labels: list[int] = []
        parts: list[NDArray[np.float32]] = []
        wanted = set(drawn_ids(tables["predictions"]["id"].to_pylist(), self.name))
        for batch in samples.batches():
            chosen = [place for place, name in enumerate(batch.ids) if name in wanted]
            if chosen:
                read = model.features(batch.images[chosen]).float().cpu().numpy()
                good = np.isfinite(read).all(axis=1) & (np.abs(read).max(axis=1) > 0)
                kept = [place for place, usable in zip(chosen, good.tolist(), strict=True) if usable]
                ids += [batch.ids[place] for place in kept]
                labels += batch.labels[kept].tolist()
                parts.append(read[good])
        order = sorted(range(len(ids)), key=ids.__getitem__)
        ids, labels = [ids[row] for row in order], [labels[row] for row in order]
        found = np.full((len(ids), 1), -1)  # too few for k neighbours
        if len(ids) > self.k:
            points = unit_rows(np.concatenate(parts)[order])
            found = nearest(points, min(self.kept, len(ids) - 1)).rows
        return rows(ids, label=np.array(labels, dtype=np.int64), neighbours=found.astype(np.int32))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=min(batch_size, MOST_SAMPLES))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0 or not context.attributes:
            return []
        if table.num_rows < FEWEST or self._too_few(table):
            return [short_finding(table.num_rows)]
        return [index_finding(one, self.k) for one in self._measured(table, context) if one.reported]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0 or self._too_few(table):
            return []
        found = self._measured(table, context)
        return [index_grid(found, self.k)] if found else []

    def _too_few(self, table: Rows) -> bool:
        return len(table["neighbours"][0]) < self.k

    def _measured(self, table: Rows, context: Context) -> list[Measured]:
        return measured(table, context, self.k, self.permutations, context.random(self.name))
