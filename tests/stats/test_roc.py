import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from snellen.errors import InvalidInput
from snellen.stats import separate, split_coverage_test


@pytest.mark.parametrize("ties", [False, True])
def test_equals_sklearn_when_every_score_is_a_candidate(ties):
    rng = np.random.default_rng(0)
    event = rng.random(300) < 0.3
    score = rng.normal(size=300) + event
    score = np.round(score, 1) if ties else score
    found = separate(score, event)
    assert found.auc == pytest.approx(roc_auc_score(event, score), abs=1e-12)
    fpr, tpr, _ = roc_curve(event, score, drop_intermediate=False)
    assert found.youden == pytest.approx((tpr - fpr).max(), abs=1e-12)
    assert found.true_positive_rate == pytest.approx(np.mean(score[event] > found.threshold), abs=1e-12)
    assert found.false_positive_rate == pytest.approx(np.mean(score[~event] > found.threshold), abs=1e-12)


def test_the_first_of_equal_thresholds_wins():
    found = separate([0.0, 1.0], np.array([False, True]), candidates=[0.2, 0.5, 0.8])
    assert found.threshold == 0.2
    assert (found.youden, found.auc) == (1.0, 1.0)


def test_one_kind_of_event_says_nothing():
    for event in (np.zeros(4, bool), np.ones(4, bool)):
        found = separate(np.arange(4.0), event)
        assert found.threshold == math.inf
        assert math.isnan(found.auc)
        assert math.isnan(found.youden)


def test_bad_input_is_refused():
    for score, event in (([1.0, math.nan], [True, False]), ([1.0], [True, False]), ([1.0, 2.0], [1, 0])):
        with pytest.raises(InvalidInput):
            separate(score, np.array(event))


def test_split_coverage_test_holds_its_level_where_a_binomial_test_does_not():
    rng = np.random.default_rng(1)
    n, m, alpha = 99, 400, 0.1
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    p_values = []
    for _ in range(1000):
        threshold = np.sort(rng.random(n))[rank - 1]
        p_values.append(split_coverage_test(int((rng.random(m) <= threshold).sum()), m, rank, n))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1000)
    assert split_coverage_test(200, 400, rank, n) < 1e-6
    assert split_coverage_test(0, 10, 12, 11) == 1.0
