"""Tables of attribute values by answers, one a true class: how strongly the answers depend on the attribute."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from snellen.errors import InvalidInput
from snellen.stats import benjamini_hochberg, exceedance_p_value

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

SAMPLES_A_COLUMN = 20
"""Below so many samples a column, chance alone makes V large."""


@dataclass(frozen=True)
class ClassDependence:
    """One class's table. v: Cramer's V; corrected_v: without its bias; p_value: permutation; q_value: over classes.

    share: the part of the class's answers that follow the attribute beyond chance (mean total variation between an
    attribute value's answers and the class's, less its mean under permutation). sparse: n < 20 x columns.
    """

    v: float
    corrected_v: float
    chi2: float
    dof: int
    n: int
    p_value: float
    q_value: float
    share: float
    sparse: bool


class ClassTables(NamedTuple):
    """Tables `[attribute values, answers]` by class, without empty rows and columns, and why others are left out."""

    usable: dict[str, Counts]
    skipped: dict[str, str]


def class_tables(labels: ArrayLike, predicted: ArrayLike, attribute: ArrayLike, min_count: int = 0) -> ClassTables:
    """One table a class seen with at least two attribute values; arguments as in `skewsize`."""
    y, p, z = (
        codes_of(values, name)
        for name, values in (("labels", labels), ("predicted", predicted), ("attribute", attribute))
    )
    if not len(y.codes) == len(p.codes) == len(z.codes) or len(y.codes) == 0:
        raise InvalidInput(
            "labels, predicted and attribute need one length above 0,"
            f" got {len(y.codes)}, {len(p.codes)} and {len(z.codes)}"
        )
    rows, columns = len(z.names), len(p.names)
    order = np.argsort(y.codes, kind="stable")
    bounds = np.searchsorted(y.codes[order], np.arange(len(y.names) + 1)).tolist()
    found = ClassTables({}, {})
    for name, (start, stop) in zip(y.names, itertools.pairwise(bounds), strict=True):
        here = order[start:stop]
        cells = np.bincount(z.codes[here] * columns + p.codes[here], minlength=rows * columns)
        table = cells.reshape(rows, columns)
        table = _merged(table[np.ix_(table.any(axis=1), table.any(axis=0))], min_count)
        if len(table) < 2:
            found.skipped[name] = "not identifiable: all its samples have one attribute value"
        else:
            found.usable[name] = table
    return found


def _merged(table: Counts, min_count: int) -> Counts:
    """The table with its columns of fewer than `min_count` samples in one column."""
    rare = table.sum(axis=0) < min_count
    if not rare.any():
        return table
    return np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)


def dependences(
    tables: Mapping[str, Counts], rng: np.random.Generator, permutations: int
) -> dict[str, ClassDependence]:
    """V, its corrected form and a permutation test of each class's table, with q-values over the classes."""
    p_values, by_chance = [], []
    for table in tables.values():
        drawn = shuffled(table, rng, permutations)
        p_values.append(exceedance_p_value(float(chi_square(table)), chi_square(drawn)))
        by_chance.append(float(answers_that_follow(drawn).mean()))
    found: dict[str, ClassDependence] = {}
    q_values = benjamini_hochberg(p_values).tolist()
    for (name, table), p, q, chance in zip(tables.items(), p_values, q_values, by_chance, strict=True):
        rows, columns = table.shape
        n = int(table.sum())
        found[name] = ClassDependence(
            v=float(cramers_v(table)),
            corrected_v=float(corrected_cramers_v(table)),
            chi2=float(chi_square(table)),
            dof=(rows - 1) * (columns - 1),
            n=n,
            p_value=p,
            q_value=q,
            share=float(answers_that_follow(table)) - chance,
            sparse=n < SAMPLES_A_COLUMN * columns,
        )
    return found


def shuffled(table: Counts, rng: np.random.Generator, permutations: int) -> Counts:
    """Tables `[permutations, r, c]` with the attribute shuffled over the class's samples.

    That is drawing tables with the same margins, so no sample need be touched (Patefield, 1981).
    """
    if 1 in table.shape:  # only one such table; scipy 1.17 returns wrong ones for a single column
        return np.broadcast_to(table, (permutations, *table.shape))
    drawn = distributions.random_table(table.sum(axis=1), table.sum(axis=0), seed=rng).rvs(permutations)
    return np.asarray(drawn).astype(np.int64)


def resampled(table: Counts, rng: np.random.Generator, resamples: int) -> Counts:
    """Tables `[resamples, r, c]` with the class's samples drawn anew, their number fixed."""
    n = table.sum()
    return rng.multinomial(n, (table / n).ravel(), size=resamples).reshape(resamples, *table.shape)


def chi_square(tables: Counts) -> Floats:
    """Pearson's statistic of tables `[..., r, c]`, without Yates' correction; empty rows and columns add nothing."""
    observed = tables.astype(float)
    rows, columns = observed.sum(axis=-1, keepdims=True), observed.sum(axis=-2, keepdims=True)
    expected = rows * columns / observed.sum(axis=(-2, -1), keepdims=True)
    return np.asarray(((observed - expected) ** 2 / np.where(expected > 0, expected, 1.0)).sum(axis=(-2, -1)))


def cramers_v(tables: Counts) -> Floats:
    """Cramer's V of tables `[..., r, c]`, in [0, 1]; 0 with one column: one answer for all cannot depend."""
    n, r, c = _sizes(tables)
    return np.asarray(np.sqrt(np.clip(chi_square(tables) / (n * np.maximum(np.minimum(r, c) - 1, 1)), 0.0, 1.0)))


def corrected_cramers_v(tables: Counts) -> Floats:
    """Cramer's V without its upward bias (Bergsma, 2013), in [0, 1]."""
    n, r, c = _sizes(tables)
    m = np.maximum(n - 1, 1)
    phi2 = np.maximum(chi_square(tables) / n - (r - 1) * (c - 1) / m, 0.0)
    span = np.minimum(r - (r - 1) ** 2 / m, c - (c - 1) ** 2 / m) - 1
    return np.where(span > 0, np.sqrt(np.clip(phi2 / np.where(span > 0, span, 1.0), 0.0, 1.0)), 0.0)


def answers_that_follow(tables: Counts) -> Floats:
    """Mean total variation between each row's answers and all answers, `[...]` of `[..., r, c]`, 0 to 1."""
    observed = tables.astype(float)
    n = observed.sum(axis=(-2, -1), keepdims=True)
    expected = observed.sum(axis=-1, keepdims=True) * observed.sum(axis=-2, keepdims=True) / n
    return np.asarray(np.abs(observed - expected).sum(axis=(-2, -1)) / (2 * n[..., 0, 0]))


def _sizes(tables: Counts) -> tuple[Floats, Floats, Floats]:
    """Samples, non-empty rows and non-empty columns of tables `[..., r, c]`."""
    n = tables.sum(axis=(-2, -1)).astype(float)
    rows = (tables.sum(axis=-1) > 0).sum(axis=-1).astype(float)
    columns = (tables.sum(axis=-2) > 0).sum(axis=-1).astype(float)
    return n, rows, columns


class Coded(NamedTuple):
    codes: Counts
    names: list[str]


def codes_of(values: ArrayLike, name: str) -> Coded:
    """Codes of integers or strings `[n]`, and what they stand for."""
    array = np.asarray(values)
    fractional = array.dtype.kind == "f" and not np.all(array == np.round(array))  # NaN is unequal to itself
    missing = array.dtype.kind == "O" and any(v is None or v != v for v in array.ravel())
    if array.ndim != 1 or array.dtype.kind not in "biufUSO" or fractional or missing:
        raise InvalidInput(
            f"{name} must be a list of integers or strings without missing values,"
            f" got {array.dtype} {list(array.shape)}"
        )
    whole = array.astype(np.int64) if array.dtype.kind == "f" else array
    names, codes = np.unique(whole.astype(str) if whole.dtype.kind == "O" else whole, return_inverse=True)
    return Coded(codes.reshape(-1).astype(np.int64), [str(value) for value in names])
