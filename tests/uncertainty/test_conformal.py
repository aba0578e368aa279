import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from snellen.errors import InvalidInput
from snellen.models import ModelSpec
from snellen.probe import Context
from snellen.scores import log_probabilities
from snellen.stats import separate
from snellen.uncertainty._conformal import (
    abstention_score,
    aps_scores,
    conformal_rank,
    conformal_threshold,
    entropy_penalty,
    lac_scores,
    oracle_abstention_score,
    oracle_candidates,
    prediction_sets,
    raps_scores,
    true_class,
)
from snellen.uncertainty.conformal import Conformal, stratified_folds

K = 6
SCORES = {
    "lac": lambda p, u: lac_scores(p),
    "aps": aps_scores,
    "raps": lambda p, u: raps_scores(p, u, k_reg=2, penalty=0.02),
}


def sample(rng, n, noise=0.0, spread=2.0):
    """Probabilities `[n, K]` and labels drawn from them; `noise` perturbs the logits afterwards."""
    logits = rng.normal(0, spread, (n, K))
    labels = (np.exp(log_probabilities(logits)).cumsum(1) < rng.random((n, 1))).sum(1).clip(0, K - 1)
    return np.exp(log_probabilities(logits + noise * rng.normal(size=(n, K)))), labels


def naive_score(p, y, u, k_reg, penalty):
    """The card's definition, read aloud."""
    order = sorted(range(len(p)), key=lambda k: -p[k])
    total = 0.0
    for rank, k in enumerate(order, start=1):
        mass = p[k] + (penalty if rank > k_reg else 0.0)
        total += mass
        if k == y:
            return total - u * mass
    raise AssertionError


@pytest.mark.parametrize("name", SCORES)
def test_marginal_coverage_over_random_splits(name):
    rng = np.random.default_rng(0)
    n, m, alpha, repeats = 99, 200, 0.1, 500
    coverage = []
    for _ in range(repeats):
        p, y = sample(rng, n + m, noise=1.0)
        own = true_class(SCORES[name](p, rng.random(n + m)), y)
        coverage.append(np.mean(own[n:] <= conformal_threshold(own[:n], alpha)))
    error = np.std(coverage) / np.sqrt(repeats)
    assert 1 - alpha - 3 * error <= np.mean(coverage) <= 1 - alpha + 1 / (n + 1) + 3 * error


def test_one_split_follows_its_beta_distribution():
    rng = np.random.default_rng(1)
    n, alpha = 50, 0.2
    k = conformal_rank(n, alpha)
    coverage = [conformal_threshold(rng.random(n), alpha) for _ in range(1000)]  # uniform scores: coverage = threshold
    assert scipy_stats.kstest(coverage, scipy_stats.beta(k, n + 1 - k).cdf).pvalue > 0.001


def test_scores_equal_the_definition():
    rng = np.random.default_rng(2)
    p, _ = sample(rng, 40)
    u = rng.random(40)
    aps, raps = aps_scores(p, u), raps_scores(p, u, k_reg=3, penalty=0.05)
    full = raps_scores(p, None, k_reg=3, penalty=0.05)
    for i in range(40):
        for y in range(K):
            assert aps[i, y] == pytest.approx(naive_score(p[i], y, u[i], K, 0.0), abs=1e-12)
            assert raps[i, y] == pytest.approx(naive_score(p[i], y, u[i], 3, 0.05), abs=1e-12)
            assert full[i, y] == pytest.approx(naive_score(p[i], y, 0.0, 3, 0.05), abs=1e-12)
    np.testing.assert_array_equal(raps_scores(p, u, k_reg=2, penalty=0.0), aps)
    np.testing.assert_array_equal(lac_scores(p), 1 - p)


def test_threshold_is_the_exact_order_statistic():
    scores = np.random.default_rng(3).permutation(np.arange(1, 101).astype(float))
    assert conformal_threshold(scores, 0.1) == 91
    assert np.quantile(scores, 91 / 100, method="higher") == 92  # the published call is one too cautious
    assert conformal_threshold(scores[:8], 0.1) == math.inf
    assert conformal_rank(99, 0.07) == 93  # 100 x 0.93 is not whole in floating point
    assert conformal_threshold(scores[:9], 0.1) == scores[:9].max()


@given(st.integers(1, 300), st.floats(0.001, 0.999))
def test_rank_guarantees_the_coverage_and_no_smaller_one_does(n, alpha):
    k = conformal_rank(n, alpha)
    assert k / (n + 1) >= 1 - alpha - 1e-9
    assert (k - 1) / (n + 1) < 1 - alpha


@pytest.mark.parametrize("name", SCORES)
def test_sets_are_nested_in_alpha_and_follow_a_permutation_of_the_classes(name):
    rng = np.random.default_rng(4)
    p, y = sample(rng, 400)
    u = rng.random(400)
    scores = SCORES[name](p, u)
    own = true_class(scores, y)
    order = rng.permutation(K)
    permuted = SCORES[name](p[:, order], u)
    np.testing.assert_allclose(permuted, scores[:, order], atol=1e-12)
    previous = np.zeros((400, K), bool)
    for alpha in (0.5, 0.2, 0.1, 0.05, 0.001):
        sets = prediction_sets(scores, conformal_threshold(own, alpha))
        assert np.all(previous <= sets)
        assert np.all(sets <= prediction_sets(scores, conformal_threshold(own, alpha), allow_empty=False))
        previous = sets
    assert previous.all()  # k > n: every class


def test_without_empty_sets_the_likeliest_class_is_in():
    p, _ = sample(np.random.default_rng(5), 50)
    for name, score in SCORES.items():
        sets = prediction_sets(score(p, np.full(50, 0.5)), -1.0, allow_empty=False)
        assert name
        np.testing.assert_array_equal(sets.argmax(1), p.argmax(1))
        assert np.all(sets.sum(1) == 1)


def test_a_shrunk_penalty_gives_supersets():
    rng = np.random.default_rng(6)
    p, y = sample(rng, 500)
    u = rng.random(500)
    fixed = raps_scores(p, u, 2, 0.05)
    shrunk = raps_scores(p, u, 2, entropy_penalty(p, 0.05))
    threshold = conformal_threshold(true_class(fixed, y), 0.1)
    narrow, wide = prediction_sets(fixed, threshold), prediction_sets(shrunk, threshold)
    assert np.all(narrow <= wide)
    assert wide.sum() > narrow.sum()


def test_lac_sets_equal_mapies():
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(7)
    x = rng.normal(size=(900, 4))
    y = (x[:, 0] + rng.normal(size=900) > 0).astype(int) + (x[:, 1] > 0.5)
    model = LogisticRegression().fit(x[:300], y[:300])
    p = model.predict_proba(x)
    peer = mapie.SplitConformalClassifier(model, confidence_level=0.9, conformity_score="lac", prefit=True)
    peer.conformalize(x[300:600], y[300:600])
    theirs = peer.predict_set(x[600:])[1][:, :, 0]
    scores = lac_scores(p)
    own = np.sort(true_class(scores[300:600], y[300:600]))
    k = conformal_rank(300, 0.1)
    assert conformal_threshold(own, 0.1) == own[k - 1]
    # MAPIE 1.x takes the interpolating quantile call, which gives our k-th score or the one after it.
    ours, next_one = (prediction_sets(scores[600:], own[j]) for j in (k - 1, k))
    assert any(np.array_equal(theirs, sets) for sets in (ours, next_one))


def test_the_oracle_reads_the_true_class_and_beats_every_deployable_score():
    rng = np.random.default_rng(8)
    p, y = sample(rng, 2000, noise=2.0)
    missed = ~true_class(prediction_sets(lac_scores(p), 0.6), y).astype(bool)
    oracle = separate(oracle_abstention_score(p, y), missed, oracle_candidates())
    assert oracle.auc > 0.95
    for kind in ("confidence", "margin", "entropy", "surprise"):
        assert separate(abstention_score(kind, p), missed).auc < oracle.auc - 0.1
    assert len(oracle_candidates()) == 150


def test_doubt_orders_sure_before_unsure():
    p = np.array([[0.98, 0.01, 0.01], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    sets = prediction_sets(lac_scores(p), 0.7)
    for kind in ("confidence", "margin", "entropy", "surprise", "set size"):
        score = abstention_score(kind, p, sets)
        assert score[0] < score[2]
        assert np.all(np.isfinite(score))
    with pytest.raises(InvalidInput, match="sets"):
        abstention_score("set size", p)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lac_scores(np.array([[0.5, 0.6]])),
        lambda: lac_scores(np.array([[1.5, -0.5]])),
        lambda: aps_scores(np.array([[np.nan, 1.0]]), None),
        lambda: true_class(np.ones((2, 3)), np.array([0, 3])),
        lambda: true_class(np.ones((2, 3)), np.array([0])),
        lambda: conformal_rank(10, 1.0),
        lambda: Conformal(methods=("thr",)),
        lambda: Conformal(methods=()),
        lambda: Conformal(alpha=0.0),
        lambda: Conformal(k_reg=0),
        lambda: Conformal(penalty=-0.1),
        lambda: Conformal(abstain_by="oracle"),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()


def test_a_penalty_that_penalises_nothing_is_said():
    with pytest.warns(UserWarning, match="k_reg"):
        raps_scores(np.full((1, 3), 1 / 3), None, k_reg=3, penalty=0.1)


# ---- the probe


def predictions_of(p, labels):
    n = len(labels)
    return pa.table(
        {
            "id": [f"s{i:05}" for i in range(n)],
            "label": pa.array(labels, pa.int64()),
            "predicted": pa.array(p.argmax(1), pa.int64()),
            "logits": pa.array(np.log(p).astype(np.float32).tolist(), pa.list_(pa.float32())),
        }
    )


def examine(p, labels, probe=None, seed=0, order=None):
    predictions = predictions_of(p, labels)
    context = Context(ModelSpec("m", tuple("abcdef"), (8, 8)), predictions.select(["id", "label"]), seed=seed)
    probe = probe or Conformal()
    shown = predictions if order is None else predictions.take(order)
    table = probe.run({"predictions": shown}, context)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def test_folds_are_disjoint_whole_and_stratified():
    labels = np.repeat([0, 1, 2], [100, 60, 400])
    folds = stratified_folds(labels, np.random.default_rng(0))
    assert sorted(np.concatenate(folds)) == list(range(560))
    for fold, share in zip(folds, (0.2, 0.3, 0.5), strict=True):
        counts = np.bincount(labels[fold])
        np.testing.assert_allclose(counts, share * np.array([100, 60, 400]), atol=3)


def test_probe_covers_on_the_held_out_half_and_says_what_to_deploy():
    p, labels = sample(np.random.default_rng(9), 1200, noise=0.5)
    table, findings, exhibits = examine(p, labels)
    assert table.num_rows == 3 * 600
    coverages = findings[:3]
    for finding, method in zip(coverages, ("lac", "aps", "raps"), strict=True):
        rows = [row for row in table.to_pylist() if row["method"] == method]
        assert finding.kind == "threshold"
        assert finding.effect == 0
        assert finding.value == np.mean([row["covered"] for row in rows])
        assert finding.ci[0] < finding.value < finding.ci[1]
        assert finding.value > 0.85
        assert finding.subject["threshold"] == rows[0]["threshold"]
        assert f"{finding.subject['threshold']:.4g}" in finding.title
        missed = {row["id"] for row in rows if not row["covered"]}
        assert set(finding.evidence) <= missed
    abstention = findings[3]
    assert abstention.value > abstention.baseline
    assert "answers" in abstention.title
    assert len(findings) == 4
    assert [type(e).__name__ for e in exhibits] == ["Grid", "Bars", "Curve", "Grid"]
    points = exhibits[2].points
    assert points[0].y > points[-1].y
    assert points[-1].x == 1


def test_coverage_among_answered_images_holds_with_its_own_threshold():
    coverage = []
    for seed in range(60):
        p, labels = sample(np.random.default_rng(seed), 600, noise=1.0)
        table = examine(p, labels, Conformal(methods=("aps",), allow_empty=True), seed)[0]
        answered = ~np.asarray(table["abstain"].to_numpy(), bool)
        coverage.append(np.mean(table["covered_if_answered"].to_numpy()[answered]))
    assert np.mean(coverage) >= 0.9 - 3 * np.std(coverage) / np.sqrt(60)


def test_exchangeable_halves_are_never_accused():
    accused = 0
    for seed in range(40):
        p, labels = sample(np.random.default_rng(seed), 300, noise=1.0)
        accused += any(f.effect > 0 for f in examine(p, labels, seed=seed)[1])
    assert accused <= 6  # three tests a run, all at 5 %, strongly dependent


def test_row_order_does_not_matter():
    p, labels = sample(np.random.default_rng(10), 200)
    order = np.random.default_rng(0).permutation(200)
    assert examine(p, labels)[0] == examine(p, labels, order=order)[0]


@pytest.mark.parametrize("n", [3, 12, 40])
def test_too_few_images_say_how_many_are_needed(n):
    p, labels = sample(np.random.default_rng(11), n)
    _, findings, _ = examine(p, labels, Conformal(alpha=0.01))
    assert [f.enough_data for f in findings] == [False]
    assert "needs about 1000" in findings[0].title


def test_a_model_without_a_mistake_has_no_abstention_threshold():
    p, _ = sample(np.random.default_rng(12), 300)
    _, findings, _ = examine(p, p.argmax(1))
    assert not findings[-1].enough_data
    assert findings[0].value == 1.0
