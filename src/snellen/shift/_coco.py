"""Scenes from a COCO annotation file, decoded when they are asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._boxes import Objects, Scene

Segmentation = Sequence[Sequence[float]] | Mapping[str, object]
"""Polygons, or a run-length code."""


class _Annotation(TypedDict):
    image_id: int
    bbox: list[float]
    category_id: int
    iscrowd: int
    segmentation: Segmentation


class _Picture(TypedDict):
    id: int
    file_name: str
    height: int
    width: int


class CocoScenes(Sequence[Scene]):
    """A COCO folder as scenes: the layout of COCO, COCO-O's domains, BDD and Cityscapes conversions.

    annotations: the JSON file. images: the folder that file names start from. masks: also read segmentations, which
    needs pycocotools. Labels are COCO's category ids. Boxes without area are left out; `skipped` counts them. Raises
    InvalidInput for a file that is not COCO's.
    """

    def __init__(self, annotations: Path, images: Path, *, masks: bool = False) -> None:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        lacking = sorted({"images", "annotations", "categories"} - set(content))
        if lacking:
            raise InvalidInput(f"annotations must be a COCO file with images, annotations, categories; lacks {lacking}")
        self.folder, self.masks = images, masks
        self.categories: dict[int, str] = {entry["id"]: entry["name"] for entry in content["categories"]}
        self._pictures: list[_Picture] = content["images"]
        self._objects: dict[int, list[_Annotation]] = {picture["id"]: [] for picture in self._pictures}
        self.skipped = 0
        for annotation in content["annotations"]:
            if min(annotation["bbox"][2:]) > 0:
                self._objects[annotation["image_id"]].append(annotation)
            else:
                self.skipped += 1

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | Sequence[Scene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        picture = self._pictures[index]
        with Image.open(self.folder / picture["file_name"]) as file:
            pixels = np.asarray(file.convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        return Scene(str(picture["id"]), image, self._truth(self._objects[picture["id"]], *pixels.shape[:2]))

    def _truth(self, objects: Sequence[_Annotation], height: int, width: int) -> Objects:
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        labels = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.long)
        crowd = torch.tensor([bool(entry.get("iscrowd", 0)) for entry in objects], dtype=torch.bool)
        if not self.masks:
            return Objects(boxes, labels, crowd=crowd)
        drawn = [_mask(entry["segmentation"], height, width) for entry in objects]
        masks = torch.stack(drawn) if drawn else torch.zeros(0, height, width, dtype=torch.bool)
        return Objects(boxes, labels, masks, crowd)


def _mask(segmentation: Segmentation, height: int, width: int) -> Tensor:
    try:
        codec = importlib.import_module("pycocotools.mask")
    except ImportError as missing:
        raise InvalidInput("COCO masks need pycocotools: install the extra `snellen[detection]`") from missing
    if isinstance(segmentation, Mapping):
        code = segmentation
        if isinstance(code["counts"], list):
            code = codec.frPyObjects(code, height, width)
    else:
        code = codec.merge(codec.frPyObjects([list(part) for part in segmentation], height, width))
    return torch.from_numpy(codec.decode(code).astype(bool))
