"""What a run is and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from snellen.audit.findings import Statement
from snellen.audit.jobs import Entry, LeftOut
from snellen.audit.plan import Plan
from snellen.audit.store import Store
from snellen.audit.tables import StoredTables
from snellen.data import Dataset, Loader
from snellen.models import Model
from snellen.probe import Context


@dataclass(frozen=True)
class FailedJob:
    """A job whose probe raised; the run went on without it."""

    probe: str
    key: str
    error: str
    traceback: str


@dataclass(frozen=True)
class Unreached:
    """A probe of which `missing` of `jobs` jobs were not reached before the run stopped."""

    probe: str
    missing: int
    jobs: int


@dataclass
class Audit:
    """A run: finished, or stopped by its budget, with what it found.

    tables: the rows of every probe that has any, read when asked for. failures: jobs that raised.
    """

    plan: Plan
    model: Model
    loader: Loader
    dataset: Dataset
    context: Context
    entries: list[Entry]
    left_out: list[LeftOut]
    store: Store
    tables: StoredTables
    statements: list[Statement] = field(default_factory=list)
    failures: list[FailedJob] = field(default_factory=list)
    stopped: str | None = None
    """Why not everything was done: the budget, the time limit, or a server that no longer answers."""
    unreached: list[Unreached] = field(default_factory=list)
    inputs: Mapping[str, object] = field(default_factory=dict)
    """The flags that opened model and data."""
    warnings: list[str] = field(default_factory=list)
