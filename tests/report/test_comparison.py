from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from snellen.audit import Examination, Plan
from snellen.audit.compare import CHANGE_KINDS, compare
from snellen.audit.stored_run import open_run
from snellen.cli import main
from snellen.data import Dataset
from snellen.models import Model, TorchModel
from snellen.report.comparison import render_comparison

PLAN = Plan.model_validate({"probes": ["predictions", "accuracy", {"attack/pgd": {"steps": 2}}]})
HOSTILE = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects what a reader's machine would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for key, value in attributes if key in ("src", "href") and value]


def answering(model: Model, index: int) -> Model:
    """The same network with one answer for everything."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    torch.nn.init.zeros_(network[1].weight)
    with torch.no_grad():
        network[1].bias.copy_(torch.eye(3)[index])
    return TorchModel(network, model.spec)


@pytest.fixture
def runs(tiny_model: Model, tiny_data: Dataset, tmp_path: Path) -> tuple[str, str]:
    for name, model in (("first", answering(tiny_model, 0)), ("second", answering(tiny_model, 1))):
        Examination(model, tiny_data, PLAN, str(tmp_path / name), names=(f"{HOSTILE} {name}", "data & more")).run()
    return str(tmp_path / "first"), str(tmp_path / "second")


def test_the_page_needs_no_network_runs_no_script_and_escapes_every_name(runs: tuple[str, str]) -> None:
    findings = Path(runs[1], "findings.json")
    stored = json.loads(findings.read_text())
    for finding in stored:
        finding.update(title=HOSTILE, metric=HOSTILE, repeat=HOSTILE, severity="high")
    findings.write_text(json.dumps(stored))
    manifest = Path(runs[1], "manifest.json")
    described = json.loads(manifest.read_text())
    described["model"]["classes"] = [HOSTILE, "dog", "owl"]
    manifest.write_text(json.dumps(described))
    text = render_comparison(compare(open_run(runs[0]), open_run(runs[1])))
    page = Page(text)
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert all(address.startswith("#") for address in page.fetched)
    assert "<img" not in text
    assert "&lt;img src=x" in text


def test_the_page_shows_both_sides_and_every_pair(runs: tuple[str, str]) -> None:
    comparison = compare(open_run(runs[0]), open_run(runs[1]))
    text = render_comparison(comparison)
    assert text.count('<table class="sides">') == len(comparison.changes) > 0
    for row in comparison.pairs:
        assert f"{row.difference:+.3f}" in text
    for run in (comparison.before, comparison.after):
        assert run.manifest.model.fingerprint in text


def test_the_command_prints_writes_and_says_the_same_as_json(
    runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in (["--out", str(tmp_path / "deep/page.html")], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["snellen", "compare", *runs, *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed = capsys.readouterr().out
        if "--json" in extra:
            stored = json.loads(printed)
            assert {row["probe"] for row in stored["pairs"]} == {"predictions", "attack/pgd"}
            assert {change["change"] for change in stored["changes"]} <= set(CHANGE_KINDS)
        else:
            assert "changed statements" in printed
            assert (tmp_path / "deep/page.html").stat().st_size > 10_000


def test_no_directory_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in (["compare", str(tmp_path), str(tmp_path)], ["export", "nowhere", "--to", "csv"]):
        monkeypatch.setattr(sys, "argv", ["snellen", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "run directory" in capsys.readouterr().err
