"""Ray: workers hold the model, read the data and write their own rows; the driver hears that a job is done.

A worker has one job at a time. When its process dies, that job, and no other, is begun again on a new one. Handles and
references are `Any`: Ray builds an actor's methods at run time, so nothing could check them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snellen.audit.executor import Outcome, Task, Worker, described
from snellen.audit.ray_worker import Account, Cargo, Limits, RayWorker, first_line, packed
from snellen.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times that a job is begun before a worker that dies under it counts as the job's fault."""
PATIENCE = 60
"""Seconds without any worker before the user hears that Ray has no room for one."""
SPARE_BYTES = 256 << 20
"""Room in the object store of a cluster made for the run, beside model and data: jobs on their way are small."""


class RayExecutor:
    """One worker a device, each with a copy of the model. Rows are those of the local executor, bit for bit on a CPU
    with one thread.

    address: None for a cluster of this machine's own, made for the run; "ray://HOST:PORT" or "auto" for a running one,
    whose nodes must reach the run directory, the data and model files under the same names. Where the caller is already
    connected to Ray, that connection is used and left as it was. workers: number of workers, None for one a GPU, or one
    a core for models on the CPU.
    """

    def __init__(self, worker: Worker, advance: Callable[[str, int], None], address: str | None, workers: int | None):
        try:
            import ray
        except ImportError as error:
            raise InvalidInput("--executor ray needs the package ray; pip install snellen[ray]") from error
        device = worker.model.device
        if device.index:  # a worker sees one GPU only, as number 0
            raise InvalidInput(f"--executor ray gives every worker a GPU of its own; use --device cuda, not {device}")
        self._ray = ray
        self._worker = worker
        self._advance = advance
        self._address = None if address == "local" else address
        self._asked = workers
        self._cuda = device.type == "cuda"
        self._connected_here = False
        self._cargo: Any = None
        self._account: Any = None
        self._starting: dict[Any, Any] = {}  # what a worker's begin will answer -> worker
        self._running: dict[Any, tuple[Any, Task]] = {}
        self._free: list[Any] = []
        self._waiting: deque[Task] = deque()
        self._attempts: Counter[str] = Counter()
        self._deaths = 0
        self._stopped: str | None = None
        self.capacity = 1

    def submit(self, task: Task) -> None:
        if self._account is None:
            self._begin()
        self._waiting.append(task)
        self._send()

    def wait(self) -> Outcome:
        while self._stopped is None:
            reference = self._next()
            if reference in self._starting:
                self._started(reference)
            elif (outcome := self._ended(reference)) is not None:
                return outcome
            self._send()
        task = self._waiting.popleft() if self._waiting else self._running.popitem()[1][1]
        return Outcome(task, stopped=self._stopped)

    def close(self) -> None:
        ray = self._ray
        try:
            with contextlib.suppress(ray.exceptions.RayError):
                busy = [worker for worker, _ in self._running.values()]
                for worker in [*self._free, *self._starting.values(), *busy]:
                    ray.kill(worker)
                if self._account is not None:
                    ray.get(self._account.close.remote(), timeout=PATIENCE)
                    ray.kill(self._account)
        finally:
            if self._connected_here:
                ray.shutdown()
            self._cargo = self._account = None
            self._connected_here = False
            for held in (self._free, self._starting, self._running, self._waiting):
                held.clear()

    def _begin(self) -> None:
        cargo = self._packed_cargo()
        if not self._ray.is_initialized():
            self._connect(len(cargo))
        self.capacity = self._room()
        self._account = self._open_account()
        self._cargo = self._ray.put(cargo)
        for _ in range(self.capacity):
            self._start()

    def _packed_cargo(self) -> bytes:
        model, loader, store = self._worker.model, self._worker.loader, self._worker.store
        at_once = model.remote or model.ledger.limited
        url = store.local_path or store.url  # a worker elsewhere stands in another folder
        cargo = Cargo(model, loader.dataset, loader.geometry, self._worker.seed, url, at_once)
        return packed(cargo, "the model or the data")

    def _connect(self, cargo_bytes: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        own = {
            "address": "local",  # without it Ray joins whatever cluster it finds on this machine
            "num_cpus": None if self._cuda else max(self._asked or 1, os.cpu_count() or 1),
            "object_store_memory": cargo_bytes + SPARE_BYTES,
            "include_dashboard": False,
        }
        self._connected_here = True
        try:
            self._ray.init(**(own if self._address is None else {"address": self._address}), **quiet)
        except (ImportError, OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            raise InvalidInput(
                f"Ray at {self._address or 'this machine'} cannot be used: {first_line(error)}"
            ) from error

    def _room(self) -> int:
        """Workers that the cluster can hold, at most as many as were asked for."""
        resource = "GPU" if self._cuda else "CPU"
        there = int(self._ray.cluster_resources().get(resource, 0))
        if there < 1:
            raise InvalidInput(f"the Ray cluster has no {resource}; start its nodes with some, or change --device")
        if self._asked is not None and self._asked > there:
            log.warning("the Ray cluster has %d %ss: %d workers, not %d", there, resource, there, self._asked)
        return min(self._asked or there, there)

    def _open_account(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        ledger = self._worker.model.ledger
        limits = Limits(ledger.budget, ledger.remaining, ledger.minutes, ledger.minutes_left)
        store = self._worker.store
        account = self._ray.remote(Account).options(num_cpus=0, scheduling_strategy=here)
        return account.remote(store.local_path or store.url, limits)

    def _start(self) -> None:
        needs = {"num_gpus": 1} if self._cuda else {"num_cpus": 1}
        worker = self._ray.remote(RayWorker).options(**needs).remote()
        self._starting[worker.begin.remote(self._cargo, self._account, sys.path, str(Path.cwd()))] = worker

    def _send(self) -> None:
        while self._waiting and self._free:
            worker, task = self._free.pop(), self._waiting.popleft()
            self._running[worker.run.remote(packed(task, f"the probe {task.probe.name}"))] = worker, task

    def _next(self) -> Any:
        """The next answer of any worker."""
        while True:
            ready, _ = self._ray.wait([*self._starting, *self._running], num_returns=1, timeout=PATIENCE)
            if ready:
                return ready[0]
            if not self._running:
                log.warning("Ray has had no free %s for %d s; waiting", "GPU" if self._cuda else "core", PATIENCE)

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(worker)
            raise InvalidInput(f"a Ray worker cannot take up the model and the data: {_cause(error)}") from error
        except self._ray.exceptions.RayError as error:
            self._lost(worker, error)
        else:
            self._free.append(worker)

    def _ended(self, reference: Any) -> Outcome | None:
        """The outcome of a job, None when it will be begun again."""
        worker, task = self._running.pop(reference)
        try:
            told = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._free.append(worker)
            raise error.cause from error  # no fault of a probe: it would end a local run too
        except self._ray.exceptions.RayError as error:
            self._attempts[task.key] += 1
            self._lost(worker, error)
            if self._attempts[task.key] < ATTEMPTS:
                self._waiting.append(task)
                return None
            return Outcome(task, error=f"its worker died {ATTEMPTS} times under it: {first_line(error)}")
        self._deaths = 0
        self._attempts.pop(task.key, None)
        self._free.append(worker)
        outcome = Outcome(task, *told)
        if outcome.written and not outcome.partial:
            self._advance(task.label, len(task.rows))
        return outcome

    def _lost(self, worker: Any, error: Exception) -> None:
        """A worker's process died. A new one takes its place, unless they do nothing but die."""
        self._ray.kill(worker)  # it may only be out of reach
        self._deaths += 1
        if self._deaths > ATTEMPTS * (self.capacity + 1):
            self._stopped = f"Ray's workers die again and again: {first_line(error)}"
        else:
            self._start()


def _cause(error: Any) -> str:
    return described(error.cause) if isinstance(error.cause, Exception) else first_line(error)
