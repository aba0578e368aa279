import itertools

import numpy as np
import pyarrow as pa
import pytest

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.data import load_dataset
from snellen.discovery._mixture import fit_mixture, principal
from snellen.discovery._slices import judged
from snellen.discovery.slices import SliceDiscovery, halves
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec
from snellen.models.loading import load_model
from snellen.performance.predictions import Predictions
from snellen.probe import Batch, Context, rows
from snellen.randomness import SampleRandom

NAMES = tuple("abcd")
PROBE = SliceDiscovery()


def examine(features, labels, predicted, attributes=None, probe=PROBE, seed=0):
    """Table, findings and exhibits of a model whose features and answers are given."""
    n, random = len(labels), SampleRandom(seed, probe.name)
    ids = [f"s{i:05}" for i in range(n)]
    discovery = halves(ids, labels, random)
    found, shares = probe.assigned(features.astype(np.float32), labels, predicted, discovery, random.numpy("starts"))
    table = rows(
        ids,
        half=np.where(discovery, "discovery", "confirmation").tolist(),
        slice=found,
        responsibility=shares,
        correct=labels == predicted,
        label=labels,
        predicted=predicted,
    )
    attributes = attributes or {}
    samples = pa.table({"id": ids, "label": labels, **{k: pa.array(v) for k, v in attributes.items()}})
    context = Context(ModelSpec("m", NAMES, (8, 8)), samples, tuple(attributes), seed)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def random_answers(rng, labels, accuracy):
    wrong = (labels + rng.integers(1, len(NAMES), len(labels))) % len(NAMES)
    return np.where(rng.random(len(labels)) < accuracy, labels, wrong)


def class_features(rng, labels, dimensions=6):
    return 2.0 * np.eye(len(NAMES), dimensions)[labels] + rng.normal(size=(len(labels), dimensions))


def claims(findings):
    return [f for f in findings if f.p_value is not None]


def planted(seed=0, n=1200):
    """One image in six lies elsewhere in feature space, is on snow nine times in ten, and is mostly answered "d"."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    odd = rng.random(n) < 1 / 6
    features = class_features(rng, labels)
    features[odd, 5] += 5
    predicted = random_answers(rng, labels, 0.95)
    predicted[odd & (rng.random(n) < 0.8)] = 3
    snow = np.where(odd, rng.random(n) < 0.9, rng.random(n) < 0.1)
    attributes = {
        "ground": np.where(snow, "snow", "grass").tolist(),
        "light": rng.choice(["day", "night"], n).tolist(),
    }
    return features, labels, predicted, attributes, odd


# ------------------------------------------------------------------------------------------------------ the mixture


@pytest.mark.parametrize("gamma", [0.0, 1.0, 10.0])
def test_no_step_lowers_the_objective(gamma):
    features, labels, predicted, _, _ = planted(n=300)
    fit = fit_mixture(features, labels, predicted, 8, gamma, np.random.default_rng(0), restarts=1, tolerance=0)
    assert len(fit.objective) > 5
    steps = [after - before for before, after in itertools.pairwise(fit.objective)]
    assert min(steps) > -1e-6
    assert fit.objective[-1] > fit.objective[0] + 100


def test_more_restarts_are_never_worse():
    features, labels, predicted, _, _ = planted(n=300)
    reached = [
        fit_mixture(features, labels, predicted, 8, 10.0, np.random.default_rng(0), restarts).objective[-1]
        for restarts in (1, 2, 4)
    ]
    assert reached == sorted(reached)


def test_parameters_stay_finite_when_samples_coincide():
    features, labels = np.zeros((50, 3)), np.zeros(50, dtype=np.int64)
    mixture = fit_mixture(features, labels, labels, 5, 10.0, np.random.default_rng(0)).mixture
    assert np.isfinite(mixture.log_joint(features, labels, labels, 10.0)).all()
    assert (mixture.variances > 0).all()
    np.testing.assert_allclose(mixture.assign(features, labels).sum(axis=1), 1)


def test_log_density_is_that_of_scipy():
    from scipy.stats import multivariate_normal

    features, labels, predicted, _, _ = planted(n=200)
    mixture = fit_mixture(features, labels, predicted, 4, 10.0, np.random.default_rng(0)).mixture
    expected = multivariate_normal(mixture.means[2], np.diag(mixture.variances[2])).logpdf(features)
    np.testing.assert_allclose(mixture.log_density(features)[:, 2], expected + np.log(mixture.weights[2]))


@pytest.mark.parametrize("shape", [(200, 12), (60, 90)])
def test_principal_components_are_white_and_those_of_scikit_learn(shape):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    features = (rng.normal(size=shape) * np.linspace(3, 1, shape[1])).astype(np.float32)
    fitted = np.arange(shape[0]) % 2 == 0
    ours = principal(features, fitted, 5)
    theirs = PCA(5, whiten=True, svd_solver="full").fit(features[fitted].astype(np.float64)).transform(features)
    theirs *= np.sqrt(fitted.sum() / (fitted.sum() - 1))
    np.testing.assert_allclose(np.sort(np.abs(ours), axis=None), np.sort(np.abs(theirs), axis=None), atol=1e-4)
    np.testing.assert_allclose(ours[fitted].T @ ours[fitted] / fitted.sum(), np.eye(5), atol=1e-6)


def test_constant_features_have_no_components():
    assert principal(np.ones((20, 4), dtype=np.float32), np.arange(20) < 10, 3).shape == (20, 0)


# ---------------------------------------------------------------------------------------------------- what is found


def test_a_planted_slice_is_found_and_named_by_its_attribute():
    features, labels, predicted, attributes, odd = planted()
    table, findings, exhibits = examine(features, labels, predicted, attributes)
    worst = claims(findings)[0]
    assert worst.kind == "slice"
    assert worst.measured == ("slice",)
    assert worst.subject["ground"] == "snow"
    assert worst.subject["answer"] == "d"
    assert "mostly ground = snow" in worst.title
    assert "light" not in worst.title
    assert worst.p_value <= 0.05
    assert worst.effect > 0.4
    assert worst.ci[0] <= worst.value <= worst.ci[1] < worst.baseline

    where = {sample_id: row for row, sample_id in enumerate(table["id"].to_pylist())}
    assert len(worst.evidence) == 12
    assert all(labels[where[i]] != predicted[where[i]] for i in worst.evidence)
    assert np.mean([odd[where[i]] for i in worst.evidence]) > 0.9
    assert any(bar.n == worst.n and bar.value == worst.value for bar in exhibits[0].bars)


def test_without_attributes_class_and_answer_describe_it():
    features, labels, predicted, _, _ = planted()
    worst = claims(examine(features, labels, predicted)[1])[0]
    assert set(worst.subject) <= {"class", "answer", "slice"}
    assert "answered d" in worst.title


def test_healthy_models_get_a_finding_in_at_most_five_per_cent_of_runs():
    rng = np.random.default_rng(0)
    probe = SliceDiscovery(slices=15, gamma=1.0, min_count=10, min_effect=0.0, restarts=1)  # tries many slices
    alarms, tried, runs = 0, 0, 200
    for seed in range(runs):
        labels = rng.integers(0, 4, 400)
        # Features follow the class and hold clusters; errors follow the class alone.
        features = class_features(rng, labels)
        features[rng.random(400) < 0.3, 5] += 4
        predicted = random_answers(rng, labels, np.array([0.5, 0.7, 0.85, 0.95])[labels])
        _table, findings, exhibits = examine(features, labels, predicted, probe=probe, seed=seed)
        alarms += bool(claims(findings))
        tried += len(exhibits[0].bars) if exhibits else 0
    assert tried > runs
    assert alarms <= 0.05 * runs


def test_the_answers_of_the_confirmation_half_do_not_move_its_samples():
    features, labels, predicted, _, _ = planted()
    random = SampleRandom(0, PROBE.name)
    discovery = halves([str(i) for i in range(len(labels))], labels, random)
    other = np.where(discovery, predicted, (predicted + 1) % 4)
    one, two = (
        PROBE.assigned(features.astype(np.float32), labels, a, discovery, random.numpy("starts"))
        for a in (predicted, other)
    )
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_allclose(one[1], two[1])


def test_the_test_agrees_with_fishers_for_one_class():
    from snellen.stats import fisher_exact

    inside, half = np.arange(200) % 4 == 0, np.where(np.arange(200) < 100, "discovery", "confirmation")
    correct = np.where(inside, np.arange(200) % 8 == 0, np.arange(200) % 5 != 0)
    labels = np.zeros(200, dtype=np.int64)
    table = rows(
        [str(i) for i in range(200)], half=half.tolist(), slice=inside.astype(np.int64), label=labels, correct=correct
    )
    (found,) = judged(table, 20, np.random.default_rng(0))
    late = np.arange(200) >= 100
    counts = [int(v) for v in ((correct & inside & late).sum(), 25, (correct & ~inside & late).sum(), 75)]
    assert found.number == 1
    assert found.n == 25
    assert found.correct == counts[0]
    assert found.baseline == pytest.approx(counts[2] / 75)
    assert found.p_value == pytest.approx(fisher_exact(*counts, "less"), abs=2e-3)


def test_slices_too_small_to_confirm_are_told_with_what_they_need():
    rng = np.random.default_rng(3)
    probe = SliceDiscovery(gamma=1.0, min_count=10)
    told = []
    for seed in range(10):
        labels = rng.integers(0, 4, 240)
        odd = rng.random(240) < 0.2
        features = class_features(rng, labels)
        features[odd, 5] += 6
        predicted = random_answers(rng, labels, np.where(odd, 0.6, 0.9))
        unsure = [f for f in examine(features, labels, predicted, probe=probe, seed=seed)[1] if f.p_value is None]
        assert len(unsure) <= 1
        told += unsure
    assert told
    assert all(f.effect == 0 for f in told)
    assert all(("needs about" in f.title) != f.enough_data for f in told)


# ------------------------------------------------------------------------------------------------------- edge cases


def test_too_few_samples_are_one_statement():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 12)
    table, findings, exhibits = examine(class_features(rng, labels), labels, random_answers(rng, labels, 0.5))
    (finding,) = findings
    assert not finding.enough_data
    assert "n = 12, needs about 80" in finding.title
    assert exhibits == []
    assert table["slice"].to_pylist() == [-1] * 12


def test_an_empty_table_says_nothing():
    none = np.zeros(0, dtype=np.int64)
    table, findings, exhibits = examine(np.zeros((0, 3)), none, none)
    assert table.num_rows == 0
    assert findings == []
    assert exhibits == []


def test_one_class_is_enough():
    features, labels, predicted, attributes, _odd = planted()
    ones = np.zeros_like(labels)
    answers = np.where(labels == predicted, 0, 3)
    findings = claims(examine(features, ones, answers, attributes)[1])
    assert findings
    assert findings[0].subject["ground"] == "snow"


def test_a_class_without_mistakes_and_a_model_without_mistakes():
    features, labels, predicted, attributes, _ = planted()
    predicted = np.where(labels == 0, 0, predicted)
    assert claims(examine(features, labels, predicted, attributes)[1])
    assert examine(features, labels, labels, attributes)[1:] == ([], [])


def test_a_model_that_is_always_wrong_has_no_worse_slice():
    features, labels, _, _, _ = planted(n=300)
    assert examine(features, labels, (labels + 1) % 4)[1] == []


def test_every_class_is_split_in_halves():
    labels = np.random.default_rng(0).integers(0, 7, 501)
    discovery = halves([str(i) for i in range(501)], labels, SampleRandom(0, "x"))
    assert all(abs((discovery & (labels == c)).sum() - (~discovery & (labels == c)).sum()) <= 1 for c in range(7))
    assert discovery.sum() == 251


@pytest.mark.parametrize(
    "settings",
    [
        {"slices": 1},
        {"gamma": -1.0},
        {"gamma": float("nan")},
        {"gamma": float("inf")},
        {"dimensions": 0},
        {"min_count": 3},
        {"restarts": 0},
        {"min_effect": 1.0},
        {"max_findings": 0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        SliceDiscovery(**settings)


# ------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def demo():
    """The faulty demo network, its data and its predictions."""
    model, data = load_model("demo").model, load_dataset("demo")
    loader, random = loader_for(model, data), SampleRandom(0, "predictions")
    parts = [
        Predictions().run(model, Batch(b.ids, b.images, b.labels), random)
        for b in loader.batches(np.arange(len(data)), 256)
    ]
    return model, data, pa.concat_tables(parts)


def run_demo(demo, order, batch_size, model=None):
    white, data, predictions = demo
    view = SampleView(loader_for(white, data), order, BatchSize(3, 32, 32, batch_size))
    tables = {"predictions": predictions.take(order)}
    return PROBE.run(model or white, view, tables, SampleRandom(0, PROBE.name))


def test_the_shortcut_of_the_demo_is_found(demo):
    model, data, _ = demo
    before = model.ledger.totals.forward
    table = run_demo(demo, np.arange(len(data)), 128)
    assert model.ledger.totals.forward - before == len(data) == PROBE.cost(len(data)).forward
    context = Context(model.spec, data.table, tuple(data.table.column_names[2:]), 0)
    findings = claims(PROBE.findings(table, context))
    assert any(f.subject.get("background") == "stripes" and f.effect > 0.3 for f in findings)
    assert table.column_names == ["id", "half", "slice", "responsibility", "correct", "label", "predicted"]


def test_neither_order_nor_batch_size_matters(demo):
    n = len(demo[1])
    one = run_demo(demo, np.arange(n), 128)
    two = run_demo(demo, np.random.default_rng(0).permutation(n), 37, demo[0].restrict(Access.FEATURES))
    for name in ("id", "half", "slice", "correct"):
        assert one[name].to_pylist() == two[name].to_pylist()
    np.testing.assert_allclose(one["responsibility"].to_numpy(), two["responsibility"].to_numpy(), atol=1e-3)


def test_samples_without_an_answer_are_left_out(demo):
    model, data, predictions = demo
    lost = np.where(np.arange(len(data)) < 5, -1, predictions["predicted"].to_numpy())
    spoilt = predictions.set_column(predictions.column_names.index("predicted"), "predicted", pa.array(lost))
    table = run_demo((model, data, spoilt), np.arange(len(data)), 128)
    assert table.num_rows == len(data) - 5
