"""Scores of the obfuscation benchmark: what must hold between them whatever the answers were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snellen.errors import InvalidInput
from snellen.shift._obfuscation_report import Trial
from snellen.shift.obfuscations import (
    HELD_OUT,
    TRAINING,
    Ranking,
    grouped_probabilities,
    hard_easy_split,
    obfuscation_scores,
    ranked_classes,
    top_correct,
)
from snellen.stats import wilson

ALL = (*TRAINING, *HELD_OUT)


def answers(seed: int, images: int, classes: int = 12) -> tuple[dict[str, Ranking], list[str], list[int]]:
    """Rankings that put the label first more often than chance."""
    rng = np.random.default_rng(seed)
    ids, labels = [f"i{i}" for i in range(images)], rng.integers(0, classes, images)
    rankings = {}
    for name in ALL:
        scores = rng.normal(size=(images, classes))
        scores[np.arange(images), labels] += rng.uniform(0, 6)
        rankings[name] = Ranking(ids, np.argsort(-scores, axis=1)[:, :10])
    return rankings, ids, labels.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_worst_is_below_each_and_the_mean_above_the_least(seed: int, images: int) -> None:
    scores = obfuscation_scores(top_correct(*answers(seed, images)))
    least = np.min([score.value for score in scores.obfuscations.values()], axis=0)
    assert (scores.worst_all.value <= least + 1e-12).all()
    assert (least <= scores.mean_all.value + 1e-12).all()
    assert (scores.worst_all.value <= np.minimum(scores.worst_training.value, scores.worst_hold_out.value)).all()
    weighted = (19 * scores.mean_training.value + 3 * scores.mean_hold_out.value) / 22
    assert scores.mean_all.value == pytest.approx(weighted)
    for score in (*scores.obfuscations.values(), scores.mean_all, scores.worst_all, scores.worst_hold_out):
        assert (np.diff(score.value) >= -1e-12).all()  # top-n never falls in n
        assert ((score.low <= score.value + 1e-12) & (score.value <= score.high + 1e-12)).all()


def test_intervals_of_proportions_are_wilsons() -> None:
    correct = top_correct(*answers(1, 50))
    scores = obfuscation_scores(correct)
    right = int(correct.all(axis=0)[:, 2].sum())
    assert (scores.worst_all.low[2], scores.worst_all.high[2]) == pytest.approx(wilson(right, 50))
    right = int(correct[4, :, 0].sum())
    score = scores.obfuscations[ALL[4]]
    assert (score.low[0], score.high[0]) == pytest.approx(wilson(right, 50))


def test_intervals_of_means_cover_more_than_ninety_five_percent() -> None:
    rng = np.random.default_rng(0)
    truth, held, runs = 0.7, 0, 300
    for _ in range(runs):
        # Hard and easy images: answers to one image go together, as they do
        ability = rng.beta(0.7, 0.3, size=80)
        correct = rng.random((22, 80)) < ability
        score = obfuscation_scores(correct[:, :, None], top=(1,)).mean_all
        held += score.low[0] <= truth <= score.high[0]
    assert held / runs >= 0.95


def test_weighting_balanced_labels_changes_nothing() -> None:
    rankings, ids, _ = answers(2, 60)
    labels = [i % 12 for i in range(60)]
    correct = top_correct(rankings, ids, labels)
    plain, weighted = obfuscation_scores(correct), obfuscation_scores(correct, labels=labels)
    for name in ("mean_training", "mean_hold_out", "mean_all", "worst_training", "worst_hold_out", "worst_all"):
        for a, b in zip(getattr(plain, name), getattr(weighted, name), strict=True):
            assert np.abs(a - b).max() < 1e-12


def test_weighting_counts_classes_alike() -> None:
    correct = np.ones((22, 10, 1), dtype=bool)
    labels = [0] * 8 + [1] * 2
    correct[:, 8:] = False
    scores = obfuscation_scores(correct, top=(1,), labels=labels)
    assert scores.mean_all.value[0] == pytest.approx(0.5)
    assert obfuscation_scores(correct, top=(1,)).mean_all.value[0] == pytest.approx(0.8)
    wide = scores.worst_all.high - scores.worst_all.low
    assert wide[0] > np.subtract(*wilson(5, 10)[::-1])  # eight images of one class say less than eight of many


def test_a_constant_correct_predictor_scores_one_and_a_random_one_the_product() -> None:
    always = obfuscation_scores(np.ones((22, 30, 4), dtype=bool))
    assert (always.worst_all.value == 1).all()
    assert (always.worst_all.high == 1).all()
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.85, 1.0, 22)
    scores = obfuscation_scores((rng.random((22, 20000)) < rates[:, None])[:, :, None], top=(1,))
    assert scores.worst_all.value[0] == pytest.approx(np.prod(rates), abs=0.02)
    assert scores.worst_hold_out.value[0] == pytest.approx(np.prod(rates[19:]), abs=0.02)


def test_a_subset_of_obfuscations_is_scored_by_its_own_groups() -> None:
    names = ("texturize", "low_contrast_triangles")
    correct = np.array([[True, True, False, True], [True, False, False, True]])[:, :, None]
    scores = obfuscation_scores(correct, names=names, top=(1,))
    found = (scores.mean_training, scores.mean_hold_out, scores.mean_all, scores.worst_all)
    assert [score.value[0] for score in found] == pytest.approx([0.75, 0.5, 0.625, 0.5])


def test_ranked_classes_are_best_first_and_skip_a_background_output() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0, 3.0]])
    assert ranked_classes(scores, keep=3).tolist() == [[0, 2, 4]]
    assert ranked_classes(scores, keep=3, classes=4).tolist() == [[1, 3, 2]]
    with pytest.raises(InvalidInput, match="keep"):
        ranked_classes(scores, keep=6)


def test_groups_average_their_classes() -> None:
    probabilities = torch.tensor([[0.1, 0.3, 0.6]])
    assert grouped_probabilities(probabilities, [[0, 1], [2]])[0].tolist() == pytest.approx([0.2, 0.6])
    for groups in ([[0], []], [[0, 3]]):
        with pytest.raises(InvalidInput, match="groups"):
            grouped_probabilities(probabilities, groups)


def test_what_does_not_fit_together_is_refused() -> None:
    rankings, ids, labels = answers(4, 8)
    swapped = {**rankings, "texturize": Ranking(ids[::-1], rankings["texturize"].classes)}
    with pytest.raises(InvalidInput, match="texturize must be of the same ids"):
        top_correct(swapped, ids, labels)
    with pytest.raises(InvalidInput, match="missing: halftoning"):
        top_correct({name: ranking for name, ranking in rankings.items() if name != "halftoning"}, ids, labels)
    with pytest.raises(InvalidInput, match="11 or more"):
        top_correct(rankings, ids, labels, top=(1, 11))
    with pytest.raises(InvalidInput, match="labels"):
        top_correct(rankings, [], [])
    with pytest.raises(InvalidInput, match="labels"):
        top_correct(rankings, ids, labels[:-1])

    correct = top_correct(rankings, ids, labels)
    with pytest.raises(InvalidInput, match="correct must be bool"):
        obfuscation_scores(correct[:-1])
    with pytest.raises(InvalidInput, match="correct must be bool"):
        obfuscation_scores(correct.astype(float))
    with pytest.raises(InvalidInput, match="labels must be one an image"):
        obfuscation_scores(correct, labels=labels[:-1])
    with pytest.raises(InvalidInput, match="names"):
        obfuscation_scores(correct[:1], names=("fog",))
    with pytest.raises(InvalidInput, match="held-out"):
        obfuscation_scores(correct[:1], names=("texturize",))


def test_the_hard_and_easy_halves_are_told_apart_on_images_that_did_not_choose_them() -> None:
    rng = np.random.default_rng(0)
    accuracies = np.array([0.9, 0.2, 0.8, 0.3, 0.85, 0.1])
    names = [f"o{i}" for i in range(6)]
    trial = Trial([str(i) for i in range(400)], names, np.ones(400, bool), rng.random((6, 400)) < accuracies[:, None])
    split = hard_easy_split(trial)
    assert split is not None
    assert (split.hard, split.easy) == (["o1", "o3", "o5"], ["o0", "o2", "o4"])
    assert split.hard_by_image.mean() == pytest.approx(0.2, abs=0.05)
    assert split.easy_by_image.mean() == pytest.approx(0.85, abs=0.05)
    # Where all are alike, choosing and judging on the same images would show a gap that is not there.
    gaps = []
    for _ in range(60):
        alike = Trial(trial.ids[:60], names, np.ones(60, bool), rng.random((6, 60)) < 0.5)
        halves = hard_easy_split(alike)
        assert halves is not None
        gaps.append(halves.easy_by_image.mean() - halves.hard_by_image.mean())
    assert abs(np.mean(gaps)) < 0.02
    assert hard_easy_split(Trial(["a"], names, np.ones(1, bool), np.ones((6, 1), bool))) is None
