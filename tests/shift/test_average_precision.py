"""The average-precision engine against its peer, and its invariants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from snellen.shift._average_precision import Tally, bootstrap_weights, precision_by_threshold
from snellen.shift._boxes import box_iou, mask_iou, outline
from snellen.shift._matching import Errors, image_errors
from snellen.shift.detection import (
    Detections,
    Objects,
    Overlap,
)

SIDE = 48


def filled(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.randint(0, SIDE - 20, (count, 2), generator=generator)
    return torch.cat([corner, corner + torch.randint(4, 20, (count, 2), generator=generator)], dim=1).float()


def random_image(seed: int, crowds: bool = True) -> tuple[Detections, Objects]:
    """Objects, and detections of which some are exact, some near and some wrong; rectangular masks of both."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 6, (), generator=generator))
    boxes = random_boxes(count, generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    crowd = torch.rand(count, generator=generator) < (0.25 if crowds else -1)
    nudged = boxes + torch.randint(-1, 3, boxes.shape, generator=generator)
    found = torch.cat([nudged.clamp(0, SIDE), random_boxes(5, generator)])
    guesses = torch.cat([labels, torch.randint(0, 5, (5,), generator=generator)])
    scores = torch.rand(len(found), generator=generator)
    return Detections(found, guesses, scores, filled(found)), Objects(boxes, labels, filled(boxes), crowd)


def tally(pairs: Sequence[tuple[Detections, Objects]], overlap: Overlap = "box") -> Tally:
    counted = Tally(overlap)
    for found, truth in pairs:
        counted.add(found, truth)
    return counted


def ap_of(pairs: Sequence[tuple[Detections, Objects]], overlap: Overlap = "box") -> float:
    return float(precision_by_threshold(tally(pairs, overlap).matches, torch.ones(1, len(pairs))).mean())


@pytest.mark.parametrize("overlap", ["box", "mask"])
def test_stored_matches_give_the_precision_of_torchmetrics(overlap: Overlap) -> None:
    counted = tally([random_image(seed) for seed in range(60)], overlap)
    ours, peer = precision_by_threshold(counted.matches, torch.ones(1, 60))[0], counted.summary()
    assert float(ours.mean()) == pytest.approx(peer.ap, abs=1e-6)
    assert float(ours[0]) == pytest.approx(peer.ap50, abs=1e-6)
    assert float(ours[5]) == pytest.approx(peer.ap75, abs=1e-6)
    assert 0.1 < peer.ap < 0.9


@pytest.mark.parametrize("overlap", ["box", "mask"])
def test_a_resample_equals_evaluating_the_drawn_images(overlap: Overlap) -> None:
    pairs = [random_image(seed) for seed in range(25)]
    weights = bootstrap_weights(25, 3, np.random.default_rng(0))
    drawn = tally(pairs, overlap).resampled(weights)
    for row, expected in zip(weights.long(), drawn, strict=True):
        copies = [pair for pair, count in zip(pairs, row.tolist(), strict=True) for _ in range(count)]
        assert tally(copies, overlap).summary().ap == pytest.approx(float(expected), abs=1e-6)


def test_torchmetrics_alone_leaves_out_false_alarms_on_images_without_objects() -> None:
    """The trap that the pair of IoU types in `Tally` avoids; if this fails torchmetrics has been put right."""
    (found, truth), empty = random_image(5, crowds=False), random_image(0)[1].keep(torch.zeros(0, dtype=torch.long))
    alarm = replace(found, scores=torch.ones_like(found.scores))
    alone = MeanAveragePrecision(iou_type="segm")
    for detections, objects in ((found, truth), (alarm, empty)):
        prediction = {"masks": detections.masks, "labels": detections.labels, "scores": detections.scores}
        alone.update([prediction], [{"masks": objects.masks, "labels": objects.labels}])
    assert float(alone.compute()["map"]) > tally([(found, truth), (alarm, empty)], "mask").summary().ap + 0.01


def test_mask_precision_of_rectangles_is_box_precision() -> None:
    pairs = [random_image(seed) for seed in range(30)]
    summary = tally(pairs, "mask").summary()
    assert summary.ap == pytest.approx(tally(pairs, "box").summary().ap, abs=1e-6)
    assert summary.box_ap == pytest.approx(summary.ap, abs=1e-6)


def test_perfect_detections_have_precision_one() -> None:
    pairs = []
    for seed in range(12):
        truth = random_image(seed)[1]
        pairs.append((Detections(truth.boxes, truth.labels, torch.full((len(truth.labels),), 0.9), truth.masks), truth))
    for overlap in ("box", "mask", "boundary"):
        assert tally(pairs, overlap).summary().ap == pytest.approx(1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_images_and_detections_does_not_matter(seed: int) -> None:
    pairs = [random_image(seed + k, crowds=False) for k in range(6)]
    if not any(len(truth.labels) for _, truth in pairs):
        return
    generator = torch.Generator().manual_seed(seed)
    turned = []
    for found, truth in pairs[::-1]:
        orders = [torch.randperm(len(side.labels), generator=generator) for side in (found, truth)]
        turned.append((found.keep(orders[0]), truth.keep(orders[1])))
    assert ap_of(turned) == pytest.approx(ap_of(pairs), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_a_false_alarm_below_all_scores_never_raises_precision(seed: int, label: int) -> None:
    pairs = [random_image(seed + k) for k in range(4)]
    if not any(len(truth.labels[~truth.crowds]) for _, truth in pairs):
        return
    found, truth = pairs[0]
    far = Detections(
        torch.cat([found.boxes, torch.tensor([[0.0, 46.0, 1.0, 48.0]])]),
        torch.cat([found.labels, torch.tensor([label])]),
        torch.cat([found.scores, torch.zeros(1)]),
    )
    assert ap_of([(far, truth), *pairs[1:]]) <= ap_of(pairs) + 1e-12


def test_mask_overlap_is_symmetric_and_keeps_under_doubling() -> None:
    first, second = (torch.rand(4, 20, 30, generator=torch.Generator().manual_seed(s)) > 0.6 for s in (0, 1))
    plain = mask_iou(first, second, torch.zeros(4, dtype=torch.bool))
    assert torch.allclose(plain, mask_iou(second, first, torch.zeros(4, dtype=torch.bool)).T)
    assert float(plain.min()) >= 0
    assert float(plain.max()) <= 1
    doubled = [m.repeat_interleave(2, 1).repeat_interleave(2, 2) for m in (first, second)]
    assert torch.allclose(plain, mask_iou(doubled[0], doubled[1], torch.zeros(4, dtype=torch.bool)))


def test_a_crowd_region_is_divided_by_the_detection_alone() -> None:
    inner, outer = torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([[0.0, 0, 40, 40]])
    assert float(box_iou(inner, outer, torch.tensor([True]))) == 1
    assert float(box_iou(inner, outer, torch.tensor([False]))) == pytest.approx(100 / 1600)


def test_the_outline_is_a_band_inside_the_mask() -> None:
    mask = filled(torch.tensor([[10.0, 10, 40, 40]]))  # the band of a 48 px image is one pixel wide
    assert int(outline(mask).sum()) == 30 * 30 - 28 * 28
    assert bool((outline(mask) <= mask).all())


def test_each_kind_of_error_is_told_apart() -> None:
    truth = Objects(
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [30, 0, 40, 10], [0, 30, 10, 40]]), torch.tensor([1, 1, 2, 1])
    )
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30], [34, 4, 44, 14], [44, 44, 48, 48], [44, 0, 48, 4]]
    labels, scores = torch.tensor([1, 1, 2, 2, 1, 1]), torch.tensor([0.9, 0.8, 0.9, 0.9, 0.9, 0.3])
    errors = image_errors(Detections(torch.tensor(boxes), labels, scores), truth, "box")
    assert errors == Errors(correct=1, wrong_class=1, misplaced=1, duplicate=1, background=1, missed=1)


def test_a_right_box_with_a_wrong_mask_is_a_poor_mask() -> None:
    box, label = torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([1])
    sliver = filled(torch.tensor([[0.0, 0, 20, 5]]))
    errors = image_errors(Detections(box, label, torch.tensor([0.9]), sliver), Objects(box, label, filled(box)), "mask")
    assert errors == Errors(poor_mask=1)
