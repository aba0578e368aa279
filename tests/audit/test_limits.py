"""Budgets and time limits: the most telling first, what was not reached is listed, and nothing is claimed of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snellen.audit import Audit, Examination, Plan
from snellen.audit.journal import Journal
from snellen.audit.store import Store
from snellen.cli.inputs import ModelFlags, load_inputs
from snellen.data import Dataset
from snellen.errors import BudgetExhausted, InvalidInput
from snellen.models import LedgerTotals, Model, QueryLedger

PLAN = Plan.model_validate(
    {
        "shard_size": 10,
        "probes": [
            {"certify/smoothing": {"n0": 5, "n": 50}},
            {"shift/corruptions": {"names": ["fog"], "severities": [1, 2, 3]}},
            {"shift/translations": {}},
            {"attack/pgd": {"steps": 2, "eps": [0.01]}},
            "accuracy",
        ],
    }
)


def examine(model: Model, data: Dataset, out: Path, compute: bool = True) -> Audit:
    return Examination(model, data, PLAN, str(out)).run(compute)


def labels(audit: Audit) -> list[str]:
    return [entry.label for entry in audit.entries]


def test_under_a_limit_each_family_speaks_before_one_speaks_twice(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    tiny_model.ledger = QueryLedger(budget=10**9)
    order = labels(examine(tiny_model, tiny_data, tmp_path / "limited"))
    assert order[:2] == ["predictions", "accuracy"]  # the cheapest, and what only reads it
    assert order.index("shift/corruptions") < order.index("certify/smoothing") < order.index("shift/translations")
    tiny_model.ledger = QueryLedger()
    free = labels(Examination(tiny_model, tiny_data, PLAN, str(tmp_path / "free")).audit)
    assert [label for label in free if "/" in label] == [entry.probe for entry in PLAN.probes[:4]]


def test_what_was_not_reached_is_listed_and_statements_about_a_part_say_so(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    tiny_model.ledger = QueryLedger(budget=60 + 100)
    audit = examine(tiny_model, tiny_data, tmp_path / "run")
    assert audit.stopped is not None
    missed = {item.probe: (item.missing, item.jobs) for item in audit.unreached}
    assert set(missed) == {"shift/corruptions", "certify/smoothing", "shift/translations", "attack/pgd"}
    assert all(missing <= jobs == 6 for missing, jobs in missed.values())
    partial = [s for s in audit.statements if s.probe in missed]
    assert partial
    assert all("the run stopped early" in statement.title for statement in partial)
    assert not any("stopped early" in s.title for s in audit.statements if s.probe == "accuracy")

    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert stored["status"] == "stopped early"
    tiny_model.ledger = QueryLedger()
    examine(tiny_model, tiny_data, tmp_path / "run", compute=False)  # a report made again must not call it finished
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert stored["status"] == "incomplete"
    assert {item["probe"] for item in stored["unreached"]} == set(missed)


def test_an_analysis_of_a_part_is_made_again_when_the_rest_is_there(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    tiny_model.ledger = QueryLedger(budget=30)
    examine(tiny_model, tiny_data, tmp_path / "run")
    tiny_model.ledger = QueryLedger()
    examine(tiny_model, tiny_data, tmp_path / "run", compute=False)  # must not store the analysis of a part as whole
    whole = examine(tiny_model, tiny_data, tmp_path / "run")
    assert whole.tables["accuracy"]["n"][0].as_py() == 60


def test_a_time_limit_stops_before_the_next_pass_and_the_next_run_goes_on(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    tiny_model.ledger = QueryLedger(minutes=1e-9)
    audit = examine(tiny_model, tiny_data, tmp_path / "run")
    assert "time limit" in (audit.stopped or "")
    assert tiny_model.ledger.totals.forward == 0
    tiny_model.ledger = QueryLedger(minutes=30)
    assert examine(tiny_model, tiny_data, tmp_path / "run").unreached == []


def test_a_budget_holds_for_the_directory_and_not_for_the_process(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path
) -> None:
    asked = 0
    for _ in range(3):
        tiny_model.ledger = QueryLedger(budget=500)
        examine(tiny_model, tiny_data, tmp_path / "run")
        asked += tiny_model.ledger.totals.images
    assert asked <= 500
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())["ledger"]
    assert stored["forward"] + stored["backward"] == asked


def test_the_journal_survives_a_process_and_a_line_cut_off(tmp_path: Path) -> None:
    store, ledger = Store(str(tmp_path)), QueryLedger(budget=100)
    journal = Journal(store, ledger)
    ledger.attach(journal.earlier(), journal)
    ledger.charge(forward=30, requests=1)
    ledger.charge(forward=20, backward=10, requests=1)
    ledger.refund(forward=20, requests=1)  # not closed: the process is killed here
    (path,) = (tmp_path / "spent").iterdir()
    path.write_bytes(path.read_bytes() + b"7 ")
    later = QueryLedger(budget=100)
    next_journal = Journal(Store(str(tmp_path)), later)
    assert next_journal.earlier() == LedgerTotals(30, 10, 1)
    later.attach(next_journal.earlier(), next_journal)
    assert later.remaining == 60
    with pytest.raises(BudgetExhausted):
        later.charge(forward=61)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images=5", "queries=…, minutes=…"),
        ("queries=many", "queries must be a number"),
        ("queries=-1", "at least 0"),
        ("minutes=0", "more than 0"),
        ("5,minutes", "queries must be a number"),
    ],
)
def test_a_limit_that_cannot_be_read_is_told(text: str, message: str) -> None:
    flags = ModelFlags(None, None, None, None, None, "cpu", None, text, "label")
    with pytest.raises(InvalidInput, match=message):
        load_inputs("demo", "demo", flags)


def test_limits_are_read_together_or_alone() -> None:
    for text, budget, minutes in (("20_000", 20_000, None), ("queries=9,minutes=1.5", 9, 1.5), ("minutes=2", None, 2)):
        flags = ModelFlags(None, None, None, None, None, "cpu", None, text, "label")
        ledger = load_inputs("demo", "demo", flags).model.ledger
        assert (ledger.budget, ledger.minutes) == (budget, minutes)


def test_addresses_with_passwords_are_refused_without_repeating_them() -> None:
    flags = ModelFlags(None, None, None, None, None, "cpu", None, None, "label")
    with pytest.raises(InvalidInput) as caught:
        load_inputs("demo", "https://me:hunter2@host/photos.csv", flags)
    assert "hunter2" not in str(caught.value)
