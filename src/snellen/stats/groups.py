"""Groups of samples by an attribute: categories as they are, numbers in quantile bins with readable names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.errors import InvalidInput


@dataclass(frozen=True)
class Grouping:
    """codes: int64 `[n]`, index into `names`, -1 where the attribute is missing. names: one a group."""

    codes: NDArray[np.int64]
    names: tuple[str, ...]


def attribute_groups(
    ids: pa.ChunkedArray, samples: pa.Table, attributes: Sequence[str], bins: int = 5
) -> dict[str, Grouping]:
    """The groups of each attribute, in the order of `ids` (a subset of the samples' ids, in any order).

    samples: a table with `id` and one column an attribute. An id that is not there raises `InvalidInput`.
    """
    rows = pc.index_in(ids, value_set=samples["id"])
    if rows.null_count:
        unknown = ids.filter(pc.is_null(rows))
        raise InvalidInput(
            f"ids must be ids of the samples; {len(unknown)} are not, for example {unknown[0].as_py()!r}"
        )
    return {attribute: _group_column(samples[attribute].take(rows), bins) for attribute in attributes}


def _group_column(column: pa.ChunkedArray, bins: int) -> Grouping:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pa.array([], column.type) if len(column) == 0 else column.combine_chunks()
    if pa.types.is_null(encoded.type):
        return Grouping(np.full(len(encoded), -1, dtype=np.int64), ())
    encoded = encoded.dictionary_encode()
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy()
    return _grouped(encoded.dictionary.to_pylist(), codes, bins)


def group_attribute(
    values: Sequence[object], bins: int = 5, max_numbers: int = 8, max_categories: int = 100
) -> Grouping:
    """Groups of an attribute's values `[n]`; None and NaN belong to no group.

    Numbers with more than `max_numbers` distinct values go into `bins` quantile bins named "12 to 30" (the upper end
    belongs to the next bin, for whole numbers it is the last one inside). Anything else is a category named by its
    text; of more than `max_categories` only the most frequent are kept, and the rest belongs to no group.
    """
    place: dict[tuple[type, object], int] = {}  # True, 1 and 1.0 are equal, but not the same text
    codes = np.array([place.setdefault((type(value), value), len(place)) for value in values], dtype=np.int64)
    return _grouped([value for _, value in place], codes, bins, max_numbers, max_categories)


def _grouped(
    distinct: Sequence[object],
    codes: NDArray[np.int64],
    bins: int,
    max_numbers: int = 8,
    max_categories: int = 100,
) -> Grouping:
    """distinct: the values that occur. codes: `[n]`, the index of each sample's value, -1 for none."""
    if bins < 2:
        raise InvalidInput(f"bins must be at least 2, got {bins}")
    known = [value for value in distinct if not _missing(value)]
    numeric = bool(known) and all(
        isinstance(v, (int, float, np.integer, np.floating)) and not isinstance(v, bool) for v in known
    )
    if numeric and len(set(known)) > max_numbers:
        numbers = np.array([*(math.nan if _missing(v) else float(str(v)) for v in distinct), math.nan])
        return _quantile_bins(numbers[codes], bins)
    return _categories(distinct, codes, numeric, max_categories)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value))


def _categories(distinct: Sequence[object], codes: NDArray[np.int64], numeric: bool, max_categories: int) -> Grouping:
    texts = [None if _missing(value) else _text(value) for value in distinct]
    occurrences = np.bincount(codes[codes >= 0], minlength=len(distinct)).tolist()
    counts: dict[str, int] = {}
    for text, count in zip(texts, occurrences, strict=True):
        if text is not None and count:
            counts[text] = counts.get(text, 0) + count
    kept = sorted(counts, key=lambda text: (-counts[text], text))[:max_categories]
    names = sorted(kept, key=float) if numeric else sorted(kept)
    code = {name: index for index, name in enumerate(names)}
    group_of = np.array([*(-1 if text is None else code.get(text, -1) for text in texts), -1], dtype=np.int64)
    return Grouping(group_of[codes], tuple(names))


def _text(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    return str(value)


def _quantile_bins(numbers: NDArray[np.float64], bins: int) -> Grouping:
    known = numbers[~np.isnan(numbers)]
    whole = bool(np.all(known == np.round(known)))
    low, high = float(known.min()), float(known.max())

    # Edges are rounded to about a hundredth of the range before binning, so that the names tell the truth.
    digits = 0 if whole else max(0, 2 - math.floor(math.log10(high - low)))
    step = 10.0**-digits
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    inner = np.quantile(known, np.arange(1, bins) / bins)
    inner = np.unique(np.round(np.ceil(inner) if whole else inner, digits))
    inner = inner[(inner > low) & (inner <= high)]
    if len(inner) == 0:  # one value holds nearly all the mass: that value against the others
        inner = np.array([known[known > low].min()])
    edges = [round(first, digits), *inner.tolist(), round(last, digits)]

    codes = np.searchsorted(inner, numbers, side="right").astype(np.int64)
    codes[np.isnan(numbers)] = -1
    names = [
        _range_name(start, stop, digits, whole and index < len(inner))
        for index, (start, stop) in enumerate(itertools.pairwise(edges))
    ]
    return Grouping(codes, tuple(names))


def _range_name(start: float, stop: float, digits: int, inclusive: bool) -> str:
    stop = stop - 1 if inclusive else stop
    first, last = f"{start:z.{digits}f}", f"{stop:z.{digits}f}"  # z: no "-0.0"
    return first if first == last else f"{first} to {last}"
