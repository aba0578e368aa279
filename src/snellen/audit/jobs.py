"""From a plan to jobs: (probe, settings, shard), each with a key that says what its rows depend on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from snellen.audit.plan import Plan, PlannedProbe, settings_of
from snellen.data import Dataset, fingerprint
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec
from snellen.probe import Passes, Probe, Scope
from snellen.randomness import derive_seed


@dataclass(frozen=True)
class Entry:
    """One line of the plan, ready to run.

    label: the probe's name, with a number when the plan has it more than once. rows: the samples it looks at.
    """

    label: str
    probe: Probe
    samples: int | None
    rows: np.ndarray

    @property
    def touches_model(self) -> bool:
        return self.probe.scope is not Scope.ANALYSIS


@dataclass(frozen=True)
class Job:
    """rows: positions in the data set. key: 32 hex digits; equal keys mean equal rows."""

    entry: Entry
    rows: np.ndarray
    key: str


@dataclass(frozen=True)
class LeftOut:
    """A probe of the plan that did not run, and why."""

    probe: str
    reason: str


def expand(plan: Plan, dataset: Dataset, access: Access) -> tuple[list[Entry], list[LeftOut]]:
    """The plan's entries in an order in which every table is there before it is needed.

    Probes that another one needs and the plan does not name are added. What the model does not grant is left out.
    """
    planned = list(plan.probes)
    named = {line.probe for line in planned}
    for asking in plan.probes:
        for needed in asking.build().needs:
            if needed not in named:
                planned.insert(0, PlannedProbe(probe=needed))
                named.add(needed)
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    labels: dict[str, int] = defaultdict(int)
    for line in planned:
        probe = line.build()
        labels[line.probe] += 1
        label = line.probe if labels[line.probe] == 1 else f"{line.probe}#{labels[line.probe]}"
        if probe.scope is not Scope.ANALYSIS and probe.access > access:
            left_out.append(LeftOut(label, f"it needs {probe.access} access and the model grants {access}"))
            continue
        if probe.needs_masks and dataset.masks is None:
            left_out.append(LeftOut(label, "it needs object masks and the data set has none (mask_file_name)"))
            continue
        entries.append(Entry(label, probe, line.samples, choose(dataset, line.samples, plan.seed)))
    while True:  # an analysis falls with the table it reads
        there = {candidate.probe.name for candidate in entries}
        falls = [candidate for candidate in entries if not set(candidate.probe.needs) <= there]
        if not falls:
            break
        for fallen in falls:
            missing = sorted(set(fallen.probe.needs) - there)
            left_out.append(LeftOut(fallen.label, f"it reads the table {missing[0]!r}, which was left out"))
            entries.remove(fallen)
    return _ordered(entries), left_out


def _ordered(entries: list[Entry]) -> list[Entry]:
    done: list[Entry] = []
    waiting = list(entries)
    while waiting:
        there = {entry.probe.name for entry in done}
        ready = next((entry for entry in waiting if set(entry.probe.needs) <= there), None)
        if ready is None:
            raise InvalidInput(f"these probes need each other's tables: {', '.join(e.label for e in waiting)}")
        done.append(ready)
        waiting.remove(ready)
    return done


def choose(dataset: Dataset, count: int | None, seed: int) -> np.ndarray:
    """Rows of a subset that has the classes in balance; a larger subset contains a smaller one."""
    if count is None or count >= len(dataset):
        return np.arange(len(dataset))
    rank = np.array([derive_seed(seed, "subset", sample_id) for sample_id in dataset.ids])
    turn = np.empty(len(dataset), dtype=np.int64)
    for label in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == label)
        turn[rows[np.argsort(rank[rows])]] = np.arange(len(rows))
    return np.sort(np.lexsort((rank, turn))[:count])


def shard_size(plan: Plan, count: int) -> int:
    """Samples a job: the plan's, else small enough to lose little when killed and large enough to cost little."""
    return plan.shard_size or int(np.clip(2 ** np.ceil(np.log2(max(count, 1) / 32)), 64, 4096))


def jobs_of(entry: Entry, plan: Plan, spec: ModelSpec, dataset: Dataset, digests: list[bytes]) -> list[Job]:
    """The jobs of a probe that touches the model: one a shard, or one over the whole set."""
    if entry.probe.scope is Scope.SAMPLE:
        step = shard_size(plan, len(entry.rows))
        shards = [entry.rows[start : start + step] for start in range(0, len(entry.rows), step)]
    else:
        shards = [entry.rows]
    identity = {"model": _identity(spec), "seed": plan.seed, **_method(entry.probe)}
    ids, labels = np.array(dataset.ids, dtype=object), dataset.labels
    jobs = []
    for rows in shards:
        data = fingerprint(ids[rows].tolist(), labels[rows], [digests[row] for row in rows])
        jobs.append(Job(entry, rows, _digest({**identity, "data": data})))
    return jobs


def analysis_job(
    entry: Entry, plan: Plan, spec: ModelSpec, samples: pa.Table, needed_keys: dict[str, list[str]]
) -> Job:
    """The one job of an analysis; its key follows the keys of the tables it reads and the attributes."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, samples.schema) as writer:
        writer.write_table(samples.combine_chunks())
    content = hashlib.blake2b(buffer.getvalue(), digest_size=16).hexdigest()
    identity = {"tables": needed_keys, "samples": content, "model": _identity(spec), "seed": plan.seed}
    return Job(entry, entry.rows, _digest({**identity, **_method(entry.probe)}))


def total_passes(job: Job, batch_size: int) -> Passes:
    """What the job cannot do without, summed over its batches; a job over the whole set counts it once."""
    if job.entry.probe.scope is Scope.DATASET:
        return job.entry.probe.cost(len(job.rows))
    sizes = [min(batch_size, len(job.rows) - start) for start in range(0, len(job.rows), batch_size)]
    costs = [job.entry.probe.cost(size) for size in sizes]
    return Passes(sum(cost.forward for cost in costs), sum(cost.backward for cost in costs))


def _method(probe: Probe) -> dict[str, object]:
    return {"probe": probe.name, "version": probe.version, "settings": settings_of(probe)}


def _identity(spec: ModelSpec) -> dict[str, object]:
    return asdict(replace(spec, name="", class_aliases={}))


def _digest(parts: dict[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
