"""Fifty kills and fifty dropped connections at random moments: nothing lost, nothing double, nothing uncounted.

    python benchmarks/endurance.py [--part local|server|connections|ray ...] [--kills 50] [--seed 0] [--record]

local: an audit of the demo is killed (-9) and started again. server: so is the client of an inference server, first
under a budget that is too small. connections: the server drops connections. ray: one of two workers is killed. A run
that ends before there was enough trouble is compared, and another one begins in a new folder. Compared with an
undisturbed run: every row of every job, and the findings; the ledger with what the server counted, which it may exceed
by the requests that were booked when a client died, and with the budget; every file is searched for the token. A table
comes first, one line of JSON last; the exit status is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from _record import machine_state, record_table
from snellen.audit import Audit, Examination, Plan
from snellen.data import load_dataset
from snellen.models.endpoint import Remote
from snellen.models.loading import load_model
from snellen.models.options import DataHints, ModelOptions

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.models.inference_server import CLASSES, Server, serving

LOCAL = {"shard_size": 25, "probes": ["predictions", {"attack/pgd": {"steps": 5, "samples": 400}}, "accuracy"]}
REMOTE = {"shard_size": 12, "probes": ["predictions", {"certify/smoothing": {"n0": 8, "n": 40}}, "accuracy"]}
TOKEN = "secret-7f3a"
CONCURRENCY, BATCH = 4, 8
DROPPED = 0.15
"""Share of the requests whose connection is dropped."""
KILLED_WITHIN = 0.5
"""A life is killed within this share of the time that an undisturbed run takes: later many would have ended."""
STOPPED = 3
"""Exit status of a life that its budget ended."""

lives = multiprocessing.get_context("forkserver")  # each life is a process of its own that has its imports already
lives.set_forkserver_preload(["snellen.audit.engine", "snellen.models.loading", "snellen.demo.digits"])


@dataclass
class Outcome:
    """What a part went through, and what differed."""

    runs: int = 0
    lives: int = 0
    trouble: int = 0
    jobs: int = 0
    seen: int = 0
    booked: int = 0
    differences: list[str] = field(default_factory=list)


# --- one life ---------------------------------------------------------------------------------------------------------


def audit_demo(out: str, executor: str = "local") -> Audit:
    torch.set_num_threads(1)
    data = load_dataset("demo")
    model = load_model("demo", ModelOptions(), DataHints(data.class_names, (32, 32))).model
    workers = None if executor == "local" else 2
    return Examination(model, data, Plan.model_validate(LOCAL), out, executor=executor, workers=workers).run()


def audit_server(out: str, url: str, photos: str, budget: int | None = None) -> Audit:
    torch.set_num_threads(1)
    remote = Remote(backoff=0.01, retries=30, batch=BATCH, concurrency=CONCURRENCY)
    model = load_model(url, ModelOptions(classes=CLASSES, remote=remote, budget=budget)).model
    return Examination(model, load_dataset(photos), Plan.model_validate(REMOTE), out).run()


def live(audit: Callable[..., Audit], *arguments: object) -> None:
    done = audit(*arguments)
    sys.exit(1 if done.failures else STOPPED if done.stopped else 0)


def start(audit: Callable[..., Audit], *arguments: object) -> BaseProcess:
    process = lives.Process(target=live, args=(audit, *arguments))
    process.start()
    return process


# --- what must be equal -----------------------------------------------------------------------------------------------


def stored(out: Path) -> dict[str, object]:
    """Every row of every job, and the findings."""
    files = {str(path.relative_to(out)): pq.read_table(path).to_pylist() for path in (out / "results").rglob("*.*")}
    return {**files, "findings.json": json.loads((out / "findings.json").read_text())}


def booked(out: Path) -> int:
    """Images of the manifest's ledger."""
    ledger = json.loads((out / "manifest.json").read_text())["ledger"]
    return int(ledger["forward"] + ledger["backward"])


def compare(outcome: Outcome, calm: Path, run: Path) -> None:
    expected, found = stored(calm), stored(run)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            outcome.differences.append(f"{run.name}: {name} differs from the undisturbed run")
    outcome.jobs += len(found) - 1
    status = json.loads((run / "manifest.json").read_text())["status"]
    if status != "finished":
        outcome.differences.append(f"{run.name}: the manifest says {status}")
    for path in run.rglob("*"):
        if path.is_file() and TOKEN.encode() in path.read_bytes():
            outcome.differences.append(f"{run.name}: the token stands in {path.relative_to(run)}")


def check(outcome: Outcome, holds: bool, otherwise: str) -> None:
    if not holds:
        outcome.differences.append(otherwise)


# --- the parts --------------------------------------------------------------------------------------------------------


def killed_or_done(process: BaseProcess, moment: float | None) -> int | None:
    """Kills the process after so many seconds, None for never; its exit status, None when it was killed."""
    process.join(moment)
    if process.exitcode is not None:
        return process.exitcode
    process.kill()
    process.join()
    return None


def undisturbed(out: Path, audit: Callable[..., Audit], *arguments: object) -> float:
    """Seconds that one life needs for everything."""
    begun = time.perf_counter()
    process = start(audit, str(out), *arguments)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"the undisturbed run ended with {process.exitcode}")
    return time.perf_counter() - begun


def local(folder: Path, kills: int, moments: random.Random) -> Outcome:
    calm, outcome = folder / "calm", Outcome()
    start(audit_demo, str(folder / "first")).join()  # the fork server imports what it preloads
    whole = undisturbed(calm, audit_demo)
    while outcome.trouble < kills:
        outcome.runs += 1
        run, before, status = folder / f"run{outcome.runs}", outcome.trouble, None
        while status is None:
            moment = moments.uniform(0, KILLED_WITHIN * whole) if outcome.trouble < kills else None
            status = killed_or_done(start(audit_demo, str(run)), moment)
            outcome.lives += 1
            outcome.trouble += status is None
        check(outcome, status == 0, f"{run.name}: exit status {status}")
        compare(outcome, calm, run)
        spent, needed, most = booked(run), booked(calm), most_per_job(calm)
        outcome.seen += needed
        outcome.booked += spent
        lost = (outcome.trouble - before) * most
        check(outcome, needed <= spent <= needed + lost, f"{run.name}: {spent} images booked for {needed}")
    return outcome


def most_per_job(out: Path) -> int:
    """Images of the dearest job: what a kill can cost."""
    costs = []
    for path in (out / "results").rglob("*.parquet"):
        record = json.loads((pq.read_schema(path).metadata or {})[b"snellen"])
        costs.append(record["forward"] + record["backward"])
    return int(max(costs))


def server(folder: Path, kills: int, moments: random.Random) -> Outcome:
    outcome, calm = Outcome(), folder / "calm"
    with serving_photos(folder) as (state, photos):
        undisturbed(calm, audit_server, state.url, photos)
        check(outcome, booked(calm) == state.images, f"calm: {booked(calm)} booked, {state.images} seen")
        state.pause = 0.01  # seconds that a model might need, so that requests are under way when the client dies
        whole = undisturbed(folder / "slow", audit_server, state.url, photos)
        needed = booked(calm)
        while outcome.trouble < kills:
            outcome.runs += 1
            run, before, seen, status = folder / f"run{outcome.runs}", outcome.trouble, state.images, None
            budget = needed // 2
            while status is None or status == STOPPED:
                if status == STOPPED:
                    budget = needed + (kills + 1) * needed
                moment = moments.uniform(0, KILLED_WITHIN * whole) if outcome.trouble < kills else None
                status = killed_or_done(start(audit_server, str(run), state.url, photos, budget), moment)
                outcome.lives += 1
                outcome.trouble += status is None
                time.sleep(3 * state.pause)  # requests of a killed client that are still being counted
                asked = state.images - seen
                check(outcome, asked <= budget, f"{run.name}: the server was asked {asked} of {budget} allowed")
            check(outcome, status == 0, f"{run.name}: exit status {status}")
            compare(outcome, calm, run)
            asked, spent = state.images - seen, booked(run)
            outcome.seen += asked
            outcome.booked += spent
            ahead = (outcome.trouble - before) * CONCURRENCY * BATCH
            check(outcome, asked <= spent <= asked + ahead, f"{run.name}: {spent} booked, {asked} seen by the server")
        token_was_sent(outcome, state)
    return outcome


def connections(folder: Path, drops: int, moments: random.Random) -> Outcome:
    outcome, calm = Outcome(), folder / "calm"

    def behaviour(request: int) -> str:
        with state.lock:
            dropped = moments.random() < DROPPED
            outcome.trouble += dropped
        return "drop" if dropped else ""

    with serving_photos(folder) as (state, photos):
        undisturbed(calm, audit_server, state.url, photos)
        state.behaviour = behaviour
        budget = 10 * booked(calm)
        while outcome.trouble < drops:
            outcome.runs += 1
            run, seen = folder / f"run{outcome.runs}", state.images
            undisturbed(run, audit_server, state.url, photos, budget)
            outcome.lives += 1
            compare(outcome, calm, run)
            asked, spent = state.images - seen, booked(run)
            outcome.seen += asked
            outcome.booked += spent
            check(outcome, asked == spent <= budget, f"{run.name}: {spent} booked, {asked} seen, {budget} allowed")
        token_was_sent(outcome, state)
    return outcome


def token_was_sent(outcome: Outcome, state: Server) -> None:
    """Without it the search for the token would find nothing for the wrong reason."""
    sent = all(headers.get("Authorization") == f"Bearer {TOKEN}" for headers in state.headers)
    check(outcome, sent and bool(state.headers), "the token did not reach the server")


@contextmanager
def serving_photos(folder: Path) -> Iterator[tuple[Server, str]]:
    """The test server, and a folder of sixty noise images for its three classes."""
    photos, noise = folder / "photos", np.random.default_rng(0)
    for index in range(60):
        home = photos / CLASSES[index % 3]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(home / f"{index:03}.png")
    with serving() as state:
        state.extensions = ["binary_tensor_data"]
        yield state, str(photos)


def ray(folder: Path, kills: int, moments: random.Random) -> Outcome:
    """A worker is killed some time after it was seen at work, so that no job is begun in vain three times."""
    outcome, calm = Outcome(), folder / "calm"
    undisturbed(calm, audit_demo)
    while outcome.trouble < kills:
        outcome.runs += 1
        run, before = folder / f"run{outcome.runs}", outcome.trouble
        process = start(audit_demo, str(run), "ray")
        outcome.lives += 1
        while process.exitcode is None:
            workers = workers_of(process.pid or 0)
            if workers and outcome.trouble < kills:
                time.sleep(moments.uniform(0, 0.3))
                victim = moments.choice(workers)
                if victim in workers_of(process.pid or 0):
                    os.kill(victim, signal.SIGKILL)
                    outcome.trouble += 1
            process.join(0.05)
        check(outcome, process.exitcode == 0, f"{run.name}: exit status {process.exitcode}")
        compare(outcome, calm, run)
        spent, needed, most = booked(run), booked(calm), most_per_job(calm)
        outcome.seen += needed
        outcome.booked += spent
        lost = 2 * (outcome.trouble - before) * most
        check(outcome, needed <= spent <= needed + lost, f"{run.name}: {spent} images booked for {needed}")
    return outcome


def workers_of(parent: int) -> list[int]:
    """Processes at work on jobs among the descendants of `parent`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [parent]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            waiting.append(pid)
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::RayWorker.run"):
                found.append(pid)
    return found


PARTS: dict[str, tuple[str, Callable[[Path, int, random.Random], Outcome]]] = {
    "local": ("local audit killed", local),
    "server": ("client of a server killed", server),
    "connections": ("connections dropped", connections),
    "ray": ("Ray worker killed", ray),
}


def record(rows: Sequence[Sequence[str]], columns: Sequence[str], state: str) -> None:
    record_table(
        "endurance",
        "Killed and dropped at random moments",
        f"{state}; `python benchmarks/endurance.py`. Every row, the findings and the ledger against an undisturbed run;"
        " where there is no server to count, `needed` is what the undisturbed run spent.",
        columns,
        rows,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/results.json")
    options = parser.parse_args()
    state = machine_state(1)
    os.environ.update(SNELLEN_TOKEN=TOKEN, OMP_NUM_THREADS="1")
    columns = ["what", "times", "runs", "lives", "jobs compared", "images needed or seen", "images booked"]
    columns += ["differences", "seconds"]
    rows, differences = [], []
    for name in options.part:
        title, part = PARTS[name]
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            outcome = part(Path(folder), options.kills, random.Random(options.seed))
        counts = (outcome.trouble, outcome.runs, outcome.lives, outcome.jobs, outcome.seen, outcome.booked)
        cells = [f"{count:,}" for count in (*counts, len(outcome.differences))]
        rows.append([title, *cells, f"{time.perf_counter() - begun:.0f}"])
        differences += outcome.differences
        print("  |  ".join(rows[-1]), *outcome.differences, sep="\n", flush=True)
    if options.record:
        record(rows, columns, state)
    print(json.dumps({"benchmark": "endurance", "kills": options.kills, "differences": differences}))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
