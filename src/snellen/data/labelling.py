"""From a table with a label column to a data set: class names, usable rows, attributes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.sources import ImageSource
from snellen.errors import InvalidInput


def labelled(
    name: str,
    table: pa.Table,
    ids: pa.Array | pa.ChunkedArray,
    label_column: str,
    images: ImageSource,
    masks: ImageSource | None = None,
    bad: Sequence[Quarantined] = (),
    class_names: Sequence[str] | None = None,
    warnings: tuple[str, ...] = (),
) -> Dataset:
    """Rows of `table` with a usable label and an id that comes first; the others go to the quarantine.

    ids: a string a row. images, masks: sources whose positions are the table's rows. class_names: when given, labels
    are these names or their indices; without, the names are the labels that occur, and the data set's classes are
    unnamed when all of them are integers. Plain columns other than the label become attributes.
    """
    codes, texts = _encoded(table.column(label_column), label_column)
    named = class_names is not None
    if class_names is None:
        present = {text for text in texts if text is not None}
        named = not all(text.isdecimal() for text in present)
        class_names = sorted(present) if named else sorted(present, key=int)
    else:
        texts = [_name_of(text, class_names) for text in texts]
    index = {class_name: position for position, class_name in enumerate(class_names)}
    label_of = np.array([index.get(text, -1) if text is not None else -1 for text in texts] + [-1], dtype=np.int64)
    labels = label_of[codes]

    ids = _array(pc.cast(ids, pa.string()))
    if ids.null_count:
        ids = pc.coalesce(ids, row_numbers(len(ids)))
    first = _comes_first(ids, labels >= 0)
    bad = [*bad, *_refused(ids, labels, codes, texts, first)]
    keep = np.flatnonzero(first)
    if len(keep) < len(labels):
        table, ids, labels = table.take(pa.array(keep)), ids.take(pa.array(keep)), labels[keep]
    columns = {"id": ids, "label": pa.array(labels, pa.int64())}
    for field in table.schema:
        if field.name not in (*columns, label_column) and _is_plain(field.type):
            columns[field.name] = table.column(field.name)
    return Dataset(name, pa.table(columns), tuple(class_names), images, keep, masks, tuple(bad), named, warnings)


def row_numbers(count: int, start: int = 0) -> pa.Array:
    """Eight digits a row, from `start`."""
    return pc.utf8_lpad(pa.array(np.arange(start, start + count)).cast(pa.string()), 8, "0")


def read_as_text(value: object) -> str | None:
    """A label as text: 3.0 is "3", what is missing, NaN or blank is None."""
    if value is None or value != value or str(value).strip() == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _encoded(column: pa.ChunkedArray, label_column: str) -> tuple[np.ndarray, list[str | None]]:
    """int64 codes `[N]`, -1 where there is none, and the text of each code."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        encoded = _array(column.dictionary_encode().unify_dictionaries())
    except pa.ArrowNotImplementedError as error:
        raise InvalidInput(
            f"the label column {label_column!r} holds {column.type}; labels are texts or integers, name another column"
            " with --label-column"
        ) from error
    if not pa.types.is_dictionary(encoded.type):  # a column of nulls only
        return np.full(len(encoded), -1, dtype=np.int64), []
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy()
    return codes, [read_as_text(value) for value in encoded.dictionary.to_pylist()]


def _name_of(text: str | None, class_names: Sequence[str]) -> str | None:
    return class_names[int(text)] if text is not None and text.isdecimal() and int(text) < len(class_names) else text


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _comes_first(ids: pa.Array, candidate: np.ndarray) -> np.ndarray:
    """Of the candidates, those whose id no earlier candidate has; bool `[N]`."""
    rows = np.flatnonzero(candidate)
    codes = ids.take(pa.array(rows)).dictionary_encode().indices.to_numpy()
    first = np.zeros(len(ids), dtype=bool)
    first[rows[np.unique(codes, return_index=True)[1]]] = True
    return first


def _refused(
    ids: pa.Array, labels: np.ndarray, codes: np.ndarray, texts: list[str | None], usable: np.ndarray
) -> list[Quarantined]:
    refused = []
    for row in np.flatnonzero(~usable):
        reason = "the same id comes twice; the first row was kept"
        if labels[row] < 0:
            label = texts[codes[row]] if codes[row] >= 0 else None
            reason = f"label {label!r} is missing or outside the classes"
        refused.append(Quarantined(ids[int(row)].as_py(), reason))
    return refused


def _is_plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_dictionary(kind)
    )
