import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from snellen.errors import InvalidInput
from snellen.stats import (
    benjamini_hochberg,
    binomial_test,
    exceedance_p_value,
    fisher_exact,
    mcnemar_exact,
    permutation_test,
)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 7), (10, 10), (0, 6), (30, 12)])
def test_mcnemar_equals_statsmodels(b, c):
    expected = 1.0 if b + c == 0 else mcnemar([[5, b], [c, 5]], exact=True).pvalue
    assert mcnemar_exact(b, c) == pytest.approx(min(expected, 1.0), abs=1e-12)


def test_one_sided_mcnemar_is_half_of_the_two_sided_on_its_side_and_large_on_the_other():
    assert mcnemar_exact(9, 2, "greater") == pytest.approx(mcnemar_exact(9, 2) / 2)
    assert mcnemar_exact(2, 9, "greater") > 0.9


def test_mcnemar_holds_its_level():
    rng = np.random.default_rng(0)
    draws = rng.multinomial(200, [0.08, 0.08, 0.84], 2000)
    rejected = np.mean([mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in draws])
    assert rejected <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert mcnemar_exact(40, 10) < 0.001


def test_binomial_and_fisher_equal_scipy():
    assert binomial_test(7, 20, 0.5, "less") == pytest.approx(scipy_stats.binomtest(7, 20, 0.5, "less").pvalue)
    assert fisher_exact(3, 10, 50, 60, "less") == pytest.approx(
        scipy_stats.fisher_exact([[3, 7], [50, 10]], "less").pvalue
    )
    assert fisher_exact(3, 10, 50, 60, "less") < 0.01 < 0.9 < fisher_exact(3, 10, 50, 60, "greater")
    assert binomial_test(0, 0, 0.5) == fisher_exact(0, 0, 4, 9) == 1.0


def test_benjamini_hochberg_equals_statsmodels_in_the_order_given():
    p = np.random.default_rng(0).random(50) ** 2
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)
    assert len(benjamini_hochberg([])) == 0


def test_benjamini_hochberg_controls_false_discoveries():
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(800):
        null = np.arange(50) < 40
        z = rng.normal(size=50) + np.where(null, 0.0, 2.5)
        rejected = benjamini_hochberg(scipy_stats.norm.sf(z)) <= 0.1
        shares.append((rejected & null).sum() / max(rejected.sum(), 1))
    assert np.mean(shares) <= 0.1 * 0.8 + 4 * np.std(shares) / np.sqrt(800)  # BH holds at (share of nulls) x level
    assert np.mean(shares) > 0.04  # and it is not merely silent


def difference_of_means(x, groups) -> float:
    return abs(x[groups == 1].mean() - x[groups == 0].mean())


def test_permutation_test_holds_its_level_and_has_power():
    rng = np.random.default_rng(2)
    groups = np.arange(40) % 2
    null = [permutation_test(difference_of_means, rng.exponential(size=40), groups, rng, 99) for _ in range(400)]
    assert np.mean(np.array(null) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)
    assert scipy_stats.kstest(null, "uniform").pvalue > 1e-3
    shifted = rng.exponential(size=40) + 2 * groups
    assert permutation_test(difference_of_means, shifted, groups, rng) == pytest.approx(0.001)


def test_permutation_p_value_counts_ties_and_is_never_zero():
    assert exceedance_p_value(1.0, np.ones(9)) == 1.0
    assert exceedance_p_value(2.0, np.ones(9)) == 0.1
    assert exceedance_p_value(0.1 + 0.2, np.full(9, 0.3)) == 1.0  # equal but for rounding


@pytest.mark.parametrize(
    "call",
    [
        lambda: mcnemar_exact(-1, 2),
        lambda: binomial_test(3, 2, 0.5),
        lambda: binomial_test(1, 2, 1.5),
        lambda: fisher_exact(3, 2, 1, 1),
        lambda: benjamini_hochberg([0.1, 1.2]),
        lambda: benjamini_hochberg([0.1, float("nan")]),
        lambda: permutation_test(difference_of_means, [1.0], [1, 0], np.random.default_rng(0)),
        lambda: permutation_test(difference_of_means, [1.0, 2], [1, 0], np.random.default_rng(0), 0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
