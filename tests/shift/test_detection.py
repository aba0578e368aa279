"""The corruption grid, the transfers and the domains, on a detector that needs no training."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.shift.detection import (
    Detections,
    DetectionSettings,
    Objects,
    Overlap,
    Scene,
    compare_factors,
    corruption_grid,
    normalisation_shift,
    resized,
    resolution_curve,
    transfer,
)
from snellen.shift.detection_shift import (
    domain_shift,
    fit_detection_line,
    rendered_domain,
)

SIDE = 48


def filled(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def scene_of(seed: int, side: int = SIDE) -> Scene:
    """Bright rectangles on dark noise, brightness by class."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 4.0, 20.0, 18.0], [24.0, 22.0, 44.0, 40.0]])
    labels = torch.randint(1, 3, (2,), generator=generator)
    image = torch.rand(3, side, side, generator=generator) * 0.1
    for mask, label in zip(filled(boxes), labels.tolist(), strict=True):
        image[:, mask] = 0.4 + 0.25 * label
    return Scene(f"scene {seed}", image, Objects(boxes, labels, filled(boxes)))


SCENES = [scene_of(seed) for seed in range(8)]


def threshold_detector(images: list[Tensor]) -> list[Mapping[str, Tensor]]:
    """Finds the two rectangles wherever the image is bright enough: a detector that corruption can hurt."""
    answers: list[Mapping[str, Tensor]] = []
    for image in images:
        scale = image.shape[-1] / SIDE
        regions = [(0, 0, 22, 20), (22, 20, 48, 44)]
        boxes, labels, scores, masks = [], [], [], []
        for left, top, right, bottom in ((round(v * scale) for v in region) for region in regions):
            bright = torch.zeros(image.shape[-2:], dtype=torch.bool)
            bright[top:bottom, left:right] = image.mean(dim=0)[top:bottom, left:right] > 0.3
            if not bright.any():
                continue
            y, x = torch.nonzero(bright, as_tuple=True)
            boxes.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float())
            level = float(image.mean(dim=0)[bright].mean())
            labels.append(1 if level < 0.77 else 2)
            scores.append(min(level, 1.0))
            masks.append(bright[None])
        empty = torch.zeros(0, 1, *image.shape[-2:], dtype=torch.bool)
        answers.append({
            "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
            "labels": torch.tensor(labels, dtype=torch.long),
            "scores": torch.tensor(scores),
            "masks": torch.stack(masks) if masks else empty,
        })  # fmt: skip
    return answers


@pytest.mark.parametrize("overlap", ["box", "mask"])
def test_severity_zero_everywhere_changes_nothing(overlap: Overlap) -> None:
    grid = corruption_grid(threshold_detector, SCENES, DetectionSettings(overlap), ("fog", "contrast"), (0.0,))
    assert grid.mpc().value == grid.clean.summary.ap > 0.5
    assert grid.rpc() == (1, 1, 1)
    degradation = grid.degradation("fog").value
    assert degradation == pytest.approx(1) if grid.clean.summary.ap < 1 else math.isnan(degradation)


def test_corruption_costs_precision_and_its_interval_holds_the_estimate() -> None:
    grid = corruption_grid(threshold_detector, SCENES, None, ("contrast", "gaussian_noise", "fog"), (1.0, 5.0))
    assert grid.ap.shape == (3, 2)
    assert len(grid.table) == 7
    rpc = grid.rpc()
    assert 0 <= rpc.low <= rpc.value <= rpc.high
    assert rpc.value < 0.98
    assert grid.mpc().value == pytest.approx(float(grid.ap.mean()))
    assert not any(grid.table["enough_data"].to_pylist())  # eight images


def test_the_grid_does_not_depend_on_the_batch_size() -> None:
    first, second = (
        corruption_grid(threshold_detector, SCENES, DetectionSettings(batch_size=size), ("snow",), (3.0,))
        for size in (1, 5)
    )
    assert str(first.table.to_pylist()) == str(second.table.to_pylist())  # NaN differs from itself


def test_every_condition_is_predicted_once() -> None:
    seen = 0

    def counting(images: list[Tensor]) -> list[Mapping[str, Tensor]]:
        nonlocal seen
        seen += len(images)
        return threshold_detector(images)

    corruption_grid(counting, SCENES, None, ("contrast", "fog"), (1.0, 2.0))
    assert seen == len(SCENES) * (1 + 2 * 2)


def test_a_detector_does_not_differ_from_itself() -> None:
    grid, other = (
        corruption_grid(detector, SCENES, None, ("contrast",), (3.0,))
        for detector in (threshold_detector, lambda images: threshold_detector([(i * 3).clamp(0, 1) for i in images]))
    )
    table = compare_factors({"none": (grid, grid), "gain": (grid, other)}).to_pylist()
    assert (table[0]["difference"], table[0]["p_value"]) == (0, 1)
    assert table[1]["q_value"] >= table[1]["p_value"]
    short = corruption_grid(threshold_detector, SCENES[:5], None, ("contrast",), (3.0,))
    with pytest.raises(InvalidInput, match="same scenes"):
        compare_factors({"data": (grid, short)})


def test_resizing_moves_boxes_and_masks_with_the_image() -> None:
    scene = resized(SCENES[0], 2.0)
    assert scene.image.shape == (3, 96, 96)
    assert torch.equal(scene.truth.boxes, SCENES[0].truth.boxes * 2)
    assert scene.truth.masks is not None
    assert SCENES[0].truth.masks is not None
    doubled = SCENES[0].truth.masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(scene.truth.masks, doubled)
    table = resolution_curve(threshold_detector, SCENES, None, (1.0, 2.0)).to_pydict()
    assert table["scale"] == [1, 2]
    assert table["ap"][0] > 0.9


def test_transfer_judges_shared_classes_under_the_other_names() -> None:
    renamed = [replace(s, truth=replace(s.truth, labels=s.truth.labels + 10)) for s in SCENES]
    result = transfer(threshold_detector, SCENES, renamed, {1: 11, 2: 12})
    assert result.ratio.value == pytest.approx(1)
    assert result.abroad.value == pytest.approx(result.home.value)
    only = transfer(threshold_detector, SCENES, renamed, {2: 12})
    assert only.ratio.value == pytest.approx(1)
    with pytest.raises(InvalidInput, match="one to one"):
        transfer(threshold_detector, SCENES, renamed, {1: 11, 2: 11})


def test_group_norm_does_not_look_at_the_batch_and_batch_norm_in_training_does() -> None:
    images = torch.rand(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    group, batch = nn.GroupNorm(2, 4).eval(), nn.BatchNorm2d(4).train()
    assert torch.allclose(group(images[:1]), group(images)[:1], atol=1e-6)
    assert not torch.allclose(batch(images[:1]), batch(images)[:1], atol=1e-2)


def test_normalisation_shift_is_zero_without_a_shift_and_grows_with_it() -> None:
    images = [scene.image for scene in SCENES]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def feed(batch: list[Tensor]) -> list[Mapping[str, Tensor]]:
        network(torch.stack(batch))
        return []

    network.eval()
    same = normalisation_shift(network, images, images, feed).to_pydict()
    assert same["divergence"][0] == pytest.approx(0, abs=1e-9)
    assert same["stored"] == [False, True]
    grown = [
        normalisation_shift(network, images, [(i + lift).clamp(0, 1) for i in images], feed)["divergence"][0].as_py()
        for lift in (0.1, 0.4)
    ]
    assert 0 < grown[0] < grown[1]


def test_a_torchvision_segmenter_fits_the_protocol() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
        ).eval()
    grid = corruption_grid(network, SCENES[:1], DetectionSettings("mask", resamples=20), ("contrast",), (5.0,))
    assert 0 <= grid.mpc().value <= 1
    kinds = normalisation_shift(network, [SCENES[0].image], [SCENES[0].image * 0.2])["kind"].to_pylist()
    assert kinds.count("BatchNorm2d") == 53


def test_identity_domain_drops_nothing_and_empty_masks_are_counted() -> None:
    result = domain_shift(threshold_detector, SCENES, {"same": SCENES}, DetectionSettings("mask"))
    assert result.drop.value == pytest.approx(0)
    assert result.ood.value == result.clean.summary.ap
    empty = Objects(torch.tensor([[1.0, 1, 4, 4]]), torch.tensor([1]), torch.zeros(1, SIDE, SIDE, dtype=torch.bool))
    grid = corruption_grid(
        threshold_detector,
        [*SCENES, replace(SCENES[0], id="x", truth=empty)],
        DetectionSettings("mask"),
        ("fog",),
        (0.0,),
    )
    assert grid.run.dropped == 1


def test_the_mean_effective_robustness_of_the_pool_is_zero() -> None:
    domains = {
        "sketch": [rendered_domain(scene, "sketch", 0) for scene in SCENES],
        "dark": [replace(s, image=s.image * 0.4) for s in SCENES],
    }
    pool = [
        domain_shift(
            lambda images, gain=gain: threshold_detector([(i * gain).clamp(0, 1) for i in images]), SCENES, domains
        )
        for gain in (0.6, 0.7, 0.9, 1.0, 1.3)
    ]
    line = fit_detection_line(pool)
    assert np.mean([result.effective(line).value for result in pool]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(InvalidInput, match="3 models"):
        fit_detection_line(pool[:2])


def test_bad_input_is_refused() -> None:
    one, label = torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([1])
    with pytest.raises(InvalidInput, match="x1 < x2"):
        Detections(one[:, [2, 1, 0, 3]], label, torch.tensor([0.5]))
    with pytest.raises(InvalidInput, match="NaN"):
        Detections(one, label, torch.tensor([math.nan]))
    with pytest.raises(InvalidInput, match="image's size"):
        Scene("a", torch.rand(3, 8, 8), Objects(one, label, torch.ones(1, 9, 8, dtype=torch.bool)))
    with pytest.raises(InvalidInput, match="categories"):
        corruption_grid(threshold_detector, SCENES, DetectionSettings(categories=(5,)))
    tiny = Scene("a", torch.rand(3, 20, 20), Objects(one, label))
    with pytest.raises(InvalidInput, match="32 px"):
        corruption_grid(threshold_detector, [tiny], None, ("fog",))
    bare = replace(SCENES[0], truth=SCENES[0].truth.keep(torch.zeros(0, dtype=torch.long)))
    with pytest.raises(InvalidInput, match="must hold objects"):
        domain_shift(threshold_detector, SCENES, {"bare": [bare]})
    blind = corruption_grid(
        lambda images: [{k: v[:0] for k, v in a.items()} for a in threshold_detector(images)],
        SCENES,
        None,
        ("fog",),
        (1.0,),
    )
    with pytest.raises(InvalidInput, match="clean AP"):
        blind.rpc()


def test_a_missing_peer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(InvalidInput, match=r"snellen\[detection\]"):
        corruption_grid(threshold_detector, SCENES)


def test_both_methods_are_registered() -> None:
    assert {"shift/detection", "shift/effective-detection"} <= set(function_methods())
