"""Ray: actors hold the model, read the data and write their own rows; the driver hears that a job is done."""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from snellen.audit.executor import Outcome, Task, Worker
from snellen.audit.journal import Journal
from snellen.audit.store import Store
from snellen.data import Dataset, Geometry, Loader
from snellen.errors import BudgetExhausted, InvalidInput
from snellen.models import LedgerTotals, Model, QueryLedger

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS = 3
"""Times that a job is begun before a worker that dies under it counts as the job's fault."""
QUEUED = 2
"""Jobs an actor has: one in work, one waiting, so that it never waits for the driver."""


class Cargo(NamedTuple):
    """What every actor gets once."""

    model: Model
    dataset: Dataset
    geometry: Geometry
    device: str
    seed: int
    store: str


class RayExecutor:
    """One actor a device, each with a copy of the model. Rows are those of the local executor, bit for bit on a CPU
    with one thread.

    address: None for a cluster of this machine's own, made for the run; "ray://HOST:PORT" or "auto" for a running one,
    whose nodes must reach the run directory, the data and model files under the same names. workers: number of actors,
    None for one a GPU, or one a core for models on the CPU.
    """

    def __init__(self, worker: Worker, advance: Callable[[str, int], None], address: str | None, workers: int | None):
        try:
            import ray
        except ImportError as error:
            raise InvalidInput("--executor ray needs the package ray; pip install snellen[ray]") from error
        self._ray = ray
        self._worker = worker
        self._advance = advance
        self._address = address
        self._asked = workers
        self._cuda = worker.model.device.type == "cuda"
        self._began = False
        self._cargo: Any = None
        self._account: Any = None
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[int, Task]] = {}  # in the order of submission
        self._again: deque[Task] = deque()
        self._attempts: Counter[str] = Counter()
        self._deaths = 0
        self.capacity = 1

    def submit(self, task: Task) -> None:
        if not self._began:
            self._begin()
        load = Counter(slot for slot, _ in self._running.values())
        slot = min(range(len(self._actors)), key=lambda index: load[index])
        self._running[self._actors[slot].run.remote(task)] = slot, task

    def wait(self) -> Outcome:
        while True:
            while self._again and len(self._running) < self.capacity:
                self.submit(self._again.popleft())
            (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
            slot, task = self._running.pop(reference)
            try:
                told: Outcome = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                outcome = self._lost(slot, task, error)
                if outcome is not None:
                    return outcome
                continue
            self._deaths = 0
            if told.written:
                self._advance(task.label, len(task.rows))
            return told._replace(task=task)

    def close(self) -> None:
        if not self._began:
            return
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.get(self._account.close.remote())
        self._ray.kill(self._account)
        self._running.clear()
        self._again.clear()
        self._began = False
        if self._address is None:
            self._ray.shutdown()

    def _begin(self) -> None:
        ray, model = self._ray, self._worker.model
        if not ray.is_initialized():
            self._connect()
        resources = ray.cluster_resources()
        there = int(resources.get("GPU", 0)) if self._cuda else int(resources.get("CPU", 1))
        if there < 1:
            raise InvalidInput("the Ray cluster has no GPU for --device cuda; start its nodes with GPUs, or use cpu")
        count = min(self._asked or there, there)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        ledger = model.ledger
        left = ledger.minutes_left
        self._account = (
            ray.remote(Account)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(self._worker.store.url, ledger.remaining, left)
        )
        loader = self._worker.loader
        device = "cuda" if self._cuda else "cpu"
        cargo = Cargo(model, loader.dataset, loader.geometry, device, self._worker.seed, self._worker.store.url)
        try:
            self._cargo = ray.put(cargo)
        except (TypeError, pickle.PicklingError, AttributeError) as error:
            raise InvalidInput(f"the model or the data cannot be sent to Ray's workers: {error}") from error
        self._actors = [self._actor() for _ in range(count)]
        self.capacity = count * QUEUED
        self._began = True

    def _connect(self) -> None:
        # Workers start where this process is, so that they can import what a `py:` model imports.
        path = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in dict.fromkeys(path) if part)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self._address is not None:
                self._ray.init(address=self._address, **quiet)
            else:
                cores = max(self._asked or 1, os.cpu_count() or 1)
                self._ray.init(num_cpus=None if self._cuda else cores, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise InvalidInput(f"Ray at {self._address or 'this machine'} cannot be used: {error}") from error

    def _actor(self) -> Any:
        needs = {"num_gpus": 1} if self._cuda else {"num_cpus": 1}
        remote = self._worker.model.remote or self._worker.model.ledger.limited
        return self._ray.remote(Actor).options(**needs).remote(self._cargo, self._account, remote)

    def _lost(self, slot: int, task: Task, error: Exception) -> Outcome | None:
        """A worker died: its jobs run again elsewhere; a job under which three died is reported as failed."""
        waiting = [reference for reference, (where, _) in self._running.items() if where == slot]
        self._again.extend(self._running.pop(reference)[1] for reference in waiting)
        self._deaths += 1
        self._attempts[task.key] += 1
        reason = str(error).strip().splitlines()[0]
        if self._deaths > ATTEMPTS * (len(self._actors) + 1):
            return Outcome(task, stopped=f"Ray's workers die again and again: {reason}")
        self._ray.kill(self._actors[slot])
        self._actors[slot] = self._actor()
        if self._attempts[task.key] < ATTEMPTS:
            self._again.append(task)
            return None if self._running or self._again else Outcome(task, error=reason)
        return Outcome(task, error=f"its worker was lost {ATTEMPTS} times: {reason}")


class Account:
    """The one ledger of a run with many workers; it lives beside the driver, where the run directory is."""

    def __init__(self, store: str, budget: int | None, minutes: float | None) -> None:
        self._ledger = QueryLedger(budget, minutes)
        self._journal = Journal(Store(store, listed=False), self._ledger)
        self._ledger.attach(LedgerTotals(), self._journal)

    def book(self, entry: LedgerTotals) -> str | None:
        """Why the pass may not happen, None when it is booked."""
        try:
            if min(entry.forward, entry.backward, entry.requests) < 0:
                self._ledger.refund(-entry.forward, -entry.requests)
            else:
                self._ledger.charge(entry.forward, entry.backward, entry.requests)
        except BudgetExhausted as error:
            return str(error)
        return None

    def close(self) -> None:
        self._journal.close()


class Actor:
    """A worker in a process of its own."""

    def __init__(self, cargo: Cargo, account: Any, at_once: bool) -> None:
        import ray

        torch.set_num_threads(1)
        self._account = account
        self._at_once = at_once
        self._ray = ray
        self._last: Any = None
        loader = Loader(cargo.dataset, cargo.geometry, cargo.device, workers=1)
        self._worker = Worker(cargo.model, loader, cargo.seed, Store(cargo.store, listed=False))
        cargo.model.ledger.attach(LedgerTotals(), self._book)

    def _book(self, entry: LedgerTotals) -> None:
        """Where somebody else counts, or there is a limit, no pass begins before the account has agreed."""
        self._last = self._account.book.remote(entry)
        if self._at_once and (refusal := self._ray.get(self._last)):
            raise BudgetExhausted(refusal)

    def run(self, task: Task) -> Outcome:
        outcome = self._worker.run(task)
        if self._last is not None:
            self._ray.get(self._last)  # all that was booked is on paper before the job counts as done
        return outcome._replace(task=Task("", task.probe, task.key, task.rows[:0], {}))
