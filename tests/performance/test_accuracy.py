import numpy as np
import pyarrow as pa
import pytest

from snellen.errors import InvalidInput
from snellen.exhibits import Bars, Grid
from snellen.models import ModelSpec
from snellen.performance.accuracy import Accuracy
from snellen.probe import Context
from snellen.stats import wilson

CLASSES = tuple(f"digit {k}" for k in range(4))


def examine(label, predicted, attributes=None, probe=None, shuffle_samples=False):
    """(table, findings, exhibits) for predictions and attributes given as lists."""
    probe = probe or Accuracy()
    n, attributes = len(label), attributes or {}
    ids = [f"s{i}" for i in range(n)]
    label, predicted = np.asarray(label, np.int64), np.asarray(predicted, np.int64)
    predictions = pa.table(
        {
            "id": ids,
            "label": label,
            "predicted": predicted,
            "correct": label == predicted,
            "confidence": np.linspace(0.3, 1.0, n).astype(np.float32),
        }
    )
    samples = pa.table({"id": ids, "label": label, **{k: pa.array(v) for k, v in attributes.items()}})
    if shuffle_samples:
        samples = samples.take(np.random.default_rng(0).permutation(n))
    context = Context(ModelSpec("m", CLASSES, (8, 8)), samples, tuple(attributes))
    table = probe.run({"predictions": predictions}, context)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def random_model(rng, n, accuracy=0.9):
    label = rng.integers(0, 4, n)
    wrong = (label + rng.integers(1, 4, n)) % 4
    return label, np.where(rng.random(n) < accuracy, label, wrong)


def rows_by_group(table):
    return {(row["dimension"], row["value"]): row for row in table.to_pylist()}


def test_rows_count_what_is_there():
    label, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, -1]
    rows = rows_by_group(examine(label, predicted, {"tint": ["r", "r", "g", "g", None, "g"]})[0])
    assert rows["overall", ""]["accuracy"] == 3 / 6
    assert (rows["class", "digit 0"]["n"], rows["class", "digit 0"]["correct"]) == (3, 2)
    assert rows["class", "digit 2"]["confused_with"] == ["no finite output"]
    assert (rows["tint", "g"]["n"], rows["tint", "g"]["correct"]) == (3, 1)
    assert rows["tint", "g"]["rest_n"] == 2  # the sample without a tint is in neither group
    assert ("class", "digit 3") not in rows
    assert (rows["overall", ""]["low"], rows["overall", ""]["high"]) == tuple(wilson(3, 6))


def test_a_weak_class_is_found_with_what_it_is_taken_for():
    rng = np.random.default_rng(0)
    label, predicted = random_model(rng, 800, 0.97)
    weak = (label == 2) & (rng.random(800) < 0.5)
    predicted[weak] = 3
    _, findings, exhibits = examine(label, predicted)
    overall, worse = findings
    assert overall.value == np.mean(label == predicted)
    assert overall.effect == 0
    assert overall.ci[0] < overall.value < overall.ci[1]
    assert worse.subject == {"class": "digit 2"}
    assert worse.p_value < 1e-6
    assert worse.effect == pytest.approx(worse.baseline - worse.value)
    assert worse.ci[0] < worse.effect < worse.ci[1]
    assert "most often it answers digit 3" in worse.title
    failed = {f"s{i}" for i in np.flatnonzero((label == 2) & (predicted != 2))}
    assert set(worse.evidence) <= failed
    assert worse.evidence == tuple(sorted(worse.evidence, key=lambda s: -int(s[1:])))  # most confident first
    assert isinstance(exhibits[0], Bars)
    assert exhibits[0].bars[0].label == "digit 2"
    assert isinstance(exhibits[2], Grid)
    assert exhibits[2].rows[0][:2] == ["digit 2", "digit 3"]


def test_weak_attribute_values_are_found_also_among_numbers_and_in_any_sample_order():
    rng = np.random.default_rng(1)
    label, predicted = random_model(rng, 1000, 0.97)
    rotation = rng.uniform(-60, 60, 1000)
    background = rng.choice(["plain", "stripes"], 1000)
    broken = ((rotation > 40) | (background == "stripes")) & (rng.random(1000) < 0.4)
    predicted[broken] = (label[broken] + 1) % 4
    attributes = {"rotation": rotation.tolist(), "background": background.tolist()}
    table, _, _ = examine(label, predicted, attributes, shuffle_samples=True)
    found = [key for key, row in rows_by_group(table).items() if row["p_value"] is not None and row["p_value"] <= 0.05]
    assert ("background", "stripes") in found
    (top,) = [value for attribute, value in found if attribute == "rotation"]
    assert 30 < float(top.split(" to ")[0]) < 40
    assert float(top.split(" to ")[1]) == 60


def test_a_healthy_model_rarely_gets_a_finding():
    rng = np.random.default_rng(2)
    false_alarms = 0
    for _ in range(150):
        label, predicted = random_model(rng, 400)
        attributes = {f"a{k}": rng.integers(0, 4, 400).tolist() for k in range(4)}
        false_alarms += any(f.p_value is not None for f in examine(label, predicted, attributes)[1])
    assert false_alarms / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_single_samples_are_never_claimed():
    label = np.tile([0, 1, 2, 3], 100)
    predicted = label.copy()
    predicted[7] = 0
    camera = ["one-off" if i == 7 else "usual" for i in range(400)]
    table, findings, _ = examine(label, predicted, {"camera": camera})
    row = rows_by_group(table)["camera", "one-off"]
    assert (row["n"], row["correct"], row["p_value"]) == (1, 0, None)
    assert all(f.effect == 0 for f in findings)


@pytest.mark.parametrize(("label", "predicted"), [([1], [1]), ([1], [0]), ([2] * 200, [2] * 150 + [1] * 50)])
def test_one_image_or_one_class_compare_with_nothing(label, predicted):
    attributes = {"same": ["x"] * len(label), "missing": pa.nulls(len(label), pa.string())}
    _, findings, exhibits = examine(label, predicted, attributes)
    (overall,) = findings
    assert overall.enough_data == (len(label) > 1)
    assert ("needs about 97" in overall.title) == (len(label) == 1)
    assert all(e.title for e in exhibits)


def test_no_predictions_say_nothing():
    table, findings, exhibits = examine([], [])
    assert (table.num_rows, findings, exhibits) == (0, [], [])


def test_tiny_differences_are_not_reported():
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1, 2, 3], 20_000)
    predicted = np.where(rng.random(80_000) < np.where(label == 1, 0.97, 0.98), label, (label + 1) % 4)
    assert len(examine(label, predicted)[1]) == 1
    assert len(examine(label, predicted, probe=Accuracy(min_effect=0.0))[1]) == 2


@pytest.mark.parametrize("bad", [{"bins": 1}, {"min_count": 0}, {"min_effect": 1.0}, {"max_findings": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        Accuracy(**bad)
