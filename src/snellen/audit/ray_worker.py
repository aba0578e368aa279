"""What lives in Ray's processes: the workers, and the account that they share (an `Any`, as every handle of Ray is)."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from typing import Any, NamedTuple

import torch

from snellen.audit.executor import Worker
from snellen.audit.journal import Journal
from snellen.audit.store import Store
from snellen.data import Dataset, Geometry, Loader
from snellen.errors import BudgetExhausted, InvalidInput
from snellen.models import LedgerTotals, Model, QueryLedger

ACCOUNT_LOST = (
    "the process that keeps the account of this run died; what is stored is safe, and the same command goes on"
)


class Cargo(NamedTuple):
    """What every worker gets once. at_once: every pass needs the account's word first."""

    model: Model
    dataset: Dataset
    geometry: Geometry
    seed: int
    store: str
    at_once: bool


class Limits(NamedTuple):
    """Of a ledger: as stated, and what is left; None without."""

    budget: int | None
    remaining: int | None
    minutes: float | None
    minutes_left: float | None


class Account:
    """The one ledger of a run with many workers, in a process beside the driver, where the run directory is."""

    def __init__(self, store: str, limits: Limits) -> None:
        self._ledger = QueryLedger(limits.budget, limits.minutes_left)
        self._ledger.minutes = limits.minutes  # a refusal names what the user stated
        self._journal = Journal(Store(store, listed=False), self._ledger)
        spent = 0 if limits.budget is None or limits.remaining is None else limits.budget - limits.remaining
        self._ledger.attach(LedgerTotals(forward=spent), self._journal)

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


class RayWorker:
    """A worker in a process of its own. What `begin` raises reaches the driver as it is; a constructor's errors would
    look like a death."""

    _worker: Worker
    _account: Any
    _at_once: bool
    _booked: Any = None

    def begin(self, packed_cargo: bytes, account: Any, path: list[str], folder: str) -> None:
        """path, folder: where the driver imports from, and where it stands: relative names mean the same here."""
        sys.path.extend(place for place in path if place not in sys.path)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(1)
        cargo: Cargo = pickle.loads(packed_cargo)
        self._account = account
        self._at_once = cargo.at_once
        device = cargo.model.device
        loader = Loader(cargo.dataset, cargo.geometry, device, workers=None if device.type == "cuda" else 1)
        self._worker = Worker(cargo.model, loader, cargo.seed, Store(cargo.store, listed=False))
        cargo.model.ledger.attach(LedgerTotals(), self._book)

    def run(self, packed_task: bytes) -> tuple[object, ...]:
        """The fields of the outcome without the task, which the driver has."""
        outcome = self._worker.run(pickle.loads(packed_task))
        # All that was booked is on paper before the job counts as done.
        if self._booked is not None and (refusal := self._answer()):
            outcome = outcome._replace(stopped=refusal)
        return outcome[1:]

    def _book(self, entry: LedgerTotals) -> None:
        """Where somebody else counts, or there is a limit, no pass begins before the account has agreed."""
        self._booked = self._account.book.remote(entry)
        if self._at_once and (refusal := self._answer()):
            raise BudgetExhausted(refusal)

    def _answer(self) -> str | None:
        import ray

        try:
            refusal: str | None = ray.get(self._booked)
        except ray.exceptions.RayError:
            return ACCOUNT_LOST
        return refusal


def packed(thing: object, what: str) -> bytes:
    """Pickled, classes of scripts and functions by value. Raises InvalidInput for what cannot be."""
    from ray import cloudpickle

    try:
        content: bytes = cloudpickle.dumps(thing)
    except Exception as error:  # a user's own class may raise anything
        raise InvalidInput(
            f"{what} cannot be sent to Ray's workers ({first_line(error)}); use --executor local"
        ) from error
    return content


def first_line(error: Exception) -> str:
    """The first line of a message; Ray's go on for pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
