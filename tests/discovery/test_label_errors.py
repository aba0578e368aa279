import numpy as np
import pyarrow as pa
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from snellen.discovery._confident_learning import (
    calibrate_joint,
    class_thresholds,
    confident_classes,
    confident_joint,
    count_joint,
    find_label_issues,
    noise_matrices,
    normalized_margin,
    round_rows,
    self_confidence,
)
from snellen.discovery._label_noise import contradictions, fit_calibration
from snellen.discovery._mislabelled_groups import mislabelled_groups
from snellen.discovery.label_errors import LabelErrors
from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context, get_probe
from snellen.stats import group_attribute

PRUNING = ("prune_by_noise_rate", "prune_by_class", "both")
FAST = LabelErrors(draws=199)

LABELS = np.array([0, 0, 0, 1, 1, 1])
P0 = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.7])
P = np.stack([P0, 1 - P0], axis=1)


def random_case(seed, n=300, k=5, sharpness=1.5):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, sharpness, (n, k)), axis=1)
    return rng.integers(0, k, n), p


def calibrated(rng, n, k=10, spread=3.0):
    """Logits `[n, k]` and labels drawn from their own softmax."""
    logits = rng.normal(0, spread, (n, k))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels.clip(0, k - 1)


def examine(logits, labels, probe=FAST, seed=0, order=None, attributes=None):
    n, k = logits.shape
    predicted = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    predictions = pa.table(
        {
            "id": [f"s{i:06}" for i in range(n)],
            "label": pa.array(labels, pa.int64()),
            "predicted": pa.array(predicted, pa.int64()),
            "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
        }
    )
    names = tuple(f"c{i}" for i in range(k))
    samples = predictions.select(["id", "label"])
    for name, values in (attributes or {}).items():
        samples = samples.append_column(name, pa.array(values))
    context = Context(ModelSpec("m", names, (8, 8)), samples, tuple(attributes or {}), seed=seed)
    table = probe.run({"predictions": predictions if order is None else predictions.take(order)}, context)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def digit_logits(seed, network=False):
    """Logits on digits a model was not trained on, and their true labels."""
    digits = load_digits()
    x, y = digits.data / 16, digits.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    train, rest = np.split(order, [150 if network else 600])
    model = LogisticRegression(max_iter=200)
    if network:
        model = MLPClassifier((64,), alpha=0, learning_rate_init=0.01, max_iter=150, random_state=seed)
    return np.log(np.maximum(model.fit(x[train], y[train]).predict_proba(x[rest]), 1e-30)), y[rest]


def by_the_book(labels, p):
    """The confident joint, image by image as the paper writes it."""
    k = p.shape[1]
    thresholds = [p[labels == c, c].mean() for c in range(k)]
    joint, off = np.zeros((k, k)), np.zeros(len(p), dtype=bool)
    for i, row in enumerate(p):
        sure = [c for c in range(k) if row[c] >= thresholds[c] - 1e-6]
        if sure:
            true = sure[0] if len(sure) == 1 else int(np.argmax(row))
            joint[labels[i], true] += 1
            off[i] = true != labels[i] and np.argmax(row) != labels[i]
    return joint, off


# Confident learning, by hand


def test_thresholds_and_joint_by_hand():
    np.testing.assert_allclose(class_thresholds(LABELS, P), [0.6, 0.6])
    assert confident_classes(P, np.array([0.6, 0.6])).tolist() == [0, 0, 1, 1, 1, 0]
    assert confident_joint(LABELS, P).tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("rule", [*PRUNING, "confident_learning", "predicted_neq_given", "low_self_confidence"])
def test_flags_by_hand(rule):
    assert np.flatnonzero(find_label_issues(LABELS, P, rule)).tolist() == [2, 5]


def test_collisions_go_to_the_largest_probability_even_when_it_is_not_confident():
    thresholds = np.array([0.2, 0.3, 0.9])
    p = np.array([[0.4, 0.6, 0.0], [0.3, 0.3, 0.4], [0.25, 0.1, 0.65], [0.1, 0.1, 0.8]])
    assert confident_classes(p, thresholds).tolist() == [1, 2, 0, -1]


def test_a_class_without_labels_is_never_reached():
    labels, p = np.array([0, 0, 1]), np.array([[0.1, 0.1, 0.8], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0]])
    assert class_thresholds(labels, p)[2] == 2
    assert confident_classes(p, class_thresholds(labels, p)).tolist() == [-1, 0, 1]


def test_calibration_by_hand():
    joint = np.array([[2, 1, 0], [0, 1, 0], [1, 0, 1]])
    labels = np.repeat([0, 1, 2], [4, 2, 3])
    assert calibrate_joint(joint, labels).tolist() == [[3, 1, 0], [0, 2, 0], [1, 0, 2]]


def test_rounding_keeps_totals_and_mends_the_furthest():
    values = np.array([[0.4, 0.4, 0.2], [2.6, 0.7, 0.7], [2.5, 2.5, 0.0]])
    assert round_rows(values).tolist() == [[0, 1, 0], [2, 1, 1], [2, 3, 0]]


def test_scores_by_hand():
    labels, p = np.array([0, 1, 2]), np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.3, 0.4, 0.3]])
    np.testing.assert_allclose(self_confidence(labels, p), [0.7, 0.3, 0.3])
    np.testing.assert_allclose(normalized_margin(labels, p), [0.75, 0.4, 0.45])


def test_noise_matrices_by_hand():
    matrices = noise_matrices(np.array([[6, 2], [0, 4]]))
    np.testing.assert_allclose(matrices.given_if_true, [[1, 1 / 3], [0, 2 / 3]])
    np.testing.assert_allclose(matrices.true_if_given, [[0.75, 0.25], [0, 1]])


# Confident learning, invariants


@pytest.mark.parametrize("seed", range(5))
def test_joint_equals_the_paper_image_by_image(seed):
    labels, p = random_case(seed)
    joint, off = by_the_book(labels, p)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    sure = confident_classes(p, class_thresholds(labels, p))
    np.testing.assert_array_equal(count_joint(labels, sure, p.shape[1]), joint)
    np.testing.assert_array_equal(find_label_issues(labels, p, "confident_learning"), off)


@pytest.mark.parametrize("seed", range(5))
def test_joint_is_whole_numbers_with_the_label_counts_as_rows(seed):
    labels, p = random_case(seed)
    joint = confident_joint(labels, p)
    assert joint.dtype == np.int64
    np.testing.assert_array_equal(joint.sum(axis=1), np.bincount(labels, minlength=5))


def test_permuting_classes_permutes_the_joint_and_keeps_the_flags():
    labels, p = random_case(3)
    order = np.array([3, 0, 4, 1, 2])  # new class j is old class order[j]
    renamed = np.argsort(order)[labels]
    joint = confident_joint(labels, p)[np.ix_(order, order)]
    np.testing.assert_array_equal(confident_joint(renamed, p[:, order]), joint)
    for rule in PRUNING:
        np.testing.assert_array_equal(find_label_issues(renamed, p[:, order], rule), find_label_issues(labels, p, rule))


@pytest.mark.parametrize("rule", [*PRUNING, "confident_learning", "predicted_neq_given", "low_normalized_margin"])
def test_perfect_probabilities_give_exactly_the_flipped_labels(rule):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 200)
    flipped = rng.random(200) < 0.2
    labels = np.where(flipped, (true + rng.integers(1, 4, 200)) % 4, true)
    np.testing.assert_array_equal(find_label_issues(labels, np.eye(4)[true], rule), flipped)
    counts = np.zeros((4, 4), dtype=int)
    np.add.at(counts, (labels, true), 1)
    np.testing.assert_array_equal(confident_joint(labels, np.eye(4)[true]), counts)


@pytest.mark.parametrize("seed", range(5))
def test_rules_keep_their_relations(seed):
    labels, p = random_case(seed)
    flags = {rule: find_label_issues(labels, p, rule) for rule in (*PRUNING, "predicted_neq_given")}
    np.testing.assert_array_equal(flags["both"], flags["prune_by_noise_rate"] & flags["prune_by_class"])
    for rule in PRUNING:
        assert not np.any(flags[rule] & ~flags["predicted_neq_given"])
    sure = find_label_issues(labels, p, "confident_learning").sum()
    assert find_label_issues(labels, p, "low_self_confidence").sum() == sure


def test_no_class_is_emptied():
    labels = np.array([0] * 5 + [1] * 5)
    p = np.tile([0.1, 0.9], (10, 1))
    for rule in PRUNING:
        assert find_label_issues(labels, p, rule)[:5].sum() <= 4


@pytest.mark.parametrize(
    ("labels", "p", "words"),
    [
        (LABELS, P * 2, "sum to 1"),
        (LABELS, P[:, :1], "at least 2"),
        (LABELS + 1, P, "in \\[0, K = 2\\)"),
        (LABELS.astype(float), P, "integers"),
        (LABELS[:3], P, "integers"),
    ],
)
def test_bad_input_is_refused(labels, p, words):
    with pytest.raises(InvalidInput, match=words):
        find_label_issues(labels, p)


# The statement


def test_calibration_is_found_in_spite_of_wrong_labels():
    rng = np.random.default_rng(0)
    logits, labels = calibrated(rng, 4000)
    wrong = rng.random(4000) < 0.15
    labels = np.where(wrong, rng.integers(0, 10, 4000), labels)
    bias = rng.normal(0, 1, 10)
    found = fit_calibration(2 * (logits - bias), labels)
    assert found.temperature == pytest.approx(2, rel=0.1)
    assert found.share == pytest.approx(0.15, abs=0.02)
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias - bias.mean(), atol=0.3)


def test_calibrated_models_with_true_labels_raise_an_alarm_in_five_per_cent_of_runs():
    rng = np.random.default_rng(1)
    repeats = 50
    p_values = []
    for seed in range(repeats):
        logits, labels = calibrated(rng, 300, 5, (1.0, 2.0, 4.0)[seed % 3])
        found = contradictions(labels, logits, rng.random(300) < 0.5, rng, 99)
        p_values.append(found.p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("scale", [1, 4])
def test_real_models_with_true_labels_get_no_finding_of_weight(seed, network, scale):
    logits, labels = digit_logits(seed, network)
    _, findings, _ = examine(scale * logits, labels)
    assert all(f.effect < 0.02 or f.p_value > 0.05 for f in findings)


@pytest.mark.parametrize("seed", range(3))
def test_a_class_the_model_answers_too_often_is_no_label_noise(seed):
    logits, labels = calibrated(np.random.default_rng(seed), 1200)
    logits[:, 4] += 4
    _, findings, _ = examine(logits, labels)
    assert all(f.effect < 0.02 or f.p_value > 0.05 for f in findings)


def test_planted_noise_is_found_and_sized():
    logits, true = digit_logits(0)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(true)) < 0.1
    labels = np.where(wrong, (true + rng.integers(1, 10, len(true))) % 10, true)
    table, findings, exhibits = examine(logits, labels)
    whole = findings[0]
    assert whole.kind == "label-noise"
    assert whole.p_value <= 0.01
    assert 0.05 <= whole.effect <= 0.12
    assert whole.ci[0] < whole.value < whole.ci[1]
    assert all(wrong[int(i[1:])] for i in whole.evidence)
    assert len(exhibits) == 3
    samples = table.slice(0, len(true))
    issue = samples["issue"].to_numpy(zero_copy_only=False).astype(bool)
    assert np.mean(wrong[issue]) > 0.8
    assert np.mean(issue[wrong]) > 0.7
    suggested = samples["suggested"].to_numpy()
    assert np.mean(suggested[wrong & issue] == true[wrong & issue]) > 0.9


def test_an_exchanged_pair_is_named():
    logits, true = digit_logits(1)
    rng = np.random.default_rng(0)
    wrong = (true == 9) & (rng.random(len(true)) < 0.25)
    _, findings, _ = examine(logits, np.where(wrong, 4, true))
    (pair,) = [f for f in findings if f.subject]
    assert pair.subject == {"class": "c4", "looks like": "c9"}
    assert pair.title.startswith("Of ")
    assert wrong.sum() / 2 <= pair.value * pair.n <= wrong.sum()  # unsure images are not counted
    assert pair.ci[0] < pair.value < pair.ci[1]
    assert all(wrong[int(i[1:])] for i in pair.evidence)


def test_row_order_does_not_matter():
    logits, true = digit_logits(2)
    labels = np.where(np.arange(len(true)) % 10 == 0, (true + 3) % 10, true)
    table, findings, _ = examine(logits, labels)
    shuffled, again, _ = examine(logits, labels, order=np.random.default_rng(0).permutation(len(true)))
    assert shuffled.equals(table)
    assert again == findings


def test_thresholds_come_from_the_other_half():
    rng = np.random.default_rng(0)
    logits, labels = calibrated(rng, 200, 4)
    first = np.arange(200) < 100
    found = contradictions(labels, logits, first, np.random.default_rng(1), 99)
    changed = np.where(first, (labels + 1) % 4, labels)
    other = contradictions(changed, logits, first, np.random.default_rng(1), 99)
    np.testing.assert_array_equal(found.sure_of[first], other.sure_of[first])
    assert np.any(found.sure_of[~first] != other.sure_of[~first])


def test_too_few_images_say_so():
    rng = np.random.default_rng(0)
    _, (finding,), _ = examine(*calibrated(rng, 12))
    assert not finding.enough_data
    assert finding.title.startswith("Not enough data to judge the labels: n = 12, needs about ")


def test_a_guessing_model_judges_no_labels():
    rng = np.random.default_rng(0)
    _, (finding,), _ = examine(rng.normal(0, 5, (600, 10)), rng.integers(0, 10, 600))
    assert not finding.enough_data
    assert "cannot be judged" in finding.title


def test_outputs_that_are_not_finite_are_left_out():
    logits, labels = calibrated(np.random.default_rng(0), 300)
    logits[7] = np.nan
    table, _, _ = examine(logits, labels)
    assert "s000007" not in table["id"].to_pylist()


def test_no_images_give_no_findings():
    table, findings, exhibits = examine(np.full((3, 4), np.nan), np.zeros(3, dtype=int))
    assert (table.num_rows, findings, exhibits) == (0, [], [])


def test_labels_access_is_refused():
    predictions = pa.table({"id": ["a"], "label": [0], "predicted": [0], "logits": pa.nulls(1, pa.list_(pa.float32()))})
    context = Context(ModelSpec("m", ("a", "b"), (8, 8)), predictions.select(["id", "label"]))
    with pytest.raises(InvalidInput, match="needs scores"):
        FAST.run({"predictions": predictions}, context)


@pytest.mark.parametrize("setting", [{"rule": "best"}, {"draws": 10}, {"max_findings": 0}])
def test_bad_settings_are_refused(setting):
    with pytest.raises(InvalidInput):
        LabelErrors(**setting)


def test_the_engine_knows_it():
    assert get_probe("discovery/label-errors") is LabelErrors


def sites(rng, n=900):
    """Logits and calibrated labels, and an attribute with three values that has nothing to do with them."""
    logits, labels = calibrated(rng, n, spread=8.0)
    return logits, labels, rng.choice(["A", "B", "C"], n, p=[0.5, 0.3, 0.2])


def test_a_group_in_which_labels_are_wrong_is_named_and_the_others_are_not():
    rng = np.random.default_rng(0)
    logits, labels, site = sites(rng)
    struck = (site == "C") & (rng.random(len(labels)) < 0.3)
    labels[struck] = (labels[struck] + rng.integers(1, 10, struck.sum())) % 10
    _, findings, (*_, grid, _) = examine(logits, labels, attributes={"site": site})
    assert grid.rows[0][:2] == ["site", "C"]
    (found,) = [finding for finding in findings if "value" in finding.subject]
    assert dict(found.subject) == {"attribute": "site", "value": "C"}
    assert found.ci[0] <= struck[site == "C"].mean() <= found.ci[1] + 0.05
    assert found.effect > 0.15
    wrong = {f"s{row:06}" for row in np.flatnonzero(struck)}
    assert set(found.evidence) <= {f"s{row:06}" for row in np.flatnonzero(site == "C")}
    assert len(set(found.evidence) & wrong) >= 0.8 * len(found.evidence)


def test_noise_that_lies_evenly_names_no_group_in_most_runs():
    named = 0
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        _, labels, site = sites(rng)
        struck = rng.random(len(labels)) < 0.15
        groups = mislabelled_groups(
            [str(row) for row in range(len(labels))],
            struck,
            np.full(len(labels), 0.02),
            np.zeros(len(labels)),
            {"site": group_attribute(site.tolist()), "number": group_attribute(rng.random(len(labels)).tolist())},
            rng,
        )
        named += any(group.p_value <= 0.05 for group in groups)
    assert named <= 4  # 1 expected; more than 4 in 0.3 % of runs


def test_groups_of_few_images_and_missing_values_are_not_searched():
    rng = np.random.default_rng(0)
    flagged = np.zeros(200, dtype=bool)
    flagged[:10] = True
    few = group_attribute(["few"] * 15 + ["many"] * 100 + [None] * 85)
    groups = mislabelled_groups(
        [str(row) for row in range(200)], flagged, np.zeros(200), np.zeros(200), {"a": few}, rng
    )
    assert groups == []
