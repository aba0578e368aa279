from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import given
from hypothesis import strategies as st

from snellen.audit.export import export_csv, table_csv
from snellen.audit.stored_run import open_run
from snellen.cli import main
from snellen.errors import InvalidInput
from snellen.report.model_card import model_card
from snellen.report.tracking import export_mlflow

MakeRun = Callable[..., str]
MakeFinding = Callable[..., dict[str, object]]

RIGHT = np.arange(200) % 10 > 1


@pytest.fixture
def run(make_run: MakeRun, make_finding: MakeFinding) -> str:
    grave = make_finding("=HYPERLINK(evil)", "critical", ci=(0.1, 0.2), evidence=["a,b", "=c"])
    robust = {2 / 255: RIGHT & (np.arange(200) % 3 > 0)}
    return make_run("model", RIGHT, robust=robust, findings=[grave, make_finding("small", "info")])


def read(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def test_every_probe_and_the_findings_become_a_flat_file(run: str, tmp_path: Path) -> None:
    written = export_csv(open_run(run), str(tmp_path / "csv"))
    assert [str(Path(path).relative_to(tmp_path)) for path in written] == [
        "csv/findings.csv",
        "csv/rows/predictions.csv",
        "csv/rows/attack.pgd.csv",
    ]
    header, *rows = read(Path(written[1]).read_bytes())
    assert header == ["id", "label", "predicted", "correct", "confidence"]
    assert len(rows) == 200
    names, *found = read(Path(written[0]).read_bytes())
    title = dict(zip(names, found[0], strict=True))
    assert title["title"] == "'=HYPERLINK(evil)"
    assert json.loads(title["evidence"]) == ["a,b", "=c"]
    assert json.loads(title["ci"]) == [0.1, 0.2]


@given(st.lists(st.text(alphabet=st.sampled_from("=+-@\t\r\n\"',;a1"), max_size=6), min_size=1))
def test_no_cell_of_text_begins_a_formula_and_none_is_lost(texts: list[str]) -> None:
    _, *rows = read(table_csv(pa.table({"n": list(range(len(texts))), "text": texts})))
    for text, (_, cell) in zip(texts, rows, strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert cell in (text, "'" + text)


def test_nested_values_become_json_and_numbers_stay_numbers() -> None:
    table = pa.table({"=x": [-1.5, None], "list": [[1.0, float("nan")], None], "bytes": [b"\x00", b"ab"]})
    assert read(table_csv(table)) == [
        ["'=x", "list", "bytes"],
        ["-1.5", "[1.0, null]", "AA=="],
        ["", "", "YWI="],
    ]


def test_a_run_is_exported_to_any_file_system(run: str) -> None:
    try:
        export_csv(open_run(run), "memory://exported")
        assert fsspec.filesystem("memory").cat("/exported/findings.csv").startswith(b"schema_version,id")
    finally:
        fsspec.filesystem("memory").rm("/exported", recursive=True)


def test_a_model_card_is_read_by_huggingface_hub(run: str, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(model_card(open_run(run)))
    assert metadata_load(card)["tags"] == ["image-classification", "snellen"]
    results = {result.metric_name: result for result in ModelCard.load(card).data.eval_results}
    accuracy = results["accuracy"]
    assert accuracy.task_type == "image-classification"
    assert accuracy.metric_value == RIGHT.mean()
    assert accuracy.metric_args["n"] == 200
    low, high = accuracy.metric_args["confidence_interval_95"]
    assert low < accuracy.metric_value < high
    assert accuracy.dataset_name == "pets"
    assert any(name.startswith("robust_accuracy") for name in results)


def test_a_model_card_names_what_is_grave_and_what_limits_it(run: str) -> None:
    text = model_card(open_run(run))
    assert "**critical**: =HYPERLINK(evil) (95 % interval 0.100 to 0.200, n = 50)" in text
    assert "small" not in text
    assert "### Limits" in text


def test_names_can_neither_break_the_front_matter_nor_the_page(
    make_run: MakeRun, make_finding: MakeFinding, tmp_path: Path
) -> None:
    name = "x\n---\n# <script>alert(1)</script> [a](javascript:b)"
    model = {"name": name, "fingerprint": "f", "access": "labels", "task": "t", "classes": ["cat", "dog"]}
    run = make_run("model", RIGHT, model=model, findings=[make_finding(name, "high")])
    text = model_card(open_run(run))
    (tmp_path / "card.md").write_text(text)
    assert ModelCard.load(tmp_path / "card.md").data.eval_results[0].metric_value == RIGHT.mean()
    body = text.split("\n---\n", 1)[1].split("```")[0]  # what is in the code block is shown as it is
    assert "<script>" not in body
    assert "[a]" not in body


def test_a_card_does_not_say_where_files_lay(make_run: MakeRun) -> None:
    data = {"name": "/home/someone/secret/pets", "fingerprint": "d", "samples": 200, "quarantined": 0, "attributes": []}
    text = model_card(open_run(make_run("model", RIGHT, data=data)))
    assert "someone" not in text
    front = yaml.safe_load(text.split("---")[1])
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "pets"


def test_mlflow_gets_one_run_however_often_it_is_exported(run: str, tmp_path: Path) -> None:
    folder = tmp_path / "ml runs"
    assert export_mlflow(open_run(run), str(folder)) == export_mlflow(open_run(run), str(folder))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    (tracked,) = client.search_runs([client.get_experiment_by_name("snellen").experiment_id])
    assert tracked.data.metrics["accuracy"] == RIGHT.mean()
    assert tracked.data.metrics["accuracy_low"] < RIGHT.mean() < tracked.data.metrics["accuracy_high"]
    assert tracked.data.metrics["robust_accuracy_norm_linf_eps_0.00784314"] > 0
    assert tracked.data.params["model"] == "model"
    assert tracked.data.params["seed"] == "0"
    assert {file.path for file in client.list_artifacts(tracked.info.run_id)} == {"findings.json", "manifest.json"}
    assert len(client.get_metric_history(tracked.info.run_id, "accuracy")) == 1


def test_another_plan_is_another_mlflow_run(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("a", RIGHT), make_run("b", RIGHT, seed=1)
    assert export_mlflow(open_run(first), str(tmp_path / "m")) != export_mlflow(open_run(second), str(tmp_path / "m"))


def test_an_address_that_mlflow_cannot_open_is_one_sentence(run: str) -> None:
    with pytest.raises(InvalidInput, match="MLflow's tracking store") as told:
        export_mlflow(open_run(run), "nothing://here")
    assert "\n" not in str(told.value)


def test_an_unknown_target_is_told_with_the_known_ones(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["snellen", "export", run, "--to", "pdf"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "csv, model-card, mlflow" in capsys.readouterr().err
