"""What was asked of the model, on paper before it is asked: a killed run has forgotten no query."""

from __future__ import annotations

import os
import threading

from snellen.audit.store import Store
from snellen.errors import BudgetExhausted, InvalidInput
from snellen.models import LedgerTotals, QueryLedger

FOLDER = "spent"
AHEAD = 16
"""On an object store, where a file cannot grow, a sixteenth of what is spent is written down ahead."""


class Journal:
    """One file a process in `RUN/spent`, a line a pass: forward images, backward images, requests.

    On this machine a line is written before each pass, so that the sum is exact whatever happens. On an object store
    the file is replaced whole, with a sixteenth more than is spent: a run that is killed there counts at most so much
    too much and never too little, and the number of PUTs grows with the logarithm of the passes. A pass that cannot be
    written down does not happen: `BudgetExhausted` stops the run.
    """

    def __init__(self, store: Store, ledger: QueryLedger) -> None:
        self._store = store
        self._name = f"{os.getpid()}-{ledger.name}.log"
        self._spent = self._ahead = _read(store.read_bytes(FOLDER, self._name) or b"")
        self._lock = threading.Lock()
        self._file: int | None = None

    @property
    def spent(self) -> LedgerTotals:
        """What this ledger has spent on this run directory."""
        return self._spent

    def earlier(self) -> LedgerTotals:
        """What all other ledgers have spent on this run directory, those of killed processes among them."""
        names = [name for name in self._store.names(FOLDER) if name != self._name]
        return sum((_read(self._store.read_bytes(FOLDER, name) or b"") for name in names), LedgerTotals())

    def __call__(self, entry: LedgerTotals) -> None:
        with self._lock:
            spent = self._spent + entry
            try:
                if self._store.local_path is not None:
                    self._append(entry)
                elif not _covers(self._ahead, spent):
                    ahead = _with_room(spent)
                    self._store.write(_line(ahead), FOLDER, self._name)
                    self._ahead = ahead
            except (InvalidInput, OSError) as error:
                raise BudgetExhausted(f"{error}; no query is sent that cannot be written down") from error
            self._spent = spent

    def close(self) -> None:
        """One line with the exact sum."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self._spent != LedgerTotals():
                self._store.write(_line(self._spent), FOLDER, self._name)
                self._ahead = self._spent

    def _append(self, entry: LedgerTotals) -> None:
        if self._file is None:
            self._file = self._store.open_for_appending(FOLDER, self._name)
        os.write(self._file, _line(entry))


def _line(entry: LedgerTotals) -> bytes:
    return f"{entry.forward} {entry.backward} {entry.requests}\n".encode()


def _with_room(spent: LedgerTotals) -> LedgerTotals:
    room = LedgerTotals(spent.forward // AHEAD, spent.backward // AHEAD, spent.requests // AHEAD)
    return spent + room


def _covers(ahead: LedgerTotals, spent: LedgerTotals) -> bool:
    left = ahead - spent
    return min(left.forward, left.backward, left.requests) >= 0


def _read(content: bytes) -> LedgerTotals:
    total = LedgerTotals()
    for line in content.splitlines():
        words = line.split()
        if len(words) == 3:  # a line cut off by a full disk is no line
            total += LedgerTotals(*(int(word) for word in words))
    return total
