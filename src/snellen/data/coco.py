"""COCO annotations as a labelled image set: an image is what its largest object is."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec import AbstractFileSystem

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.files import named_files, read_file, stays_inside, title_of
from snellen.data.labelling import labelled
from snellen.data.outlines import drawn_masks
from snellen.errors import InvalidInput

Entry = Mapping[str, Any]
"""One object of the JSON file; nothing in it is known to have its documented type."""

BOX = ("box_x", "box_y", "box_width", "box_height")


class _Sample(NamedTuple):
    """An image with its largest object. outline: the JSON that its mask is drawn from, None without segmentation."""

    file_name: str
    category: str
    box: tuple[float | None, ...]
    objects: int
    mixed: bool
    outline: bytes | None


def open_coco(files: AbstractFileSystem, path: str) -> Dataset:
    """One sample an image. The label is the category of the object with the largest area, the mask all of that
    category; attributes are its box in pixels and the number of objects. Crowd regions add to masks only.
    """
    pictures, annotations, categories = _sections(files, path)
    of_image: dict[object, list[Entry]] = {}
    for annotation in annotations:
        if isinstance(annotation.get("image_id"), int | str):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
    samples: list[_Sample] = []
    bad: list[Quarantined] = []
    names = [picture["file_name"] if isinstance(picture.get("file_name"), str) else "" for picture in pictures]
    inside = stays_inside(pa.array(names, pa.string())).to_pylist()
    for picture, name, good in zip(pictures, names, inside, strict=True):
        sample = _sample(name, picture, of_image.get(_key(picture), []), categories)
        if not good:
            bad.append(Quarantined(name, "the file name is empty or leaves the data folder"))
        elif sample is None:
            bad.append(Quarantined(name, "the image has no annotation with a known category"))
        else:
            samples.append(sample)
    return _dataset(files, path, samples, list(dict.fromkeys(categories.values())), bad)


def _sections(files: AbstractFileSystem, path: str) -> tuple[list[Entry], list[Entry], dict[object, str]]:
    name = posixpath.basename(path)
    try:
        content = json.loads(read_file(files, path))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not readable as JSON: {error}") from error
    needed = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in needed):
        raise InvalidInput(f"{name} is no COCO annotation file: it needs the lists {', '.join(needed)}")
    pictures, annotations, listed = (_entries(content[key]) for key in needed)
    named = [entry for entry in listed if isinstance(entry.get("id"), int | str) and "name" in entry]
    return pictures, annotations, {entry["id"]: str(entry["name"]) for entry in named}


def _entries(listed: list[object]) -> list[Entry]:
    return [entry for entry in listed if isinstance(entry, dict)]


def _key(picture: Entry) -> object:
    return picture["id"] if isinstance(picture.get("id"), int | str) else None


def _sample(name: str, picture: Entry, annotations: list[Entry], categories: dict[object, str]) -> _Sample | None:
    known = [entry for entry in annotations if isinstance(entry.get("category_id"), int | str)]
    known = [entry for entry in known if entry["category_id"] in categories]
    objects = [entry for entry in known if not entry.get("iscrowd")]
    if not objects:
        return None
    largest = max(objects, key=_area)
    category = categories[largest["category_id"]]
    same = [entry for entry in known if categories[entry["category_id"]] == category]
    box = _box(largest) or (None,) * len(BOX)
    mixed = len({entry["category_id"] for entry in objects}) > 1
    return _Sample(name, category, box, len(objects), mixed, _outline(picture, same))


def _area(annotation: Entry) -> float:
    if _is_number(annotation.get("area")):
        return float(annotation["area"])
    box = _box(annotation)
    return box[2] * box[3] if box else 0.0


def _box(annotation: Entry) -> tuple[float, ...] | None:
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == len(BOX) and all(_is_number(value) for value in box):
        return tuple(float(value) for value in box)
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _outline(picture: Entry, annotations: list[Entry]) -> bytes | None:
    """The segmentations as JSON: a hundred times smaller than the same as Python objects."""
    size = [picture.get("height"), picture.get("width")]
    parts = [entry["segmentation"] for entry in annotations if entry.get("segmentation")]
    if not parts or not all(isinstance(side, int) and side > 0 for side in size):
        return None
    return json.dumps({"size": size, "parts": parts}).encode()


def _dataset(
    files: AbstractFileSystem, path: str, samples: Sequence[_Sample], categories: list[str], bad: list[Quarantined]
) -> Dataset:
    used = {sample.category for sample in samples}
    class_names = [name for name in categories if name in used]
    index = {name: position for position, name in enumerate(class_names)}
    columns = {"label": pa.array([index[sample.category] for sample in samples], pa.int64())}
    for position, name in enumerate(BOX):
        columns[name] = pa.array([sample.box[position] for sample in samples], pa.float64())
    columns["objects"] = pa.array([sample.objects for sample in samples], pa.int64())
    names = pa.array([sample.file_name for sample in samples], pa.string())
    outlines = pa.array([sample.outline for sample in samples], pa.large_binary())
    mixed = sum(sample.mixed for sample in samples)
    note = f"{mixed} images hold objects of several categories; each is labelled by its object with the largest area"
    root = _image_folder(files, path, names[:20].to_pylist())
    return labelled(
        title_of(path),
        pa.table(columns),
        names,
        "label",
        named_files(files, root, names),
        drawn_masks(outlines) if outlines.null_count < len(outlines) else None,
        bad,
        class_names,
        (note,) if mixed else (),
    )


def _image_folder(files: AbstractFileSystem, path: str, names: list[str]) -> str:
    """The folder that holds some of the first names: beside the annotations, or as COCO itself is laid out."""
    beside, stem = posixpath.dirname(path), title_of(path)
    above = posixpath.dirname(beside)
    candidates = [beside, f"{beside}/images"]
    if posixpath.basename(beside) == "annotations":
        candidates += [f"{above}/{stem.rpartition('_')[2]}", f"{above}/images", above]
    found = (folder for folder in candidates if any(files.isfile(f"{folder}/{name}") for name in names))
    return next(found, beside)
