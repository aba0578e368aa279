"""What a shift curve states must cover the truth of the population its samples come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import CensoredData, ecdf

from snellen.errors import InvalidInput
from snellen.probe import rows
from snellen.shift._curve import ShiftCurve, curves_of, on_common_samples

SEVERITIES = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


def population(count: int, rng: np.random.Generator, recover: float = 0.05) -> NDArray[np.bool_]:
    """`[S, n]`: samples fail from a random severity on, and now and then are right again by chance."""
    threshold = rng.gamma(3.0, 1.0, count)
    lucky = rng.random((len(SEVERITIES), count)) < recover
    correct: NDArray[np.bool_] = (SEVERITIES[:, None] < threshold) | lucky
    correct[0] = rng.random(count) < 0.95
    return correct


def curve(correct: NDArray[np.bool_]) -> ShiftCurve:
    return ShiftCurve("fog", [f"s{i}" for i in range(correct.shape[1])], SEVERITIES, correct)


@pytest.fixture(scope="module")
def truth() -> ShiftCurve:
    return curve(population(400_000, np.random.default_rng(1)))


@pytest.fixture(scope="module")
def drawn() -> list[ShiftCurve]:
    return [curve(population(200, np.random.default_rng([2, k]))) for k in range(300)]


def test_the_band_covers_every_point_in_95_of_100_samples(truth: ShiftCurve, drawn: list[ShiftCurve]) -> None:
    inside = np.array([(c.band().low <= truth.accuracy) & (truth.accuracy <= c.band().high) for c in drawn])
    assert (inside.mean(axis=0) > 0.91).all()


def test_the_simultaneous_band_covers_the_whole_curve_in_95_of_100_samples(
    truth: ShiftCurve, drawn: list[ShiftCurve]
) -> None:
    bands = [c.simultaneous_band(np.random.default_rng(k), 500) for k, c in enumerate(drawn)]
    whole = np.array([((b.low <= truth.accuracy) & (truth.accuracy <= b.high)).all() for b in bands])
    pointwise = np.array([((c.band().low <= truth.accuracy) & (truth.accuracy <= c.band().high)).all() for c in drawn])
    assert whole.mean() > 0.92
    assert whole.mean() > pointwise.mean()


def test_the_area_covers_the_truth_in_95_of_100_samples(truth: ShiftCurve, drawn: list[ShiftCurve]) -> None:
    expected = np.trapezoid(truth.accuracy, SEVERITIES) / 5
    areas = [c.area(np.random.default_rng(k)) for k, c in enumerate(drawn[:120])]
    assert np.mean([a.low <= expected <= a.high for a in areas]) > 0.90
    assert areas[0].value == pytest.approx(np.trapezoid(drawn[0].accuracy, SEVERITIES) / 5)


@pytest.mark.parametrize("drop", [0.05, 0.3])
def test_the_severity_of_a_drop_covers_the_truth(truth: ShiftCurve, drawn: list[ShiftCurve], drop: float) -> None:
    expected = truth.severity_of_drop(drop).severity
    crossings = [c.severity_of_drop(drop) for c in drawn]
    assert np.mean([c.low <= expected <= c.high for c in crossings]) > 0.92
    assert all(c.low <= c.severity <= c.high for c in crossings)


def test_a_drop_that_never_comes_is_beyond_the_curve() -> None:
    flat = curve(np.ones((6, 50), dtype=bool))
    assert flat.severity_of_drop(0.1).severity == math.inf
    assert flat.severity_of_drop(0.1).high == math.inf
    with pytest.raises(InvalidInput, match="drop"):
        flat.severity_of_drop(0.0)


def test_critical_severity_is_the_first_failure_and_agrees_with_kaplan_meier() -> None:
    correct = population(500, np.random.default_rng(3))
    critical = curve(correct).critical_severity()
    assert (critical[~correct[0]] == 0).all()
    assert np.isinf(critical[correct.all(axis=0)]).all()
    failed = np.isfinite(critical)
    survival = ecdf(CensoredData(critical[failed], right=np.full((~failed).sum(), 5.0))).sf
    for severity, accuracy in zip(SEVERITIES, correct.mean(axis=1), strict=True):
        surviving = float((critical > severity).mean())
        assert surviving == pytest.approx(float(survival.evaluate(severity)), abs=1e-12)
        assert surviving <= accuracy  # later recoveries are allowed


def test_rows_become_curves_and_incomplete_samples_drop_out_of_their_curve_only() -> None:
    table = rows(
        ["a", "b", "a", "b", "a", "b", "b"],
        shift=["clean", "clean", "fog", "fog", "fog", "fog", "snow"],
        severity=[0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 1.0],
        correct=[True, True, True, False, False, False, True],
    )
    fog, snow = curves_of(table)
    assert (fog.shift, list(fog.ids), fog.severities.tolist()) == ("fog", ["a", "b"], [0, 1, 2])
    assert fog.correct.tolist() == [[True, True], [True, False], [False, False]]
    assert list(snow.ids) == ["b"]


def test_bad_curves_are_refused() -> None:
    with pytest.raises(InvalidInput, match="start at 0"):
        ShiftCurve("fog", ["a"], np.array([1.0]), np.ones((1, 1), dtype=bool))
    with pytest.raises(InvalidInput, match="ascend"):
        ShiftCurve("fog", ["a"], np.array([0.0, 2.0, 2.0]), np.ones((3, 1), dtype=bool))
    with pytest.raises(InvalidInput, match="severities, samples"):
        ShiftCurve("fog", ["a", "b"], np.array([0.0]), np.ones((1, 1), dtype=bool))


def test_common_samples_are_aligned_whatever_the_order() -> None:
    severities = np.array([0.0, 1.0])
    first = ShiftCurve("fog", ["a", "b", "c"], severities, np.array([[1, 1, 1], [1, 0, 0]], dtype=bool))
    second = ShiftCurve("snow", ["c", "x", "b"], severities, np.array([[1, 1, 1], [0, 1, 1]], dtype=bool))
    fog, snow = on_common_samples([first, second])
    assert list(fog.ids) == list(snow.ids) == ["b", "c"]
    assert fog.correct[1].tolist() == [False, False]
    assert snow.correct[1].tolist() == [True, False]
    assert on_common_samples([]) == []
    assert on_common_samples([first, ShiftCurve("snow", ["x"], severities, np.ones((2, 1), dtype=bool))]) == []
