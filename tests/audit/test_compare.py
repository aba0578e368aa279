from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from snellen.audit.compare import Comparison, compare
from snellen.audit.store import JobRecord, Store
from snellen.audit.stored_run import open_run
from snellen.errors import InvalidInput
from snellen.probe import rows
from snellen.stats import mcnemar_exact, paired_difference

MakeRun = Callable[..., str]
MakeFinding = Callable[..., dict[str, object]]

RNG = np.random.default_rng(0)
BEFORE, AFTER = RNG.random(200) < 0.6, RNG.random(200) < 0.8


def compared(first: str, second: str) -> Comparison:
    return compare(open_run(first), open_run(second))


def test_a_pair_has_the_figures_of_the_two_models_on_the_same_samples(make_run: MakeRun) -> None:
    row = compared(make_run("a", BEFORE), make_run("b", AFTER)).pairs[0]
    assert (row.metric, row.n, row.group) == ("accuracy", 200, "")
    assert (row.before, row.after) == (BEFORE.mean(), AFTER.mean())
    assert row.difference == pytest.approx(AFTER.mean() - BEFORE.mean())
    assert (row.low, row.high) == paired_difference(AFTER, BEFORE)
    assert row.p_value == mcnemar_exact(int((AFTER & ~BEFORE).sum()), int((BEFORE & ~AFTER).sum()))


def test_turning_the_runs_round_turns_the_sign_and_keeps_the_p_value(make_run: MakeRun) -> None:
    a, b = make_run("a", BEFORE), make_run("b", AFTER)
    for there, back in zip(compared(a, b).pairs, compared(b, a).pairs, strict=True):
        assert there.difference == -back.difference
        assert there.low == pytest.approx(-back.high, abs=1e-6)
        assert there.p_value == back.p_value


def test_a_run_against_itself_shows_no_difference_and_says_that_the_model_is_the_same(make_run: MakeRun) -> None:
    run = make_run("a", BEFORE, robust={0.1: BEFORE})
    comparison = compared(run, run)
    assert comparison.changes == []
    assert {row.difference for row in comparison.pairs} == {0.0}
    assert any("same model" in warning for warning in comparison.warnings)


def test_classes_partition_the_samples(make_run: MakeRun) -> None:
    whole, *classes = compared(make_run("a", BEFORE), make_run("b", AFTER)).pairs
    assert [row.group for row in classes] == ["class cat", "class dog"]
    assert sum(row.n for row in classes) == whole.n
    assert sum(row.only_after for row in classes) == whole.only_after


def test_q_values_are_adjusted_over_all_rows_and_never_below_p(make_run: MakeRun) -> None:
    eps = {0.01 * step: AFTER for step in range(1, 6)}
    rows = compared(make_run("a", BEFORE, robust=eps), make_run("b", AFTER, robust=eps)).pairs
    assert len(rows) == 8
    assert all(row.q_value >= row.p_value for row in rows)


def test_other_data_are_told_and_only_common_samples_of_the_same_class_are_paired(make_run: MakeRun) -> None:
    labels = np.arange(150) % 2
    labels[:10] = 1 - labels[:10]
    data = {"name": "pets 2", "fingerprint": "other", "samples": 150, "quarantined": 0, "attributes": []}
    comparison = compared(make_run("a", BEFORE), make_run("b", AFTER[:150], labels=labels, data=data))
    assert comparison.pairs[0].n == 140
    assert any("data differ" in warning for warning in comparison.warnings)
    assert any("10 samples have another class" in warning for warning in comparison.warnings)


def test_other_settings_or_seeds_are_not_paired_and_the_reason_is_given(make_run: MakeRun) -> None:
    base = make_run("a", BEFORE, robust={0.1: BEFORE})
    steps = compared(base, make_run("b", AFTER, robust={0.1: AFTER}, settings={"steps": 7}))
    assert {row.probe for row in steps.pairs} == {"predictions"}
    assert [refusal for refusal in steps.refused if "steps = 20 and 7" in refusal.reason]
    seeds = compared(base, make_run("c", AFTER, robust={0.1: AFTER}, seed=1))
    assert [(refusal.probe, refusal.reason) for refusal in seeds.refused] == [
        ("attack/pgd", "the seeds differ: 0 and 1")
    ]
    assert {row.probe for row in seeds.pairs} == {"predictions"}  # untouched images need no seed


def test_a_setting_that_is_the_default_is_no_other_setting(make_run: MakeRun) -> None:
    first = make_run("a", BEFORE, robust={0.1: BEFORE})
    second = make_run("b", AFTER, robust={0.1: AFTER}, settings={"steps": 20})
    assert {row.probe for row in compared(first, second).pairs} == {"predictions", "attack/pgd"}


def test_statements_are_told_by_what_became_of_them(make_run: MakeRun, make_finding: MakeFinding) -> None:
    before = [
        make_finding("gone", "critical"),
        make_finding("worse", "low"),
        make_finding("better", "high"),
        make_finding("apart", "low", (0.1, 0.2)),
        make_finding("same", "low", (0.1, 0.2)),
    ]
    after = [
        make_finding("new", "medium"),
        make_finding("worse", "high"),
        make_finding("better", "info"),
        make_finding("apart", "low", (0.3, 0.4)),
        make_finding("same", "low", (0.15, 0.3)),
    ]
    comparison = compared(make_run("a", BEFORE, findings=before), make_run("b", AFTER, findings=after))
    assert [(change.kind, change.finding.title) for change in comparison.changes] == [
        ("appeared", "new"), ("graver", "worse"), ("moved", "apart"), ("milder", "better"), ("gone", "gone"),
    ]  # fmt: skip


def test_a_measured_number_in_the_subject_does_not_make_two_statements(
    make_run: MakeRun, make_finding: MakeFinding
) -> None:
    before = make_finding("one", "low", subject={"corruption": "fog", "starts_at": 1.0})
    after = make_finding("two", "high", subject={"corruption": "fog", "starts_at": 3.0})
    (change,) = compared(make_run("a", BEFORE, findings=[before]), make_run("b", AFTER, findings=[after])).changes
    assert change.kind == "graver"


def test_what_was_not_examined_is_neither_gone_nor_new(make_run: MakeRun, make_finding: MakeFinding) -> None:
    attacked = make_finding("attacked", "high", probe="attack/pgd")
    first = make_run("a", BEFORE, robust={0.1: BEFORE}, findings=[attacked])
    comparison = compared(first, make_run("b", AFTER))
    assert comparison.changes == []
    assert [refusal.reason for refusal in comparison.refused] == ["only the first run has it"]


def test_rows_that_contradict_each_other_are_not_paired(make_run: MakeRun, add_rows: Callable[..., None]) -> None:
    first = make_run("a", BEFORE)
    ids = [str(i) for i in range(200)]
    other = rows(ids, label=np.arange(200) % 2, predicted=[0] * 200, correct=~BEFORE, confidence=[0.5] * 200)
    add_rows(first, "predictions#2", "f" * 32, other)
    comparison = compared(first, make_run("b", AFTER))
    assert comparison.pairs == []
    assert "contradict each other" in comparison.refused[0].reason


def test_rows_of_another_model_in_the_same_directory_are_not_mixed_in(make_run: MakeRun) -> None:
    first, second = make_run("a", BEFORE), make_run("b", AFTER)
    alone = compared(first, second)
    ids = [str(i) for i in range(200)]
    other = rows(ids, label=np.arange(200) % 2, predicted=[0] * 200, correct=~BEFORE, confidence=[0.5] * 200)
    Store(first).commit("predictions", "f" * 32, other, JobRecord(200, 0, 0.1))
    assert compared(first, second).pairs == alone.pairs


def test_a_run_on_another_file_system_is_read_like_a_local_one(make_run: MakeRun) -> None:
    far = make_run("far", AFTER, address="memory://runs/far")
    try:
        near = make_run("a", BEFORE)
        assert compared(near, far).pairs[0].n == 200
    finally:
        fsspec.filesystem("memory").rm("/runs", recursive=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "it has no manifest.json"),
        ("manifest.json", "{", "manifest.json is damaged"),
        ("manifest.json", "[" * 100_000, "manifest.json is damaged"),
        ("manifest.json", {"schema_version": 0}, "an older snellen"),
        ("manifest.json", {"schema_version": 99}, "a newer snellen"),
        ("manifest.json", {"model": 3}, "manifest.json is damaged: model"),
        ("manifest.json", {"ledger": {"forward": 0, "backward": 0, "by_probe": {"../../etc": {}}}}, "no probe's label"),
        ("findings.json", None, "has no findings.json: the run is finished"),
        ("findings.json", "{}", "findings.json is damaged"),
        ("findings.json", "[{}]", "findings.json is damaged: 0.schema_version"),
        ("findings.json", '[{"schema_version": 7}]', "a newer snellen"),
    ],
)
def test_a_damaged_or_foreign_directory_is_one_sentence(
    make_run: MakeRun, name: str, content: object, message: str
) -> None:
    run = make_run("a", BEFORE)
    file = Path(run, name)
    if content is None:
        file.unlink()
    elif isinstance(content, str):
        file.write_text(content)
    else:
        assert isinstance(content, dict)
        file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    with pytest.raises(InvalidInput, match=message) as told:
        open_run(run)
    assert "\n" not in str(told.value)


def test_a_damaged_table_is_told_and_the_other_probes_are_compared(make_run: MakeRun) -> None:
    first = make_run("a", BEFORE, robust={0.1: BEFORE})
    second = make_run("b", AFTER, robust={0.1: AFTER})
    next(Path(second, "results/attack/pgd").glob("*.parquet")).write_bytes(b"PAR1 no more")
    comparison = compared(first, second)
    assert {row.probe for row in comparison.pairs} == {"predictions"}
    assert "is damaged" in comparison.refused[0].reason


def test_reading_a_run_leaves_what_another_process_is_writing(make_run: MakeRun) -> None:
    run = make_run("a", BEFORE)
    unfinished = Path(run, "results/predictions/x.parquet.1.tmp")
    unfinished.write_bytes(b"half")
    compared(run, run)
    assert unfinished.exists()
