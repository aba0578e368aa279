"""Folders of images, on any file system or inside an archive: class sub-folders, or a metadata table."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.files import is_local, named_files, read_file, stays_inside
from snellen.data.labelling import labelled
from snellen.data.sources import EncodedImages
from snellen.data.tables import drop_present, need_columns, parse_table
from snellen.errors import InvalidInput

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
IGNORED_FILES = {"thumbs.db", "desktop.ini", "readme.md", "readme.txt"}


class Listing(NamedTuple):
    """names: the files below a folder, relative to it. bad: entries whose names or kinds cannot be used."""

    names: pa.Array
    bad: list[Quarantined]


class Folder(Protocol):
    """A tree of files with relative names."""

    name: str

    def holds(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def subfolders(self) -> list[str]: ...
    def listing(self) -> Listing: ...
    def images(self, names: pa.Array | pa.ChunkedArray) -> EncodedImages:
        """Images by name; null stands for no file."""
        ...


class StoredFolder:
    """A folder on an fsspec file system."""

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")
        self.name = posixpath.basename(self._root)

    def holds(self, name: str) -> bool:
        return bool(self._files.isfile(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        return read_file(self._files, f"{self._root}/{name}")

    def subfolders(self) -> list[str]:
        entries = self._files.ls(self._root, detail=True)
        return sorted(posixpath.basename(e["name"].rstrip("/")) for e in entries if self._is_folder(e))

    def _is_folder(self, entry: dict[str, object]) -> bool:
        path = str(entry["name"])
        return entry["type"] == "directory" or (bool(entry.get("islink")) and os.path.isdir(path))

    def listing(self) -> Listing:
        names, bad = [], []
        for name in self._walk() if is_local(self._files) else self._find():
            try:
                name.encode()
                names.append(name)
            except UnicodeEncodeError:
                bad.append(Quarantined(ascii(name), "the file name is not valid UTF-8"))
        return Listing(pa.array(names, pa.string()), bad)

    def _walk(self) -> Iterator[str]:
        # Ten times as fast as the `find` of fsspec, which asks for the details of every file.
        for top in self.subfolders():
            for folder, _, files in os.walk(f"{self._root}/{top}"):
                relative = folder[len(self._root) + 1 :]
                yield from (f"{relative}/{file}" for file in files)

    def _find(self) -> Iterator[str]:
        yield from (
            path.lstrip("/")[len(self._root.lstrip("/")) :].lstrip("/") for path in self._files.find(self._root)
        )
        self._files.invalidate_cache()  # it would keep the details of every file

    def images(self, names: pa.Array | pa.ChunkedArray) -> EncodedImages:
        return named_files(self._files, self._root, names)


def open_folder(folder: Folder, label_column: str) -> Dataset:
    """A folder with a metadata table, else with class sub-folders."""
    metadata = next((known for known in METADATA_NAMES if folder.holds(known)), None)
    return _metadata(folder, metadata, label_column) if metadata else _class_folders(folder)


def _class_folders(folder: Folder) -> Dataset:
    classes = [name for name in folder.subfolders() if not name.startswith(".")]
    if not classes:
        raise InvalidInput(
            f"data folder {folder.name!r} has neither class sub-folders nor one of {', '.join(METADATA_NAMES)}"
        )
    splits = [name for name in classes if name.casefold() in SPLIT_NAMES]
    if len(splits) == len(classes):
        raise InvalidInput(f"data folder {folder.name!r} holds splits ({', '.join(splits)}); give one of these folders")
    names, bad = folder.listing()
    names = names.filter(_may_be_image(names))
    names = names.take(pc.sort_indices(names))
    top = pc.struct_field(pc.extract_regex(names, r"^(?P<top>[^/]+)/"), "top")
    labels = pc.index_in(top, value_set=pa.array(classes))
    names, labels = names.filter(pc.is_valid(labels)), labels.drop_null()
    if not len(names) and not bad:
        raise InvalidInput(
            f"data folder {folder.name!r} holds no images: its {len(classes)} class sub-folders are empty"
        )
    table = pa.table({"label": labels})
    return labelled(folder.name, table, names, "label", folder.images(names), None, bad, classes)


def _may_be_image(names: pa.Array) -> pa.Array:
    base = pc.utf8_lower(pc.replace_substring_regex(names, r"^.*/", ""))
    return pc.and_not(pc.invert(pc.starts_with(base, ".")), pc.is_in(base, value_set=pa.array(sorted(IGNORED_FILES))))


def _metadata(folder: Folder, metadata: str, label_column: str) -> Dataset:
    table = parse_table(folder.read(metadata), metadata, label_column)
    need_columns(metadata, table.column_names, "file_name", label_column)
    inside = stays_inside(pc.cast(table.column("file_name"), pa.string()))
    bad = [
        Quarantined(str(name), "the file name is empty or leaves the data folder")
        for name in table.column("file_name").filter(pc.invert(inside)).to_pylist()
    ]
    table = table.filter(inside)
    names = pc.cast(table.column("file_name"), pa.string())
    masks = None
    if "mask_file_name" in table.column_names:
        mask_names = pc.cast(table.column("mask_file_name"), pa.string())
        masks = folder.images(pc.if_else(stays_inside(mask_names), mask_names, pa.scalar(None, pa.string())))
    table = drop_present(table, "file_name", "mask_file_name")
    return labelled(folder.name, table, names, label_column, folder.images(names), masks, bad)
