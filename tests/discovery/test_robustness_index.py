import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.data import load_dataset
from snellen.discovery._neighbours import drawn_ids, nearest, unit_rows
from snellen.discovery._robustness_index import attribute_errors, vote
from snellen.discovery.robustness_index import RobustnessIndex, balanced_rows, best_k, robustness_index
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec
from snellen.models.loading import load_model
from snellen.probe import Context, rows
from snellen.randomness import SampleRandom

PROBE = RobustnessIndex()


def design(n=400, classes=4, sites=4):
    """Balanced codes of class and site."""
    return np.arange(n) % classes, np.arange(n) // classes % sites


def embedded(b, c, a, seed=0, noise=0.1, dimensions=30):
    """a * onehot(b) + (1 - a) * onehot(c) + noise."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, noise, (len(b), dimensions))
    points[np.arange(len(b)), b] += a
    points[np.arange(len(b)), 10 + c] += 1 - a
    return points


# ------------------------------------------------------------------------------------------------------ neighbours


def test_neighbours_are_those_of_scikit_learn_without_the_own_group():
    rng = np.random.default_rng(0)
    points, groups = rng.normal(size=(200, 8)), rng.integers(-1, 30, 200)
    found = nearest(unit_rows(points), 12, groups)
    _, order = NearestNeighbors(n_neighbors=200, metric="cosine").fit(points).kneighbors(points)
    for row in range(200):
        permitted = [j for j in order[row] if j != row and (groups[row] < 0 or groups[j] != groups[row])]
        assert set(found.rows[row]) == set(permitted[:12])
    own = groups[found.rows] == groups[:, None]
    assert not (own & (groups[:, None] >= 0)).any()
    assert (np.diff(found.similarity, axis=1) <= 0).all()


def test_equal_rows_are_ordered_by_position():
    found = nearest(unit_rows(np.ones((9, 3))), 3)
    assert found.rows[0].tolist() == [1, 2, 3]
    assert found.rows[8].tolist() == [0, 1, 2]


def test_chunks_do_not_change_neighbours(monkeypatch):
    points = unit_rows(np.random.default_rng(1).normal(size=(150, 5)))
    whole = nearest(points, 7)
    monkeypatch.setattr("snellen.discovery._neighbours.CHUNK_CELLS", 1000)
    np.testing.assert_array_equal(nearest(points, 7).rows, whole.rows)


def test_the_subset_of_a_large_set_does_not_depend_on_order():
    ids = [f"s{i}" for i in range(100)]
    assert drawn_ids(ids, "p", 40) == drawn_ids(ids[::-1], "p", 40)
    assert len(set(drawn_ids(ids, "p", 40))) == 40


# ------------------------------------------------------------------------------------------------------- the index


def test_counts_add_up_and_both_forms_agree():
    b, c = design()
    found = robustness_index(embedded(b, c, 0.5), b, c, k=20)
    assert sum(int(kind.sum()) for kind in found.kinds) == len(b) * 20
    assert found.ratio / (1 + found.ratio) == pytest.approx(found.bounded, abs=1e-12)
    assert 0 <= found.interval.low <= found.bounded <= found.interval.high <= 1
    ss, so, os, oo = (kind.sum() for kind in found.kinds)
    assert found.out_share == so / (so + oo)
    assert found.in_share == ss / (ss + os)
    assert found.insensitivity == (so + oo) / (ss + os)
    assert np.all((found.by_class >= 0) & (found.by_class <= 1))


def test_it_is_one_where_the_class_orders_and_zero_where_the_site_does():
    b, c = design()
    assert robustness_index(embedded(b, c, 1.0, noise=0.01), b, c, k=50).bounded == 1
    assert robustness_index(embedded(b, c, 0.0, noise=0.01), b, c, k=50).bounded == 0


@pytest.mark.parametrize(("classes", "sites"), [(2, 2), (4, 2), (2, 5)])
def test_noise_gives_the_chance_value(classes, sites):
    b, c = design(1000, classes, sites)
    found = robustness_index(np.random.default_rng(0).normal(size=(1000, 20)), b, c, k=20)
    expected = (sites - 1) / (classes + sites - 2)
    assert found.chance == pytest.approx(expected, abs=0.01)
    assert found.bounded == pytest.approx(expected, abs=0.03)


def test_chance_counts_permitted_neighbours_only():
    rng = np.random.default_rng(3)
    b, c, g = rng.integers(0, 3, 120), rng.integers(0, 3, 120), rng.integers(-1, 20, 120)
    found = robustness_index(rng.normal(size=(120, 4)), b, c, k=5, groups=g)
    so = os = 0
    for i in range(120):
        for j in range(120):
            if i != j and (g[i] < 0 or g[i] != g[j]):
                so += b[i] == b[j] and c[i] != c[j]
                os += b[i] != b[j] and c[i] == c[j]
    assert found.chance == pytest.approx(so / (so + os), abs=1e-12)


def test_rotation_scale_order_and_names_change_nothing():
    b, c = design()
    points = embedded(b, c, 0.5)
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    base = robustness_index(points, b, c, k=15)
    order = rng.permutation(len(b))
    for other in (
        robustness_index(points @ turn * rng.uniform(0.1, 10, (len(b), 1)), b, c, k=15),
        robustness_index(points[order], 3 - b[order], (c[order] + 1) % 4, k=15),
    ):
        assert other.bounded == pytest.approx(base.bounded, abs=2e-3)  # ties within the rounding of similarities


def test_it_rises_with_the_share_of_the_class():
    b, c = design()
    found = [robustness_index(embedded(b, c, a), b, c, k=20).bounded for a in np.linspace(0, 1, 9)]
    assert np.diff(found).min() >= -0.02
    assert found[-1] - found[0] > 0.9


def test_groups_widen_the_interval():
    b, c = design(400)
    g = np.repeat(np.arange(40), 10)
    points = embedded(b, c, 0.5) + 0.2 * np.random.default_rng(0).normal(size=(40, 30))[g]
    plain, grouped = (robustness_index(points, b, c, 10, given) for given in (None, g))
    assert np.ptp(grouped.interval) > 0.8 * np.ptp(plain.interval)
    assert (g[nearest(unit_rows(points), 10, g).rows] != g[:, None]).all()


def test_best_k_is_small_for_tight_clusters_and_votes_break_ties_by_nearness():
    b, c = design()
    assert best_k(embedded(b, c, 1.0, noise=0.01), b) == 1
    assert vote(np.array([[2, 0, 1, 3]]), np.array([0, 0, 1, 1])).tolist() == [1]


def test_balanced_rows_have_equal_cells():
    rng = np.random.default_rng(0)
    b, c = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    kept = balanced_rows(b, c, rng)
    assert len(np.unique(np.bincount(b[kept] * 2 + c[kept]))) == 1
    with pytest.raises(InvalidInput, match="every value"):
        balanced_rows(b, b, rng)


def test_errors_are_attributed_to_neighbours_that_share_the_site():
    b, c = design(800, 4, 4)
    queries = np.arange(800)
    by_site, by_noise = (
        attribute_errors(nearest(unit_rows(points), 20).rows, b, c, queries)
        for points in (embedded(b, c, 0.3), np.random.default_rng(0).normal(size=(800, 10)))
    )
    assert by_site.same - by_site.expected > 0.5
    assert abs(by_noise.same - by_noise.expected) < 0.03
    assert by_noise.errors > 0.5
    assert by_site.lost.mean() <= by_site.errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, b, c: (np.where(np.arange(len(e))[:, None] == 3, np.nan, e), b, c, 5), "NaN"),
        (lambda e, b, c: (np.where(np.arange(len(e))[:, None] == 3, 0, e), b, c, 5), "row 3"),
        (lambda e, b, c: (e, b * 0, c, 5), "at least 2 values"),
        (lambda e, b, c: (e, b, c * 0, 5), "at least 2 values"),
        (lambda e, b, c: (e, b, np.where(b == 2, 1, c), 5), "class 2"),
        (lambda e, b, c: (e, b, c, len(e)), "k must be"),
        (lambda e, b, c: (e, b[1:], c, 5), "classes must be"),
        (lambda e, b, c: (e, b, c + 0.5, 5), "confounder must be"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    b, c = design()
    e, b, c, k = change(embedded(b, c, 0.5), b, c)
    with pytest.raises(InvalidInput, match=message):
        robustness_index(e, b, c, k)


def test_an_index_that_no_neighbour_decides_is_refused():
    b, c = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0, 1])
    points = np.eye(6)[[0, 0, 1, 1, 2, 2]] + 0.0
    points[4:] = np.eye(6)[[0, 1]]  # nearest of every row is in its own cell, or both differ
    points[4, 5], points[5, 4] = 3, 3
    points[4, 0], points[5, 1], points[4, 1], points[5, 0] = 0, 0, 0.1, 0.1
    with pytest.raises(InvalidInput, match="undefined"):
        robustness_index(points, b, c, k=1)


# -------------------------------------------------------------------------------------------------------- the probe


def judge(points, b, attributes, seed=0):
    n = len(b)
    ids = [f"s{i:05}" for i in range(n)]
    table = rows(ids, label=b, neighbours=nearest(unit_rows(points), 100).rows.astype(np.int32))
    samples = rows(ids, label=b, **attributes)
    context = Context(ModelSpec("m", tuple("abcd"), (8, 8)), samples, tuple(attributes), seed)
    return PROBE.findings(table, context), PROBE.exhibits(table, context)


def test_the_attribute_that_orders_the_features_is_named():
    b, c = design(800)
    light = np.random.default_rng(1).choice(["day", "night"], 800)
    findings, exhibits = judge(embedded(b, c, 0.1), b, {"site": c.astype(str).tolist(), "light": light.tolist()})
    assert [f.subject["attribute"] for f in findings] == ["site"]
    (found,) = findings
    assert found.value < 0.5
    assert found.ci[0] <= found.value <= found.ci[1]
    assert found.effect > 0.1
    assert found.p_value < 0.01
    assert "site orders the model's features more than the class does" in found.title
    assert 0 < len(found.evidence) <= 12
    assert len(exhibits[0].rows) == 2


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_healthy_features_harm_nothing(seed):
    b, c = design(600)
    rng = np.random.default_rng(seed)
    for points in (rng.normal(size=(600, 10)), embedded(b, c, 0.8, seed)):
        findings, _ = judge(points, b, {"site": c.astype(str).tolist()}, seed)
        assert all(f.effect < 0.05 or f.p_value > 0.01 for f in findings)


def test_patients_missing_values_and_unusable_attributes_do_not_break_it():
    b, c = design(400)
    site = [None if i % 7 == 0 else str(value) for i, value in enumerate(c)]
    attributes = {
        "site": site,
        "patient": [f"p{i // 5}" for i in range(400)],
        "one": ["x"] * 400,
        "none": [None] * 400,
        "angle": np.linspace(0, 1, 400).tolist(),
        "same": b.astype(str).tolist(),
    }
    findings, exhibits = judge(embedded(b, c, 0.4), b, attributes)
    assert [row[0] for row in exhibits[0].rows] == ["site"]
    assert findings[0].n == sum(value is not None for value in site)


def test_bad_settings_are_refused():
    for settings in ({"k": 0}, {"kept": 10}, {"permutations": 9}):
        with pytest.raises(InvalidInput, match=next(iter(settings))):
            RobustnessIndex(**settings)


@pytest.fixture(scope="module")
def data():
    return load_dataset("demo")


def run_demo(data, name, order, batch_size=256):
    model = load_model(name).model.restrict(Access.FEATURES)
    view = SampleView(loader_for(model, data), order, BatchSize(3, 32, 32, batch_size))
    table = PROBE.run(model, view, {"predictions": rows(data.ids, label=data.labels)}, SampleRandom(0, PROBE.name))
    return table, Context(model.spec, data.table, data.attributes, 0)


def test_the_healthy_demo_is_not_accused_and_order_does_not_matter(data):
    table, context = run_demo(data, "demo:healthy", np.arange(len(data)))
    assert all(f.effect < 0.05 for f in PROBE.findings(table, context))
    turned, _ = run_demo(data, "demo:healthy", np.arange(len(data))[::-1].copy(), 100)
    assert turned["id"].to_pylist() == table["id"].to_pylist()
    assert np.mean([a == b for a, b in zip(turned["neighbours"], table["neighbours"], strict=True)]) > 0.9
    assert PROBE.findings(table.slice(0, 0), context) == PROBE.exhibits(table.slice(0, 0), context) == []


def test_too_few_images_are_said_to_be_too_few(data):
    table, context = run_demo(data, "demo", np.arange(12))
    (found,) = PROBE.findings(table, context)
    assert not found.enough_data
    assert "n = 12, needs about 100" in found.title
