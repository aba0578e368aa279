from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.randomness import torch_generator
from snellen.shift._points import FOG_EXTINCTION, FOG_STEP, PULSE, SPEED_OF_LIGHT, fog_echo, ring_index
from snellen.shift._wet_ground import fresnel_transmittance, ground_plane
from snellen.shift.point_clouds import (
    POINT_CORRUPTIONS,
    CorruptedPoints,
    Scanner,
    corrupt_points,
    evaluate_points,
    mean_iou,
    mean_resilience_rate,
    point_corruption_error,
)

BEAMS, STEPS = 64, 200
SCANNER = Scanner(vehicles=(1, 2))
DROPPING = ("beam_missing", "cross_sensor", "incomplete_echo")


def scan(seed: int = 0) -> tuple[Tensor, Tensor]:
    """64 rings over a ground plane 1.73 m below and a wall 40 m away; classes: ground 0, wall 1 and 2, post 3."""
    elevation = torch.deg2rad(torch.linspace(2.0, -24.8, BEAMS))[:, None]
    azimuth = torch.linspace(0.001, 2 * math.pi - 0.001, STEPS)[None]
    ground = torch.where(elevation < 0, 1.73 / torch.sin(-elevation).clamp_min(1e-6), math.inf)
    distance = torch.minimum(ground, torch.tensor(40.0)).expand(BEAMS, STEPS)
    across = distance * torch.cos(elevation)
    x, y, z = across * torch.cos(azimuth), across * torch.sin(azimuth), distance * torch.sin(elevation)
    intensity = 0.2 + 0.6 * torch.rand(BEAMS, STEPS, generator=torch_generator("scan", seed))
    points = torch.stack((x, y, z, intensity), dim=-1).view(-1, 4)
    label = torch.where(distance < 40, 0, 1 + (azimuth > math.pi).long()).flatten()
    label[:8] = 3
    return points, label


def corrupted(name: str, severity: float, seed: int = 0, scanner: Scanner = SCANNER) -> CorruptedPoints:
    points, labels = scan()
    return corrupt_points(points, name, severity, torch_generator(seed), labels=labels, scanner=scanner)


@pytest.mark.parametrize("name", POINT_CORRUPTIONS)
def test_severity_zero_is_the_identity(name: str) -> None:
    points, labels = scan()
    result = corrupted(name, 0)
    assert torch.equal(result.points, points)
    assert torch.equal(result.rows, torch.arange(len(points)))
    assert result.labels is not None
    assert torch.equal(result.labels, labels)
    assert not result.moved.any()


@pytest.mark.parametrize("name", POINT_CORRUPTIONS)
def test_a_small_severity_changes_little(name: str) -> None:
    points, _ = scan()
    result = corrupted(name, 0.01)
    assert len(result.points) >= 0.97 * len(points)
    close = (result.points - points[result.rows]).abs().amax(1) < 0.05
    assert close.float().mean() > 0.95


@pytest.mark.parametrize("name", POINT_CORRUPTIONS)
def test_the_same_generator_gives_the_same_scan_and_the_input_is_left_alone(name: str) -> None:
    points, labels = scan()
    before = points.clone()
    one, two = (corrupt_points(points, name, 4, torch_generator(3), labels=labels, scanner=SCANNER) for _ in range(2))
    assert torch.equal(one.points, two.points)
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(points, before)


@pytest.mark.parametrize("name", POINT_CORRUPTIONS)
def test_labels_follow_their_points(name: str) -> None:
    _, labels = scan()
    result = corrupted(name, 5)
    assert result.labels is not None
    assert torch.equal(result.labels, labels[result.rows])
    assert len(result.points) == len(result.moved) == len(result.rows)


@pytest.mark.parametrize("name", DROPPING)
def test_dropping_corruptions_keep_survivors_unchanged(name: str) -> None:
    points, _ = scan()
    result = corrupted(name, 3)
    assert torch.equal(points[result.rows], result.points)
    assert len(result.rows) < len(points)


def test_rings_are_recovered_from_the_order_of_the_scan() -> None:
    points, _ = scan()
    assert torch.equal(ring_index(points, BEAMS), torch.arange(BEAMS).repeat_interleave(STEPS))


def test_rings_of_a_scanner_that_turns_the_other_way_are_recovered() -> None:
    points, _ = scan()
    mirrored = points * torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert torch.equal(ring_index(mirrored, BEAMS), torch.arange(BEAMS).repeat_interleave(STEPS))


def test_rings_of_an_unordered_cloud_follow_its_elevation() -> None:
    points, _ = scan()
    order = torch.randperm(len(points), generator=torch_generator("order"))
    rings = ring_index(points[order], BEAMS)
    # Steps of equal elevation count from below, and edges of bins may join two neighbouring beams.
    true = (BEAMS - 1 - torch.arange(BEAMS).repeat_interleave(STEPS))[order]
    assert ((rings - true).abs() <= 1).all()


def test_an_unordered_flat_cloud_without_rings_is_refused() -> None:
    flat = torch.rand(500, 4, generator=torch_generator("flat")) - 0.5
    flat[:, 2] = 0
    with pytest.raises(InvalidInput, match="ring index as fifth column"):
        corrupt_points(flat, "beam_missing", 3, torch_generator(0))


@pytest.mark.parametrize(("beams", "counts"), [(64, (16, 32, 48)), (32, (8, 16, 24))])
def test_beam_missing_drops_exactly_the_published_number_of_inner_beams(beams: int, counts: tuple[int, ...]) -> None:
    ring = torch.arange(beams).repeat_interleave(10).float()
    points = torch.cat((torch.rand(len(ring), 4), ring[:, None]), dim=1)
    low, high = {64: (4, 58), 32: (2, 28)}[beams]
    for severity, count in zip((1, 3, 5), counts, strict=True):
        left = corrupt_points(points, "beam_missing", severity, torch_generator(1), scanner=Scanner(beams=beams))
        gone = set(range(beams)) - set(left.points[:, 4].long().tolist())
        assert len(gone) == count
        assert min(gone) >= low
        assert max(gone) <= high


def test_drawing_beams_with_replacement_drops_fewer_than_asked() -> None:
    left = corrupted("beam_missing", 5, scanner=Scanner(repeat_beams=True))
    assert len(left.points) > 16 * STEPS


@given(st.floats(0.01, 5), st.floats(0.01, 5))
@settings(max_examples=20, deadline=None)
def test_beams_missing_at_a_lower_severity_are_missing_at_a_higher_one(one: float, two: float) -> None:
    light, heavy = (corrupted("beam_missing", s) for s in sorted((one, two)))
    assert set(heavy.rows.tolist()) <= set(light.rows.tolist())


def test_cross_sensor_drops_regular_beams_and_every_second_point() -> None:
    first = [
        int(corrupted("cross_sensor", s).rows.div(STEPS, rounding_mode="floor").unique().numel()) for s in (1, 3, 5)
    ]
    assert first == [48, 32, 16]
    for severity in (1, 3, 5):
        assert len(corrupted("cross_sensor", severity).points) == first[(severity - 1) // 2] * STEPS // 2
    light = corrupted("cross_sensor", 1).rows
    assert not torch.isin(light // STEPS, torch.arange(1, 64, 4)).any()
    assert torch.equal(light[:3], torch.tensor([0, 2, 4]))


@pytest.mark.parametrize(("severity", "share"), [(1, 0.006), (3, 0.008), (5, 0.01)])
def test_crosstalk_changes_exactly_its_share_of_rows(severity: int, share: float) -> None:
    points, _ = scan()
    result = corrupted("crosstalk", severity)
    changed = (result.points != points).any(dim=1)
    assert int(changed.sum()) == int(share * len(points))
    assert torch.equal(changed, result.moved)
    assert (result.points[changed, 3] != points[changed, 3]).all()


def test_motion_blur_moves_the_scan_as_one_and_keeps_every_point() -> None:
    points, _ = scan()
    for severity, shake in ((1, 0.20), (3, 0.25), (5, 0.30)):
        result = corrupted("motion_blur", severity)
        assert len(result.points) == len(points)
        move = result.points[:, :3] - points[:, :3]
        assert move.std(dim=0).tolist() == pytest.approx([0.1 * shake, 0.1 * shake, 0.05 * shake], rel=0.05)
        assert move.abs().max() <= 3 * shake + 1e-4
        assert torch.equal(result.points[:, 3], points[:, 3])


@pytest.mark.parametrize(("severity", "share"), [(1, 0.75), (3, 0.85), (5, 0.95)])
def test_incomplete_echo_drops_its_share_of_every_vehicle_class(severity: int, share: float) -> None:
    _, labels = scan()
    scanner = Scanner(vehicles=(1, 2, 3))
    result = corrupted("incomplete_echo", severity, scanner=scanner)
    assert result.labels is not None
    for vehicle in (1, 2):
        n = int((labels == vehicle).sum())
        assert int((result.labels == vehicle).sum()) == n - int(n * share)
    for spared in (0, 3):  # not a vehicle, and a vehicle of eight points
        assert int((result.labels == spared).sum()) == int((labels == spared).sum())


@pytest.mark.parametrize("name", ["fog", "snow"])
def test_weather_moves_points_towards_the_sensor_along_their_rays(name: str) -> None:
    points, _ = scan()
    result = corrupted(name, 5, seed=2)
    assert result.moved.any()
    before, after = points[result.moved, :3].double(), result.points[result.moved, :3].double()
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=1)
    assert (cosine > 1 - 1e-6).all()
    assert (after.norm(dim=1) <= before.norm(dim=1) * (1 + 1e-5)).all()
    assert torch.equal(result.points[~result.moved, :3], points[~result.moved, :3])


@pytest.mark.parametrize("seed", range(6))
def test_fog_never_raises_the_intensity_of_a_hard_return(seed: int) -> None:
    points, _ = scan()
    result = corrupted("fog", 3, seed)
    hard = ~result.moved
    assert (result.points[hard, 3] <= points[hard, 3] + 1e-7).all()


@pytest.mark.parametrize("extinction", [FOG_EXTINCTION[1], FOG_EXTINCTION[-1]])
def test_the_fog_table_equals_the_integral_of_the_pulse(extinction: float) -> None:
    time = np.linspace(0, 2 * PULSE, 100_001)

    def response(R: float) -> float:
        back = R - SPEED_OF_LIGHT * time / 2
        seen = np.clip((back - 0.9) / 0.1, 0, 1) * np.exp(-2 * extinction * back) / np.maximum(back, 0.9) ** 2
        return float(np.trapezoid(np.sin(np.pi * time / (2 * PULSE)) ** 2 * seen, time)) * 1e-9

    table = fog_echo(extinction)
    grid = [index * FOG_STEP for index in range(100)]
    direct = [response(R) for R in grid]
    for index in (15, 30, 45, 99):
        assert float(table.strength[index]) == pytest.approx(max(direct[: index + 1]), rel=0.02)
        assert float(table.range[index]) == pytest.approx(grid[int(np.argmax(direct[: index + 1]))], abs=0.11)


def test_snow_changes_more_points_when_it_is_heavier() -> None:
    points, _ = scan()
    changed = [int((corrupted("snow", s).points != points).any(1).sum()) for s in (1, 3, 5)]
    assert 0 < changed[0] < changed[1] < changed[2] < len(points) / 2


def test_the_ground_plane_is_found() -> None:
    points, _ = scan()
    plane = ground_plane(points[:, :3], torch_generator(0))
    assert abs(float(plane[2])) > 0.9999
    assert abs(abs(float(plane[3])) - 1.73) < 0.02


def test_wet_ground_darkens_the_ground_only_and_more_the_deeper_the_water() -> None:
    points, _ = scan()
    means = []
    for severity in (1, 3, 5):
        result = corrupted("wet_ground", severity)
        near = points[result.rows, 2] < -1.2
        assert torch.equal(result.points[~near], points[result.rows[~near]])
        assert (result.points[:, 3] <= points[result.rows, 3]).all()
        # Far ground, where little light passes the water
        grazing = near & (points[result.rows, :2].norm(dim=1) > 15)
        means.append(float((result.points[grazing, 3] / points[result.rows[grazing], 3]).mean()))
    assert 1 > means[0] > means[1] > means[2]


def test_a_wet_wall_without_ground_stays_dry() -> None:
    points, _ = scan()
    wall = points[points[:, 2] > -1.0]
    result = corrupt_points(wall[:900], "wet_ground", 5, torch_generator(0))
    assert torch.equal(result.points, wall[:900])


def test_fresnel_transmittance_at_normal_and_grazing_incidence_and_at_brewsters_angle() -> None:
    brewster = math.cos(math.atan(1.33))
    s, p = fresnel_transmittance(torch.tensor([1.0, brewster, 1e-4], dtype=torch.float64))
    assert float(s[0]) == pytest.approx(1 - (0.33 / 2.33) ** 2)
    assert float(p[0]) == pytest.approx(float(s[0]))
    assert float(p[1]) == pytest.approx(1.0)
    assert float(p[2]) < 0.01


def test_the_cards_wet_reflectivity_would_never_darken_the_ground() -> None:
    """t / θ as in the card stays above the dry reflectivity of a pavement, so the clip at I would undo it."""
    angle = torch.deg2rad(torch.linspace(5, 87, 100))
    t = torch.stack(fresnel_transmittance(torch.cos(angle))).amax(0)
    dry = 0.2
    assert (t / angle > dry).all()
    assert (dry * t**2 < dry + 1e-6).all()


def test_bad_input_is_refused() -> None:
    points, labels = scan()
    generator = torch_generator(0)
    broken = points.clone()
    broken[3, 1] = math.nan
    for wrong in (broken, points[:0], points[:, :3], points.long()):
        with pytest.raises(InvalidInput, match="points must be"):
            corrupt_points(wrong, "fog", 3, generator)
    with pytest.raises(InvalidInput, match="labels must be"):
        corrupt_points(points, "fog", 3, generator, labels=labels[:-1])
    with pytest.raises(InvalidInput, match="needs labels"):
        corrupt_points(points, "incomplete_echo", 3, generator, scanner=SCANNER)
    with pytest.raises(InvalidInput, match="vehicle classes"):
        corrupt_points(points, "incomplete_echo", 3, generator, labels=labels)
    with pytest.raises(InvalidInput, match="did you mean 'snow'"):
        corrupt_points(points, "snwo", 3, generator)
    with pytest.raises(InvalidInput, match="severity"):
        corrupt_points(points, "snow", 6, generator)
    with pytest.raises(InvalidInput, match="beams"):
        Scanner(beams=4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_mean_iou_equals_the_macro_jaccard_score(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = torch.tensor(pairs).unbind(1)
    assert mean_iou(labels, predicted, 4) == pytest.approx(jaccard_score(labels, predicted, average="macro"))


def test_a_baseline_has_100_percent_of_its_own_error_and_a_steady_model_keeps_100_percent() -> None:
    scores = {name: [0.6, 0.5, 0.3] for name in POINT_CORRUPTIONS}
    assert point_corruption_error(scores, scores).value == pytest.approx(100)
    assert mean_resilience_rate({name: [0.7] * 3 for name in POINT_CORRUPTIONS}, 0.7).value == pytest.approx(100)
    half = point_corruption_error({"fog": [0.8, 0.8, 0.8]}, {"fog": [0.5, 0.6, 0.7]})
    assert half.value == pytest.approx(100 * 0.6 / 1.2)
    for clean in (0.0, 1.1):
        with pytest.raises(InvalidInput):
            mean_resilience_rate(scores, clean)
    with pytest.raises(InvalidInput):
        mean_resilience_rate({}, 0.5)


def ground_finder(points: Tensor) -> Tensor:
    """Ground below, two halves of wall above."""
    return torch.where(points[:, 2] < -1.5, 0, torch.where(points[:, 1] > 0, 1, 2))


def test_evaluation_gives_every_condition_an_interval_around_its_value() -> None:
    scans = [scan(seed) for seed in range(3)]
    table = evaluate_points(ground_finder, scans, ["a", "b", "c"], 4, names=("fog", "motion_blur"), scanner=SCANNER)
    rows = table.to_pylist()
    assert [row["corruption"] for row in rows] == ["clean", *["fog"] * 3, *["motion_blur"] * 3]
    for row in rows:
        assert row["low"] <= row["miou"] <= row["high"]
        assert row["drop"] == pytest.approx(rows[0]["miou"] - row["miou"])
        assert not row["enough_data"]  # three scans


def test_evaluation_of_a_scan_does_not_depend_on_the_others() -> None:
    scans = [scan(seed) for seed in range(3)]
    seen: list[list[Tensor]] = []

    def watch(points: Tensor) -> Tensor:
        seen[-1].append(points)
        return ground_finder(points)

    for order in ([0, 1], [1, 2]):
        seen.append([])
        evaluate_points(watch, [scans[i] for i in order], [str(i) for i in order], 4, names=("snow",), severities=(5,))
    assert torch.equal(seen[0][3], seen[1][2])


def test_evaluation_refuses_a_model_that_does_not_label_points() -> None:
    scans = [scan(0), scan(1)]
    with pytest.raises(InvalidInput, match="one class a point"):
        evaluate_points(lambda points: points, scans, ["a", "b"], 4, names=("fog",))
    with pytest.raises(InvalidInput, match="at least 2"):
        evaluate_points(ground_finder, scans[:1], ["a"], 4, names=("fog",))


def test_the_method_is_registered() -> None:
    assert function_methods()["shift/point-clouds"].card == "robo3d"
