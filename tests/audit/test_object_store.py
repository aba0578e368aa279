"""Run directories and data on S3: the rows of a disk, one PUT a job, one sentence when the server is gone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from tests.models.inference_server import CLASSES, serving
from werkzeug.serving import WSGIRequestHandler, make_server

from snellen.audit import Audit, Examination, Plan
from snellen.audit.compare import compare
from snellen.audit.journal import Journal
from snellen.audit.store import JobRecord, Store
from snellen.audit.stored_run import open_run
from snellen.cli.audit import run_audit
from snellen.cli.compare import run_compare
from snellen.cli.inputs import ModelFlags
from snellen.cli.report import rebuild_report
from snellen.data import Dataset, load_dataset
from snellen.errors import BudgetExhausted, InvalidInput
from snellen.models import LedgerTotals, Model, QueryLedger
from snellen.report import write_report

SECRET = "secret-key-5e1c"
PLAN = {"probes": ["predictions", {"shift/corruptions": {"names": ["fog"], "severities": [3]}}, "accuracy"]}


class Quiet(WSGIRequestHandler):
    def log(self, *words: object) -> None:
        pass


@dataclass
class ObjectStore:
    """moto's S3 behind a door that counts. refuse: method, path -> whether this request is answered with a 503."""

    bucket: str
    endpoint: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: Callable[[str, str], bool] = lambda method, path: False

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ["QUERY_STRING"]))
        if self.refuse(method, path):
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer

    def url(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def puts(self, part: str = "") -> list[str]:
        return [path for method, path, _ in self.requests if method == "PUT" and part in path]

    def lists(self) -> int:
        return sum(1 for method, _, query in self.requests if method == "GET" and "list-type" in query)

    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.endpoint)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Name below the prefix -> content, read by another client than the one under test."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{prefix}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        read = {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix(f"{prefix}/"): content for key, content in read.items()}

    def upload(self, folder: Path, prefix: str) -> None:
        client = self.client()
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), self.bucket, f"{prefix}/{path.relative_to(folder)}")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    state = ObjectStore(f"bucket-{abs(hash(request.node.name))}")
    server = make_server("127.0.0.1", 0, state, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": state.endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers the last server's address
    state.client().create_bucket(Bucket=state.bucket)
    state.requests.clear()
    try:
        yield state
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()


def examined(model: Model, data: Dataset, out: str, shard_size: int = 12) -> Audit:
    return Examination(model, data, Plan.model_validate({**PLAN, "shard_size": shard_size}), out).run()


def stored(objects: dict[str, bytes]) -> dict[str, object]:
    """Every row of every job, and the findings."""
    rows = {name: pq.read_table(pa.BufferReader(objects[name])).to_pylist() for name in objects if "results/" in name}
    return {**rows, "findings": json.loads(objects["findings.json"])}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def jobs_in(objects: dict[str, bytes]) -> int:
    return sum(1 for name in objects if name.startswith("results/"))


def test_a_run_on_s3_equals_one_on_a_disk_and_opens_like_it(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = examined(tiny_model, tiny_data, str(tmp_path / "run"))
    audit = examined(tiny_model, tiny_data, s3.url("run"))
    write_report(audit, ("tiny", "noise"))
    there = s3.objects("run")
    assert audit.failures == []
    assert stored(there) == stored(on_disk(tmp_path / "run"))
    assert set(there) >= {"manifest.json", "plan.yaml", "quarantine.parquet", "findings.json", "report.html"}
    assert not [name for name, content in there.items() if SECRET.encode() in content or ".tmp" in name]

    run = open_run(s3.url("run"))
    assert run.complete
    assert set(run.tables) == {"predictions", "shift/corruptions", "accuracy"}
    counted = "SELECT label, count(*) AS n, avg(correct::INT) AS right FROM rows GROUP BY label ORDER BY label"
    assert audit.tables.query("predictions", counted).equals(local.tables.query("predictions", counted))
    assert not [change for change in compare(run, open_run(str(tmp_path / "run"))).changes if change.kind != "same"]
    assert run_compare(s3.url("run"), str(tmp_path / "run"), None, True) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_second_run_computes_nothing_and_puts_no_rows(s3: ObjectStore, tiny_model: Model, tiny_data: Dataset) -> None:
    first = examined(tiny_model, tiny_data, s3.url("run"))
    spent = tiny_model.ledger.totals
    s3.requests.clear()
    second = examined(tiny_model, tiny_data, s3.url("run"))
    assert tiny_model.ledger.totals == spent
    assert s3.puts("/results/") == []
    assert all(first.tables[label].equals(second.tables[label]) for label in first.tables)


def test_a_job_is_one_put_and_listings_do_not_grow_with_the_jobs(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset
) -> None:
    asked: list[tuple[int, int]] = []
    for name, shard_size in (("few", 30), ("many", 2)):
        s3.requests.clear()
        examined(tiny_model, tiny_data, s3.url(name), shard_size)
        lists, puts, everything = s3.lists(), s3.puts(), list(s3.requests)
        finished = sum(1 for path in s3.objects(name) if path.startswith("results/"))
        written = s3.puts("/results/")
        assert len(written) == len(set(written)) == finished
        others = [path for path in puts if "/results/" not in path and "/spent/" not in path]
        assert sorted(path.rpartition("/")[2] for path in others) == [
            "findings.json", "jobs.parquet", "manifest.json", "manifest.json", "plan.yaml", "quarantine.parquet",
        ]  # fmt: skip
        assert not [query for method, _, query in everything if method == "POST"]
        asked.append((finished, lists))
    assert asked[0][0] == 5
    assert asked[1][0] == 61
    assert asked[0][1] == asked[1][1]


def test_the_journal_on_s3_is_never_behind_and_little_ahead(s3: ObjectStore) -> None:
    ledger, rng = QueryLedger(), np.random.default_rng(0)
    store = Store(s3.url("run"))
    journal = Journal(store, ledger)
    ledger.attach(LedgerTotals(), journal)
    for batch in rng.integers(1, 65, 2000):
        ledger.charge(forward=int(batch), backward=int(batch) // 2, requests=1)
        if ledger.totals.requests % 100 == 1:  # what would be counted if the run were killed now
            told = Journal(store, QueryLedger()).earlier()
            for now, counted in zip(vars(ledger.totals).values(), vars(told).values(), strict=True):
                assert now <= counted <= now * 17 / 16
    assert len(s3.puts("/spent/")) < 16 * (1 + np.log(2000)) + 20
    journal.close()
    assert Journal(store, QueryLedger()).earlier() == ledger.totals


def parquet_of(photos: Path, folder: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    table = pa.table({"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]})
    pq.write_table(table, folder / "photos.parquet", row_group_size=16)


def shards_of(photos: Path, folder: Path) -> None:
    import webdataset

    paths = sorted(photos.rglob("*.png"))
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"photos-{shard:03}.tar")) as tar:
            for path in paths[shard::3]:
                label = path.parent.name.encode()
                tar.write({"__key__": path.stem, "png": path.read_bytes(), "cls": label})


@pytest.mark.parametrize("kind", ["folder", "parquet", "shards"])
def test_data_on_s3_gives_the_rows_of_data_on_a_disk(
    s3: ObjectStore, tiny_model: Model, photos: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "parquet":
        parquet_of(photos, folder)
    elif kind == "shards":
        shards_of(photos, folder)
    else:
        folder = photos
    s3.upload(folder, "data")
    template = {"folder": "{}", "parquet": "{}/photos.parquet", "shards": "wds:{}/photos-{{000..002}}.tar"}[kind]
    local = examined(tiny_model, load_dataset(template.format(folder)), str(tmp_path / "run"))
    remote = examined(tiny_model, load_dataset(template.format(s3.url("data"))), s3.url("run"))
    assert remote.tables["predictions"].num_rows == 60
    assert all(remote.tables[label].equals(local.tables[label]) for label in local.tables)


def test_killed_on_s3_nothing_is_lost_or_uncounted_and_no_secret_is_written(
    s3: ObjectStore, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger may be ahead of the inference server: by requests not yet sent, and by the journal's sixteenth."""
    plan = {"shard_size": 12, "probes": ["predictions", {"certify/smoothing": {"n0": 4, "n": 20}}, "accuracy"]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    s3.upload(photos, "photos")
    budget, moments, kills = 6_000, random.Random(4), 3
    remote = "batch=8,concurrency=4"
    flags = ModelFlags(
        tmp_path / "names.txt", None, None, None, None, "cpu", None, f"queries={budget}", "label", remote=remote
    )
    environment = {**os.environ, "SNELLEN_TOKEN": "token-7f3a", "OMP_NUM_THREADS": "1"}
    with serving() as server:
        server.extensions = ["binary_tensor_data"]

        def finish(out: str) -> int:
            data = s3.url("photos")
            return run_audit(server.url, data, flags, None, tmp_path / "plan.yaml", out, None, False, True)

        assert finish(str(tmp_path / "calm")) == 0
        before, server.pause = server.images, 0.03
        command = [sys.executable, "-m", "snellen", "audit", server.url, s3.url("photos"), "--out", s3.url("run")]
        command += ["--plan", str(tmp_path / "plan.yaml"), "--classes", str(tmp_path / "names.txt")]
        command += ["--remote", remote, "--budget", f"queries={budget}"]
        for _ in range(kills):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            last = server.requests + moments.randint(15, 75)
            while server.requests < last and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            _, told = process.communicate()
            assert process.returncode == -signal.SIGKILL, told.decode()
        server.pause = 0.0
        assert finish(s3.url("run")) == 0
        spent, there = server.images - before, s3.objects("run")
        assert rebuild_report(s3.url("run"), None, None) == 0
    assert "report.html" in capsys.readouterr().out
    calm, run = stored(on_disk(tmp_path / "calm")), stored(there)
    assert {name: run[name] for name in run if name != "findings"} == {
        name: calm[name] for name in calm if name != "findings"
    }
    counted = json.loads(there["manifest.json"])["ledger"]["forward"]
    assert spent <= counted <= budget
    assert counted <= spent * 17 / 16 + kills * 4 * 8
    for name, content in there.items():
        assert not any(word in content for word in (SECRET.encode(), b"token-7f3a")), name


def told(action: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def test_a_bucket_that_does_not_exist_is_told_before_anything_is_asked_of_the_model(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset
) -> None:
    assert "NoSuchBucket" in told(lambda: examined(tiny_model, tiny_data, "s3://there-is-none/run"))
    assert tiny_model.ledger.totals == LedgerTotals()
    assert "there is no run directory" in told(lambda: open_run("s3://there-is-none/run"))
    assert "there is no run directory" in told(lambda: open_run(s3.url("nothing")))


def test_missing_credentials_are_told_in_one_sentence(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    text = told(lambda: examined(tiny_model, tiny_data, s3.url("run")))
    assert "NoCredentialsError" in text
    assert "check the address, the credentials and the endpoint" in text


def test_an_endpoint_that_is_down_is_told_and_is_not_an_empty_directory(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "EndpointConnectionError" in told(lambda: examined(tiny_model, tiny_data, s3.url("run")))
    assert "EndpointConnectionError" in told(lambda: Store(s3.url("run"), listed=False).names("spent"))


def test_an_unknown_kind_of_address_is_told(tiny_model: Model, tiny_data: Dataset) -> None:
    assert "nowhere" in told(lambda: examined(tiny_model, tiny_data, "nowhere://bucket/run"))


def test_a_short_outage_is_not_noticed(s3: ObjectStore, tiny_model: Model, tiny_data: Dataset) -> None:
    seen: list[str] = []

    def every_path_once(method: str, path: str) -> bool:
        first = method == "PUT" and "/results/" in path and path not in seen and len(seen) < 3
        seen.extend([path] if first else [])
        return first

    s3.refuse = every_path_once
    audit = examined(tiny_model, tiny_data, s3.url("run"))
    assert len(seen) == 3
    assert audit.failures == []
    assert audit.stopped is None
    assert jobs_in(s3.objects("run")) == 11


def test_a_long_outage_stops_the_run_and_what_is_stored_stays(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    calm = examined(tiny_model, tiny_data, s3.url("calm"))
    calm_images = tiny_model.ledger.totals.forward
    s3.requests.clear()
    s3.refuse = lambda method, path: len(s3.puts("/results/")) > 4
    text = told(lambda: examined(tiny_model, tiny_data, s3.url("run")))
    assert "503" in text
    assert "what is stored is kept" in text
    s3.refuse = lambda method, path: False
    assert jobs_in(s3.objects("run")) == 4
    before = tiny_model.ledger.totals.forward
    resumed = examined(tiny_model, tiny_data, s3.url("run"))
    assert tiny_model.ledger.totals.forward - before == calm_images - 4 * 12
    assert all(resumed.tables[label].equals(calm.tables[label]) for label in calm.tables)


def test_a_query_that_cannot_be_written_down_is_not_sent(
    s3: ObjectStore, tiny_model: Model, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    ledger = QueryLedger()
    ledger.attach(LedgerTotals(), Journal(Store(s3.url("run")), ledger))
    s3.refuse = lambda method, path: "/spent/" in path
    with pytest.raises(BudgetExhausted, match="503"):
        ledger.charge(forward=8)
    assert ledger.totals == LedgerTotals()


def test_what_another_process_has_written_is_seen(s3: ObjectStore) -> None:
    store = Store(s3.url("run"))
    rows = pa.table({"id": ["a"], "x": [1.0]})
    store.commit("predictions", "a" * 32, rows, JobRecord(1, 0, 0.1))
    assert len(store.names("results/predictions")) == 1
    s3.client().put_object(Bucket=s3.bucket, Key=f"run/results/predictions/{'b' * 32}.parquet", Body=b"elsewhere")
    assert len(store.names("results/predictions")) == 2
    assert Store(s3.url("run")).has("predictions", "b" * 32)


def test_a_damaged_file_is_told_from_a_server_that_does_not_answer(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(s3.url("run"))
    store.commit("predictions", "a" * 32, pa.table({"id": ["a"]}), JobRecord(1, 0, 0.1))
    store.write(b"PAR1 cut", "results", "predictions", "b.parquet")
    whole, cut = (store.path("results", "predictions", f"{name}.parquet") for name in ("a" * 32, "b"))
    for read in (store.read, store.record, lambda path: store.read(path, ["id"])):
        assert "delete it and run the same command again" in told(lambda read=read: read(cut))
    s3.refuse = lambda method, path: True
    for read in (store.read, store.record, lambda path: store.read(path, ["id"])):
        assert "delete" not in told(lambda read=read: read(whole))


def test_a_partial_job_gives_way_to_the_whole_one(s3: ObjectStore) -> None:
    rows = pa.table({"id": ["a", "b"], "x": [1.0, 2.0]})
    Store(s3.url("run")).commit("predictions", "a" * 32, rows.slice(0, 1), JobRecord(1, 0, 0.1), partial=True)
    store = Store(s3.url("run"))
    assert not store.has("predictions", "a" * 32)
    assert store.read(str(store.find("predictions", "a" * 32))).num_rows == 1
    store.commit("predictions", "a" * 32, rows, JobRecord(2, 0, 0.1))
    assert list(s3.objects("run")) == [f"results/predictions/{'a' * 32}.parquet"]
    assert Store(s3.url("run")).has("predictions", "a" * 32)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_only_the_columns_that_are_asked_for_are_read(s3: ObjectStore, tmp_path: Path, place: str) -> None:
    store = Store(str(tmp_path) if place == "disk" else s3.url("run"))
    rows = pa.table({"id": ["a", "b"], "x": [1.0, 2.0], "y": [3.0, 4.0]})
    store.commit("predictions", "a" * 32, rows, JobRecord(2, 0, 0.1))
    path = str(store.find("predictions", "a" * 32))
    assert store.read(path, ["y", "id"]).column_names == ["y", "id"]
    assert store.read(path).column_names == ["id", "x", "y"]
    assert store.record(path) == JobRecord(2, 0, 0.1)


WRITER = """
import sys, time
from snellen.audit import store
store.os.replace = lambda *names: (print("writing", flush=True), time.sleep(60))
store.Store(sys.argv[1], listed=False).write(b"half", "results", "predictions", "x.parquet")
"""


def test_opening_leaves_the_temporary_files_of_living_processes_alone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        (other,) = (tmp_path / "results" / "predictions").iterdir()
        foreign = other.with_name(f"y.parquet.another-machine.{process.pid}.tmp")
        foreign.write_bytes(b"half")
        Store(str(tmp_path))
        assert other.exists()
    finally:
        process.kill()
        process.wait()
    Store(str(tmp_path))
    assert not other.exists()
    assert foreign.exists()
