"""What a WebDataset shard holds, from one pass over its headers: byte ranges, labels and attributes."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from tarfile import TarInfo
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from snellen.data.dataset import Quarantined
from snellen.data.files import leaves_folder
from snellen.data.labelling import read_as_text
from snellen.data.tar import tar_members

IMAGE_KINDS = {"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"}
MASK_KINDS = {"mask.png", "seg.png"}
MOST_TEXT_BYTES = 1 << 20
"""A larger label or description is not read."""

MOST_ATTRIBUTES = 256
"""Further keys of a shard's descriptions are left out."""

_ROWS_AT_ONCE = 10_000
_NAME = re.compile(r"^(?P<key>(?:.*/)?[^/.]+)\.(?P<kind>[^/]+)$")


class ShardIndex(NamedTuple):
    """N samples with an image. keys: base names. places: int64 `[N, 4]`, offset and size of image and mask, -1 where
    there is none. table: the label column (text) and one column an attribute. bad: ids without the shard's name, ""
    for the shard itself."""

    keys: pa.Array
    places: np.ndarray
    table: pa.Table
    bad: list[Quarantined]
    warnings: list[str]


def index_shard(files: AbstractFileSystem, path: str, label_column: str) -> ShardIndex:
    """Reads headers, `cls` and `json` members of an uncompressed tar. Raises InvalidInput for a compressed one."""
    index, damage = _Index(label_column), list[str]()
    with files.open(path, "rb") as stream:
        for member in tar_members(stream, path, damage):
            if not member.isdir():
                index.add(member, stream)
    found = index.finished()
    found.bad.extend(Quarantined("", reason) for reason in damage)
    found.warnings.extend(damage)
    return found


def join_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """One table below the other; a column that is text in one and a number in another becomes text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for column in (column for table in tables for column in table.schema if not pa.types.is_null(column.type)):
        kinds.setdefault(column.name, set()).add(column.type)
    texts = {name for name, types in kinds.items() if len(types) > 1 and types != {pa.int64(), pa.float64()}}
    return pa.concat_tables([_as_texts(table, texts) for table in tables], promote_options="permissive")


def _as_texts(table: pa.Table, names: set[str]) -> pa.Table:
    return table.cast(
        pa.schema([pa.field(kept.name, pa.string() if kept.name in names else kept.type) for kept in table.schema])
    )


@dataclass
class _Places:
    """Members of one kind: whose they are and where they lie."""

    keys: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, key: str, member: TarInfo) -> None:
        self.keys.append(key)
        self.numbers.extend((member.offset_data, member.size))

    def ranges(self) -> np.ndarray:
        return np.array(self.numbers, dtype=np.int64).reshape(-1, 2)


class _Index:
    def __init__(self, label_column: str) -> None:
        self._label_column = label_column
        self._images, self._masks = _Places(), _Places()
        self._texts: dict[str, list[str]] = {"key": [], "label": []}
        self._described: list[str] = []
        self._rows: list[dict[str, object]] = []
        self._tables: list[pa.Table] = []
        self._bad: list[Quarantined] = []
        self._left_out: set[str] = set()

    def add(self, member: TarInfo, stream: BinaryIO) -> None:
        name = member.name.removeprefix("./")
        safe = name.encode("utf-8", "backslashreplace").decode()
        if leaves_folder(name) or safe != name:
            self._bad.append(Quarantined(safe, "the name of the archive member leaves the archive or is not UTF-8"))
        elif not member.isreg() or member.issparse():
            self._bad.append(Quarantined(name, "the archive member is no regular file"))
        elif (parts := _NAME.match(name)) is not None:
            self._add_part(parts["key"], parts["kind"].lower(), member, stream)

    def _add_part(self, key: str, kind: str, member: TarInfo, stream: BinaryIO) -> None:
        if kind in IMAGE_KINDS:
            self._images.add(key, member)
        elif kind in MASK_KINDS:
            self._masks.add(key, member)
        elif kind in ("cls", "json"):
            if member.size > MOST_TEXT_BYTES:
                self._bad.append(Quarantined(key, f"its {kind} has {member.size:,} bytes, more than a label needs"))
                return
            stream.seek(member.offset_data)
            try:
                text = stream.read(member.size).decode()
                self._add_json(key, json.loads(text)) if kind == "json" else self._add_label(key, text)
            except (ValueError, RecursionError) as error:
                self._bad.append(Quarantined(key, f"its {kind} cannot be read: {error}"))

    def _add_label(self, key: str, text: str) -> None:
        self._texts["key"].append(key)
        self._texts["label"].append(text.strip())

    def _add_json(self, key: str, content: object) -> None:
        if not isinstance(content, dict):
            raise ValueError("it is no object with keys")
        plain = {name: value for name, value in content.items() if isinstance(value, str | int | float)}
        row: dict[str, object] = dict(plain)
        row[self._label_column] = read_as_text(row.get(self._label_column))
        self._described.append(key)
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        names = list(dict.fromkeys([self._label_column, *(name for row in self._rows for name in row)]))
        self._left_out.update(names[MOST_ATTRIBUTES:])
        columns = {name: _packed([row.get(name) for row in self._rows]) for name in names[:MOST_ATTRIBUTES]}
        self._tables.append(pa.table(columns))
        self._rows = []

    def finished(self) -> ShardIndex:
        self._pack()
        images = pa.array(self._images.keys, pa.string())
        table = join_rows(self._tables).take(_row_of(images, self._described))
        texts = pa.array(self._texts["label"], pa.string()).take(_row_of(images, self._texts["key"]))
        label = pc.coalesce(table.column(self._label_column).cast(pa.string()), texts)
        table = table.set_column(table.schema.get_field_index(self._label_column), self._label_column, label)

        mask_rows = pc.fill_null(_row_of(images, self._masks.keys), -1).to_numpy()
        masks = np.concatenate([self._masks.ranges(), [[-1, -1]]])[mask_rows]
        places = np.concatenate([self._images.ranges(), masks], axis=1)

        orphans = pa.array([*self._texts["key"], *self._described], pa.string()).unique()
        orphans = orphans.filter(pc.invert(pc.is_in(orphans, value_set=images))).to_pylist()
        bad = [*self._bad, *(Quarantined(key, "the sample has no image in a known format") for key in orphans)]
        left_out = len(self._left_out)
        notes = [f"{left_out} keys beyond the first {MOST_ATTRIBUTES} were left out"] if left_out else []
        return ShardIndex(images, places, table, bad, notes)


def _row_of(keys: pa.Array, among: list[str]) -> pa.Array:
    return pc.index_in(keys, value_set=pa.array(among, pa.string()))


def _packed(values: list[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # texts and numbers under one key, or a number beyond 64 bit
        return pa.array([None if value is None else str(value) for value in values], pa.string())
