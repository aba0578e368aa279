"""Runs on Ray equal local ones, whatever dies: same rows, same findings, same account."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from tests.models.inference_server import CLASSES, Server, serving

from snellen import probe as registry
from snellen.audit import Audit, Examination, Plan, ray_executor, ray_worker
from snellen.data import Dataset
from snellen.errors import InvalidInput
from snellen.models import Access, Model, ModelSpec, QueryLedger, TorchModel
from snellen.models.endpoint import Remote
from snellen.models.loading import load_model
from snellen.models.options import ModelOptions
from snellen.probe import Batch, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom, normal

SECRET = "secret-51c2"
PLAN = {
    "shard_size": 8,
    "probes": [
        "predictions",
        {"attack/pgd": {"steps": 3}},
        {"certify/smoothing": {"n": 20, "n0": 8}},
        {"shift/worst-combination": {"names": ["fog", "contrast"], "budget": 40, "judged": 20}},
        "accuracy",
    ],
}
REMOTE_PLAN = {"shard_size": 12, "probes": ["predictions", {"certify/smoothing": {"n0": 8, "n": 40}}, "accuracy"]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores, started once; runs use it and leave it as it is."""
    os.environ["SNELLEN_TOKEN"] = SECRET  # workers inherit the environment of their cluster
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=200 << 20,
    )  # fmt: skip
    yield
    ray.shutdown()
    del os.environ["SNELLEN_TOKEN"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.extensions = ["binary_tensor_data"]
        yield state


@pytest.fixture
def mishap() -> Iterator[None]:
    """A probe with randomness that can be told to raise, to kill its process, or to take its time."""

    @register
    @dataclass(frozen=True)
    class Mishap(ProbeBase):
        """Answers under noise."""

        name: ClassVar[str] = "test/mishap"
        paper: ClassVar[str] = ""
        access: ClassVar[Access] = Access.LABELS
        scope: ClassVar[Scope] = Scope.SAMPLE
        raises_on: str = ""
        dies_on: str = ""
        seconds: float = 0.0

        def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
            if self.raises_on in batch.ids:
                raise ZeroDivisionError("planted")
            if self.dies_on in batch.ids:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            noise = normal(random.generators(batch.ids), batch.images.shape[1:], 0.3)
            return rows(batch.ids, answer=model.labels(batch.images + noise))

        def cost(self, batch_size: int) -> Passes:
            return Passes(forward=batch_size)

    yield
    del registry._registry["test/mishap"]


def examined(
    model: Model, data: Dataset, out: Path, plan: dict[str, object], workers: int | None, budget: int | None = None
) -> Audit:
    """workers: None for a local run."""
    model.ledger = QueryLedger(budget)
    executor = "local" if workers is None else "ray"
    return Examination(model, data, Plan.model_validate(plan), str(out), executor=executor, workers=workers).run()


def stored(out: Path) -> dict[str, object]:
    """Every row of every job, and the findings."""
    files = sorted((out / "results").rglob("*"))
    found = {str(path.relative_to(out)): pq.read_table(path).to_pylist() for path in files if path.is_file()}
    return {**found, "findings": json.loads((out / "findings.json").read_text())}


def spent(out: Path) -> dict[str, int]:
    ledger = json.loads((out / "manifest.json").read_text())["ledger"]
    return {unit: ledger[unit] for unit in ("forward", "backward", "requests")}


def descendants(parent: int) -> dict[int, str]:
    """Process number -> title, of all living processes below `parent`."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(above)
                titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
    found: dict[int, str] = {}
    generation = {parent}
    while generation:
        generation = {child for child, above in parents.items() if above in generation}
        found |= {child: titles[child] for child in generation}
    return found


@contextlib.contextmanager
def killing(title: str, times: int, pause: Callable[[], float]) -> Iterator[list[int]]:
    """Kills processes of that title, one after each pause; gives the list of those killed."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.is_set():
            over.wait(pause())
            victims = [number for number, name in descendants(os.getpid()).items() if name.startswith(title)]
            if victims and not over.is_set():
                killed.append(random.Random(len(killed)).choice(victims))
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_on_ray_equals_a_local_one(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, cluster: None, workers: int
) -> None:
    examined(tiny_model, tiny_data, tmp_path / "local", PLAN, None)
    audit = examined(tiny_model, tiny_data, tmp_path / "ray", PLAN, workers)
    assert not audit.failures
    assert stored(tmp_path / "ray") == stored(tmp_path / "local")
    assert spent(tmp_path / "ray") == spent(tmp_path / "local")
    assert ray.is_initialized()


@pytest.mark.parametrize(("first", "second"), [(None, 2), (2, None)])
def test_a_run_can_begin_on_one_executor_and_end_on_another(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, cluster: None, first: int | None, second: int | None
) -> None:
    plan = {**PLAN, "shard_size": 20}
    tiny_model.batch_size = 4  # several batches a job, so that the limit cuts jobs in two
    examined(tiny_model, tiny_data, tmp_path / "calm", plan, None)
    half = examined(tiny_model, tiny_data, tmp_path / "run", plan, first, budget=400)
    assert half.stopped is not None
    assert "budget of 400 images" in half.stopped
    assert spent(tmp_path / "run")["forward"] <= 400
    assert half.unreached
    assert list((tmp_path / "run").rglob("*.partial.parquet"))
    done = examined(tiny_model, tiny_data, tmp_path / "run", plan, second)
    assert done.stopped is None
    assert stored(tmp_path / "run") == stored(tmp_path / "calm")


def test_workers_killed_at_random_moments_change_nothing(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, cluster: None, mishap: None
) -> None:
    plan = {"shard_size": 3, "probes": [{"test/mishap": {"seconds": 0.5}}, "predictions", "accuracy"]}
    examined(tiny_model, tiny_data, tmp_path / "calm", plan, None)
    moments = random.Random(0)
    with killing("ray::RayWorker", 3, lambda: moments.uniform(0.2, 2.5)) as killed:
        audit = examined(tiny_model, tiny_data, tmp_path / "run", plan, 2)
    assert len(killed) == 3
    assert not audit.failures
    assert audit.stopped is None
    assert stored(tmp_path / "run") == stored(tmp_path / "calm")


def test_a_job_that_kills_its_workers_is_given_up_and_all_others_are_done(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, cluster: None, mishap: None
) -> None:
    plan = {"shard_size": 4, "probes": [{"test/mishap": {"dies_on": tiny_data.ids[9]}}, "predictions", "accuracy"]}
    audit = examined(tiny_model, tiny_data, tmp_path, plan, 2)
    assert [failure.error.partition(":")[0] for failure in audit.failures] == ["its worker died 3 times under it"]
    assert "\n" not in audit.failures[0].error
    assert audit.stopped is None
    assert audit.tables["test/mishap"].column("id").to_pylist() == tiny_data.ids[:8] + tiny_data.ids[12:]
    assert audit.tables["predictions"].num_rows == 60


def test_workers_that_do_nothing_but_die_end_the_run_in_one_sentence(
    tiny_data: Dataset, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "ATTEMPTS", 1)  # a worker takes seconds to start

    class Fatal:
        """Kills the process that unpickles it."""

        def __reduce__(self) -> tuple[Callable[[int, int], None], tuple[int, int]]:
            return _kill_from_afar, (os.getpid(), signal.SIGKILL)

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    def _kill_from_afar(driver: int, how: int) -> None:
        if os.getpid() != driver:
            os.kill(os.getpid(), how)

    model = TorchModel(Fatal(), ModelSpec("fatal", CLASSES, (16, 16), fingerprint="fatal"))
    audit = examined(model, tiny_data, tmp_path, {"shard_size": 8, "probes": ["predictions"]}, 1)
    assert audit.stopped is not None
    assert audit.stopped.startswith("Ray's workers die again and again: ")
    assert not audit.failures


def test_a_probe_that_raises_costs_its_job_only_and_is_told_as_locally(
    tiny_model: Model, tiny_data: Dataset, tmp_path: Path, cluster: None, mishap: None, caplog: pytest.LogCaptureFixture
) -> None:
    plan = {"shard_size": 20, "probes": [{"test/mishap": {"raises_on": tiny_data.ids[25]}}, "predictions"]}
    local = examined(tiny_model, tiny_data, tmp_path / "local", plan, None)
    there = examined(tiny_model, tiny_data, tmp_path / "ray", plan, 3)
    assert [(failure.probe, failure.key, failure.error) for failure in there.failures] == [
        (failure.probe, failure.key, failure.error) for failure in local.failures
    ]
    assert "planted" in there.failures[0].traceback
    assert there.tables["test/mishap"].num_rows == 40
    assert stored(tmp_path / "ray") == stored(tmp_path / "local")
    assert "2 workers, not 3" in caplog.text


def test_what_cannot_be_pickled_is_told_in_one_sentence(tiny_data: Dataset, tmp_path: Path) -> None:
    lock = threading.Lock()

    def locked(images: torch.Tensor) -> torch.Tensor:
        with lock:
            return images.mean((2, 3))

    model = TorchModel(locked, ModelSpec("locked", CLASSES, (16, 16), fingerprint="locked"))
    with pytest.raises(InvalidInput, match=r"^the model or the data cannot be sent to Ray's workers .*lock.*local$"):
        examined(model, tiny_data, tmp_path, {"probes": ["predictions"]}, 1)


def test_a_model_that_no_worker_can_load_is_told_in_one_sentence(
    tiny_data: Dataset, tmp_path: Path, cluster: None
) -> None:
    class Homesick:
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

        def __setstate__(self, state: object) -> None:
            raise ModuleNotFoundError("No module named 'left_at_home'")

        def __getstate__(self) -> dict[str, object]:
            return {"something": 1}

    model = TorchModel(Homesick(), ModelSpec("home", CLASSES, (16, 16), fingerprint="home"))
    sentence = "a Ray worker cannot take up the model and the data: ModuleNotFoundError: No module named 'left_at_home'"
    with pytest.raises(InvalidInput, match=f"^{sentence}$"):
        examined(model, tiny_data, tmp_path, {"probes": ["predictions"]}, 1)


def remote_audit(server: Server, data: Dataset, out: Path, workers: int | None, budget: int | None = None) -> Audit:
    remote = Remote(backoff=0.01, retries=30, batch=8, concurrency=4)
    model = load_model(server.url, ModelOptions(classes=CLASSES, remote=remote)).model
    return examined(model, data, out, REMOTE_PLAN, workers, budget)


def test_a_failing_server_is_counted_exactly_and_changes_no_row_and_no_secret_is_written(
    server: Server, tiny_data: Dataset, tmp_path: Path, cluster: None
) -> None:
    remote_audit(server, tiny_data, tmp_path / "calm", None)
    images, requests = server.images, server.requests
    trouble = random.Random(1)
    server.headers.clear()
    server.behaviour = lambda request: trouble.choice([*[""] * 9, "429", "503", "drop", "truncate", "garble"])
    audit = remote_audit(server, tiny_data, tmp_path / "stormy", 2)
    assert not audit.failures
    assert stored(tmp_path / "stormy") == stored(tmp_path / "calm")
    counted = spent(tmp_path / "stormy")
    assert (counted["forward"], counted["requests"]) == (server.images - images, server.requests - requests)
    assert server.requests - requests > requests
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    for path in (tmp_path / "stormy").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_two_workers_keep_one_budget_to_the_image(
    server: Server, tiny_data: Dataset, tmp_path: Path, cluster: None
) -> None:
    for budget in (700, 1300):
        audit = remote_audit(server, tiny_data, tmp_path / "run", 2, budget)
        assert audit.stopped is not None
        assert f"budget of {budget} images" in audit.stopped
        assert server.images <= budget
        assert spent(tmp_path / "run") == {"forward": server.images, "backward": 0, "requests": server.requests}
    assert remote_audit(server, tiny_data, tmp_path / "run", None, 100_000).stopped is None
    assert spent(tmp_path / "run") == {"forward": server.images, "backward": 0, "requests": server.requests}
    remote_audit(server, tiny_data, tmp_path / "calm", None)
    assert stored(tmp_path / "run") == stored(tmp_path / "calm")


def test_without_its_account_a_run_stops_and_can_go_on(
    server: Server, tiny_data: Dataset, tmp_path: Path, cluster: None
) -> None:
    server.pause = 0.05
    with killing("ray::Account", 1, lambda: 0.1 if server.requests > 20 else 0.05) as killed:
        audit = remote_audit(server, tiny_data, tmp_path, 1, 100_000)
    assert killed
    assert audit.stopped == ray_worker.ACCOUNT_LOST
    assert not audit.failures
    server.pause = 0.0
    assert remote_audit(server, tiny_data, tmp_path, None, 100_000).stopped is None
    assert spent(tmp_path)["forward"] >= server.images


def test_ctrl_c_leaves_a_run_to_resume_and_no_process(tmp_path: Path) -> None:
    probes = ["predictions", {"attack/pgd": {"steps": 10, "samples": 400}}, "accuracy"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"shard_size": 20, "probes": probes}))
    command = [sys.executable, "-m", "snellen", "audit", "demo", "demo", "--plan", str(tmp_path / "plan.yaml")]
    command += ["--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--executor", "ray", "--workers", "2"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    results = tmp_path / "run" / "results" / "attack" / "pgd"
    while process.poll() is None and len(list(results.glob("*.parquet"))) < 2:
        time.sleep(0.02)
    below = descendants(process.pid)
    assert any(title.startswith("ray::RayWorker") for title in below.values())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told.decode()
    assert b"To go on" in told
    assert b"Traceback" not in told
    end = time.monotonic() + 20
    while time.monotonic() < end and (alive := [number for number in below if Path(f"/proc/{number}").exists()]):
        time.sleep(0.1)
    assert not alive, {number: below[number] for number in alive}
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    kept = {path: path.stat().st_mtime_ns for path in results.glob("*.parquet")}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in results.glob("*.parquet")}.items()
    assert len(list(results.glob("*.parquet"))) == 20
