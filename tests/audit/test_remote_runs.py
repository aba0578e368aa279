"""A run against a server that fails, and a client that is killed: nothing lost, nothing double, nothing uncounted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tests.models.inference_server import CLASSES, Server, serving

from snellen.audit import Audit, Examination, Plan
from snellen.data import Dataset, load_dataset
from snellen.models import Access
from snellen.models.endpoint import Remote
from snellen.models.loading import load_model
from snellen.models.options import ModelOptions

PLAN = {"shard_size": 12, "probes": ["predictions", {"certify/smoothing": {"n0": 8, "n": 40}}, "accuracy"]}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.extensions = ["binary_tensor_data"]
        yield state


def audited(server: Server, data: Dataset, out: Path, remote: Remote | None = None, **options: object) -> Audit:
    remote = remote or Remote(backoff=0.01, retries=30, batch=8)
    model = load_model(server.url, ModelOptions(classes=CLASSES, remote=remote, **options)).model
    return Examination(model, data, Plan.model_validate(PLAN), str(out)).run()


def stored(out: Path) -> dict[str, object]:
    """Every row of every job, and the findings."""
    files = sorted((out / "results").rglob("*.parquet"))
    rows = {str(path.relative_to(out)): pq.read_table(path).to_pylist() for path in files}
    return {**rows, "findings": json.loads((out / "findings.json").read_text())}


def counted(out: Path) -> tuple[int, int]:
    ledger = json.loads((out / "manifest.json").read_text())["ledger"]
    return ledger["forward"], ledger["requests"]


def test_a_run_over_a_failing_server_equals_an_undisturbed_one(server: Server, photos: Path, tmp_path: Path) -> None:
    data = load_dataset(str(photos))
    audited(server, data, tmp_path / "calm")
    assert counted(tmp_path / "calm") == (server.images, server.requests)
    images, requests = server.images, server.requests
    trouble = random.Random(1)
    server.behaviour = lambda request: trouble.choice([*[""] * 9, "429", "503", "drop", "truncate", "garble"])
    audited(server, data, tmp_path / "stormy")
    assert stored(tmp_path / "stormy") == stored(tmp_path / "calm")
    assert counted(tmp_path / "stormy") == (server.images - images, server.requests - requests)
    assert server.requests - requests > requests


def test_a_server_that_goes_away_stops_the_run_and_the_next_one_finishes_it(
    server: Server, photos: Path, tmp_path: Path
) -> None:
    data = load_dataset(str(photos))
    audited(server, data, tmp_path / "calm")
    seen = server.requests
    impatient = Remote(backoff=0.0, retries=1, batch=8)
    server.behaviour = lambda request: "drop" if request > seen + 40 else ""
    first = audited(server, data, tmp_path / "run", impatient)
    assert first.stopped is not None
    assert "no usable answer" in first.stopped
    assert [item.probe for item in first.unreached] == ["certify/smoothing"]
    assert not first.failures
    server.behaviour = lambda request: ""
    assert audited(server, data, tmp_path / "run").stopped is None
    assert stored(tmp_path / "run") == stored(tmp_path / "calm")


def test_the_budget_counts_what_earlier_runs_of_the_directory_spent(
    server: Server, photos: Path, tmp_path: Path
) -> None:
    data = load_dataset(str(photos))
    for _ in range(3):
        audited(server, data, tmp_path / "run", budget=700)
        assert server.images <= 700
    assert counted(tmp_path / "run") == (server.images, server.requests)
    enough = audited(server, data, tmp_path / "run", budget=100_000)
    assert enough.stopped is None
    assert counted(tmp_path / "run") == (server.images, server.requests)


def test_a_finished_run_asks_nothing_again(server: Server, photos: Path, tmp_path: Path) -> None:
    data = load_dataset(str(photos))
    audited(server, data, tmp_path / "run")
    seen = server.requests
    audited(server, data, tmp_path / "run")
    assert server.requests == seen


def test_an_endpoint_of_classes_is_examined_at_labels_access(server: Server, photos: Path, tmp_path: Path) -> None:
    scores = server.answer
    server.output = {"name": "class", "datatype": "INT64", "shape": [-1]}
    server.answer = lambda images: scores(images).argmax(1)
    audit = audited(server, load_dataset(str(photos)), tmp_path / "run")
    assert audit.model.access is Access.LABELS
    assert not audit.failures
    assert {"predictions", "accuracy", "certify/smoothing"} <= set(audit.tables)


def test_killed_at_random_moments_nothing_is_lost_or_uncounted_and_no_secret_is_written(
    server: Server, photos: Path, tmp_path: Path
) -> None:
    """The ledger may be ahead of the server by the requests that were booked and not yet sent when the client died."""
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    audited(server, load_dataset(str(photos)), tmp_path / "calm")
    before = server.images
    server.pause = 0.03
    remote, budget = "batch=8,concurrency=4", 12_000
    command = [sys.executable, "-m", "snellen", "audit", server.url, str(photos), "--plan", str(tmp_path / "plan.yaml")]
    command += ["--classes", str(tmp_path / "names.txt"), "--out", str(tmp_path / "run"), "--remote", remote]
    command += ["--budget", f"queries={budget}"]
    secret = {**os.environ, "SNELLEN_TOKEN": "secret-7f3a", "OMP_NUM_THREADS": "1"}
    moments, kills, finished = random.Random(2), 0, False
    while not finished:
        process = subprocess.Popen(command, env=secret, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if kills < 4:
            seen = server.requests
            while server.requests < seen + moments.randint(2, 60) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        server.pause = 0.0
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
        finished = True
    assert stored(tmp_path / "run").keys() == stored(tmp_path / "calm").keys()
    calm, run = stored(tmp_path / "calm"), stored(tmp_path / "run")
    assert all(run[name] == calm[name] for name in calm if name != "findings")
    spent, _ = counted(tmp_path / "run")
    assert server.images - before <= spent <= server.images - before + kills * 4 * 8
    assert server.images - before <= budget
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"secret-7f3a" not in path.read_bytes(), path
