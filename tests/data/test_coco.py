from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from snellen.data import Geometry, Loader, load_dataset
from snellen.data.outlines import _drawn
from snellen.errors import InvalidInput

OWN_SIZE = Geometry()
SQUARE = [2, 2, 10, 2, 10, 10, 2, 10]


def annotation(image: int, category: int, segmentation: object = None, **more: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": [2, 2, 8, 8], "segmentation": segmentation} | more


def write(root: Path, annotations: list[Any], names: list[Any] | None = None, folder: str = "") -> str:
    names = names or ["0.png", "1.png"]
    pictures = [{"id": row, "file_name": name, "width": 20, "height": 12} for row, name in enumerate(names)]
    categories = [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 9, "name": "owl"}]
    for row in range(2):
        place = root / folder / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (row, row, row)).save(place)
    content = {"images": pictures, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return str(root / "annotations.json")


@pytest.mark.parametrize("folder", ["", "images"])
def test_an_image_is_its_largest_object(tmp_path: Path, folder: str) -> None:
    annotations = [
        annotation(0, 1, area=50, bbox=[1, 2, 3.5, 4]),
        annotation(0, 3, area=40),
        annotation(0, 9, area=900, iscrowd=1),
        annotation(1, 3),
    ]
    dataset = load_dataset(write(tmp_path, annotations, folder=folder))
    assert dataset.class_names == ("dog", "cat")
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.table.drop_columns(["id", "label"]).to_pylist()[0] == {
        "box_x": 1.0,
        "box_y": 2.0,
        "box_width": 3.5,
        "box_height": 4.0,
        "objects": 2,
    }
    assert any(note.startswith("1 images hold objects of several categories") for note in dataset.warnings)
    assert len(Loader(dataset, Geometry((8, 8))).inspect().dataset) == 2


def test_cocos_own_layout(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write(tmp_path, [annotation(0, 1), annotation(1, 3)], folder="val2017")
    (tmp_path / "annotations.json").rename(tmp_path / "annotations/instances_val2017.json")
    dataset = load_dataset(str(tmp_path / "annotations/instances_val2017.json"))
    assert dataset.pixels(1, OWN_SIZE).float().mean() == 1


def test_a_polygon_covers_its_pixels(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, [annotation(0, 1, [SQUARE]), annotation(1, 3)]))
    mask = dataset.mask(0, OWN_SIZE)
    assert mask.shape == (12, 20)
    assert mask[2:10, 2:10].all()
    assert mask.sum() == 64
    assert not dataset.mask(1, OWN_SIZE).any()


def test_the_mask_is_the_union_of_the_categorys_objects_and_crowds(tmp_path: Path) -> None:
    crowd = {"size": [12, 20], "counts": [0, 12, 228]}
    annotations = [
        annotation(0, 1, [SQUARE], area=64),
        annotation(0, 1, [[12, 2, 16, 2, 16, 6, 12, 6]], area=16),
        annotation(0, 3, [[0, 0, 20, 0, 20, 12, 0, 12]], area=1),
        annotation(0, 1, crowd, iscrowd=1),
        annotation(1, 3),
    ]
    assert load_dataset(write(tmp_path, annotations)).mask(0, OWN_SIZE).sum() == 64 + 16 + 12


def test_masks_follow_the_images_geometry(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, [annotation(0, 1, [[0, 0, 10, 0, 10, 12, 0, 12]]), annotation(1, 3)]))
    mask = dataset.mask(0, Geometry((6, 6)))
    assert mask[:, :3].all()
    assert not mask[:, 3:].any()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_equal_those_of_pycocotools(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 20)) < 0.4
    packed = pycocotools.mask.encode(np.asfortranarray(mask))
    compressed = {"size": [12, 20], "counts": packed["counts"].decode()}
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    plain = {"size": [12, 20], "counts": np.diff([0, *edges, flat.size]).tolist()}
    assert np.array_equal(_drawn(compressed, 12, 20), mask)
    assert np.array_equal(_drawn(plain, 12, 20), mask)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_agree_with_pycocotools_up_to_their_edge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radii = rng.uniform(20, 45, 12)
    polygon = np.stack([50 + radii * np.cos(angles), 50 + radii * np.sin(angles)], axis=1).ravel().tolist()
    peer = pycocotools.mask.decode(pycocotools.mask.frPyObjects([polygon], 100, 100))[..., 0].astype(bool)
    ours = _drawn([polygon], 100, 100)
    assert (peer & ours).sum() / (peer | ours).sum() > 0.95


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3]],
        [["a"] * 6],
        [[float("nan")] * 6],
        {"size": [12, 20], "counts": [5]},
        {"size": [12, 20], "counts": [-1, 241]},
        {"size": [12, 20], "counts": "~~~~"},
        {"size": [12, 20], "counts": "P" * 100_000},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"counts": [1]},
        "drawing",
        7,
    ],
)
def test_a_damaged_segmentation_is_quarantined(tmp_path: Path, segmentation: object) -> None:
    dataset = load_dataset(write(tmp_path, [annotation(0, 1, segmentation), annotation(1, 3, [SQUARE])]))
    inspected = Loader(dataset, Geometry((8, 8))).inspect().dataset
    assert list(inspected.ids) == ["1.png"]
    assert "segmentation" in inspected.quarantine[0].reason


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", None, 3, "http://host/0.png"])
def test_file_names_that_leave_the_folder_are_quarantined(tmp_path: Path, name: object) -> None:
    dataset = load_dataset(write(tmp_path, [annotation(0, 1), annotation(1, 3)], [name, "1.png"]))
    assert list(dataset.ids) == ["1.png"]
    assert "leaves" in dataset.quarantine[0].reason


@pytest.mark.parametrize(
    "annotations",
    [
        [],
        [annotation(0, 77)],
        [annotation(0, 1, iscrowd=1)],
        [7, None, {"image_id": [], "category_id": {}}, {"image_id": 0}],
    ],
)
def test_images_without_a_usable_annotation_are_quarantined(tmp_path: Path, annotations: list[Any]) -> None:
    dataset = load_dataset(write(tmp_path, [*annotations, annotation(1, 3)]))
    assert list(dataset.ids) == ["1.png"]
    assert dataset.quarantine[0].id == "0.png"
    assert "no annotation" in dataset.quarantine[0].reason


@pytest.mark.parametrize("more", [{"bbox": None}, {"bbox": ["a"] * 4}, {"area": "big"}, {"bbox": [0, 0, 1e999, 1]}])
def test_damaged_boxes_and_areas_are_missing_values(tmp_path: Path, more: dict[str, object]) -> None:
    dataset = load_dataset(write(tmp_path, [annotation(0, 1, **more), annotation(1, 3)]))
    assert len(dataset) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": 1, "annotations": [], "categories": []}', "[" * 100_000]
)
def test_other_json_is_told_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"a\.json is no"):
        load_dataset(str(tmp_path / "a.json"))
