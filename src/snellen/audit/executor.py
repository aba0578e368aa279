"""The local executor: one job after the other in this process, memory shortages met by smaller batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch

from snellen.audit.jobs import Job
from snellen.audit.store import JobRecord
from snellen.data import LoadedBatch, Loader
from snellen.errors import BudgetExhausted
from snellen.models import Model
from snellen.probe import Batch, DatasetProbe, Rows, SampleProbe, Scope
from snellen.randomness import SampleRandom


class JobResult(NamedTuple):
    """rows: what was computed. out_of_budget: the ledger ended the job; rows are those of the batches before."""

    rows: Rows | None
    record: JobRecord
    out_of_budget: BudgetExhausted | None


class BatchSize:
    """Images a pass: starts from the image's size, is halved when memory runs out, and stays there."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        fitting = 4_000_000 / (channels * height * width)
        self.value = int(np.clip(2 ** round(math.log2(max(fitting, 1))), 8, 256))

    def shrink(self) -> bool:
        """False when one image is already too much."""
        if self.value == 1:
            return False
        self.value = max(1, self.value // 2)
        return True


class LocalExecutor:
    """Runs jobs on one model with one loader."""

    def __init__(self, model: Model, loader: Loader, seed: int) -> None:
        self.model = model
        self.loader = loader
        self.seed = seed
        self.batch_size = BatchSize(model.spec.channels, *model.spec.input_size)

    def run(self, job: Job, tables: Mapping[str, Rows], advance: Callable[[int], None]) -> JobResult:
        """The job's rows. Whatever the probe raises is passed on, save the end of the budget."""
        probe = job.entry.probe
        random = SampleRandom(self.seed, probe.name)
        before, begun = self.model.ledger.totals, time.perf_counter()
        parts: list[Rows] = []
        stopped: BudgetExhausted | None = None
        try:
            if probe.scope is Scope.SAMPLE:
                for part in self._batches(cast(SampleProbe, probe), job.rows, random, advance):
                    parts.append(part)
            else:
                view = SampleView(self.loader, job.rows, self.batch_size)
                parts.append(cast(DatasetProbe, probe).run(self.model, view, tables, random))
                advance(len(job.rows))
        except BudgetExhausted as error:
            stopped = error
        spent = self.model.ledger.totals - before
        record = JobRecord(spent.forward, spent.backward, time.perf_counter() - begun)
        return JobResult(pa.concat_tables(parts) if parts else None, record, stopped)

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


def is_out_of_memory(error: BaseException) -> bool:
    """Torch signals it on the CPU by a RuntimeError whose text is all there is to go by."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
