"""Executors: where jobs run. A job's rows are written by who computed them; the engine only hears that it is done."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import torch

from snellen.audit.store import JobRecord, Store
from snellen.audit.tables import StoredTables
from snellen.data import LoadedBatch, Loader
from snellen.errors import BudgetExhausted, InvalidInput, ModelUnavailable, SnellenError
from snellen.models import Model
from snellen.probe import Batch, DatasetProbe, Probe, Rows, SampleProbe, Scope
from snellen.randomness import SampleRandom


class Task(NamedTuple):
    """A job as it travels: small, and enough to do it anywhere.

    label: the plan's entry. rows: positions in the data set. tables: files of the tables that the probe reads.
    """

    label: str
    probe: Probe
    key: str
    rows: np.ndarray
    tables: Mapping[str, Sequence[str]]


class Outcome(NamedTuple):
    """written: rows are stored, whole or `partial`. error: what went wrong, with its traceback. stopped: why no further
    job can be done: the budget is spent or the model is gone."""

    task: Task
    written: bool = False
    partial: bool = False
    error: str | None = None
    traceback: str = ""
    stopped: str | None = None


class Executor(Protocol):
    """Takes up to `capacity` jobs at a time and tells of each when it is done, in any order."""

    capacity: int

    def submit(self, task: Task) -> None: ...
    def wait(self) -> Outcome:
        """The next finished job; blocks."""
        ...

    def close(self) -> None:
        """Give up what is under way and let go of everything."""
        ...


class BatchSize:
    """Images a pass: starts from the image's size, is halved when memory runs out, and stays there."""

    def __init__(self, channels: int, height: int, width: int, stated: int | None = None) -> None:
        fitting = 4_000_000 / (channels * height * width)
        self.value = stated or int(np.clip(2 ** round(math.log2(max(fitting, 1))), 8, 256))

    def shrink(self) -> bool:
        """False when one image is already too much."""
        if self.value == 1:
            return False
        self.value = max(1, self.value // 2)
        return True


class Worker:
    """Does jobs on one model with one loader and writes their rows."""

    def __init__(self, model: Model, loader: Loader, seed: int, store: Store) -> None:
        self.model = model
        self.loader = loader
        self.seed = seed
        self.store = store
        self.batch_size = BatchSize(model.spec.channels, *model.spec.input_size, model.batch_size)

    def run(self, task: Task, advance: Callable[[int], None] = lambda images: None) -> Outcome:
        """Whatever the probe raises is that job's fault alone; the end of the budget keeps the rows it paid for."""
        before, begun = self.model.ledger.totals, time.perf_counter()
        parts: list[Rows] = []
        stopped: str | None = None
        try:
            parts.extend(self._parts(task, advance))
        except (BudgetExhausted, ModelUnavailable) as error:
            stopped = str(error)
        except Exception as error:  # any fault of a probe is that job's fault alone
            return Outcome(task, error=described(error), traceback="".join(traceback.format_exception(error)))
        if parts:
            spent = self.model.ledger.totals - before
            record = JobRecord(spent.forward, spent.backward, time.perf_counter() - begun, spent.requests)
            partial = stopped is not None
            try:
                self.store.commit(task.probe.name, task.key, pa.concat_tables(parts), record, partial)
            except InvalidInput as error:  # where one job cannot be written, none can
                return Outcome(task, stopped=str(error))
        return Outcome(task, bool(parts), stopped is not None, stopped=stopped)

    def _parts(self, task: Task, advance: Callable[[int], None]) -> Iterator[Rows]:
        random = SampleRandom(self.seed, task.probe.name)
        if task.probe.scope is Scope.SAMPLE:
            yield from self._batches(cast(SampleProbe, task.probe), task.rows, random, advance)
            return
        view = SampleView(self.loader, task.rows, self.batch_size)
        tables = StoredTables(self.store, task.tables)
        yield cast(DatasetProbe, task.probe).run(self.model, view, tables, random)
        advance(len(task.rows))

    def _batches(
        self, probe: SampleProbe, rows: np.ndarray, random: SampleRandom, advance: Callable[[int], None]
    ) -> Iterator[Rows]:
        done = 0
        while done < len(rows):
            size = self.batch_size.value
            try:
                for loaded in self.loader.batches(rows[done:], size):
                    part = probe.run(self.model, as_batch(loaded), random)
                    done += len(loaded.ids)
                    advance(len(loaded.ids))
                    yield part
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self.batch_size.shrink():
                    raise
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()


class LocalExecutor:
    """One job after the other in this process."""

    capacity = 1

    def __init__(self, worker: Worker, advance: Callable[[str, int], None]) -> None:
        self._worker = worker
        self._advance = advance
        self._waiting: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self) -> Outcome:
        task = self._waiting.popleft()
        return self._worker.run(task, lambda images: self._advance(task.label, images))

    def close(self) -> None:
        self._waiting.clear()


class SampleView:
    """What a DATASET probe reads: the job's rows, batch by batch, as often as it likes."""

    def __init__(self, loader: Loader, rows: np.ndarray, batch_size: BatchSize) -> None:
        self._loader = loader
        self._rows = rows
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        for loaded in self._loader.batches(self._rows, batch_size or self._batch_size.value):
            yield as_batch(loaded)


def as_batch(loaded: LoadedBatch) -> Batch:
    return Batch(loaded.ids, loaded.images, loaded.labels, loaded.masks)


def described(error: Exception) -> str:
    """One line for the user; what is not ours to raise is named by its type."""
    return str(error) if isinstance(error, SnellenError) else f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Torch signals it on the CPU by a RuntimeError whose text is all there is to go by."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
