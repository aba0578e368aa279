"""Hugging Face data sets that `save_to_disk` wrote, memory-mapped."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from snellen.data.dataset import Dataset
from snellen.data.decode import BadImage
from snellen.data.files import stays_inside
from snellen.data.labelling import labelled, row_numbers
from snellen.data.parquet import bytes_of
from snellen.data.sources import EncodedImages
from snellen.data.tables import drop_present, need_columns
from snellen.errors import InvalidInput


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` made the folder: a data set, or one of several splits."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved(address: str, label_column: str) -> Dataset:
    """`PATH` or `PATH:SPLIT`. Images are found by feature type, and decoded by this package alone."""
    folder = _split_folder(address)
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput("data hf: needs the package datasets; pip install snellen[hf]") from error
    _check_shards(folder)
    try:
        saved = datasets.load_from_disk(str(folder))
        table: pa.Table = saved.data.table
    except Exception as error:  # the library raises whatever the damaged file provoked
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InvalidInput(f"the Hugging Face data set {folder.name!r} cannot be read: {said}") from error
    pictures = [name for name, feature in saved.features.items() if isinstance(feature, datasets.Image)]
    candidates = sorted((name for name in pictures if name != "mask"), key=lambda name: name != "image")
    if not candidates:
        raise InvalidInput(
            f"the Hugging Face data set {folder.name!r} has no column of the feature type Image; it has"
            f" {', '.join(f'{name} ({type(kind).__name__})' for name, kind in saved.features.items())}"
        )
    need_columns(folder.name, table.column_names, label_column)
    names = getattr(saved.features[label_column], "names", None)
    ids = pc.binary_join_element_wise(folder.name, row_numbers(table.num_rows), "/")
    if "id" in table.column_names:
        ids = pc.cast(table.column("id"), pa.string())
    return labelled(
        folder.name,
        drop_present(table, "id", *pictures),
        ids,
        label_column,
        _images(table.column(candidates[0]), folder),
        _images(table.column("mask"), folder) if "mask" in pictures else None,
        class_names=names,
    )


def _images(cells: pa.ChunkedArray, folder: Path) -> EncodedImages:
    """Cells with bytes, or with a path that does not leave the folder."""

    def read(position: int) -> bytes:
        cell = cells[position].as_py()
        path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else None
        if path is None:
            return bytes_of(cell)
        place = folder / str(path)
        if "\0" in path or not place.resolve().is_relative_to(folder.resolve()):
            raise BadImage("the image is stored as a path that leaves the data set's folder")
        return place.read_bytes()

    return EncodedImages(len(cells), read)


def _split_folder(address: str) -> Path:
    whole = Path(address).expanduser()
    path, _, split = (address, "", "") if whole.is_dir() else address.rpartition(":")
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise InvalidInput(
            f"data 'hf:{address}' is no folder on disk; save the data set with save_to_disk(PATH) and give"
            " hf:PATH:SPLIT, nothing is downloaded"
        )
    splits = _splits(folder)
    if splits and split not in splits:
        raise InvalidInput(f"data 'hf:{address}' needs one of the splits {', '.join(splits)}, as hf:{path}:{splits[0]}")
    if split and not splits:
        raise InvalidInput(f"data 'hf:{address}' has no splits; give hf:{path}")
    folder = folder / split
    if not (folder / "state.json").is_file():
        raise InvalidInput(f"data folder {folder.name!r} was not made by save_to_disk: it has no state.json")
    return folder


def _splits(folder: Path) -> list[str]:
    described = folder / "dataset_dict.json"
    if not described.is_file():
        return []
    named = _read_json(described).get("splits")
    splits = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return [name for name in splits if stays_inside(pa.array([name]))[0].as_py()]


def _check_shards(folder: Path) -> None:
    """Raises InvalidInput for a state that names Arrow files outside the folder."""
    listed = _read_json(folder / "state.json").get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [str(entry.get("filename", "")) if isinstance(entry, dict) else "" for entry in entries]
    if not names or not pc.all(stays_inside(pa.array(names))).as_py():
        raise InvalidInput(
            f"the Hugging Face data set {folder.name!r} names no data files, or files outside its folder"
        )


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
