"""Parquet files with encoded images in a column; several files make one data set."""

from __future__ import annotations

import json
import posixpath
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from snellen.data.dataset import Dataset
from snellen.data.decode import BadImage
from snellen.data.files import distinct_stems, is_local, title_of
from snellen.data.labelling import labelled, row_numbers
from snellen.data.sources import EncodedImages
from snellen.data.tables import drop_present, need_columns, open_table
from snellen.errors import InvalidInput

SHARD_SPLIT = re.compile(r"^(?P<split>[\w.]+?)-\d+-of-\d+$")
"""`test-00000-of-00002`, as Hugging Face names the shards of a split."""

KEPT_BYTES = 64 << 20
"""Row groups kept for the next rows; one is kept whatever its size."""


def open_parquet(files: AbstractFileSystem, paths: Sequence[str], label_column: str) -> Dataset:
    """Image bytes in the column `image` (binary, or a struct with `bytes`), object masks in `mask`.

    A single file whose `image` column is text names images in other files.
    """
    with _opened(files, paths[0]) as first:
        schema: pa.Schema = first.schema_arrow
    names_files = "image" not in schema.names or schema.field("image").type in (pa.string(), pa.large_string())
    if len(paths) == 1 and names_files:
        return open_table(files, paths[0], label_column)
    plain = [field.name for field in schema if field.name != "image" and not _holds_bytes(field.type)]
    shards = [_read_shard(files, path, plain, label_column) for path in paths]
    counts = [shard.group_sizes for shard in shards]
    table = _one_table(paths, [shard.plain for shard in shards])
    ids = table.column("id") if "id" in table.column_names else _ids(paths, [int(sizes.sum()) for sizes in counts])
    images = EncodedImages(table.num_rows, ParquetColumn(files, paths, counts, "image"))
    masks = None
    if "mask" in schema.names and "mask" not in plain:
        masks = EncodedImages(table.num_rows, ParquetColumn(files, paths, counts, "mask"))
    title = title_of(paths[0]) if len(paths) == 1 else posixpath.basename(posixpath.dirname(paths[0]))
    names = class_names_in(schema, label_column)
    return labelled(title, drop_present(table, "id"), ids, label_column, images, masks, class_names=names)


def one_split(paths: Sequence[str], where: str) -> None:
    """Raises InvalidInput when shards of several splits would be mixed."""
    stems = [SHARD_SPLIT.match(posixpath.splitext(posixpath.basename(path))[0]) for path in paths]
    splits = sorted({stem["split"] for stem in stems if stem})
    if len(splits) > 1:
        raise InvalidInput(
            f"data {where!r} holds Parquet shards of the splits {', '.join(splits)}; give one as a pattern,"
            f" {posixpath.dirname(paths[0])}/{splits[0]}-*.parquet"
        )


def class_names_in(schema: pa.Schema, label_column: str) -> list[str] | None:
    """The names that a Hugging Face schema gives the label column, None when it gives none."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"][label_column]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None


class _Shard(NamedTuple):
    """The columns of one file without pixels, and how many rows each of its row groups has."""

    plain: pa.Table
    group_sizes: np.ndarray


class ParquetColumn:
    """Reads one binary cell at a time, keeping the last row groups used; safe for several threads."""

    def __init__(
        self, files: AbstractFileSystem, paths: Sequence[str], group_sizes: Sequence[np.ndarray], column: str
    ) -> None:
        self._arguments = (files, paths, group_sizes, column)
        self._paths = paths
        self._column = column
        self._open = lru_cache(maxsize=8)(lambda path: _opened(files, path))
        self._file_of_group = np.repeat(np.arange(len(paths)), [len(sizes) for sizes in group_sizes])
        self._first_group = np.concatenate([[0], np.cumsum([len(sizes) for sizes in group_sizes])])
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(group_sizes))])
        self._groups: dict[int, pa.ChunkedArray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ParquetColumn], tuple[object, ...]]:
        return ParquetColumn, self._arguments  # a copy in another process opens files of its own

    def __call__(self, position: int) -> bytes:
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        with self._lock:
            if group not in self._groups:
                self._keep(group)
            cells = self._groups[group]
        return bytes_of(cells[position - int(self._starts[group])].as_py())

    def _keep(self, group: int) -> None:
        file = int(self._file_of_group[group])
        try:
            read = self._open(self._paths[file])
            cells = read.read_row_group(group - int(self._first_group[file]), columns=[self._column]).column(0)
        except (pa.ArrowException, OSError, InvalidInput) as error:
            raise BadImage(f"its part of the Parquet file cannot be read: {type(error).__name__}") from error
        self._groups[group] = cells
        while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > KEPT_BYTES:
            self._groups.pop(next(iter(self._groups)))


def bytes_of(cell: object) -> bytes:
    """The encoded image of a cell: bytes, or a struct with `bytes`. Raises FileNotFoundError when there are none."""
    value = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(value, bytes):
        raise FileNotFoundError("the cell has no image bytes")
    return value


def _opened(files: AbstractFileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path if is_local(files) else files.open(path, "rb"))
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"data file {posixpath.basename(path)!r} is not a readable Parquet file: {type(error).__name__}"
        ) from error


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind))


def _read_shard(files: AbstractFileSystem, path: str, plain: list[str], label_column: str) -> _Shard:
    with _opened(files, path) as shard:
        need_columns(posixpath.basename(path), shard.schema_arrow.names, "image", label_column)
        try:
            table = shard.read(columns=[name for name in plain if name in shard.schema_arrow.names])
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(
                f"data file {posixpath.basename(path)!r} is damaged: {str(error).splitlines()[0]}"
            ) from error
        groups = range(shard.num_row_groups)
        return _Shard(table, np.array([shard.metadata.row_group(group).num_rows for group in groups], dtype=np.int64))


def _one_table(paths: Sequence[str], tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InvalidInput(
            f"the Parquet files {posixpath.basename(paths[0])!r} to {posixpath.basename(paths[-1])!r} have columns that"
            f" do not fit together: {str(error).splitlines()[0]}"
        ) from error


def _ids(paths: Sequence[str], counts: Sequence[int]) -> pa.ChunkedArray:
    stems = distinct_stems(paths)
    return pa.chunked_array(
        [pc.binary_join_element_wise(stem, row_numbers(count), "/") for stem, count in zip(stems, counts, strict=True)],
        pa.string(),
    )
