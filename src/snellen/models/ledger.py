"""One account of everything asked of a model: forward images, backward images, remote requests."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snellen.errors import BudgetExhausted, InvalidInput


@dataclass(frozen=True)
class LedgerTotals:
    """Images sent forward, images sent backward, remote requests."""

    forward: int = 0
    backward: int = 0
    requests: int = 0

    @property
    def images(self) -> int:
        """What a budget counts."""
        return self.forward + self.backward

    def __sub__(self, earlier: LedgerTotals) -> LedgerTotals:
        return LedgerTotals(
            self.forward - earlier.forward, self.backward - earlier.backward, self.requests - earlier.requests
        )

    def __add__(self, other: LedgerTotals) -> LedgerTotals:
        return LedgerTotals(
            self.forward + other.forward, self.backward + other.backward, self.requests + other.requests
        )


class QueryLedger:
    """Counts passes before they happen; a budget refuses the pass that would exceed it. Thread-safe.

    budget: most images, forward and backward together, or None for no limit. minutes: from now on no pass begins after
    so much time, or None.
    """

    def __init__(self, budget: int | None = None, minutes: float | None = None) -> None:
        if budget is not None and budget < 0:
            raise InvalidInput(f"budget must be at least 0 images, got {budget}")
        if minutes is not None and not minutes > 0:
            raise InvalidInput(f"the time limit must be more than 0 minutes, got {minutes:g}")
        self.budget = budget
        self.minutes = minutes
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.name = secrets.token_hex(4)
        """Tells the journals of several ledgers apart."""
        self._totals = self._elsewhere = LedgerTotals()
        self._lock = threading.Lock()
        self._off_the_books = False
        self._journal: Callable[[LedgerTotals], None] | None = None

    @property
    def totals(self) -> LedgerTotals:
        return self._totals

    @property
    def limited(self) -> bool:
        return self.budget is not None or self.minutes is not None

    @property
    def remaining(self) -> int | None:
        """Images left under the budget, None without one."""
        return None if self.budget is None else self.budget - (self._totals + self._elsewhere).images

    @property
    def minutes_left(self) -> float | None:
        """None without a time limit; a little more than 0 when time is up."""
        return None if self._deadline is None else max(1e-6, (self._deadline - time.monotonic()) / 60)

    def attach(self, elsewhere: LedgerTotals, journal: Callable[[LedgerTotals], None] | None) -> None:
        """From now on `journal` hears of every pass before it happens, and what was spent `elsewhere`, by earlier
        processes say, counts against the budget too. A journal may refuse a pass by raising `BudgetExhausted`."""
        with self._lock:
            self._elsewhere = elsewhere
            self._journal = journal

    def check(self, images: int) -> None:
        """Raise `BudgetExhausted` when so many images more would exceed the budget, or time is up; books nothing."""
        remaining = self.remaining
        if remaining is not None and images > remaining:
            raise BudgetExhausted(
                f"the query budget of {self.budget} images is used up: {max(remaining, 0)} are left and the next pass"
                f" needs {images}; give a larger --budget to go on"
            )
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BudgetExhausted(
                f"the time limit of {self.minutes:g} minutes is reached; the same command goes on from here"
            )

    def charge(self, forward: int = 0, backward: int = 0, requests: int = 0) -> None:
        """Book a pass that is about to happen. Raises `BudgetExhausted`, booking nothing, when it does not fit."""
        if self._off_the_books:
            return
        entry = LedgerTotals(forward, backward, requests)
        with self._lock:
            self.check(entry.images)
            if self._journal is not None:
                self._journal(entry)
            self._totals += entry

    def refund(self, forward: int = 0, requests: int = 0) -> None:
        """Take back what was booked for a request that certainly never reached the server."""
        entry = LedgerTotals(-forward, 0, -requests)
        with self._lock:
            if self._journal is not None:
                self._journal(entry)
            self._totals += entry

    @contextmanager
    def off_the_books(self) -> Iterator[None]:
        """Passes of a warm-up on this machine, which no budget should pay for."""
        self._off_the_books = True
        try:
            yield
        finally:
            self._off_the_books = False

    def __getstate__(self) -> dict[str, object]:
        raise TypeError("a ledger stays in its process: a copy would count for itself")
