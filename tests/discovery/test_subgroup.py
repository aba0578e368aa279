import numpy as np
import pyarrow as pa
import pytest

from snellen.discovery.subgroup import SubgroupAnalysis
from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context

K = 10
FAST = SubgroupAnalysis(permutations=199)


def examine(label, predicted, attributes, probe=FAST, seed=0, order=None):
    n = len(label)
    ids = [f"s{i:05}" for i in range(n)]
    predictions = pa.table(
        {
            "id": ids,
            "label": pa.array(label, pa.int64()),
            "predicted": pa.array(predicted, pa.int64()),
            "correct": np.asarray(label) == np.asarray(predicted),
            "confidence": np.linspace(0.2, 1, n).astype(np.float32),
        }
    )
    samples = pa.table({"id": ids, "label": predictions["label"], **{k: pa.array(v) for k, v in attributes.items()}})
    context = Context(ModelSpec("m", tuple("0123456789"), (8, 8)), samples, tuple(attributes), seed)
    shown = predictions if order is None else predictions.take(order)
    table = probe.run({"predictions": shown}, context)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def random_model(rng, n, accuracy):
    y = rng.integers(0, K, n)
    return y, np.where(rng.random(n) < accuracy, y, (y + rng.integers(1, K, n)) % K)


def random_attributes(rng, n):
    return {
        "background": rng.choice(["plain", "stripes", "dots"], n).tolist(),
        "tint": rng.choice(["red", "green", "blue"], n).tolist(),
        "size": rng.uniform(0.5, 1, n).tolist(),
        "tagged": (rng.random(n) < 0.2).tolist(),
    }


def spoil(rng, label, predicted, where, share):
    hit = where & (rng.random(len(label)) < share)
    predicted[hit] = (label[hit] + rng.integers(1, K, hit.sum())) % K


def claims(findings):
    return [f for f in findings if f.p_value is not None]


def test_healthy_models_get_a_finding_in_at_most_five_per_cent_of_runs():
    rng = np.random.default_rng(0)
    alarms, repeats = 0, 60
    probe = SubgroupAnalysis(permutations=99)
    for seed in range(repeats):
        y, p = random_model(rng, 500, (0.97, 0.9, 0.7)[seed % 3])
        alarms += any(f.effect >= 0.05 for f in claims(examine(y, p, random_attributes(rng, 500), probe, seed)[1]))
    assert alarms / repeats <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_a_single_fault_is_one_finding():
    rng = np.random.default_rng(1)
    y, p = random_model(rng, 1500, 0.96)
    attributes = random_attributes(rng, 1500)
    striped = np.array(attributes["background"]) == "stripes"
    spoil(rng, y, p, striped, 0.4)
    _, findings, exhibits = examine(y, p, attributes)
    (finding,) = claims(findings)
    assert finding.subject == {"attribute": "background", "value": "stripes"}
    assert finding.value == np.mean((y == p)[striped])
    assert finding.baseline == np.mean((y == p)[~striped])
    assert finding.effect == pytest.approx(finding.baseline - finding.value)
    assert finding.ci[0] < finding.value < finding.ci[1] < finding.baseline
    assert finding.n == striped.sum()
    assert finding.p_value <= 0.05
    failed = {f"s{i:05}" for i in np.flatnonzero(striped & (y != p))}
    assert set(finding.evidence) <= failed
    assert list(finding.evidence) == sorted(finding.evidence, reverse=True)  # the most confident first
    assert "stripes" in finding.title
    assert exhibits[0].title == "Worst groups"
    assert exhibits[0].rows[0][0] == "background = stripes"


def test_a_fault_of_a_pair_is_reported_as_the_pair_and_not_by_its_parents():
    rng = np.random.default_rng(2)
    y, p = random_model(rng, 2000, 0.97)
    attributes = random_attributes(rng, 2000)
    both = (np.array(attributes["background"]) == "stripes") & (np.array(attributes["tint"]) == "red")
    spoil(rng, y, p, both, 0.6)
    (finding,) = claims(examine(y, p, attributes)[1])
    assert set(finding.subject.values()) == {"background", "stripes", "tint", "red"}
    assert finding.n == both.sum()


def test_a_class_on_a_background_is_found():
    rng = np.random.default_rng(3)
    y, p = random_model(rng, 2500, 0.96)
    attributes = random_attributes(rng, 2500)
    where = (y == 7) & (np.array(attributes["background"]) == "stripes")
    p[where & (rng.random(2500) < 0.7)] = 1
    found = claims(examine(y, p, attributes)[1])
    assert found[0].subject == {"class": "7", "attribute": "background", "value": "stripes"}
    assert "class = 7 and background = stripes" in found[0].title
    assert len([f for f in found if f.metric == "accuracy"]) == 1


def test_two_faults_are_both_found():
    rng = np.random.default_rng(4)
    y, p = random_model(rng, 2000, 0.97)
    attributes = random_attributes(rng, 2000)
    spoil(rng, y, p, np.array(attributes["tagged"]), 0.4)
    spoil(rng, y, p, np.array(attributes["size"]) > 0.9, 0.4)
    subjects = [f.subject for f in claims(examine(y, p, attributes)[1])]
    assert {"attribute": "tagged", "value": "yes"} in subjects
    sizes = [s["value"] for s in subjects if s.get("attribute") == "size" and "value_2" not in s]
    assert [value.split(" to ")[1] for value in sizes] == ["1.000"]


def test_mistakes_that_follow_an_attribute_are_found_where_no_accuracy_shows_them():
    rng = np.random.default_rng(5)
    n = 1800
    y = np.arange(n) % K
    tint = rng.integers(0, 2, n)
    p = np.where(rng.random(n) < 0.2, (y + 1 + tint) % K, y)
    attributes = {"tint": np.array(["red", "blue"])[tint].tolist(), "other": rng.integers(0, 3, n).tolist()}
    table, findings, exhibits = examine(y, p, attributes)
    (finding,) = claims(findings)
    assert finding.subject["attribute"] == "tint"
    assert "Which wrong answer" in finding.title
    assert finding.effect == pytest.approx(0.1, abs=0.02)
    assert finding.ci[0] < finding.effect < finding.ci[1]
    measures = {(r["key"], r["name"]): r["measure"] for r in table.to_pylist() if r["part"] == "skewsize"}
    assert measures["tint", "mean corrected V"] > 0.3 > 0.1 > measures["other", "mean corrected V"]
    assert "SkewSize of tint" in [e.title for e in exhibits]


def test_missing_values_belong_to_no_group_and_small_values_say_how_many_are_needed():
    rng = np.random.default_rng(6)
    y, p = random_model(rng, 400, 0.9)
    camera = ["phone" if i % 2 else "slr" for i in range(400)]
    camera[:50] = [None] * 50
    camera[60] = "drone"
    p[60] = (y[60] + 1) % K
    table, findings, _ = examine(y, p, {"camera": camera})
    groups = [r for r in table.to_pylist() if r["part"] == "group" and r["second_key"] is None]
    assert {r["value"] for r in groups} == {"phone", "slr"}
    assert all(r["n"] + r["rest_n"] == 350 for r in groups)
    (small,) = [f for f in findings if not f.enough_data]
    assert small.subject == {"attribute": "camera", "value": "drone"}
    assert "n = 1, needs about" in small.title
    assert claims(findings) == []


@pytest.mark.parametrize(
    ("label", "predicted", "attributes"),
    [
        ([3], [3], {"a": ["x"]}),
        ([3], [4], {"a": ["x"], "b": [None]}),
        ([2] * 50, [2] * 40 + [1] * 10, {"a": ["x"] * 50}),
        ([1, 2, 3] * 20, [1, 2, 3] * 20, {"a": ["x", "y"] * 30}),
        ([1, 2, 3] * 20, [-1] * 60, {"a": ["x", "y"] * 30}),
        ([1, 2, 3] * 20, [1, 2, 3] * 20, {}),
        ([], [], {"a": pa.array([], pa.string())}),
    ],
)
def test_degenerate_data_claims_nothing(label, predicted, attributes):
    _, findings, exhibits = examine(label, predicted, attributes)
    assert claims(findings) == []
    assert all(e.title for e in exhibits)


def test_row_order_does_not_matter_and_runs_repeat():
    rng = np.random.default_rng(7)
    y, p = random_model(rng, 300, 0.8)
    attributes = random_attributes(rng, 300)
    assert examine(y, p, attributes)[0] == examine(y, p, attributes, order=rng.permutation(300))[0]


@pytest.mark.parametrize(
    "bad",
    [
        {"bins": 1}, {"min_group": 1}, {"min_effect": 1.0}, {"min_share": -0.1}, {"min_count": -1}, {"permutations": 9},
        {"max_findings": 0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        SubgroupAnalysis(**bad)
