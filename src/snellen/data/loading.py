"""`load_dataset`: one name, and the reader that its form asks for."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from pathlib import Path

from fsspec import AbstractFileSystem, available_protocols

from snellen.data.archives import ArchiveFolder, is_archive
from snellen.data.coco import open_coco
from snellen.data.dataset import Dataset
from snellen.data.decode import BadImage
from snellen.data.files import expand, is_local, is_url, locate, suffix_of, without_secrets
from snellen.data.folders import StoredFolder, open_folder
from snellen.data.hugging_face import is_saved_dataset, open_saved
from snellen.data.parquet import one_split, open_parquet
from snellen.data.tables import TABLE_SUFFIXES, open_table
from snellen.data.web_dataset import open_shards
from snellen.errors import InvalidInput, SnellenError

ACCEPTED = (
    "'demo', a folder of images, a .csv, .tsv, .jsonl or .parquet file, COCO's .json, a .zip or .tar,"
    " hf:PATH:SPLIT, wds:PATTERN, each but hf: also as a URL such as s3://"
)


def load_dataset(name: str, *, label_column: str = "label") -> Dataset:
    """Open a labelled image set without decoding any image.

    name: "demo" (or "demo:train"); a folder or .zip or .tar with class sub-folders or a `metadata.csv`, `.jsonl` or
    `.parquet` (columns `file_name`, `label`, optional `mask_file_name`, all others are attributes); a table whose
    rows name images; Parquet files with an `image` column of encoded bytes, also as a pattern or a folder of shards;
    COCO annotations; "hf:PATH:SPLIT" for what `save_to_disk` wrote; "wds:PATTERN" for WebDataset shards. All but
    hf: lie on any file system that fsspec knows. Raises InvalidInput that says what was looked for.
    """
    try:
        dataset = _open(name, label_column)
    except BadImage as error:
        raise InvalidInput(f"data {without_secrets(name)!r} cannot be read: {error}") from error
    except SnellenError:
        raise
    except OSError as error:
        raise InvalidInput(
            f"data {without_secrets(name)!r} cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    except Exception as error:
        if not is_url(name):
            raise
        # Remote file systems have exceptions of their own, and their texts quote addresses.
        raise InvalidInput(f"data {without_secrets(name)!r} cannot be read: {type(error).__name__}") from error
    if len(dataset) == 0 and not dataset.quarantine:
        raise InvalidInput(f"data {without_secrets(name)!r} holds no images")
    return dataset


def _open(name: str, label_column: str) -> Dataset:
    scheme, _, rest = name.partition(":")
    if scheme == "demo":
        return _demo(name)
    if scheme == "hf" and not is_url(name):
        return open_saved(rest, label_column)
    if scheme == "wds":
        return open_shards(rest, label_column)
    if is_url(name) and scheme not in available_protocols() and "::" not in name:
        raise InvalidInput(f"data {without_secrets(name)!r} has an unknown scheme; give {ACCEPTED}")
    if not is_url(name) and rest and len(scheme) > 1 and not Path(name).exists():
        raise InvalidInput(f"data {name!r} has a scheme that is not read; give {ACCEPTED}")
    return _open_path(name, label_column)


def _open_path(name: str, label_column: str) -> Dataset:
    files, path = locate(name)
    suffix = suffix_of(path)
    if suffix == ".parquet" and not files.exists(path):
        found = expand(files, path)
        if found != [path] and found:
            one_split(found, without_secrets(name))
            return open_parquet(files, found, label_column)
    if not files.exists(path):
        raise InvalidInput(f"data {without_secrets(name)!r} does not exist; give {ACCEPTED}")
    # Over HTTP, to ask whether a file is a folder would fetch it; so what looks like a file is one.
    looks_like_file = suffix in (*TABLE_SUFFIXES, ".json") or is_archive(path)
    if not looks_like_file or not files.isfile(path):
        if files.isdir(path):
            return _open_folder(files, path, label_column)
    elif suffix == ".parquet":
        return open_parquet(files, [path], label_column)
    elif suffix in TABLE_SUFFIXES:
        return open_table(files, path, label_column)
    elif suffix == ".json":
        return open_coco(files, path)
    else:
        archive = ArchiveFolder(files, path)
        dataset = open_folder(archive, label_column)
        return replace(dataset, quarantine=(*archive.bad, *dataset.quarantine))
    raise InvalidInput(f"data file {posixpath.basename(without_secrets(path))!r} is of no known kind; give {ACCEPTED}")


def _open_folder(files: AbstractFileSystem, path: str, label_column: str) -> Dataset:
    if is_local(files) and is_saved_dataset(Path(path)):
        return open_saved(path, label_column)
    folder = StoredFolder(files, path)
    for shards in ("", "data/"):
        found = expand(files, f"{path.rstrip('/')}/{shards}*.parquet")
        if found and not folder.holds("metadata.parquet"):
            one_split(found, without_secrets(path))
            return open_parquet(files, found, label_column)
    return open_folder(folder, label_column)


def _demo(name: str) -> Dataset:
    from snellen.demo.digits import demo_images

    split = name.partition(":")[2] or "test"
    if split not in ("train", "test"):
        raise InvalidInput(f"demo data has the splits 'train' and 'test', got {split!r}")
    made = demo_images(split)
    return Dataset.from_arrays(
        made.images, made.labels, made.class_names, made.attributes, made.ids, f"demo:{split}", made.masks[:, 0] > 127
    )
