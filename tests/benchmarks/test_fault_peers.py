"""When another tool's statement counts as naming a planted fault."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.faults.cases import Case
from benchmarks.faults.peers.handover import answers, read_told
from benchmarks.faults.peers.judging import Statement, Told, names, struck, table
from benchmarks.faults.subjects import images_of

from snellen.demo.network import shipped_network


def group(of: np.ndarray, inside: int, outside: int) -> list[int]:
    """Rows of which so many are among `of`."""
    return [*np.flatnonzero(of)[:inside].tolist(), *np.flatnonzero(~of)[:outside].tolist()]


def test_a_group_names_a_fault_from_three_fifths_of_struck_images_on() -> None:
    case = Case("digits", "corner-tag", "clear", 0)
    made = images_of(case)
    of = struck(case, made)
    assert names(case, Statement("slice", "", group(of, 6, 4)), made)
    assert not names(case, Statement("slice", "", group(of, 5, 5)), made)
    assert not names(case, Statement("slice", ""), made)


def test_words_name_a_fault_without_a_group() -> None:
    case = Case("digits", "rotation-weak-class", "clear", 0)
    made = images_of(case)
    assert names(case, Statement("segment", "weak where rotation > 12, class 7"), made)
    assert names(case, Statement("segment", "rotation: {'7': '3.2%'}"), made)
    assert not names(case, Statement("segment", "weak where rotation > 12, class 3"), made)


@pytest.mark.parametrize(
    "text", ["rotation > 0.7", "rotation: 7% worse", "7 scores failed, rotation", "rotation >= 7", "rotation -7.25%"]
)
def test_a_number_that_is_no_class_names_none(text: str) -> None:
    case = Case("digits", "rotation-weak-class", "clear", 0)
    assert not names(case, Statement("segment", text), images_of(case))


def test_images_told_as_mislabelled_count_for_wrong_labels_alone() -> None:
    wrong = Case("digits", "test-labels", "clear", 0)
    made = images_of(wrong)
    of = struck(wrong, made)
    assert 0 < of.sum() < 60
    assert names(wrong, Statement("label", "", group(of, 6, 4), "labels"), made)
    assert not names(wrong, Statement("near_duplicate", "", group(of, 6, 4), "copies"), made)
    merged = Case("digits", "merged-classes", "clear", 0)
    pair = group(struck(merged, images_of(merged)), 10, 0)
    assert not names(merged, Statement("label", "", pair, "labels"), images_of(merged))
    assert names(merged, Statement("slice", "", pair), images_of(merged))


def test_a_comparison_of_training_and_test_sets_is_no_leak() -> None:
    case = Case("digits", "leakage", "clear", 0)
    made = images_of(case)
    assert not names(case, Statement("drift", "Train-Test scores degrade by 12%"), made)
    assert names(case, Statement("leak", "34 duplicates of the train set in the test set"), made)
    assert names(case, Statement("near_duplicate", "", group(struck(case, made), 8, 2), "copies"), made)


def test_a_fault_of_all_images_is_named_by_words_alone() -> None:
    case = Case("digits", "over-confidence", "clear", 0)
    made = images_of(case)
    assert not names(case, Statement("slice", "", list(range(100))), made)
    assert names(case, Statement("calibration", "the network is over-confident"), made)


def test_the_table_counts_named_cases_and_reports_on_healthy_networks(tmp_path: Path) -> None:
    case = Case("digits", "corner-tag", "clear", 0)
    hit = group(struck(case, images_of(case)), 9, 1)
    told = {
        case: Told("tool", [Statement("slice", "", hit)], 2.0),
        Case("digits", "corner-tag", "clear", 1): Told("tool", [], 1.0),
        Case("digits", None, "clear", 0): Told("tool", [Statement("blur", "blurred: worse", (), "shift")], 3.0),
        Case("digits", None, "clear", 1): Told("tool", [Statement("slice", "", [1, 2])], 4.0),
    }
    rows, healthy = table(told)
    assert ["digits, corner-tag", "1 / 2", "not run", "not run"] in rows
    assert rows[-1] == ["all", "1 / 2", "not run", "not run"]
    assert "1 of 2 (slice on 1)" in healthy
    kept = tmp_path / "told.json"
    kept.write_text(json.dumps(asdict(told[case])))
    assert read_told(kept) == told[case]


def test_the_features_handed_over_are_what_the_last_layer_sees() -> None:
    network, images = shipped_network("healthy"), images_of(Case("digits", None, "clear", 0)).images[:320]
    features, probabilities = answers(network, images)
    assert features.shape == (320, 80)
    again = network.head(torch.from_numpy(features)).double().softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, again, atol=1e-6)
