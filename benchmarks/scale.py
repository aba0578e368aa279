"""The engine at scale: cost of a job, the driver's memory, two workers against one, rows through storage, streaming.

    python benchmarks/scale.py [--part scheduling|driver|speed-up|storage|streaming ...] [--quick] [--record]

Every measurement runs in a process of its own, so that its memory is its own. Memory is read from /proc, so Linux only.
--quick takes sizes about a tenth, to see that it runs. The last line is JSON; --record writes a table a part into
benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from _record import machine_state, record_table
from snellen.audit import Examination, Plan, Silent
from snellen.audit.executor import Outcome, Task
from snellen.audit.jobs import Entry, jobs_of
from snellen.audit.store import JobRecord, Store
from snellen.audit.tables import StoredTables
from snellen.data import Dataset, Loader, load_dataset
from snellen.data.loader import CACHE_BYTES
from snellen.models import Access, Model, ModelSpec, TorchModel
from snellen.probe import Batch, ProbeBase, Rows, Scope, all_probes, register, rows
from snellen.randomness import SampleRandom

CLASSES = tuple(str(i) for i in range(10))
SHIFTS = ("clean", "fog", "snow", "jpeg")
MIB = 1 << 20
WARM_UP = 0.5
"""Share of the jobs that are not timed, so that both workers are there when the clock starts."""
Figures = dict[str, float]


class Table(NamedTuple):
    """What a part prints and records; figures: the constants of docs/scale.md."""

    title: str
    how: str
    columns: list[str]
    rows: list[list[str]]
    figures: dict[str, object]


@register
@dataclass(frozen=True)
class Nothing(ProbeBase):
    """Answers at once and asks the model nothing."""

    name: ClassVar[str] = "benchmark/nothing"
    paper: ClassVar[str] = ""
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        return rows(batch.ids, label=batch.labels)


class Stamps(Silent):
    """When each job was done, on the clock and in processor time of this process."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._processor: list[float] = []

    def advance(self, label: str, images: int) -> None:
        self.times.append(time.perf_counter())
        self._processor.append(time.process_time())

    def milliseconds_a_job(self) -> tuple[float, float]:
        """Wall and processor time, once all workers are there."""
        first, last = int(len(self.times) * WARM_UP), len(self.times) - 1
        wall, processor = (series[last] - series[first] for series in (self.times, self._processor))
        return wall / (last - first) * 1e3, processor / (last - first) * 1e3


class Memory:
    """Resident memory at named moments, the peak since the moment before, and what of it are live Arrow buffers."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float, float]] = []
        self.arrow: Figures = {}
        self.mark("imports")

    def mark(self, stage: str) -> None:
        status = Path("/proc/self/status").read_text()
        now, peak = (int(re.findall(rf"{key}:\s+(\d+)", status)[0]) / 1024 for key in ("VmRSS", "VmHWM"))
        self.marks.append((stage, now, peak))
        self.arrow[f"Arrow after {stage}"] = pa.total_allocated_bytes() / MIB
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here

    def above_imports(self) -> dict[str, tuple[float, float]]:
        """stage -> MiB at its end and at its peak, above what the imports took."""
        base = self.marks[0][1]
        return {stage: (now - base, peak - base) for stage, now, peak in self.marks[1:]}


def in_memory(count: int, size: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return Dataset.from_arrays(images, np.arange(count) % 10, CLASSES)


def small_network(size: int, width: int = 8) -> TorchModel:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip
    return TorchModel(network, ModelSpec("small", CLASSES, (size, size)))


def timed(owner: type, name: str, spent: Counter[str]) -> None:
    """From now on the method adds its seconds to `spent`."""
    method = getattr(owner, name)

    def wrapped(*arguments: object, **named: object) -> object:
        begun = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - begun

    setattr(owner, name, wrapped)


def child(name: str, *arguments: object) -> Figures:
    """The figures that CHILDREN[name] prints in a process of its own."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def median_of(runs: list[Figures]) -> Figures:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


# --- scheduling -------------------------------------------------------------------------------------------------------


def one_scheduling(executor: str, workers: str, count: str) -> Figures:
    """Milliseconds a job that does nothing; where the time goes is seen in the local process only."""
    jobs, spent, stamps = int(count), Counter[str](), Stamps()
    plan = Plan.model_validate({"shard_size": 1, "probes": [Nothing.name]})
    with tempfile.TemporaryDirectory() as folder:
        model, data = small_network(8), in_memory(jobs, 8)
        examination = Examination(model, data, plan, folder, progress=stamps, executor=executor, workers=int(workers))
        for name in ("commit", "write"):
            timed(Store, name, spent)
        begun = time.perf_counter()
        examination.run()
        ended = time.perf_counter()
    wall, processor = stamps.milliseconds_a_job()
    return {
        "start_s": stamps.times[0] - begun,
        "job_ms": wall,
        "driver_cpu_ms": processor,
        "encode_ms": (spent["commit"] - spent["write"]) / jobs * 1e3,
        "file_ms": spent["write"] / jobs * 1e3,
        "after_ms": (ended - stamps.times[-1]) / jobs * 1e3,
    }


def scheduling(quick: bool) -> Table:
    count, repeats = (200, 1) if quick else (2000, 3)
    local, ray = [], []
    for _ in range(repeats):
        local.append(child("scheduling", "local", 1, count))
        ray.append(child("scheduling", "ray", 2, count))
    here, there = median_of(local), median_of(ray)
    rest = here["job_ms"] - max(0.0, here["encode_ms"]) - here["file_ms"]
    lines = [
        ["a job, wall time", f"{here['job_ms']:.2f}", f"{there['job_ms']:.2f}"],
        ["of it encoding Parquet", f"{here['encode_ms']:.2f}", "in the worker"],
        ["of it writing the file", f"{here['file_ms']:.2f}", "in the worker"],
        ["of it the engine: batch, probe, bookkeeping", f"{rest:.2f}", "–"],
        ["after the last job (tables, findings, manifest)", f"{here['after_ms']:.2f}", f"{there['after_ms']:.2f}"],
        ["processor time of the driver", f"{here['driver_cpu_ms']:.2f}", f"{there['driver_cpu_ms']:.2f}"],
        ["start to first job (s)", f"{here['start_s']:.2f}", f"{there['start_s']:.1f}"],
    ]
    how = (
        f"{count:,} jobs of one sample whose probe answers at once, medians of {repeats}, a process each, one thread;"
        " `python benchmarks/scale.py --part scheduling`. Milliseconds a job if nothing else is said; the first"
        f" {WARM_UP:.0%} of the jobs are not timed."
    )
    return Table(
        "Scheduling cost of a job", how, ["what", "local", "Ray, 2 workers"], lines, {"local": here, "ray": there}
    )


# --- driver memory ----------------------------------------------------------------------------------------------------


class Instant:
    """An executor that says done to everything and does nothing."""

    capacity = 1

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self) -> Outcome:
        return Outcome(self._waiting.popleft(), written=True)


def one_driver(count: str) -> Figures:
    """Bytes a job that the driver keeps, by what keeps them, for jobs of one sample."""
    memory, executor, probe = Memory(), Instant(), Nothing()
    digests = np.random.default_rng(0).integers(0, 256, (int(count), 16), dtype=np.uint8)
    entry = Entry(probe.name, probe, None, np.arange(int(count)))
    memory.mark("digests and rows")
    plan = Plan.model_validate({"shard_size": 1, "probes": [probe.name]})
    jobs = jobs_of(entry, plan, ModelSpec("none", CLASSES, (8, 8)), digests)
    memory.mark("jobs")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        begun = time.perf_counter()
        for job in jobs:
            if not store.has(probe.name, job.key):
                executor.submit(Task(entry.label, probe, job.key, job.rows, {}))
                outcome = executor.wait()
                store.note(probe.name, outcome.task.key, outcome.partial)
        walked = time.perf_counter() - begun
        memory.mark("finished keys")
        tables = StoredTables(store)
        tables.add(entry.label, probe.name, (job.key for job in jobs))
        memory.mark("paths of the table")
    kept, before = {}, 0.0
    for stage, (now, _) in memory.above_imports().items():
        kept[stage] = (now - before) * MIB / int(count)
        before = now
    peak = max(peak for _, peak in memory.above_imports().values())
    return {**kept, "all": peak * MIB / int(count), "peak_mib": peak, "walk_us": walked / int(count) * 1e6}


def driver(quick: bool) -> Table:
    sizes = (10_000, 100_000) if quick else (100_000, 1_000_000)
    found = [child("driver", count) for count in sizes]
    stages = [key for key in found[0] if key not in ("all", "peak_mib", "walk_us")]
    lines = [[f"{stage} (bytes a job)", *(f"{run[stage]:,.0f}" for run in found)] for stage in stages]
    lines.append(["peak (bytes a job)", *(f"{run['all']:,.0f}" for run in found)])
    lines.append(["peak (MiB)", *(f"{run['peak_mib']:,.0f}" for run in found)])
    lines.append(["handing a job over (µs)", *(f"{run['walk_us']:.1f}" for run in found)])
    how = (
        "Resident memory above that after the imports; jobs of one sample each, an executor that does nothing and a"
        " store that is told of each; `python benchmarks/scale.py --part driver`."
    )
    columns = ["what the driver keeps", *(f"{count:,} jobs" for count in sizes)]
    return Table("The driver's memory against the number of jobs", how, columns, lines, {"largest": found[-1]})


# --- two workers against one ------------------------------------------------------------------------------------------


def one_speed(workers: str, images: str, count: str) -> Figures:
    """Wall milliseconds a job of so many images, of which the network needs about four milliseconds each."""
    stamps = Stamps()
    plan = Plan.model_validate({"shard_size": int(images), "probes": ["predictions"]})
    model, data = small_network(64, width=64), in_memory(int(images) * int(count), 64)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        Examination(model, data, plan, folder, progress=stamps, executor="ray", workers=int(workers)).run()
    return {"start_s": stamps.times[0] - begun, "job_ms": stamps.milliseconds_a_job()[0]}


def speed_up(quick: bool) -> Table:
    """A job of tens of milliseconds, which is too small, and one of the order that docs/scale.md recommends."""
    sizes, repeats = ({8: 60}, 1) if quick else ({8: 200, 96: 60}, 3)
    lines, figures = [], {}
    for images, count in sizes.items():
        one, two = [], []
        for _ in range(repeats):
            one.append(child("speed-up", 1, images, count))
            two.append(child("speed-up", 2, images, count))
        single, double = median_of(one), median_of(two)
        ratio = single["job_ms"] / double["job_ms"]
        lines.append([f"{images}", f"{single['job_ms']:.0f}", f"{double['job_ms']:.0f}", f"{ratio:.2f}"])
        figures[f"speed_up of {images} images a job"] = ratio
    how = (
        "`predictions` of a small convolution network on 64 px, single-threaded workers, 200 small or 60 large jobs,"
        f" medians of {repeats} alternated runs; `python benchmarks/scale.py --part speed-up`. The start of Ray and of"
        " its workers and the first half of the jobs are not timed. Wanted: at least 1.8."
    )
    columns = ["images a job", "1 worker: ms a job", "2 workers: ms a job", "speed-up"]
    return Table(f"Ray workers on {os.cpu_count()} cores", how, columns, lines, figures)


# --- rows through Parquet and DuckDB ----------------------------------------------------------------------------------


def shard_of_rows(first: int, template: pa.Table) -> pa.Table:
    """The template with ids of its own; the values are random within a file, and files share nothing on disk."""
    ids = pa.array(np.arange(first, first + len(template))).cast(pa.string())
    return template.set_column(0, "id", pa.compute.binary_join_element_wise("shard", ids, "/"))


def predictions_like(count: int, shift: str) -> pa.Table:
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, 10)).astype(np.float32)
    label, predicted = random.integers(0, 10, count), logits.argmax(1)
    confidence = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    columns = {"label": label, "predicted": predicted, "correct": label == predicted, "confidence": confidence}
    return rows([""] * count, **columns, logits=logits, shift=[shift] * count)


def one_storage(size: str, count: str) -> Figures:
    shard, total = int(size), int(count)
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        store, files = Store(folder), -(-total // shard)
        templates = [predictions_like(shard, shift) for shift in SHIFTS]
        keys = [f"{index:032x}" for index in range(files)]
        made, begun = 0.0, time.perf_counter()
        for index, key in enumerate(keys):
            before = time.perf_counter()
            part = shard_of_rows(index * shard, templates[index % len(SHIFTS)])
            made += time.perf_counter() - before
            store.commit("predictions", key, part, JobRecord(shard, 0, 1.0))
        written = time.perf_counter() - begun - made
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        memory.mark("written")

        begun = time.perf_counter()
        tables = StoredTables(Store(folder))
        tables.add("predictions", "predictions", keys)
        listed = time.perf_counter() - begun
        begun = time.perf_counter()
        seen = sum(store.read(path).num_rows for path in tables.files["predictions"])
        read = time.perf_counter() - begun
        begun = time.perf_counter()
        sum(1 for _ in tables.records("predictions"))
        costs = time.perf_counter() - begun
        memory.mark("read")
        begun = time.perf_counter()
        sql = "SELECT label, shift, count(*), avg(correct::INT), avg(confidence) FROM rows GROUP BY ALL"
        groups = tables.query("predictions", sql).num_rows
        queried = time.perf_counter() - begun
        memory.mark("queried")
    assert (seen, groups) == (files * shard, 10 * min(len(SHIFTS), files))
    return {
        "write": seen / written,
        "read": seen / read,
        "query": seen / queried,
        "bytes_a_row": on_disk / seen,
        "list_us_a_file": listed / files * 1e6,
        "cost_us_a_file": costs / files * 1e6,
        "query_mib": memory.above_imports()["queried"][1],
    }


def storage(quick: bool) -> Table:
    total = 1_000_000 if quick else 10_000_000
    sizes = (4096, 16384, 65536)
    found = {size: child("storage", size, total) for size in sizes}
    lines = [
        [f"{size:,}", f"{run['write']:,.0f}", f"{run['read']:,.0f}", f"{run['query']:,.0f}"]
        + [f"{run[key]:.0f}" for key in ("bytes_a_row", "list_us_a_file", "cost_us_a_file", "query_mib")]
        for size, run in found.items()
    ]
    how = (
        f"{total:,} rows as `predictions` writes them (id, label, predicted, correct, confidence, ten logits) and a"
        " shift, random values, a temporary folder on the local disk whose pages are still in memory when it is read;"
        " the query is accuracy and confidence by label and shift; `python benchmarks/scale.py --part storage`."
    )
    columns = ["rows a file", "written a second", "read a second", "aggregated by DuckDB a second", "bytes a row"]
    columns += ["µs a file to list", "µs a file for its cost", "DuckDB's peak above the rest (MiB)"]
    return Table("Rows through Parquet and DuckDB", how, columns, lines, {str(size): found[size] for size in sizes})


# --- memory of a streamed run -----------------------------------------------------------------------------------------


def write_images(path: Path, count: int, distinct: int = 300, group: int = 5000) -> None:
    """PNG images of 8 px in row groups, with labels and one attribute."""
    random = np.random.default_rng(0)
    pictures = []
    for pixels in random.integers(0, 256, (distinct, 8, 8, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    column = pa.array(pictures, pa.binary())
    schema = pa.schema({"image": pa.binary(), "label": pa.string(), "light": pa.string()})
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, count, group):
            picked = random.integers(0, distinct, min(group, count - start))
            light = np.where(picked % 3 == 0, "night", "day")
            labels = pa.array(picked % 10).cast(pa.string())
            file.write_table(pa.table([column.take(pa.array(picked)), labels, pa.array(light)], schema), group)


class Stages(Silent):
    """Marks the memory when the jobs are made and when each probe is done."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def begin(self, work: object) -> None:
        self._memory.mark("jobs")

    def finish(self, label: str, trouble: str | None = None) -> None:
        assert trouble is None, trouble
        self._memory.mark(label)


def one_streaming(path: str) -> Figures:
    """MiB above the imports at the end and at the peak of each stage."""
    all_probes()  # their imports count as imports
    memory, model = Memory(), small_network(8)
    inspect = Loader.inspect

    def marked(loader: Loader, *arguments: object) -> object:
        found = inspect(loader, *arguments)
        memory.mark("inspect")
        return found

    setattr(Loader, "inspect", marked)
    data = load_dataset(path)
    memory.mark("load_dataset")
    plan = Plan.model_validate({"probes": ["predictions", "accuracy"]})
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Examination(model, data, plan, folder, progress=Stages(memory)).run()
        memory.mark("findings and manifest")
    found = {stage: now for stage, (now, _) in memory.above_imports().items()}
    peaks = {f"peak of {stage}": peak for stage, (_, peak) in memory.above_imports().items()}
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = max(total, *(peak for _, _, peak in memory.marks))
    return {**found, **peaks, **memory.arrow, "peak_rss": whole, "seconds": time.perf_counter() - begun}


def streaming(quick: bool) -> Table:
    sizes = (1000, 10_000, 50_000) if quick else (10_000, 100_000, 1_000_000)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes:
            path = Path(folder) / f"images-{count}.parquet"
            write_images(path, count)
            found.append(child("streaming", path))
            print(f"{count:,}: {json.dumps({key: round(value, 1) for key, value in found[-1].items()})}", flush=True)
    stages = [key for key in found[0] if f"peak of {key}" in found[0]]
    large, small = found[-1], found[0]

    def slope(key: str) -> str:
        return f"{(large[key] - small[key]) * MIB / (sizes[-1] - sizes[0]):,.0f}"

    lines = [
        [stage, *(f"{run[stage]:,.0f} ({run[f'peak of {stage}']:,.0f})" for run in found), slope(f"peak of {stage}")]
        for stage in stages
    ]
    lines.append(["peak of the process", *(f"{run['peak_rss']:,.0f}" for run in found), slope("peak_rss")])
    lines.append(["seconds", *(f"{run['seconds']:,.0f}" for run in found), "–"])
    how = (
        "One Parquet file of PNG images of 8 px in row groups of 5,000, a network of 898 parameters, `predictions` and"
        " `accuracy`, a process a size, one thread; `python benchmarks/scale.py --part streaming`. MiB resident at a"
        " stage's end (at its peak) above the imports; the peak of the process counts them. Decoded images are kept"
        f" where all of them fit into {CACHE_BYTES // MIB} MiB."
    )
    columns = ["stage", *(f"{count:,} images" for count in sizes), "bytes an image"]
    slope_bytes = (large["peak_rss"] - small["peak_rss"]) * MIB / (sizes[-1] - sizes[0])
    return Table("Memory of a streamed run", how, columns, lines, {"bytes_an_image": slope_bytes, "largest": large})


PARTS: dict[str, Callable[[bool], Table]] = {
    "scheduling": scheduling,
    "driver": driver,
    "speed-up": speed_up,
    "storage": storage,
    "streaming": streaming,
}
CHILDREN: dict[str, Callable[..., Figures]] = {
    "scheduling": one_scheduling,
    "driver": one_driver,
    "speed-up": one_speed,
    "storage": one_storage,
    "streaming": one_streaming,
}


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="sizes of about a tenth")
    parser.add_argument("--record", action="store_true", help="write the tables into benchmarks/results.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps the tables in their full form; leave --quick out")
    state = machine_state(1)
    summary: dict[str, object] = {"benchmark": "scale"}
    for part in options.part:
        table = PARTS[part](options.quick)
        print(f"\n{table.title}\n{'  |  '.join(table.columns)}")
        for row in table.rows:
            print("  |  ".join(row), flush=True)
        summary[part] = table.figures
        if options.record:
            record_table(f"scale-{part}", table.title, f"{state}; {table.how}", table.columns, table.rows)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
