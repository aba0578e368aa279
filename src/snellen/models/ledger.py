"""One account of everything asked of a model: forward images, backward images, remote requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from snellen.errors import BudgetExhausted, InvalidInput


@dataclass(frozen=True)
class LedgerTotals:
    """Images sent forward, images sent backward, remote requests."""

    forward: int = 0
    backward: int = 0
    requests: int = 0

    def __sub__(self, earlier: LedgerTotals) -> LedgerTotals:
        return LedgerTotals(
            self.forward - earlier.forward, self.backward - earlier.backward, self.requests - earlier.requests
        )

    def __add__(self, other: LedgerTotals) -> LedgerTotals:
        return LedgerTotals(
            self.forward + other.forward, self.backward + other.backward, self.requests + other.requests
        )


class QueryLedger:
    """Counts passes before they happen; a budget refuses the pass that would exceed it.

    budget: most images, forward and backward together, or None for no limit. Thread-safe.
    """

    def __init__(self, budget: int | None = None) -> None:
        if budget is not None and budget < 0:
            raise InvalidInput(f"budget must be at least 0 images, got {budget}")
        self.budget = budget
        self._totals = LedgerTotals()
        self._lock = threading.Lock()

    @property
    def totals(self) -> LedgerTotals:
        return self._totals

    @property
    def remaining(self) -> int | None:
        """Images left under the budget, None without one."""
        if self.budget is None:
            return None
        return self.budget - self._totals.forward - self._totals.backward

    def charge(self, forward: int = 0, backward: int = 0, requests: int = 0) -> None:
        """Book a pass that is about to happen. Raises `BudgetExhausted`, booking nothing, when it does not fit."""
        with self._lock:
            remaining = self.remaining
            if remaining is not None and forward + backward > remaining:
                raise BudgetExhausted(
                    f"the query budget of {self.budget} images is used up: {remaining} are left and the next pass"
                    f" needs {forward + backward}; give a larger --budget to go on"
                )
            self._totals += LedgerTotals(forward, backward, requests)
