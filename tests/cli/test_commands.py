"""What a user meets at the command line: right answers, and one sentence for every mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from snellen.cli import main


def snellen(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command run in this process."""
    monkeypatch.setattr(sys, "argv", ["snellen", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def plan(tmp_path: Path) -> str:
    (tmp_path / "plan.yaml").write_text("probes: [predictions, accuracy, {attack/pgd: {steps: 2, samples: 20}}]")
    return str(tmp_path / "plan.yaml")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten digits folders of two images with hostile names among them."""
    rng = np.random.default_rng(0)
    for digit in range(10):
        folder = tmp_path / "pictures" / str(digit)
        folder.mkdir(parents=True)
        for name in ("a.png", "<img src=x onerror=alert(1)>.png"):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    return tmp_path / "pictures"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = "import sys; sys.argv = ['snellen', '--help']\nfrom snellen.cli import main\n"
    program += "try: main()\nexcept SystemExit: pass\n"
    program += "assert not {'torch', 'timm', 'scipy', 'altair'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_an_audit_writes_its_run_directory_and_a_second_one_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, plan: str
) -> None:
    out = tmp_path / "run"
    assert snellen(monkeypatch, "audit", "demo", "demo", "--plan", plan, "--out", str(out)) == 0
    assert "report:" in capsys.readouterr().out
    for name in ("manifest.json", "plan.yaml", "findings.json", "quarantine.parquet", "report.html"):
        assert (out / name).is_file()
    found = json.loads((out / "findings.json").read_text())
    keys = "id probe kind severity title subject metric value baseline effect ci n p_value q_value evidence repeat"
    assert all(set(keys.split()) | {"schema_version"} == set(finding) for finding in found)
    assert snellen(monkeypatch, "audit", "demo", "demo", "--plan", plan, "--out", str(out)) == 0
    assert "resumed" in capsys.readouterr().err
    assert json.loads((out / "findings.json").read_text()) == found
    assert snellen(monkeypatch, "report", str(out)) == 0
    assert json.loads((out / "findings.json").read_text()) == found


def test_the_command_that_a_finding_names_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, plan: str
) -> None:
    import shlex

    snellen(monkeypatch, "audit", "demo", "demo", "--plan", plan, "--out", str(tmp_path / "run"))
    found = json.loads((tmp_path / "run/findings.json").read_text())
    attack = next(finding for finding in found if finding["probe"] == "attack/pgd")
    capsys.readouterr()
    assert snellen(monkeypatch, *shlex.split(attack["repeat"])[1:], "--json") == 0
    again = json.loads(capsys.readouterr().out)["findings"]
    assert attack["value"] in [finding["value"] for finding in again]


def test_a_folder_with_hostile_names_is_examined_and_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Path, plan: str
) -> None:
    (pictures / "3" / "cut.png").write_bytes(b"\x89PNG\r\n")
    out = tmp_path / "run"
    assert snellen(monkeypatch, "audit", "demo", str(pictures), "--plan", plan, "--out", str(out)) == 0
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert pq.read_table(out / "quarantine.parquet").column("id").to_pylist() == ["3/cut.png"]


def test_one_probe_prints_and_writes_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for ending in ("parquet", "csv"):
        out = tmp_path / f"rows.{ending}"
        assert (
            snellen(monkeypatch, "run", "predictions", "demo:healthy", "demo", "--samples", "30", "--out", str(out))
            == 0
        )
        assert out.stat().st_size > 0
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 30
    assert "30 rows" in capsys.readouterr().out


def test_show_draws_the_shift_and_asks_the_model_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "shift/corruptions", "demo", "demo", "names=[fog,contrast]", "severities=[1,5]"]
    assert snellen(monkeypatch, *words, "--samples", "3", "--show") == 0
    assert "6 rows" in capsys.readouterr().out
    with Image.open(tmp_path / "shift-corruptions.png") as sheet:
        drawn = np.asarray(sheet.convert("RGB"), dtype=float)
    cells = [drawn[6:118, left : left + 112] for left in (190, 308, 426)]
    distances = [np.abs(cell - cells[0]).mean() for cell in cells]
    assert distances[0] == 0 < distances[1] < distances[2]  # fog gets thicker to the right


def test_a_dry_run_writes_no_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, plan: str
) -> None:
    out = tmp_path / "run"
    assert snellen(monkeypatch, "audit", "demo", "demo", "--plan", plan, "--out", str(out), "--dry-run", "--json") == 0
    lines = {line["label"]: line for line in json.loads(capsys.readouterr().out)["jobs"]}
    assert lines["predictions"]["passes"]["forward"] == 1200
    assert not out.exists()


def test_methods_are_listed_with_access_and_replication(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert snellen(monkeypatch, "methods", "--json") == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    wanted = "predictions accuracy calibration subgroup shift/corruptions attack/pgd attack/apgd certify/smoothing"
    wanted += " uncertainty/conformal explain/gradients explain/cam"
    assert set(wanted.split()) <= set(listed)
    assert listed["attack/pgd"]["access"] == "gradients"
    assert all(row["replication"] != "not run" for row in listed.values())


def test_doctor_finds_the_installation_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert snellen(monkeypatch, "doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["healthy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit", "nowhere.pt2", "demo"], "neither a file nor a known form"),
        (["audit", "demo", "nowhere"], "does not exist"),
        (["audit", "demo", "demo", "--preset", "huge"], "neither a preset"),
        (["audit", "demo", "demo", "--plan", "nowhere.yaml"], "nor a YAML file"),
        (["audit", "demo", "demo", "--plan", "p", "--preset", "quick"], "not both"),
        (["audit", "demo", "demo", "--access", "root"], "--access must be one of"),
        (["audit", "demo", "demo", "--input-size", "big"], "--input-size must read"),
        (["audit", "demo", "demo", "--mean", "a,b"], "--mean must be numbers"),
        (["audit", "demo", "demo", "--device", "cuda:7"], "cuda"),
        (["audit", "demo", "demo", "--device", "toaster"], "device"),
        (["audit", "demo", "demo", "--classes", "nowhere.txt"], "cannot be read"),
        (["run", "attack/pgdd", "demo", "demo"], "did you mean attack/pgd"),
        (["run", "attack/pgd", "demo", "demo", "steps"], "KEY=VALUE"),
        (["run", "attack/pgd", "demo", "demo", "stepz=3"], "no setting 'stepz'"),
        (["run", "attack/pgd", "demo", "demo", "--access", "scores"], "needs gradients access"),
        (["run", "predictions", "demo", "demo", "--out", "rows.txt"], ".parquet or .csv"),
        (["run", "predictions", "demo", "demo", "--show"], "nothing can be shown"),
        (["run", "shift/corruptions", "demo", "demo", "--show", "--out", "x.csv"], "must end in .png"),
        (["report", "nowhere"], "no run directory"),
        (["replicate", "nothing"], "no replication card"),
        (["methods", "nothing"], "no family"),
    ],
)
def test_every_mistake_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert snellen(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert "defect of snellen" not in said


def test_a_wrong_class_count_is_told_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert snellen(monkeypatch, "audit", "demo", "demo", "--classes", str(tmp_path / "names.txt")) == 2
    said = capsys.readouterr().err
    assert "[1, 10]" in said
    assert "3 class names" in said


def test_a_failing_probe_ends_with_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text("probes: [predictions, {explain/cam: {layer: nowhere, samples: 5}}]")
    status = snellen(
        monkeypatch, "audit", "demo", "demo", "--plan", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "run")
    )
    assert status == 3
    assert "no layer 'nowhere'" in capsys.readouterr().out


def test_ctrl_c_leaves_a_run_to_resume_and_says_how(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("shard_size: 20\nprobes: [predictions, {attack/pgd: {steps: 100}}]")
    command = [sys.executable, "-m", "snellen", "audit", "demo", "demo", "--plan", str(tmp_path / "plan.yaml")]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        while process.poll() is None and not list((tmp_path / "run").glob("results/attack/pgd/*.parquet")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "To go on: snellen audit demo demo" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "interrupted"
