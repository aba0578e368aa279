"""From a plan to jobs: (probe, settings, shard), each with a key that says what its rows depend on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from snellen.audit.plan import Plan, PlannedProbe, settings_of
from snellen.data import Dataset
from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec
from snellen.probe import Passes, Probe, Scope
from snellen.randomness import derive_seed
from snellen.sequences import Lazy


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


class Jobs(Lazy[Job]):
    """The jobs of one entry.

    starts: first position of each shard in the entry's rows. keys: uint8 `[J, 16]`.
    """

    def __init__(self, entry: Entry, starts: np.ndarray, keys: np.ndarray) -> None:
        self.entry = entry
        self._starts = starts
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def _item(self, position: int) -> Job:
        end = self._starts[position + 1] if position + 1 < len(self) else len(self.entry.rows)
        return Job(self.entry, self.entry.rows[self._starts[position] : end], self._keys[position].tobytes().hex())

    @property
    def images(self) -> int:
        return len(self.entry.rows)


@dataclass(frozen=True)
class LeftOut:
    """A probe of the plan that did not run, and why."""

    probe: str
    reason: str


def expand(plan: Plan, dataset: Dataset, access: Access) -> tuple[list[Entry], list[LeftOut]]:
    """The plan's entries in an order in which every table is there before it is needed.

    Probes that another one needs and the plan does not name are added, for as many samples as are asked for at most.
    What the model does not grant is left out.
    """
    planned = list(plan.probes)
    asked: dict[str, list[int | None]] = defaultdict(list)
    for line in plan.probes:
        for needed in line.build().needs:
            asked[needed].append(line.samples)
    for needed, counts in asked.items():
        if needed not in {line.probe for line in plan.probes}:
            most = None if None in counts else max(count for count in counts if count is not None)
            planned.insert(0, PlannedProbe(probe=needed, samples=most))
    everything = np.arange(len(dataset))
    order: np.ndarray | None = None
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    labels: dict[str, int] = defaultdict(int)
    for line in planned:
        probe = line.build()
        labels[line.probe] += 1
        label = line.probe if labels[line.probe] == 1 else f"{line.probe}#{labels[line.probe]}"
        if probe.access > access:  # of an analysis: what it reads would not have been stored
            left_out.append(LeftOut(label, f"it needs {probe.access} access and the model grants {access}"))
            continue
        if probe.needs_masks and dataset.masks is None:
            left_out.append(LeftOut(label, "it needs object masks and the data set has none (mask_file_name)"))
            continue
        rows = everything
        if line.samples is not None and line.samples < len(dataset):
            order = balanced_order(dataset, plan.seed) if order is None else order
            rows = np.sort(order[: line.samples])
        entries.append(Entry(label, probe, line.samples, rows))
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


def most_telling_first(entries: list[Entry]) -> list[Entry]:
    """The order under a limit: analyses as soon as they can be, of each family the cheapest probe, then the others.

    A family that has not spoken yet tells more than a second opinion of one that has. Cost is counted in passes.
    """

    def cost(entry: Entry) -> float:
        passes = entry.probe.cost(len(entry.rows))
        return passes.forward + 2 * passes.backward  # a backward pass takes about twice as long

    ranked: list[tuple[int, float, Entry]] = []
    seen: dict[str, int] = defaultdict(int)
    for entry in sorted(entries, key=cost):
        family = entry.probe.name.partition("/")[0] if entry.touches_model else ""
        ranked.append((seen[family] if family else -1, cost(entry), entry))
        seen[family] += 1
    return _ordered([entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])])


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


def balanced_order(dataset: Dataset, seed: int) -> np.ndarray:
    """All rows, class after class in turn; the first ones are a random subset with the classes in balance."""
    rank = np.array([derive_seed(seed, "subset", sample_id) for sample_id in dataset.ids])
    turn = np.empty(len(dataset), dtype=np.int64)
    for label in np.unique(dataset.labels):
        rows = np.flatnonzero(dataset.labels == label)
        turn[rows[np.argsort(rank[rows])]] = np.arange(len(rows))
    return np.lexsort((rank, turn))


def shard_size(plan: Plan, count: int) -> int:
    """Samples a job: the plan's, else small enough to lose little when killed and large enough to cost little."""
    return plan.shard_size or int(np.clip(2 ** np.ceil(np.log2(max(count, 1) / 32)), 64, 4096))


def jobs_of(entry: Entry, plan: Plan, spec: ModelSpec, digests: np.ndarray) -> Jobs:
    """The jobs of a probe that touches the model: one a shard, or one over the whole set.

    digests: uint8 `[N, 16]`, of every sample's id, label and content.
    """
    step = shard_size(plan, len(entry.rows)) if entry.probe.scope is Scope.SAMPLE else len(entry.rows)
    starts = np.arange(0, len(entry.rows), step)
    identity = {"model": _identity(spec), "seed": plan.seed, **_method(entry.probe)}
    text = json.dumps(identity, sort_keys=True, default=str).encode()
    keys = np.empty((len(starts), 16), dtype=np.uint8)
    for index, start in enumerate(starts):
        data = digests[entry.rows[start : start + step]].tobytes()
        keys[index] = np.frombuffer(hashlib.blake2b(text + data, digest_size=16).digest(), dtype=np.uint8)
    return Jobs(entry, starts, keys)


def analysis_job(
    entry: Entry, plan: Plan, spec: ModelSpec, samples: pa.Table, needed: Mapping[str, Sequence[Job]]
) -> Job:
    """The one job of an analysis; its key follows the keys of the tables it reads and the attributes."""
    content = hashlib.blake2b(digest_size=16)
    for column in samples.itercolumns():
        for chunk in column.chunks:
            content.update(pa.record_batch([chunk], ["column"]).serialize())
    identity = {"samples": content.hexdigest(), "model": _identity(spec), "seed": plan.seed, **_method(entry.probe)}
    tables = hashlib.blake2b(digest_size=16)
    for label, jobs in sorted(needed.items()):
        tables.update(f"{label}\x1f".encode())
        for job in jobs:
            tables.update(job.key.encode())
    text = json.dumps({"tables": tables.hexdigest(), **identity}, sort_keys=True, default=str)
    return Job(entry, entry.rows, hashlib.blake2b(text.encode(), digest_size=16).hexdigest())


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
