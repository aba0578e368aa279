"""`load_dataset`: a folder, a Parquet file or the demo becomes a `Dataset`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.sources import EncodedImages, ImageSource, ParquetColumn, file_images
from snellen.errors import InvalidInput

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
IGNORED_FILES = {"thumbs.db", "desktop.ini", "readme.md", "readme.txt"}


def load_dataset(name: str, *, label_column: str = "label") -> Dataset:
    """Open a labelled image set without decoding any image.

    name: "demo" (or "demo:train"), a folder with class sub-folders or a `metadata.csv`, `.jsonl` or `.parquet` (columns
    `file_name`, `label`, optional `mask_file_name`, all others are attributes), or a Parquet file with an `image`
    column of encoded bytes. Raises InvalidInput that says what was looked for.
    """
    if name == "demo" or name.startswith("demo:"):
        return _demo(name)
    if ":" in name and not Path(name).exists() and len(name.split(":", 1)[0]) > 1:
        raise InvalidInput(
            f"data {name!r} has a scheme this version does not read; give 'demo', a folder or a .parquet file"
        )
    path = Path(name).expanduser()
    if not path.exists():
        raise InvalidInput(f"data {name!r} does not exist; give 'demo', a folder of images or a .parquet file")
    if path.is_file():
        if path.suffix != ".parquet":
            raise InvalidInput(f"data file {name!r} is not a .parquet file; give the folder that holds the images")
        dataset = _parquet(path, label_column)
    else:
        metadata = next((path / known for known in METADATA_NAMES if (path / known).is_file()), None)
        dataset = _metadata(path, metadata, label_column) if metadata else _class_folders(path)
    if len(dataset) == 0 and not dataset.quarantine:
        raise InvalidInput(f"data {name!r} holds no images")
    return dataset


def _demo(name: str) -> Dataset:
    from snellen.demo.digits import demo_images

    split = name.partition(":")[2] or "test"
    if split not in ("train", "test"):
        raise InvalidInput(f"demo data has the splits 'train' and 'test', got {split!r}")
    made = demo_images(split)
    return Dataset.from_arrays(
        made.images, made.labels, made.class_names, made.attributes, made.ids, f"demo:{split}", made.masks[:, 0] > 127
    )


def _class_folders(root: Path) -> Dataset:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise InvalidInput(
            f"data folder {str(root)!r} has neither class sub-folders nor one of {', '.join(METADATA_NAMES)}"
        )
    splits = [folder.name for folder in folders if folder.name.casefold() in SPLIT_NAMES]
    if len(splits) == len(folders):
        raise InvalidInput(
            f"data folder {str(root)!r} holds splits ({', '.join(splits)}); give one, {root / splits[-1]}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if _may_be_image(path))
        paths.extend(found)
        labels.extend([label] * len(found))
    if not paths:
        raise InvalidInput(f"data folder {str(root)!r} holds no images: its {len(folders)} class sub-folders are empty")
    ids = [path.relative_to(root).as_posix() for path in paths]
    table = pa.table({"id": pa.array(ids, pa.string()), "label": pa.array(labels, pa.int64())})
    return Dataset(
        root.name, table, tuple(folder.name for folder in folders), file_images(paths), np.arange(len(paths))
    )


def _may_be_image(path: Path) -> bool:
    return not path.is_dir() and not path.name.startswith(".") and path.name.casefold() not in IGNORED_FILES


def _metadata(root: Path, metadata: Path, label_column: str) -> Dataset:
    table = _read_metadata(metadata, label_column)
    for needed in ("file_name", label_column):
        if needed not in table.column_names:
            raise InvalidInput(f"{metadata.name} has no column {needed!r}; it has {', '.join(table.column_names)}")
    names = [None if value is None else str(value) for value in table.column("file_name").to_pylist()]
    inside = [name is not None and _stays_inside(name) for name in names]
    bad = [
        Quarantined(str(name), "the file name is empty or leaves the data folder")
        for name, good in zip(names, inside, strict=True)
        if not good
    ]
    table = table.filter(pa.array(inside))
    ids = [name for name, good in zip(names, inside, strict=True) if good and name is not None]
    masks = None
    if "mask_file_name" in table.column_names:
        masks = _mask_files(root, table.column("mask_file_name").to_pylist())
        table = table.drop_columns(["mask_file_name"])
    table = table.drop_columns(["file_name"])
    return _labelled(root.name, table, ids, label_column, file_images([root / name for name in ids]), masks, bad)


def _read_metadata(path: Path, label_column: str) -> pa.Table:
    as_text = {label_column: pa.string(), "file_name": pa.string(), "mask_file_name": pa.string()}
    try:
        if path.suffix == ".csv":
            options = pa.csv.ConvertOptions(column_types=as_text, strings_can_be_null=True)
            return pa.csv.read_csv(path, convert_options=options)
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return pa.json.read_json(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(name.strip()) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def _mask_files(root: Path, names: Sequence[object]) -> EncodedImages:
    def read(position: int) -> bytes:
        name = names[position]
        if not isinstance(name, str) or not _stays_inside(name):
            raise FileNotFoundError(str(name))
        return (root / name).read_bytes()

    return EncodedImages(len(names), read)


def _parquet(path: Path, label_column: str) -> Dataset:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInput(f"data file {path.name!r} is not a readable Parquet file: {error}") from error
    for needed in ("image", label_column):
        if needed not in schema.names:
            raise InvalidInput(f"{path.name} has no column {needed!r}; it has {', '.join(schema.names)}")
    masks = None
    binary = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_struct(field.type)]
    table = pq.read_table(path, columns=[name for name in schema.names if name not in binary and name != "image"])
    if "mask" in binary:
        masks = EncodedImages(table.num_rows, ParquetColumn(path, "mask"))
    ids = [f"{path.stem}/{row:08d}" for row in range(table.num_rows)]
    if "id" in table.column_names:
        ids = [str(value) for value in table.column("id").to_pylist()]
        table = table.drop_columns(["id"])
    images = EncodedImages(table.num_rows, ParquetColumn(path, "image"))
    names = _hugging_face_names(schema, label_column)
    return _labelled(path.stem, table, ids, label_column, images, masks, [], names)


def _hugging_face_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]


def _labelled(
    name: str,
    table: pa.Table,
    ids: list[str],
    label_column: str,
    images: ImageSource,
    masks: ImageSource | None,
    bad: list[Quarantined],
    class_names: list[str] | None = None,
) -> Dataset:
    """Builds the data set from a metadata table; rows without a label and repeated ids go to the quarantine."""
    raw = table.column(label_column).to_pylist()
    attributes = table.drop_columns([label_column])
    raw = [_label_text(value) for value in raw]
    if class_names is None:
        present = {value for value in raw if value is not None}
        numeric = all(value.isdecimal() for value in present)
        class_names = sorted(present, key=int) if numeric else sorted(present)
        named = not numeric
    else:
        raw = [class_names[int(v)] if v is not None and v.isdecimal() and int(v) < len(class_names) else v for v in raw]
        named = True
    index = {value: position for position, value in enumerate(class_names)}
    keep, seen = [], set[str]()
    for row, (sample_id, label) in enumerate(zip(ids, raw, strict=True)):
        if label is None or label not in index:
            bad.append(Quarantined(sample_id, f"label {label!r} is missing or outside the classes"))
        elif sample_id in seen:
            bad.append(Quarantined(sample_id, "the same id comes twice; the first row was kept"))
        else:
            seen.add(sample_id)
            keep.append(row)
    columns = {
        "id": pa.array([ids[row] for row in keep], pa.string()),
        "label": pa.array([index[raw[row] or ""] for row in keep], pa.int64()),
    }
    kept = attributes.take(pa.array(keep, pa.int64()))
    usable = [column for column in kept.column_names if _is_plain(kept.schema.field(column).type)]
    columns.update({column: kept.column(column) for column in usable if column not in columns})
    return Dataset(
        name, pa.table(columns), tuple(class_names), images, np.array(keep, dtype=np.int64), masks, tuple(bad), named
    )


def _label_text(value: object) -> str | None:
    if value is None or value != value or str(value).strip() == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_dictionary(kind)
    )
