"""Exact nearest neighbours by cosine, in chunks so that memory stays bounded, with ties broken by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.randomness import derive_seed

MOST_SAMPLES = 20_000
"""Of a larger set a random subset is read: the search compares every image with every other."""
CHUNK_CELLS = 10_000_000
"""Similarities held at a time: 40 MB."""

Codes = NDArray[np.int64]
Points = NDArray[np.float32]


class Neighbours(NamedTuple):
    """rows: int64 `[n, k]`, nearest first. similarity: cosine, float32 `[n, k]`, rounded to 1e-6."""

    rows: Codes
    similarity: NDArray[np.float32]


def drawn_ids(ids: Sequence[str], purpose: str, most: int = MOST_SAMPLES) -> list[str]:
    """At most `most` ids, sorted; which ones follows from the hash of the id and not from the order."""
    if len(ids) <= most:
        return sorted(ids)
    rank = np.array([derive_seed(purpose, "subset", name) for name in ids])
    return sorted(ids[place] for place in np.argpartition(rank, most)[:most].tolist())


def unit_rows(points: NDArray[np.floating]) -> Points:
    """Rows of length 1, float32 `[n, D]`. Raises `InvalidInput` for NaN, infinite or all-zero rows."""
    if points.ndim != 2 or not np.isfinite(points).all():
        raise InvalidInput(
            f"embeddings must be finite numbers [n, D], got {list(points.shape)} or NaN or infinite rows"
        )
    # A row scaled by its largest number first: squares of 1e30 would not be finite.
    largest = np.abs(points).max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    if (largest == 0).any():
        raise InvalidInput(f"embeddings must not be zero, row {int(np.flatnonzero(largest[:, 0] == 0)[0])} is")
    scaled = points / largest
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float32)


def nearest(points: Points, k: int, groups: Codes | None = None, queries: Points | None = None) -> Neighbours:
    """The k nearest other rows of each row of unit length; never one of the row's own group.

    points: `[n, D]` from `unit_rows`. groups: int64 `[n]`, -1 for a row that is a group of its own. queries: `[n, D]`,
    what is sought in place of each row, for example its mirror image; None for the row itself. Raises `InvalidInput`
    when a row has fewer than k permitted neighbours.
    """
    n = len(points)
    permitted = n - 1
    if groups is not None and (groups >= 0).any():
        permitted = n - int(np.bincount(groups[groups >= 0]).max())
    if not 1 <= k <= permitted:
        raise InvalidInput(f"k must be at least 1 and at most the {permitted} permitted neighbours, got {k}")
    sought = points if queries is None else queries
    index = np.empty((n, k), dtype=np.int64)
    similarity = np.empty((n, k), dtype=np.float32)
    step = max(1, CHUNK_CELLS // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        # Rounded, or the last bit of a matrix product would order equal points.
        near = np.round(sought[rows] @ points.T, 6)
        near[np.arange(len(rows)), rows] = -np.inf
        if groups is not None:
            near[(groups[rows, None] == groups) & (groups[rows, None] >= 0)] = -np.inf
        index[rows], similarity[rows] = _first(near, k)
    return Neighbours(index, similarity)


def _first(near: NDArray[np.float32], k: int) -> tuple[Codes, NDArray[np.float32]]:
    """Columns `[c, k]` of the k largest, of equal ones the leftmost, and their values."""
    columns = np.argpartition(-near, k - 1, axis=1)[:, :k]
    worst = np.take_along_axis(near, columns, axis=1).min(axis=1)
    for row in np.flatnonzero((near >= worst[:, None]).sum(axis=1) > k).tolist():
        reached = np.flatnonzero(near[row] >= worst[row])
        columns[row] = reached[np.argsort(-near[row, reached], kind="stable")[:k]]
    values = np.take_along_axis(near, columns, axis=1)
    order = np.lexsort((columns, -values), axis=1)
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
