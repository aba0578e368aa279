import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats.contingency import association

from snellen.discovery._contingency import (
    chi_square,
    class_tables,
    corrected_cramers_v,
    cramers_v,
    dependences,
    shuffled,
)
from snellen.discovery._skewsize import following_mistakes, skewness, skewsize
from snellen.errors import InvalidInput


def random_samples(rng, n=1500, classes=6, values=3, answers=6):
    return rng.integers(0, classes, n), rng.integers(0, answers, n), rng.integers(0, values, n)


def measure(y, p, z, seed=0, **settings):
    settings = {"permutations": 99, "resamples": 50} | settings
    return skewsize(y, p, z, np.random.default_rng(seed), **settings)


def planted(rng, n_per_class=180, share_of_classes=7):
    """Labels, attribute, answers A and B: 20 % wrong in both; in B the wrong answer is read off the attribute."""
    y = np.repeat(np.arange(10), n_per_class)
    z = rng.integers(0, 2, len(y))
    flip = rng.random(len(y)) < 0.2
    anywhere = (y + rng.integers(1, 10, len(y))) % 10
    a = np.where(flip, anywhere, y)
    b = np.where(flip & (y < share_of_classes), (y + 1 + z) % 10, a)
    return y, z, a, b


def test_v_and_skewsize_equal_scipys():
    y, p, z = random_samples(np.random.default_rng(0))
    result = measure(y, p, z)
    raw = []
    for name, table in class_tables(y, p, z).usable.items():
        expected = association(table, method="cramer", correction=False)
        assert result.per_class[name].v == pytest.approx(expected, abs=1e-10)
        assert result.per_class[name].chi2 == pytest.approx(
            scipy_stats.chi2_contingency(table, correction=False).statistic
        )
        assert result.per_class[name].dof == scipy_stats.chi2_contingency(table).dof
        raw.append(expected)
    assert result.skewsize == pytest.approx(scipy_stats.skew(raw, bias=True), abs=1e-10)
    assert result.mean_v == pytest.approx(np.mean(raw))
    assert result.max_v == pytest.approx(np.max(raw))


def test_corrected_v_equals_bergsmas_formula():
    table = np.array([[30, 5, 8], [10, 20, 2]])
    n, r, c = table.sum(), 2, 3
    phi2 = max(0, scipy_stats.chi2_contingency(table, correction=False).statistic / n - (r - 1) * (c - 1) / (n - 1))
    expected = math.sqrt(phi2 / min(r - (r - 1) ** 2 / (n - 1) - 1, c - (c - 1) ** 2 / (n - 1) - 1))
    assert corrected_cramers_v(table) == pytest.approx(expected)
    assert corrected_cramers_v(table) < cramers_v(table)


def test_renaming_and_duplicating_change_nothing():
    rng = np.random.default_rng(1)
    y, p, z = random_samples(rng)
    plain = measure(y, p, z)
    renamed = measure(y, rng.permutation(6)[p], np.array(["x", "y", "z"])[rng.permutation(3)[z]])
    doubled = measure(np.tile(y, 2), np.tile(p, 2), np.tile(z, 2))
    for name, found in plain.per_class.items():
        assert renamed.per_class[name].v == pytest.approx(found.v, abs=1e-12)
        assert doubled.per_class[name].v == pytest.approx(found.v, abs=1e-12)
    assert renamed.skewsize == pytest.approx(plain.skewsize)


def test_independence_by_construction_is_zero_and_a_function_of_the_attribute_is_one():
    y = np.repeat([0, 1, 2], 60)
    z = np.tile([0, 0, 1], 60)
    p = np.tile([0, 0, 0, 1, 1, 1, 2, 2, 2], 20)
    z_independent = np.tile([0, 0, 1], 60)
    assert measure(y, p, z_independent).max_v == pytest.approx(0.0, abs=1e-12)
    follows = measure(y, z + 5, z)
    assert [found.v for found in follows.per_class.values()] == pytest.approx([1.0] * 3)
    assert math.isnan(follows.skewsize)
    assert follows.skewsize_interval is None
    assert "same V" in follows.reason


def test_one_answer_for_all_is_zero_and_one_attribute_value_is_left_out():
    y = np.repeat([0, 1, 2, 3], 40)
    z = np.tile([0, 1], 80)
    p = np.where(y == 0, 0, np.tile([0, 1, 1, 0, 0], 32))
    z[y == 3] = 1
    result = measure(y, p, z)
    assert result.per_class["0"].v == 0.0
    assert result.per_class["0"].p_value == 1.0
    assert result.skipped == {"3": "not identifiable: all its samples have one attribute value"}


def test_bias_under_independence_is_corrected_and_raw_v_is_large():
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1, 2, 3], 500)
    raw, corrected = [], []
    for _ in range(40):
        result = measure(y, rng.integers(0, 10, 2000), rng.integers(0, 2, 2000))
        raw.append(result.mean_v)
        corrected.append(result.mean_corrected_v)
    assert np.mean(corrected) < 0.05
    assert np.mean(raw) == pytest.approx(math.sqrt(9 / 500), rel=0.15)


def test_permutation_p_values_are_super_uniform():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(200):
        y, p, z = random_samples(rng, n=60, classes=1)
        table = class_tables(y, p, z).usable["0"]
        p_values.append(dependences({"0": table}, rng, 99)["0"].p_value)
    assert scipy_stats.kstest(p_values, "uniform", alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (3, 6)])
def test_shuffled_tables_are_those_of_a_shuffled_attribute(shape):
    rng = np.random.default_rng(4)
    table = rng.integers(1, 12, shape)
    drawn = shuffled(table, rng, 2000)
    assert np.all(drawn.sum(1) == table.sum(0))
    assert np.all(drawn.sum(2) == table.sum(1))
    assert drawn.min() >= 0
    z, p = (
        np.repeat(np.arange(shape[0]), table.sum(1)),
        np.concatenate([np.repeat(np.arange(shape[1]), r) for r in table]),
    )
    really = []
    for _ in range(2000):
        again = np.zeros(shape, int)
        np.add.at(again, (rng.permutation(z), p), 1)
        really.append(float(chi_square(again)))
    if shape[1] > 1:
        assert np.mean(chi_square(drawn)) == pytest.approx(np.mean(really), rel=0.08)


def test_planted_dependence_separates_models_of_equal_accuracy():
    rng = np.random.default_rng(5)
    y, z, a, b = planted(rng)
    gap = [abs((m[z == 0] == y[z == 0]).mean() - (m[z == 1] == y[z == 1]).mean()) for m in (a, b)]
    assert abs(gap[0] - gap[1]) < 0.01
    in_a, in_b = measure(y, a, z), measure(y, b, z)
    assert in_b.mean_corrected_v - in_a.mean_corrected_v > 0.15
    assert in_b.corrected_skewsize < in_a.corrected_skewsize
    low, high = in_b.mean_corrected_v_interval
    assert low < in_b.mean_corrected_v < high
    assert low > 0.2
    assert {name for name, found in in_b.per_class.items() if found.q_value <= 0.05} == set("0123456")
    assert all(found.q_value > 0.05 for found in in_a.per_class.values())


def test_mistakes_that_follow_the_attribute_are_told_from_a_gap_in_accuracy():
    rng = np.random.default_rng(6)
    y, z, a, b = planted(rng)
    follow = following_mistakes(y, b, z, rng)
    assert follow.p_value <= 0.01
    assert follow.interval.low < follow.share < follow.interval.high
    assert follow.share == pytest.approx(0.5 * 0.2 * 0.7, abs=0.02)  # half of the mistakes of 7 classes in 10
    gap = np.where((z == 1) & (rng.random(len(y)) < 0.5), (y + rng.integers(1, 10, len(y))) % 10, a)
    assert measure(y, gap, z).mean_corrected_v > 0.3  # V sees the gap
    assert following_mistakes(y, gap, z, rng).share < 0.01  # it is no matter of which answer
    assert following_mistakes(y, y, z, rng) is None


def test_mistakes_at_random_follow_no_attribute():
    rng = np.random.default_rng(10)
    p_values = []
    for _ in range(100):
        y, z, a, _ = planted(rng, n_per_class=60)
        p_values.append(following_mistakes(y, a, z, rng, permutations=99, resamples=2).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


def test_bootstrap_intervals_cover_at_their_level():
    rng = np.random.default_rng(11)
    y, z, _, b = planted(rng, n_per_class=20_000)
    truth_v = measure(y, b, z).mean_corrected_v
    covered_v, shares = 0, []
    for _ in range(80):
        y, z, _, b = planted(rng)
        low, high = measure(y, b, z, resamples=200).mean_corrected_v_interval
        covered_v += low <= truth_v <= high
        shares.append(following_mistakes(y, b, z, rng, 99, 200))
    expected = np.mean([found.share for found in shares])  # the share is defined relative to chance at this n
    covered_share = sum(found.interval.low <= expected <= found.interval.high for found in shares)
    slack = 3 * np.sqrt(0.05 * 0.95 / 80)
    assert covered_v / 80 >= 0.93 - slack
    assert covered_share / 80 >= 0.93 - slack
    assert expected <= 0.07  # the true share


def test_sparse_tables_are_flagged_and_rare_answers_merged():
    rng = np.random.default_rng(7)
    y, p, z = random_samples(rng, n=300)
    assert all(found.sparse for found in measure(y, p, z).per_class.values())
    p[:3] = [100, 101, 102]
    y[:3] = 0
    table, merged = class_tables(y, p, z).usable["0"], class_tables(y, p, z, min_count=5).usable["0"]
    assert merged.shape[1] < table.shape[1]
    assert merged.sum() == table.sum()
    y, p, z = random_samples(rng, n=6000)
    assert not any(found.sparse for found in measure(y, p, z).per_class.values())


def test_skewness_equals_scipys_and_is_undefined_without_variance():
    values = np.random.default_rng(8).exponential(size=20)
    assert skewness(values) == pytest.approx(scipy_stats.skew(values))
    assert math.isnan(skewness(np.full(5, 0.3)))


@pytest.mark.parametrize(
    ("y", "p", "z", "message"),
    [
        ([0, 1], [0, 1, 2], [0, 1], "one length"),
        ([], [], [], "one length"),
        ([0.5, 1, 2], [0, 1, 2], [0, 1, 0], "labels"),
        ([0, 1, 2], [0, float("nan"), 2], [0, 1, 0], "predicted"),
        ([0, 1, 2], [0, 1, 2], ["a", None, "b"], "attribute"),
        ([0, 1, 2] * 4, [0, 1, 2] * 4, [1] * 12, "attribute needs at least 2"),
        ([0, 1] * 6, [0, 1] * 6, [0, 0, 1, 1] * 3, "at least 3 classes"),
    ],
)
def test_bad_input_is_refused(y, p, z, message):
    with pytest.raises(InvalidInput, match=message):
        measure(y, p, z)


def test_whole_floats_and_strings_are_accepted():
    y, p, z = random_samples(np.random.default_rng(9))
    assert measure(y.astype(float), p.astype(str), z).mean_v == pytest.approx(measure(y, p, z).mean_v)
