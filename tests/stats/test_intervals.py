import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from snellen.errors import InvalidInput
from snellen.stats import (
    Interval,
    bias_corrected_interval,
    bootstrap_bca,
    centred_interval,
    clopper_pearson,
    clopper_pearson_arrays,
    clopper_pearson_lower,
    newcombe_difference,
    paired_difference,
    paired_difference_counts,
    wilson,
    wilson_arrays,
)

GRID = [(0, 1), (1, 1), (0, 30), (30, 30), (9, 10), (7, 81), (950, 1000), (99_000, 100_000)]


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def assert_coverage(hits: int, repeats: int, level: float) -> None:
    """At least `level`, up to four standard errors of the simulation."""
    assert hits / repeats >= level - 4 * np.sqrt(level * (1 - level) / repeats)


@pytest.mark.parametrize(("s", "n"), GRID)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_proportion_intervals_equal_statsmodels(s, n, level):
    assert wilson(s, n, level) == pytest.approx(proportion_confint(s, n, 1 - level, "wilson"), abs=1e-12)
    exact = proportion_confint(s, n, 1 - level, "beta")
    assert clopper_pearson(s, n, level) == pytest.approx(exact, abs=1e-12)
    one_sided = scipy_stats.binomtest(s, n, alternative="greater").proportion_ci(level, "exact").low
    assert clopper_pearson_lower(s, n, 1 - level) == pytest.approx(one_sided, abs=1e-12)


def test_arrays_equal_the_scalar_functions():
    s, n = np.array(GRID).T
    for one, many in ((wilson, wilson_arrays), (clopper_pearson, clopper_pearson_arrays)):
        low, high = many(s, n)
        assert [one(*pair) for pair in GRID] == list(zip(low, high, strict=True))


def test_no_data_means_nothing_is_known():
    assert wilson(0, 0) == clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson_lower(0, 0, 0.05) == 0.0
    assert paired_difference_counts(0, 0, 0) == (-1.0, 1.0)
    low, high = newcombe_difference(0, 0, 5, 10)
    assert low <= -0.5
    assert high >= 0.5


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [10, 60, 400])
def test_clopper_pearson_covers_at_its_level_for_every_proportion(p, n):
    s = np.arange(n + 1)
    weights = scipy_stats.binom.pmf(s, n, p)
    low, high = clopper_pearson_arrays(s, np.full(n + 1, n))
    assert weights[(low <= p) & (p <= high)].sum() >= 0.95
    lower = np.array([clopper_pearson_lower(int(k), n, 0.05) for k in s])
    assert weights[lower <= p].sum() >= 0.95


def test_wilson_covers_at_its_level_on_average():
    n, proportions = 50, np.linspace(0.005, 0.995, 199)
    s = np.arange(n + 1)
    low, high = wilson_arrays(s, np.full(n + 1, n))
    inside = [
        scipy_stats.binom.pmf(s, n, p)[(low <= p) & (p <= high)].sum() for p in proportions
    ]  # exact, no simulation
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)
    assert min(inside) > 0.83  # Wilson's known dips near 0 and 1 (Brown, Cai and DasGupta, 2001)


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (9, 10, 3, 10), (10, 10, 0, 20), (0, 5, 0, 9)])
def test_newcombe_equals_statsmodels(counts):
    expected = confint_proportions_2indep(*counts, method="newcomb", compare="diff")
    assert newcombe_difference(*counts) == pytest.approx(expected, abs=1e-9)


def test_newcombe_covers_at_its_level():
    rng = np.random.default_rng(0)
    repeats, hits = 2000, 0
    for s1, s2 in zip(rng.binomial(40, 0.7, repeats), rng.binomial(200, 0.93, repeats), strict=True):
        hits += covers(newcombe_difference(int(s1), 40, int(s2), 200), 0.7 - 0.93)
    assert_coverage(hits, repeats, 0.94)  # an approximate interval: within a point of its level


def test_paired_difference_equals_published_example():
    # Airway hyper-responsiveness before and after stem cell transplantation (Fagerland et al., 2014): b = 1, c = 7.
    assert paired_difference_counts(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_paired_difference_is_antisymmetric_and_never_collapses():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.random(30) < 0.8, rng.random(30) < 0.6
        low, high = paired_difference(first, second)
        assert paired_difference(second, first) == pytest.approx((-high, -low), abs=1e-7)
        assert -1 <= low <= first.mean() - second.mean() <= high <= 1
    low, high = paired_difference_counts(0, 0, 20)
    assert low < -0.1
    assert high > 0.1
    assert paired_difference_counts(20, 0, 20).high == 1.0
    assert 0.5 < paired_difference_counts(20, 0, 20).low < 1.0


@pytest.mark.parametrize(("p10", "p01"), [(0.1, 0.02), (0.3, 0.25), (0.02, 0.0)])
def test_paired_difference_covers_at_its_level(p10, p01):
    rng = np.random.default_rng(1)
    repeats, n = 1000, 60
    draws = rng.multinomial(n, [p10, p01, 1 - p10 - p01], repeats)
    hits = sum(covers(paired_difference_counts(int(b), int(c), n), p10 - p01) for b, c, _ in draws)
    assert_coverage(hits, repeats, 0.94)


def test_bca_is_close_to_scipys():
    values = np.random.default_rng(0).exponential(size=60)
    mine = bootstrap_bca(values, lambda v: float(np.mean(v)), np.random.default_rng(1), resamples=9000)
    peer = scipy_stats.bootstrap((values,), np.mean, n_resamples=9000, method="BCa", random_state=2).confidence_interval
    assert mine == pytest.approx((peer.low, peer.high), abs=0.03)


def test_bca_resamples_rows_together():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    pairs = np.stack([x, x], axis=1)
    interval = bootstrap_bca(pairs, lambda v: float(np.abs(v[:, 0] - v[:, 1]).max()), rng, resamples=50)
    assert interval == (0.0, 0.0)


def test_bca_covers_a_skewed_mean():
    rng = np.random.default_rng(2)
    repeats = 300
    hits = sum(
        covers(bootstrap_bca(rng.exponential(size=60), lambda v: float(v.mean()), rng, resamples=400), 1.0)
        for _ in range(repeats)
    )
    assert_coverage(hits, repeats, 0.92)  # BCa is second-order accurate, not exact, at n = 60


def test_bca_leaves_out_groups_when_there_are_many_rows():
    values = np.random.default_rng(0).normal(size=5000)
    interval = bootstrap_bca(values, lambda v: float(v.mean()), np.random.default_rng(1), resamples=500)
    assert covers(interval, float(values.mean()))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(5000), rel=0.15)


def test_intervals_from_resamples_of_ones_own():
    drawn = np.random.default_rng(0).normal(3.0, 1.0, 20_000)
    assert bias_corrected_interval(3.0, drawn) == pytest.approx((3 - 1.96, 3 + 1.96), abs=0.06)
    assert bias_corrected_interval(2.5, drawn).low < 3 - 2.5  # the resamples lie above the point: move down twice
    assert centred_interval(1.0, drawn) == pytest.approx((1 - 1.96, 1 + 1.96), abs=0.06)
    assert bias_corrected_interval(2.0, np.full(9, 2.0)) == (2.0, 2.0)
    assert centred_interval(1.0, np.append(drawn, np.nan)) == centred_interval(1.0, drawn)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(5, 3),
        lambda: wilson(-1, 3),
        lambda: wilson(0.5, 3),
        lambda: clopper_pearson(1, 3, level=1.0),
        lambda: clopper_pearson_lower(1, 3, alpha=0.0),
        lambda: paired_difference(np.array([1, 0]), np.array([1, 1])),
        lambda: paired_difference(np.array([True]), np.array([True, False])),
        lambda: paired_difference_counts(-1, 2, 10),
        lambda: centred_interval(1.0, np.full(9, np.nan)),
        lambda: bias_corrected_interval(float("nan"), np.ones(9)),
        lambda: bootstrap_bca(np.ones(1), np.mean, np.random.default_rng(0)),
        lambda: bootstrap_bca(np.ones(5), lambda v: float("nan"), np.random.default_rng(0)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
