import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context
from snellen.scores import log_probabilities
from snellen.uncertainty._calibration import (
    brier_score,
    classwise_calibration_error,
    consistency_test,
    equal_mass_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    tempered_confidence,
)
from snellen.uncertainty.calibration import Calibration

K = 5


def calibrated(rng, n, spread=2.0):
    """Logits `[n, K]` and labels drawn from their own softmax."""
    logits = rng.normal(0, spread, (n, K))
    labels = (np.exp(log_probabilities(logits)).cumsum(1) < rng.random((n, 1))).sum(1)
    return logits, labels.clip(0, K - 1)


def examine(logits, labels, probe=None, seed=0):
    n = len(labels)
    predicted = np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)
    predictions = pa.table(
        {
            "id": [f"s{i:06}" for i in range(n)],
            "label": pa.array(labels, pa.int64()),
            "predicted": pa.array(predicted, pa.int64()),
            "logits": pa.array(logits.astype(np.float32).tolist(), pa.list_(pa.float32())),
        }
    )
    context = Context(ModelSpec("m", tuple("abcde"), (8, 8)), predictions.select(["id", "label"]), seed=seed)
    probe = probe or Calibration()
    table = probe.run({"predictions": predictions}, context)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def test_bins_hold_equal_mass_and_are_ordered():
    confidence = np.random.default_rng(0).random(103)
    codes = equal_mass_bins(confidence, 15)
    sizes = np.bincount(codes)
    assert len(sizes) == 15
    assert sizes.max() - sizes.min() <= 1
    assert np.all(np.diff(codes[np.argsort(confidence)]) >= 0)
    assert equal_mass_bins(confidence[:3], 15).max() == 2


def test_calibration_error_by_hand():
    confidence = np.array([0.6, 0.6, 0.9, 0.9])
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(0.0)


def test_scores_equal_sklearn():
    logits, labels = calibrated(np.random.default_rng(1), 300)
    p = np.exp(log_probabilities(logits))
    assert negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, p, labels=range(K)))
    by_class = [brier_score_loss(labels == k, p[:, k]) for k in range(K)]
    assert brier_score(p, labels) == pytest.approx(sum(by_class))
    assert 0 < classwise_calibration_error(p, labels) < 0.2


def test_temperature_is_recovered_and_does_not_change_the_answers():
    rng = np.random.default_rng(2)
    logits, labels = calibrated(rng, 20_000)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(logits / 3, labels) == pytest.approx(1 / 3, rel=0.05)
    correct = logits.argmax(1) == labels
    before = np.exp(log_probabilities(3 * logits).max(1))
    after = tempered_confidence(3 * logits, labels, rng)
    assert expected_calibration_error(before, correct) > 0.1
    assert expected_calibration_error(after, correct) < 0.02


def test_consistency_p_values_are_uniform_for_a_calibrated_model():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(200):
        logits, labels = calibrated(rng, 200)
        p = np.exp(log_probabilities(logits))
        p_values.append(consistency_test(p.max(1), p.argmax(1) == labels, 15, rng, draws=99).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)
    assert 0.4 < np.mean(p_values) < 0.6


def test_a_calibrated_model_gets_no_finding():
    alarms = 0
    for seed in range(40):
        logits, labels = calibrated(np.random.default_rng(seed), 1000)
        alarms += bool(examine(logits, labels, Calibration(draws=99), seed)[1])
    assert alarms <= 6  # 2 expected; P(more than 6) < 1 %


@pytest.mark.parametrize(("factor", "direction"), [(3.0, "over-confident"), (0.4, "under-confident")])
def test_a_miscalibrated_model_is_found_with_the_temperature_that_mends_it(factor, direction):
    logits, labels = calibrated(np.random.default_rng(4), 1500)
    table, (finding,), (reliability, _) = examine(factor * logits, labels)
    measures = {r["name"]: r["value"] for r in table.to_pylist() if r["part"] == "measure"}
    assert direction in finding.title
    assert f"temperature of {measures['temperature']:.2f}" in finding.title
    assert measures["temperature"] == pytest.approx(factor, rel=0.15)
    assert finding.p_value == 0.001
    assert finding.effect == pytest.approx(finding.value - finding.baseline)
    assert finding.ci[0] < finding.value < finding.ci[1]
    assert measures["calibration error after temperature"] < measures["calibration error"] / 2
    right = dict(zip([f"s{i:06}" for i in range(1500)], logits.argmax(1) == labels, strict=True))
    assert len(finding.evidence) == 12
    assert {right[i] for i in finding.evidence} == {direction == "under-confident"}
    assert reliability.diagonal
    assert len(reliability.points) == 30
    assert all(p.low <= p.y <= p.high for p in reliability.points)


def test_interval_of_a_large_error_covers_the_true_error():
    truth_logits, truth_labels = calibrated(np.random.default_rng(5), 300_000)
    p = np.exp(log_probabilities(3 * truth_logits))
    truth = expected_calibration_error(p.max(1), p.argmax(1) == truth_labels)
    covered = 0
    for seed in range(60):
        logits, labels = calibrated(np.random.default_rng(100 + seed), 600)
        table = examine(3 * logits, labels, Calibration(draws=99), seed)[0]
        m = {r["name"]: r["value"] for r in table.to_pylist() if r["part"] == "measure"}
        covered += m["low"] <= truth <= m["high"]
    assert covered / 60 >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / 60)


def test_two_faults_that_cancel_are_not_called_over_confident():
    rng = np.random.default_rng(6)
    n = 4000
    confidence = np.where(np.arange(n) % 2, 0.95, 0.55)
    right = rng.random(n) < 0.75
    logits = np.zeros((n, K))
    logits[:, 0] = np.log(confidence * (K - 1) / (1 - confidence))
    (finding,) = examine(logits, np.where(right, 0, rng.integers(1, K, n)))[1]
    assert "too sure for some images and too unsure for others" in finding.title


def test_few_images_are_not_judged_and_say_how_many_are_needed():
    logits, labels = calibrated(np.random.default_rng(7), 12, spread=4.0)
    (finding,) = examine(logits, labels)[1]
    assert not finding.enough_data
    assert "n = 12, needs about" in finding.title
    assert finding.effect == 0
    assert examine(logits[:1], labels[:1])[0].num_rows == 0


def test_broken_outputs_are_left_out_and_row_order_does_not_matter():
    logits, labels = calibrated(np.random.default_rng(8), 400)
    broken = np.concatenate([3 * logits, np.full((3, K), np.nan)])
    table = examine(broken, np.concatenate([labels, [0, 1, 2]]))[0]
    assert table == examine(3 * logits, labels)[0]


def test_an_infinitely_sure_mistake_keeps_every_measure_finite():
    logits, labels = calibrated(np.random.default_rng(9), 200)
    logits[0] = [0, *[-np.inf] * 4]
    labels[0] = 3
    p = np.exp(log_probabilities(np.maximum(logits, -1e30)))
    assert np.isfinite(brier_score(p, labels))
    assert np.isfinite(negative_log_likelihood(np.maximum(logits, -1e30), labels))


def test_labels_only_are_refused_and_bad_settings_too():
    predictions = pa.table({"id": ["a"], "label": [0], "predicted": [0], "logits": pa.nulls(1, pa.list_(pa.float32()))})
    context = Context(ModelSpec("m", ("a", "b"), (8, 8)), predictions.select(["id", "label"]))
    with pytest.raises(InvalidInput, match="labels only"):
        Calibration().run({"predictions": predictions}, context)
    with pytest.raises(InvalidInput, match="bins"):
        Calibration(bins=0)
