"""Failure points: counts that add up, censoring, ranks that change and ranks that only seem to."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import CensoredData, ecdf, kendalltau

from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context
from snellen.shift._curve import ShiftCurve
from snellen.shift.failure_points import (
    THRESHOLDS,
    FailurePoints,
    failure_shares,
    keep_in_class,
    mean_failure_point,
    rank_agreement,
    rank_swap,
)

SEVERITIES = np.array([0.0, 1.0, 2.0, 3.0, 4.0])


def curve(correct: np.ndarray, shift: str = "fog") -> ShiftCurve:
    return ShiftCurve(shift, [f"s{i}" for i in range(correct.shape[1])], SEVERITIES, correct)


@pytest.fixture
def random_curve() -> ShiftCurve:
    return curve(np.random.default_rng(0).random((5, 300)) > np.linspace(0.05, 0.6, 5)[:, None])


def test_counts_add_up_and_survival_is_kaplan_meiers(random_curve: ShiftCurve) -> None:
    shares = failure_shares(random_curve)
    assert shares.counts.sum() + shares.never == 300
    assert (shares.survival <= random_curve.accuracy + 1e-12).all()
    critical = random_curve.critical_severity()
    peer = ecdf(CensoredData(critical[np.isfinite(critical)], right=np.full(shares.never, 4.0))).sf
    assert shares.survival == pytest.approx([float(peer.evaluate(s)) for s in SEVERITIES])


def test_survival_equals_accuracy_where_failures_last() -> None:
    lasting = np.arange(5)[:, None] < np.random.default_rng(1).integers(0, 7, 200)
    assert failure_shares(curve(lasting)).survival == pytest.approx(curve(lasting).accuracy)


def test_always_right_never_fails_and_always_wrong_fails_at_once() -> None:
    right, wrong = curve(np.ones((5, 30), dtype=bool)), curve(np.zeros((5, 30), dtype=bool))
    assert failure_shares(right).never == 30
    assert mean_failure_point(right, np.random.default_rng(0)).value == 4.0
    assert failure_shares(wrong).counts.tolist() == [30, 0, 0, 0, 0]
    assert mean_failure_point(wrong, np.random.default_rng(0)).value == 0.0


def test_the_mean_failure_point_covers_the_truth() -> None:
    rng, inside = np.random.default_rng(2), []
    big = curve(np.arange(5)[:, None] < rng.integers(0, 7, 200_000))
    truth = float(np.minimum(big.critical_severity(), 4).mean())
    for _ in range(120):
        estimate = mean_failure_point(curve(np.arange(5)[:, None] < rng.integers(0, 7, 120)), rng)
        inside.append(estimate.low <= truth <= estimate.high)
    assert np.mean(inside) > 0.89


def test_rank_agreement_is_kendalls_tau() -> None:
    first, second = [0.9, 0.8, 0.7, 0.6], [0.9, 0.7, 0.8, 0.5]
    assert rank_agreement(first, second) == pytest.approx(kendalltau(first, second).statistic)
    assert rank_agreement(first, first) == 1.0
    assert rank_agreement(first, first[::-1]) == -1.0
    assert math.isnan(rank_agreement([0.5, 0.5], [0.1, 0.2]))
    with pytest.raises(InvalidInput):
        rank_agreement([0.5], [0.5])


def test_a_planted_swap_is_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(3)
    falling = np.stack([rng.random(600) < p for p in (0.95, 0.9, 0.7, 0.5, 0.3)])
    steady = np.stack([rng.random(600) < p for p in (0.8, 0.78, 0.76, 0.74, 0.72)])
    swap = rank_swap(curve(falling), curve(steady), 0, 4)
    assert swap.low_difference > 0 > swap.high_difference
    assert swap.p_value < 1e-6
    false_alarms = 0
    for _ in range(200):
        a, b = (curve(rng.random((5, 100)) < 0.7) for _ in range(2))
        false_alarms += rank_swap(a, b, 0, 4).p_value < 0.05
    assert false_alarms <= 15


def test_a_swap_needs_the_same_samples(random_curve: ShiftCurve) -> None:
    other = ShiftCurve("fog", [f"t{i}" for i in range(300)], SEVERITIES, random_curve.correct)
    with pytest.raises(InvalidInput, match="same samples"):
        rank_swap(random_curve, other, 0, 4)


def test_the_filter_keeps_complete_trajectories_with_two_scores_of_four() -> None:
    scores = {name: np.full((3, 6), threshold + 1) for name, threshold in THRESHOLDS.items()}
    for name in ("class_text", "class_shift_text"):
        scores[name] = scores[name] - 2.0  # two scores fail everywhere: the other two are enough
    scores["clip_reference"][1, 4] = 0.0  # one scale with one score left: the trajectory goes
    assert keep_in_class(scores).tolist() == [True, False, True]
    assert keep_in_class(scores, dict.fromkeys(THRESHOLDS, -np.inf)).all()
    assert not keep_in_class(scores, dict.fromkeys(THRESHOLDS, np.inf)).any()
    raised = {**scores, "class_text": scores["class_text"] + 5}
    assert (keep_in_class(raised) >= keep_in_class(scores)).all()


def test_the_filter_refuses_what_it_cannot_judge() -> None:
    scores = {name: np.zeros((2, 3)) for name in THRESHOLDS}
    with pytest.raises(InvalidInput, match="similarities must be"):
        keep_in_class({name: scores[name] for name in list(THRESHOLDS)[:3]})
    with pytest.raises(InvalidInput, match="one shape"):
        keep_in_class({**scores, "class_text": np.zeros((2, 4))})
    with pytest.raises(InvalidInput, match="needed"):
        keep_in_class(scores, needed=5)


def test_the_probe_states_the_earliest_failure_without_a_query(random_curve: ShiftCurve) -> None:
    rows = [
        (sample, name, float(severity), bool(random_curve.correct[step, index]) or name == "snow")
        for name in ("clean", "fog", "snow")
        for step, severity in enumerate(SEVERITIES)
        if (severity == 0) == (name == "clean")
        for index, sample in enumerate(random_curve.ids)
    ]
    columns = zip(("id", "shift", "severity", "correct"), zip(*rows, strict=True), strict=True)
    context = Context(ModelSpec("m", ("a", "b"), (8, 8)), pa.table({"id": []}))
    probe = FailurePoints()
    table = probe.run({"shift/corruptions": pa.table(dict(columns))}, context)
    (found,) = probe.findings(table, context)
    assert found.subject == {"corruption": "fog"}
    assert found.ci is not None
    assert found.value is not None
    assert found.ci[0] < found.value < found.ci[1]
    bars, survival = probe.exhibits(table, context)
    assert bars.bars[0].label == "fog"
    assert survival.title.endswith("weather")
    assert len(survival.points) == 10
    assert probe.findings(pa.table({}), context) == []
    assert probe.exhibits(pa.table({}), context) == []
