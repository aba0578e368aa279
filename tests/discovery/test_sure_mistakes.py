"""Pairs of classes on which a model errs as surely as it is right."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.discovery.test_label_errors import calibrated, digit_logits, examine

from snellen.discovery._sure_mistakes import sure_mistakes

NAMES = [str(i) for i in range(4000)]


def planted(labels, seed, share=0.3, true=7, given=3):
    struck = (labels == true) & (np.random.default_rng(seed).random(len(labels)) < share)
    return np.where(struck, given, labels), struck


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", [False, True])
def test_a_class_that_was_labelled_as_another_is_found(seed, network):
    logits, truth = digit_logits(seed, network)
    labels, struck = planted(truth, seed)
    (found,) = sure_mistakes(NAMES, labels, logits)
    assert (found.label, found.sure_of) == (3, 7)
    assert 0.4 < found.value / (struck.sum() / found.n) < 1.1  # the model's own mistakes among them lower the estimate
    evidence = [NAMES.index(name) for name in found.evidence]
    assert struck[evidence].mean() > 0.9


def test_a_models_own_mistakes_are_no_wrong_labels():
    assert [sure_mistakes(NAMES, truth, logits) for logits, truth in map(digit_logits, range(8))] == [[]] * 8


def test_calibrated_models_are_left_in_peace():
    cases = [calibrated(np.random.default_rng(seed), 3000, 5, 6.0) for seed in range(30)]
    assert sum(bool(sure_mistakes(NAMES, labels, logits)) for logits, labels in cases) <= 1


def test_the_area_is_that_under_the_roc_curve():
    logits, truth = digit_logits(1)
    labels, _ = planted(truth, 1)
    (found,) = sure_mistakes(NAMES, labels, logits)
    margins = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0]
    here = (logits.argmax(1) == 7) & np.isin(labels, (3, 7))
    assert found.area == pytest.approx(roc_auc_score(labels[here] == 7, margins[here]))


def test_answers_without_scores_and_models_that_are_sure_of_all_mistakes_say_nothing():
    logits, truth = digit_logits(0)
    labels, _ = planted(truth, 0)
    assert sure_mistakes(NAMES, labels, np.where(logits == logits.max(axis=1, keepdims=True), 0.0, -30.0)) == []
    shuffled = np.random.default_rng(0).permutation(labels)
    everywhere = np.where(np.random.default_rng(1).random(len(labels)) < 0.3, shuffled, truth)
    assert sure_mistakes(NAMES, everywhere, logits) == []


def test_the_probe_tells_the_pair_once():
    logits, truth = digit_logits(2)
    labels, struck = planted(truth, 2)
    _, findings, exhibits = examine(logits, labels)
    about = [finding for finding in findings if finding.subject == {"class": "c3", "looks like": "c7"}]
    assert len(about) == 1
    assert 0 < about[0].effect <= struck.sum() / about[0].n + 0.05
    assert "label" in about[0].title
    assert "Mistakes as sure as right answers" in [exhibit.title for exhibit in exhibits]
