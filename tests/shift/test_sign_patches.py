"""Geometry, light and rendering of a patch on a sign, its optimisation, and what is counted when it is judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, function_methods, rows
from snellen.shift._composite import warp
from snellen.shift._sign_render import stacked
from snellen.shift.sign_patches import (
    SAME_LIGHT,
    Jitter,
    Light,
    Plane,
    Sign,
    attack_table,
    classifier_score,
    compare_success,
    detector_score,
    evaluate_patch,
    f1_threshold,
    measured_light,
    naive_signs,
    percentile_light,
    plane_to_image,
    polynomial_light,
    random_patch,
    recall_threshold,
    render,
    rp2_harm,
    universal_patch,
)
from snellen.stats import newcombe_difference, wilson

SQUARE = torch.tensor([[0.0, 0.0], [16.0, 0.0], [16.0, 16.0], [0.0, 16.0]])
TILTED = torch.tensor([[8.0, 10.0], [40.0, 6.0], [44.0, 38.0], [12.0, 44.0]])


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plane(empty: bool = False) -> Plane:
    """A square sign of 16 px with a patch over its lower middle."""
    patch = torch.zeros(16, 16, dtype=torch.bool)
    patch[7:14, 4:12] = not empty
    return Plane(SQUARE, torch.ones(16, 16, dtype=torch.bool), patch)


def lights(count: int, gain: float = 1.0, offset: float = 0.0) -> Light:
    return Light(torch.full((count, 3), gain), torch.full((count, 3), offset))


def some_signs(count: int, seed: int = 0) -> list[Sign]:
    """Signs of two classes, reddish and bluish, tilted at random in noise of 48 px."""
    generator = stream(seed)
    found = []
    for i in range(count):
        label = i % 2
        points = TILTED + 3 * torch.rand(4, 2, generator=generator)
        whole = Plane(SQUARE, torch.ones(16, 16, dtype=torch.bool), torch.ones(16, 16, dtype=torch.bool))
        colour = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.2, 0.8]])[label]
        picture = (colour[:, None, None] * (0.6 + 0.4 * torch.rand(1, 16, 16, generator=generator))).clamp(0, 1)
        background = torch.rand(1, 3, 48, 48, generator=generator)
        image = render(background, picture, whole, plane_to_image(SQUARE, points)[None], lights(1, 0.8, 0.1)).images[0]
        found.append(Sign(f"s{i}", image, points, label))
    return found


def redness(images: Tensor, signs: Sequence[Sign]) -> Tensor:
    """Logits of a small differentiable classifier: mean red against mean blue of the sign's box."""
    contrasts = []
    for image, sign in zip(images, signs, strict=True):
        left, top, right, bottom = (int(edge) for edge in sign.box)
        crop = image[:, top:bottom, left:right].mean(dim=(1, 2))
        contrasts.append(torch.stack([crop[0], crop[2]]) * 10)
    return torch.stack(contrasts)


def harm(images: Tensor, signs: Sequence[Sign]) -> Tensor:
    return F.cross_entropy(redness(images, signs), torch.tensor([sign.label for sign in signs]))


quadrilaterals = st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(quadrilaterals, quadrilaterals)
def test_the_homography_takes_its_points_there_and_equals_opencv(first: list[float], second: list[float]) -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    source, target = (60 * (square + torch.tensor(list_).view(4, 2)) for list_ in (first, second))
    matrix = plane_to_image(source, target)
    mapped = torch.cat([source.double(), torch.ones(4, 1)], dim=1) @ matrix.T
    assert torch.allclose(mapped[:, :2] / mapped[:, 2:], target.double(), atol=1e-4)
    peer = cv2.getPerspectiveTransform(source.numpy(), target.numpy())
    assert np.allclose(matrix.numpy(), peer, rtol=1e-4, atol=1e-4)


def test_the_homography_equals_kornia() -> None:
    kornia = pytest.importorskip("kornia")
    peer = kornia.geometry.get_perspective_transform(SQUARE[None].double(), TILTED[None].double())[0]
    assert torch.allclose(plane_to_image(SQUARE, TILTED), peer, atol=1e-6)


def test_warping_equals_kornia() -> None:
    kornia = pytest.importorskip("kornia")
    image, matrix = torch.rand(1, 3, 16, 16, generator=stream()), plane_to_image(SQUARE, TILTED)[None]
    half = torch.eye(3, dtype=torch.float64)
    half[:2, 2] = 0.5  # kornia counts from pixel centres
    peer = kornia.geometry.warp_perspective(image.double(), torch.linalg.inv(half) @ matrix @ half, (50, 50))
    assert torch.allclose(warp(image, matrix, (50, 50)), peer.float(), atol=1e-4)


def test_three_points_give_an_affine_map() -> None:
    source, target = SQUARE[:3], TILTED[:3]
    matrix = plane_to_image(source, target)
    assert matrix[2].tolist() == [0.0, 0.0, 1.0]
    mapped = torch.cat([source.double(), torch.ones(3, 1)], dim=1) @ matrix.T
    assert torch.allclose(mapped[:, :2], target.double(), atol=1e-9)


@pytest.mark.parametrize(
    "points",
    [
        [[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [0.0, 10.0]],  # three in a line
        [[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]],  # below 1 px²
        [[0.0, 0.0], [0.0, 0.0], [9.0, 9.0], [0.0, 9.0]],  # twice the same
        [[0.0, 0.0], [math.nan, 0.0], [9.0, 9.0], [0.0, 9.0]],
        [[0.0, 0.0], [9.0, 9.0]],
    ],
)
def test_degenerate_key_points_are_refused(points: list[list[float]]) -> None:
    with pytest.raises(InvalidInput, match="points"):
        Sign("bad", torch.rand(3, 32, 32), torch.tensor(points), 0)


def test_unequal_numbers_of_points_and_a_patch_off_the_sign_are_refused() -> None:
    with pytest.raises(InvalidInput, match="as many points"):
        plane_to_image(SQUARE, TILTED[:3])
    sign, patch = torch.zeros(16, 16, dtype=torch.bool), torch.zeros(16, 16, dtype=torch.bool)
    sign[:, :8], patch[4:6, 6:10] = True, True
    with pytest.raises(InvalidInput, match="on the sign, got 4 of its pixels outside"):
        Plane(SQUARE, sign, patch)
    far = Sign("far", torch.rand(3, 32, 32), SQUARE + 100, 0, SAME_LIGHT)
    with pytest.raises(InvalidInput, match="shows no pixel on sign 'far'"):
        stacked([far], plane())


def test_in_the_plane_itself_and_unlit_the_patch_is_pasted_exactly() -> None:
    patch, image = torch.rand(3, 16, 16, generator=stream(1)), torch.rand(1, 3, 16, 16, generator=stream(2))
    shown = render(image, patch, plane(), torch.eye(3, dtype=torch.float64)[None], lights(1)).images[0]
    where = plane().patch
    assert torch.allclose(shown[:, where], patch[:, where], atol=3e-6)
    assert torch.equal(shown[:, ~where], image[0][:, ~where])


@settings(max_examples=30, deadline=None)
@given(quadrilaterals, st.floats(0.1, 1.0), st.floats(0.0, 0.5))
def test_pixels_without_patch_are_bit_identical(corners: list[float], gain: float, offset: float) -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    target = 30 * (square + torch.tensor(corners).view(4, 2)) + 10
    image = torch.rand(1, 3, 48, 48, generator=stream(3))
    found = render(image, torch.rand(3, 16, 16), plane(), plane_to_image(SQUARE, target)[None], lights(1, gain, offset))
    untouched = (found.alpha == 0).expand_as(image)
    assert torch.equal(found.images[untouched], image[untouched])
    assert 0 < float(found.alpha.sum()) < 48 * 48
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1


def test_the_renderer_has_the_gradient_of_finite_differences() -> None:
    small = Plane(SQUARE / 4, torch.ones(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool))
    image = torch.rand(1, 3, 9, 9, dtype=torch.float64, generator=stream(4))
    patch = (0.2 + 0.6 * torch.rand(3, 4, 4, dtype=torch.float64, generator=stream(5))).requires_grad_()
    matrix = plane_to_image(SQUARE / 4, TILTED / 6)[None]
    light = Light(*(part.double() for part in lights(1, 0.7, 0.1)))
    assert torch.autograd.gradcheck(lambda d: render(image, d, small, matrix, light).images, (patch,))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3), st.floats(0.0, 0.1))
def test_a_line_of_light_is_recovered(gains: list[float], offset: float) -> None:
    canonical = torch.rand(3, 400, generator=stream(6))
    gain = torch.tensor(gains)
    found = polynomial_light(canonical, gain[:, None] * canonical + offset)
    assert torch.allclose(found.gain, gain, atol=1e-3)
    assert torch.allclose(found.offset, torch.full((3,), offset), atol=1e-3)


def test_a_line_survives_what_was_stuck_on_the_sign() -> None:
    canonical = 0.4 * torch.rand(3, 500, generator=stream(7))
    real = 0.7 * canonical + 0.1
    real[:, :50] = 1.0
    found = polynomial_light(canonical, real)
    assert torch.allclose(found.gain, torch.full((3,), 0.7), atol=1e-3)
    assert not torch.allclose(polynomial_light(canonical, real, trim=0.0).gain, torch.full((3,), 0.7), atol=0.1)


def test_black_canonical_pixels_fall_back_to_a_constant() -> None:
    real = torch.rand(3, 50, generator=stream(8))
    found = polynomial_light(torch.zeros(3, 50), real, trim=0.0)
    assert torch.equal(found.gain, torch.zeros(3))
    assert torch.allclose(found.offset, real.mean(dim=1))


def test_percentile_light_spans_the_quantiles_of_the_pooled_channels() -> None:
    pixels = torch.arange(300).view(3, 100) / 299
    found = percentile_light(pixels, 0.2)
    assert torch.allclose(found.offset, torch.full((3,), 0.2), atol=1e-6)
    assert torch.allclose(found.gain, torch.full((3,), 0.6), atol=1e-6)
    dim = percentile_light(0.5 * pixels + 0.1, 0.2)
    assert torch.allclose(dim.gain, 0.5 * found.gain, atol=1e-6)
    for pixels_, share in ((torch.zeros(3, 0), 0.2), (pixels, 0.5)):
        with pytest.raises(InvalidInput, match="pixels must be"):
            percentile_light(pixels_, share)


def test_a_sign_keeps_the_light_that_it_was_given() -> None:
    sign = some_signs(1)[0]
    assert measured_light(Sign("x", sign.image, sign.points, 0, SAME_LIGHT), plane()) is SAME_LIGHT
    assert float(measured_light(sign, plane()).gain[0]) < 1


def test_an_optimised_patch_hides_more_than_a_random_one_and_stays_in_range() -> None:
    signs = some_signs(12)
    before = [sign.image.clone() for sign in signs]
    run = universal_patch(harm, signs, plane(), stream(1), steps=60, per_step=4, step_size=0.2)
    assert float(run.patch.min()) >= 0
    assert float(run.patch.max()) <= 1
    assert np.mean(run.losses[-10:]) < np.mean(run.losses[:10])
    images, matrices, light = stacked(signs, plane())
    harms = [
        float(harm(render(images, patch, plane(), matrices, light).images, signs))
        for patch in (random_patch(plane(), stream(2)), run.patch)
    ]
    assert harms[0] < harms[1]
    score = classifier_score(redness)
    optimised, noise = (
        attack_table(evaluate_patch(score, signs, patch, plane(), threshold=0.5)).to_pylist()[0]["asr"]
        for patch in (run.patch, random_patch(plane(), stream(2)))
    )
    assert noise <= optimised
    assert all(torch.equal(sign.image, image) for sign, image in zip(signs, before, strict=True))
    again = universal_patch(harm, signs, plane(), stream(1), steps=60, per_step=4, step_size=0.2)
    assert torch.equal(run.patch, again.patch)


def test_jitter_moves_the_patch_and_colours_and_none_is_the_plain_run() -> None:
    signs = some_signs(2)
    plain = universal_patch(harm, signs, plane(), stream(), steps=3)
    still = universal_patch(harm, signs, plane(), stream(), steps=1, jitter=Jitter(0, 0, 0, 0))
    assert still.losses[0] == pytest.approx(plain.losses[0], abs=1e-5)
    moved = universal_patch(harm, signs, plane(), stream(), steps=1, jitter=Jitter())
    assert moved.losses[0] != pytest.approx(plain.losses[0], abs=1e-5)
    with pytest.raises(InvalidInput, match="jitter must be"):
        Jitter(rotation=-1)


def test_bad_optimisations_are_refused() -> None:
    signs = some_signs(2)
    with pytest.raises(InvalidInput, match="harm must be finite, got nan at step 0"):
        universal_patch(lambda images, _: images.sum() * math.nan, signs, plane(), stream(), steps=2)
    with pytest.raises(InvalidInput, match="patch not empty"):
        universal_patch(harm, signs, plane(empty=True), stream())
    with pytest.raises(InvalidInput, match="steps and per_step"):
        universal_patch(harm, signs, plane(), stream(), steps=0)
    mixed = [signs[0], Sign("other", torch.rand(3, 60, 60), TILTED, 0)]
    with pytest.raises(InvalidInput, match="images of one size"):
        stacked(mixed, plane())


def test_rp2_raises_the_loss_of_the_proposals_on_the_sign_alone() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    overlaps, scores = torch.tensor([0.8, 0.1, 0.6]), torch.tensor([0.9, 0.9, 0.05])
    found = rp2_harm(logits, 0, overlaps, scores, least_overlap=0.5, least_score=0.1)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    with_objects = rp2_harm(
        logits, 0, overlaps, scores, torch.zeros(3), least_overlap=0.5, least_score=0.1, objectness_weight=2.0
    )
    assert float(with_objects) == pytest.approx(float(found) + 2 * math.log(2), rel=1e-5)
    assert float(rp2_harm(logits, 0, overlaps, scores, least_overlap=0.95)) == 0
    with pytest.raises(InvalidInput, match="objectness"):
        rp2_harm(logits, 0, overlaps, scores, objectness_weight=1.0)


def test_without_a_patch_nothing_is_hidden() -> None:
    signs = some_signs(20)
    outcomes = evaluate_patch(classifier_score(redness), signs, torch.rand(3, 16, 16), plane(empty=True))
    assert outcomes["clean_score"].to_pylist() == outcomes["patched_score"].to_pylist()
    everything = attack_table(outcomes).to_pylist()[0]
    assert everything["asr"] == 0
    assert everything["p_value"] == 1
    assert not everything["enough_data"]


flags = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60)


def outcome_rows(found: list[tuple[int, bool, bool, bool]]) -> Rows:
    label, clean, patched, judged = zip(*found, strict=True)
    return rows(
        [f"s{i}" for i in range(len(found))],
        label=label, found_clean=clean, found_patched=patched, judged=judged,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(flags)
def test_false_negatives_are_at_least_what_the_attack_hides(found: list[tuple[int, bool, bool, bool]]) -> None:
    judged = [sign for sign in found if sign[3]]
    detected = [sign for sign in judged if sign[1]]
    assume(detected)
    table = attack_table(outcome_rows(found)).to_pylist()
    everything, mean = table[0], table[-1]
    assert everything["n"] == len(judged)
    assert everything["too_small"] == len(found) - len(judged)
    hidden = sum(not sign[2] for sign in detected)
    assert everything["asr"] == hidden / len(detected)
    assert (everything["low"], everything["high"]) == wilson(hidden, len(detected))
    assert everything["fnr"] >= everything["asr"] * (1 - everything["fnr_clean"]) - 1e-12
    known = [row["asr"] for row in table[1:-1] if row["asr"] is not None]
    assert mean["asr"] == pytest.approx(np.mean(known))
    assert mean["low"] is None


def test_success_is_undefined_where_nothing_is_found_clean() -> None:
    with pytest.raises(InvalidInput, match="undefined"):
        attack_table(outcome_rows([(0, False, True, True), (0, True, False, False)]))


def test_the_gap_between_two_evaluations_is_newcombes() -> None:
    naive = outcome_rows([(0, True, i >= 15, True) for i in range(20)])
    real = outcome_rows([(0, True, i >= 6, True) for i in range(30)])
    gap = compare_success(naive, real)
    assert gap.difference == pytest.approx(15 / 20 - 6 / 30)
    assert (gap.low, gap.high) == newcombe_difference(15, 20, 6, 30)
    assert gap.ratio == pytest.approx((6 / 30) / (15 / 20))
    none = outcome_rows([(0, True, True, True)])
    assert math.isnan(compare_success(none, real).ratio)


def test_small_signs_are_not_judged() -> None:
    large = some_signs(1)[0]
    small = Sign("small", large.image, 8 + SQUARE * 0.9, 0)  # 14.4 px
    outcomes = evaluate_patch(classifier_score(redness), [large, small], torch.rand(3, 16, 16), plane())
    assert outcomes["judged"].to_pylist() == [True, False]
    assert math.isnan(outcomes["clean_score"][1].as_py())
    with pytest.raises(InvalidInput, match="patch must be"):
        evaluate_patch(classifier_score(redness), [large], torch.rand(3, 8, 8), plane())
    with pytest.raises(InvalidInput, match="signs must be"):
        evaluate_patch(classifier_score(redness), [], torch.rand(3, 16, 16), plane())


def test_pasted_signs_are_rigid_inside_and_carry_the_picture() -> None:
    picture, whole = torch.rand(3, 16, 16, generator=stream(9)), plane()
    backgrounds = torch.zeros(30, 3, 96, 96)
    found = naive_signs(picture, whole, backgrounds, 1, [stream(i) for i in range(30)], side=32)
    for sign in found:
        sides = (sign.points - sign.points.roll(-1, 0)).norm(dim=1)
        assert torch.allclose(sides, torch.full((4,), 32.0), atol=1e-3)
        across = sign.points[1] - sign.points[0]
        assert abs(math.degrees(math.atan2(float(across[1]), float(across[0])))) <= 15
        assert float(sign.points.min()) >= 0
        assert float(sign.points.max()) <= 96
        assert sign.light is SAME_LIGHT
    corners = torch.stack([sign.points[0] for sign in found])
    assert float(corners.std(dim=0).min()) > 8
    straight = naive_signs(picture, whole, backgrounds[:1], 0, [stream()], side=16, rotation=0, translation=0)[0]
    assert torch.allclose(straight.image[:, 40:56, 40:56], picture, atol=1e-5)


def test_a_classifier_scores_its_own_class_where_it_wins() -> None:
    signs = some_signs(3)
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    scores = classifier_score(lambda *_: logits)(torch.zeros(3, 3, 8, 8), signs)  # labels 0, 1, 0
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0, 0])
    with pytest.raises(InvalidInput, match="classify must give logits"):
        classifier_score(lambda *_: logits[:, :1])(torch.zeros(3, 3, 8, 8), signs)


def test_a_detector_scores_the_best_box_of_the_class_on_the_sign() -> None:
    sign = some_signs(1)[0]
    box = sign.box

    def detector(images: list[Tensor]) -> list[Mapping[str, Tensor]]:
        boxes = torch.stack([box, box + 1, box, box + 40])
        labels = torch.tensor([0, 0, 1, 0])
        return [{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.6, 0.7, 0.9, 0.95])} for _ in images]

    assert detector_score(detector)(sign.image[None], [sign]).tolist() == pytest.approx([0.7])
    assert detector_score(detector, 0.99)(sign.image[None], [sign]).tolist() == pytest.approx([0.6])
    nothing = detector_score(
        lambda images: [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}]
    )
    assert nothing(sign.image[None], [sign]).tolist() == [0.0]
    with pytest.raises(InvalidInput, match="overlap"):
        detector_score(detector, 0.0)


def test_thresholds_meet_their_definition() -> None:
    scores = np.linspace(0.01, 1, 100)
    threshold = recall_threshold(scores, 0.05)
    assert (scores <= threshold).mean() < 0.05
    assert (scores <= threshold + 0.0101).mean() >= 0.05
    with pytest.raises(InvalidInput, match="find more than"):
        recall_threshold([0.0] * 50 + [1.0] * 50)

    signs, others = np.array([0.9, 0.8, 0.7, 0.2, 0.0]), np.array([0.6, 0.5, 0.3, 0.25])
    best = f1_threshold(signs, others)
    f1 = {t: 2 * (signs > t).sum() / ((signs > t).sum() + (others > t).sum() + 5) for t in np.linspace(0, 0.99, 100)}
    assert 2 * (signs > best).sum() / ((signs > best).sum() + (others > best).sum() + 5) == max(f1.values())
    with pytest.raises(InvalidInput, match="above 0"):
        f1_threshold([0.0, 0.0], others)


def test_the_method_is_known() -> None:
    method = function_methods()["shift/sign-patches"]
    assert method.access is Access.GRADIENTS
    assert method.data == "images with sign polygons"
