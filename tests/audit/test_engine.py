"""The engine's guarantees: nothing lost, nothing double, one fault costs one job, a budget is kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from snellen import probe as registry
from snellen.audit import Audit, Examination, Plan, tables
from snellen.audit.forecast import forecast
from snellen.audit.jobs import balanced_order, expand, shard_size
from snellen.data import Dataset
from snellen.errors import InvalidInput
from snellen.models import Access, Model, ModelSpec, QueryLedger, TorchModel
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom, normal


@pytest.fixture
def noisy_probe() -> Iterator[None]:
    """A probe with randomness, registered for one test, that can be told to fail."""

    @register
    @dataclass(frozen=True)
    class Noisy(ProbeBase):
        """Answers under noise."""

        name: ClassVar[str] = "test/noisy"
        paper: ClassVar[str] = ""
        access: ClassVar[Access] = Access.LABELS
        scope: ClassVar[Scope] = Scope.SAMPLE
        fails_on: str = ""
        out_of_memory_above: int = 1000

        def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
            if self.fails_on in batch.ids:
                raise ZeroDivisionError("planted")
            if len(batch) > self.out_of_memory_above:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            noise = normal(random.generators(batch.ids), batch.images.shape[1:], 0.3)
            return rows(batch.ids, answer=model.labels(batch.images + noise), drawn=noise[:, 0, 0, 0])

        def cost(self, batch_size: int) -> Passes:
            return Passes(forward=batch_size)

        def findings(self, table: Rows, context: Context) -> list[Finding]:
            return [Finding("accuracy", "Seen.", "seen", 1.0, 0.2, table.num_rows, p_value=0.001)]

    yield
    del registry._registry["test/noisy"]


def plan(*probes: object, **settings: object) -> Plan:
    return Plan.model_validate({"probes": list(probes), **settings})


def examine(model: Model, data: Dataset, out: Path, *probes: object, **settings: object) -> Audit:
    return Examination(model, data, plan(*probes, **settings), str(out)).run()


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in (out / "results").rglob("*.parquet")}


def test_a_second_run_computes_nothing(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    first = examine(tiny_model, tiny_data, tmp_path, "test/noisy")
    spent = tiny_model.ledger.totals
    second = examine(tiny_model, tiny_data, tmp_path, "test/noisy")
    assert tiny_model.ledger.totals == spent
    assert first.tables["test/noisy"].equals(second.tables["test/noisy"])


def test_adding_a_probe_costs_only_that_probe(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    examine(tiny_model, tiny_data, tmp_path, "predictions")
    before = tiny_model.ledger.totals.forward
    examine(tiny_model, tiny_data, tmp_path, "predictions", "test/noisy")
    assert tiny_model.ledger.totals.forward - before == len(tiny_data)


def test_rows_do_not_depend_on_shards_or_batches(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    whole = examine(tiny_model, tiny_data, tmp_path / "a", "test/noisy").tables["test/noisy"]
    pieces = examine(
        tiny_model, tiny_data, tmp_path / "b", {"test/noisy": {"out_of_memory_above": 2}}, shard_size=7
    ).tables["test/noisy"]
    assert whole.equals(pieces)


def test_a_smaller_batch_after_a_memory_shortage_is_remembered(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    examination = Examination(tiny_model, tiny_data, plan({"test/noisy": {"out_of_memory_above": 5}}), str(tmp_path))
    audit = examination.run()
    assert examination.worker.batch_size.value <= 5
    assert audit.tables["test/noisy"].column("id").to_pylist() == tiny_data.ids
    assert audit.failures == []


def test_another_seed_setting_or_image_makes_other_jobs(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    examine(tiny_model, tiny_data, tmp_path, "test/noisy")
    seen = files(tmp_path)
    for change in ({"seed": 1}, {"probes": [{"test/noisy": {"fails_on": "x"}}]}):
        changed = Plan.model_validate({"probes": ["test/noisy"], **change})
        Examination(tiny_model, tiny_data, changed, str(tmp_path)).run()
        assert files(tmp_path) > seen
        seen = files(tmp_path)


def test_a_probe_that_raises_costs_its_job_only(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    audit = examine(
        tiny_model, tiny_data, tmp_path, {"test/noisy": {"fails_on": tiny_data.ids[25]}}, "predictions", shard_size=20
    )
    assert [failure.error for failure in audit.failures] == ["ZeroDivisionError: planted"]
    assert audit.tables["test/noisy"].num_rows == 40
    assert audit.tables["predictions"].num_rows == 60
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["failed_jobs"][0]["probe"] == "test/noisy"


def test_a_budget_is_never_exceeded_and_keeps_the_rows_it_paid_for(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    undisturbed = examine(tiny_model, tiny_data, tmp_path / "whole", "test/noisy").tables["test/noisy"]
    tiny_model.ledger = QueryLedger(budget=25)
    examination = Examination(tiny_model, tiny_data, plan("test/noisy", shard_size=20), str(tmp_path / "part"))
    examination.worker.batch_size.value = 5
    audit = examination.run()
    assert tiny_model.ledger.totals.forward == 25
    assert audit.stopped is not None
    assert audit.tables["test/noisy"].equals(undisturbed.slice(0, 25))
    tiny_model.ledger = QueryLedger()
    resumed = Examination(tiny_model, tiny_data, plan("test/noisy", shard_size=20), str(tmp_path / "part")).run()
    assert tiny_model.ledger.totals.forward == 40  # the shard that was cut short is done whole, the first is not redone
    assert resumed.tables["test/noisy"].equals(undisturbed)


def test_what_needs_masks_is_left_out_of_data_without_them(
    tiny_model: TorchModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    plan = Plan.model_validate({"probes": ["predictions", "shift/attribute-edits"]})
    audit = Examination(tiny_model, tiny_data, plan, str(tmp_path / "run")).run()
    assert [item.probe for item in audit.left_out] == ["shift/attribute-edits"]
    assert "masks" in audit.left_out[0].reason
    assert not audit.failures


def test_what_the_model_does_not_grant_is_left_out_with_its_reason(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    audit = examine(tiny_model.restrict(Access.LABELS), tiny_data, tmp_path, "accuracy", "attack/pgd", "calibration")
    assert [item.probe for item in audit.left_out] == ["attack/pgd", "calibration"]  # an analysis as well
    assert "needs gradients access" in audit.left_out[0].reason
    assert "accuracy" in audit.tables
    assert not audit.failures


def test_needed_tables_are_made_without_being_named(tiny_model: Model, tiny_data: Dataset, tmp_path: Path) -> None:
    assert set(examine(tiny_model, tiny_data, tmp_path, "accuracy").tables) == {"predictions", "accuracy"}


@pytest.mark.parametrize(("second", "rows"), [(12, 12), (20, 20), (None, 60)])
def test_needed_tables_are_as_large_as_the_largest_request(
    tiny_model: Model, tiny_data: Dataset, second: int | None, rows: int
) -> None:
    asking = plan({"accuracy": {"samples": 12}}, {"calibration": {"samples": second}})
    entries, _ = expand(asking, tiny_data, tiny_model.access)
    (needed,) = [entry for entry in entries if entry.label == "predictions"]
    assert len(needed.rows) == rows


def test_the_record_of_a_damaged_file_says_what_to_do(tiny_model: Model, tiny_data: Dataset, tmp_path: Path) -> None:
    examine(tiny_model, tiny_data, tmp_path, "predictions")
    next((tmp_path / "results/predictions").glob("*.parquet")).write_bytes(b"PAR1 cut")
    with pytest.raises(InvalidInput, match="delete it and run the same command again"):
        examine(tiny_model, tiny_data, tmp_path, "accuracy")


def test_changed_attributes_renew_the_analyses_and_nothing_else(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    examine(tiny_model, tiny_data, tmp_path, "accuracy")
    before = tiny_model.ledger.totals
    other = tiny_data.table.append_column("site", pa.array(["n", "s"] * 30))
    changed = Dataset("changed", other, tiny_data.class_names, tiny_data.images, tiny_data.positions)
    audit = examine(tiny_model, changed, tmp_path, "accuracy")
    assert tiny_model.ledger.totals == before
    assert "site" in audit.tables["accuracy"].column("dimension").to_pylist()


def test_all_samples_unusable_is_an_error_that_says_why(tmp_path: Path, tiny_model: Model) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    from snellen.data import load_dataset

    with pytest.raises(InvalidInput, match="0 bytes"):
        Examination(tiny_model, load_dataset(str(tmp_path)), plan("predictions"), str(tmp_path / "out"))


def test_not_finite_outputs_are_reported_and_do_not_stop_the_run(tiny_data: Dataset, tmp_path: Path) -> None:
    def sometimes(images: torch.Tensor) -> torch.Tensor:
        logits = images.mean((2, 3))
        return torch.where(images[:, :1, 0, 0] > 0.8, torch.full_like(logits, float("nan")), logits)

    model = TorchModel(sometimes, ModelSpec("nan", tiny_data.class_names, (16, 16), fingerprint="nan"))
    audit = examine(
        model, tiny_data, tmp_path, "predictions", "accuracy", "calibration", "subgroup", "uncertainty/conformal"
    )
    assert audit.failures == []
    assert any("finite" in statement.finding.title for statement in audit.statements)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_images_give_no_false_statement(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, count: int
) -> None:
    audit = examine(
        tiny_model,
        tiny_data.take(range(count)),
        tmp_path,
        "accuracy",
        "calibration",
        "subgroup",
        "uncertainty/conformal",
    )
    assert audit.failures == []
    assert {statement.severity for statement in audit.statements} <= {"info"}


def test_a_subset_is_balanced_and_nested(tiny_data: Dataset) -> None:
    small, large = balanced_order(tiny_data, 0)[:12], balanced_order(tiny_data, 0)[:30]
    assert set(small) <= set(large)
    assert [int((tiny_data.labels[small] == label).sum()) for label in range(3)] == [4, 4, 4]
    assert set(balanced_order(tiny_data, 1)[:12]) != set(small)


def test_shards_grow_with_the_data() -> None:
    assert [shard_size(plan("predictions"), n) for n in (1, 1200, 10**6)] == [64, 64, 4096]


def test_a_dry_run_counts_and_spends_nothing(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, noisy_probe: None
) -> None:
    examination = Examination(tiny_model, tiny_data, plan("test/noisy", shard_size=20), str(tmp_path))
    (line,) = forecast(examination)
    assert (line.jobs, line.finished, line.images, line.passes.forward) == (3, 0, 60, 60)
    assert line.seconds > 0
    assert tiny_model.ledger.totals.forward == 0
    examination.run()
    (line,) = forecast(Examination(tiny_model, tiny_data, plan("test/noisy", shard_size=20), str(tmp_path)))
    assert (line.finished, line.passes.forward) == (3, 0)


def test_a_search_over_the_whole_set_is_forecast_once_and_not_once_a_batch(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    settings = {"names": ["fog", "contrast"], "budget": 40, "judged": 20}
    entry = Plan.model_validate({"probes": [{"shift/worst-combination": settings}]})
    examination = Examination(tiny_model, tiny_data, entry, str(tmp_path))
    (line,) = forecast(examination)
    examination.run()
    spent = tiny_model.ledger.totals.forward
    assert 0.5 * spent <= line.passes.forward <= 1.5 * spent


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"probes": []}, "at least 1"),
        ({"probes": ["nope"]}, "there is no probe 'nope'"),
        ({"probes": [{"attack/pgd": {"stepz": 3}}]}, "no setting 'stepz'"),
        ({"probes": [{"attack/pgd": {"steps": "many"}}]}, "steps"),
        ({"probes": [{"attack/pgd": {"eps": -1}}]}, "eps"),
    ],
)
def test_wrong_plans_are_told_in_one_sentence(stored: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        [entry.build() for entry in Plan.model_validate(stored).probes]


AUDIT = (sys.executable, "-m", "snellen", "audit", "demo", "demo", "--plan")
KILLED_PLAN = """
probes:
  - predictions
  - accuracy
  - attack/pgd: {steps: 3, samples: 200}
  - certify/smoothing: {n: 20, n0: 10, samples: 64}
shard_size: 40
"""


def all_rows(out: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for path in sorted((out / "results").rglob("*.parquet")):
        found[str(path.relative_to(out))] = pq.read_table(path).to_pylist()
    return found


def test_killed_at_random_moments_the_run_ends_with_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(KILLED_PLAN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*AUDIT, str(tmp_path / "plan.yaml"), "--out"]
    subprocess.run([*command, str(tmp_path / "calm")], check=True, capture_output=True, env=environment)
    moments = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        done_before = len(files(tmp_path / "killed"))
        wanted = done_before + moments.randint(1, 5)
        pause = moments.uniform(0, 0.05)
        while process.poll() is None and len(files(tmp_path / "killed")) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        elif process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 3
    assert all_rows(tmp_path / "killed") == all_rows(tmp_path / "calm")
    first, second = (json.loads((tmp_path / run / "findings.json").read_text()) for run in ("calm", "killed"))
    assert first == second


def test_stored_rows_answer_queries(tiny_model: Model, tiny_data: Dataset, tmp_path: Path) -> None:
    audit = examine(tiny_model, tiny_data, tmp_path, "predictions", shard_size=20)
    sql = "SELECT label, count(*) AS n, avg(correct::INT) AS accuracy FROM rows GROUP BY label"
    counted = audit.tables.query("predictions", sql)
    right = audit.tables["predictions"].to_pylist()
    expected = {label: (20, sum(row["correct"] for row in right if row["label"] == label) / 20) for label in range(3)}
    assert {row["label"]: (row["n"], row["accuracy"]) for row in counted.to_pylist()} == expected


def test_a_table_too_large_for_memory_is_mapped_and_reads_the_same(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = examine(tiny_model, tiny_data, tmp_path / "run", "predictions", shard_size=2)
    whole = audit.tables["predictions"]
    monkeypatch.setattr(tables, "MOST_BYTES", 200)
    before = pa.total_allocated_bytes()
    mapped = audit.tables["predictions"]
    assert pa.total_allocated_bytes() - before < 2000  # the rows are not among what Arrow has allocated
    assert mapped.equals(whole)
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("images", [1, 30])
def test_a_model_that_is_never_right_breaks_no_probe(tiny_model: Model, images: int, tmp_path: Path) -> None:
    pixels = torch.rand(images, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wrong = (tiny_model.labels(pixels) + 1) % 3
    data = Dataset.from_arrays(pixels, wrong.numpy(), ("cat", "dog", "owl"), {"light": ["day"] * images})
    probes = [
        {"attack/pgd": {"steps": 2, "eps": [0.01, 0.02]}},
        {"certify/smoothing": {"n0": 5, "n": 200}},
        {"shift/corruptions": {"names": ["fog"], "severities": [1, 3]}},
        {"shift/low-resolution": {"sides": [8, 16]}},
    ]
    audit = examine(tiny_model, data, tmp_path / "run", *probes, "subgroup", "calibration", "uncertainty/conformal")
    assert [failure.error for failure in audit.failures] == []
