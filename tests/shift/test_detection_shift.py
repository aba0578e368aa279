"""The parts of the domain study that need no detector: the line, the rendered domains, the files, the components."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snellen.shift.detection import (
    Objects,
    Scene,
)
from snellen.shift.detection_shift import (
    DOMAINS,
    PAPER_LINE,
    CocoScenes,
    JudgedDetector,
    component_study,
    rendered_domain,
)


def coloured_scene() -> Scene:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 48, 64, generator=generator) * 0.3
    image[:, 10:30, 10:40] = torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
    return Scene("a", image, Objects(torch.tensor([[10.0, 10, 40, 30]]), torch.tensor([1])))


def test_effective_robustness_is_zero_on_the_line_and_linear_in_the_domains() -> None:
    assert PAPER_LINE.effective_robustness([0.4], [0.18])[0] == pytest.approx(0)
    heights = PAPER_LINE.effective_robustness([0.4, 0.4, 0.4], [0.2, 0.3, 0.4])
    assert np.diff(heights) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_rendered_domain_changes_the_picture_but_not_the_truth(domain: str) -> None:
    scene = coloured_scene()
    changed, again = (rendered_domain(scene, domain, 3) for _ in range(2))
    assert torch.equal(changed.image, again.image)
    assert changed.truth is scene.truth
    assert changed.image.shape == scene.image.shape
    assert changed.image.min() >= 0
    assert changed.image.max() <= 1
    assert float((changed.image - scene.image).abs().mean()) > 0.01


def test_components_are_compared_at_equal_clean_precision() -> None:
    detectors = [
        JudgedDetector(0.40 + 0.001 * k, 0.1 if k % 2 else 0.0, {"neck": "fpn" if k % 2 else "pan"}) for k in range(6)
    ]
    table = component_study([*detectors, JudgedDetector(0.6, 0.9, {"neck": "fpn"})]).to_pylist()
    assert [row["value"] for row in table] == ["fpn", "pan"]
    assert table[0]["paired"] == pytest.approx(0.1)
    assert table[0]["pairs"] == 9


def test_coco_files_are_read_as_scenes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 32), (255, 0, 0)).save(tmp_path / "a.png")
    square = {
        "id": 1,
        "image_id": 7,
        "bbox": [4, 6, 10, 12],
        "category_id": 18,
        "iscrowd": 0,
        "segmentation": [[4, 6, 14, 6, 14, 18, 4, 18]],
    }
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 32, "width": 40}],
        "annotations": [square, {**square, "id": 2, "bbox": [1, 1, 0, 5]}],
        "categories": [{"id": 18, "name": "dog"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    scenes = CocoScenes(tmp_path / "coco.json", tmp_path, masks=True)
    (scene,) = scenes
    assert scenes.categories == {18: "dog"}
    assert scenes.skipped == 1
    assert scene.truth.boxes.tolist() == [[4, 6, 14, 18]]
    assert scene.image[:, 0, 0].tolist() == [1, 0, 0]
    assert scene.truth.masks is not None
    assert int(scene.truth.masks.sum()) == 10 * 12
