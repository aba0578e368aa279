import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from snellen.errors import InvalidInput
from snellen.stats import minimal_detectable_effect, needed_samples


@pytest.mark.parametrize(("effect", "baseline"), [(0.05, 0.95), (0.1, 1.0), (0.2, 0.6), (0.01, 0.9)])
def test_needed_samples_equals_statsmodels(effect, baseline):
    size = proportion_effectsize(baseline, baseline - effect)
    n = NormalIndPower().solve_power(size, alpha=0.05, power=0.8, ratio=0)
    assert needed_samples(effect, baseline) == int(np.ceil(n))


@pytest.mark.parametrize("baseline", [0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("n", [20, 150, 4000])
def test_effect_and_samples_are_inverse(baseline, n):
    effect = minimal_detectable_effect(n, baseline)
    assert needed_samples(effect, baseline) == n
    assert minimal_detectable_effect(n + 100, baseline) < effect


@pytest.mark.parametrize(("effect", "baseline"), [(0.1, 0.95), (0.2, 0.7), (0.15, 1.0)])
def test_so_many_samples_give_about_that_power(effect, baseline):
    n = needed_samples(effect, baseline)
    s = np.arange(n + 1)
    rejected = np.array([scipy_stats.binomtest(int(k), n, baseline).pvalue <= 0.05 for k in s])
    assert scipy_stats.binom.pmf(s[rejected], n, baseline - effect).sum() > 0.7


def test_too_few_samples_detect_nothing_but_a_total_loss():
    assert minimal_detectable_effect(1, 0.5) == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimal_detectable_effect(0, 0.9),
        lambda: minimal_detectable_effect(10, 1.2),
        lambda: needed_samples(0.0, 0.9),
        lambda: needed_samples(0.95, 0.9),
        lambda: needed_samples(0.1, 0.9, alpha=0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
