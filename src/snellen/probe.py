"""The hinge: what a method owes the engine, and the registry where they meet.

A probe is a frozen dataclass whose fields are the method's settings. Three kinds share the contract: SAMPLE probes
see one batch at a time and can be sharded, DATASET probes see the whole set in one job, ANALYSIS probes read stored
tables only and never touch the model.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import entry_points
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model, ModelSpec
from snellen.randomness import SampleRandom

FAMILIES = ("performance", "shift", "attack", "certify", "uncertainty", "explain", "discovery", "repair")

Kind = Literal[
    "accuracy", "calibration", "subgroup", "slice", "shift", "attack", "certificate", "shortcut", "label-noise",
    "backdoor", "threshold", "explanation", "repair",
]  # fmt: skip

Rows: TypeAlias = pa.Table
"""Arrow columns; for SAMPLE probes the first is `id`, with one row a sample or one a sample and condition."""

log = logging.getLogger(__name__)


class Scope(Enum):
    SAMPLE = "sample"  #: batch in, rows out; the engine shards it
    DATASET = "dataset"  #: one job over the whole set
    ANALYSIS = "analysis"  #: one job over stored tables, no model


@dataclass(frozen=True)
class Passes:
    """Images sent forward and backward that the algorithm cannot do without."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Batch:
    """ids: B strings. images: float32 `[B, C, H, W]` in [0, 1] on the model's device. labels: int64 `[B]` there.
    masks: bool `[B, H, W]` there, True on the object, nowhere for a sample without a mask; None when no sample has one.
    """

    ids: Sequence[str]
    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Samples(Protocol):
    """What a DATASET probe sees: a sized, re-readable series of batches."""

    def __len__(self) -> int: ...
    def batches(self, batch_size: int | None = None) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Context:
    """What analyses and findings may know besides their own table.

    samples: Arrow table with `id`, `label` (int64, index into spec.class_names) and one column an attribute.
    """

    spec: ModelSpec
    samples: pa.Table
    attributes: tuple[str, ...] = ()
    seed: int = 0

    def random(self, purpose: str) -> np.random.Generator:
        """A seeded stream for bootstraps, permutations and splits."""
        return SampleRandom(self.seed, purpose).numpy()


@dataclass(frozen=True)
class Finding:
    """One statement about the model. The engine adds id, severity, q-value and the command that repeats it.

    effect: harm on the scale of accuracy, 0 (none) to 1; it decides the severity together with the q-value. For
    measures that are not an accuracy the probe says in its docstring how it maps them. evidence: sample ids, the
    most telling first. ci: 95 % interval of `value`. p_value: of the null that there is no harm, None where no test was
    made (then `ci` decides).
    """

    kind: Kind
    title: str
    metric: str
    value: float | None
    effect: float
    n: int
    subject: Mapping[str, str | int | float] = field(default_factory=dict)
    measured: tuple[str, ...] = ()
    """Keys of `subject` that came out of this run, such as a threshold; they are no part of the statement's id."""
    baseline: float | None = None
    ci: tuple[float, float] | None = None
    p_value: float | None = None
    evidence: Sequence[str] = ()
    enough_data: bool = True
    """False when n is too small to decide; the title then says how many are needed and the severity is info."""


@runtime_checkable
class Probe(Protocol):
    """A method with its settings. `run` depends on the scope; see `SampleProbe`, `DatasetProbe`, `Analysis`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    card: ClassVar[str | None]
    access: ClassVar[Access]
    scope: ClassVar[Scope]
    needs: ClassVar[tuple[str, ...]]
    version: ClassVar[int]

    @property
    def needs_masks(self) -> bool: ...
    def cost(self, batch_size: int) -> Passes: ...
    def findings(self, table: Rows, context: Context) -> list[Finding]: ...
    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]: ...


class Condition(NamedTuple):
    """The images of a batch `[B, C, H, W]` after one shift.

    severity: on the method's own axis, 0 is untouched. kept: bool `[B]`, False where the shift could not be made of an
    image, which then has no row; None keeps all.
    """

    name: str
    severity: float
    images: Tensor
    kept: Tensor | None = None


@runtime_checkable
class Showable(Protocol):
    """A probe that changes images and can show how: `snellen run NAME ... --show` draws its conditions."""

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]: ...


class SampleProbe(Probe, Protocol):
    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows: ...


class DatasetProbe(Probe, Protocol):
    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows: ...


class Analysis(Probe, Protocol):
    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows: ...


class ProbeBase:
    """Defaults for the parts of the contract that most probes do not need."""

    card: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1

    @property
    def needs_masks(self) -> bool:
        """Whether it can do nothing on a data set without object masks."""
        return False

    def cost(self, batch_size: int) -> Passes:
        return Passes()

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return []

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return []


P = TypeVar("P", bound="type[Probe]")

_registry: dict[str, type[Probe]] = {}
_loaded = False


def register(probe: P) -> P:
    """Class decorator that makes a probe known to the engine under its `name`."""
    known = _registry.get(probe.name)
    if known is not None and known.__module__ != probe.__module__:
        raise InvalidInput(f"two probes are called {probe.name!r}: {known.__module__} and {probe.__module__}")
    _registry[probe.name] = probe
    return probe


def all_probes() -> dict[str, type[Probe]]:
    """Every registered probe by name: the families of this package, then the entry points `snellen.probes`."""
    global _loaded
    if not _loaded:
        for family in FAMILIES:
            package = importlib.import_module(f"snellen.{family}")
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{package.__name__}.{module.name}")
        for entry in entry_points(group="snellen.probes"):
            try:
                entry.load()
            except Exception:  # a broken plug-in must not take the examination down with it
                log.warning("the probe plug-in %s could not be loaded", entry.value, exc_info=True)
        _loaded = True
    return dict(sorted(_registry.items()))


def get_probe(name: str) -> type[Probe]:
    """The probe called `name`; the error names the nearest ones."""
    probes = all_probes()
    if name in _functions:
        method = _functions[name]
        raise InvalidInput(
            f"{name} works on {method.data}, which the engine does not read; use the functions of {method.module}"
        )
    if name not in probes:
        near = difflib.get_close_matches(name, probes, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InvalidInput(f"there is no probe {name!r}{hint} (`snellen methods` lists all)")
    return probes[name]


@dataclass(frozen=True)
class FunctionMethod:
    """A method offered as plain functions over any callable, because the engine does not handle its data yet.

    data: what it works on, for example "point clouds". module: where its functions are; the module's docstring is its
    documentation and `__all__` its public functions.
    """

    name: str
    paper: str
    card: str | None
    access: Access
    data: str
    module: str


_functions: dict[str, FunctionMethod] = {}


def register_functions(name: str, *, paper: str, card: str | None, access: Access, data: str, module: str) -> None:
    """Make a method that is not a probe known to `snellen methods` and to the docs. `module` is its `__name__`."""
    known = _functions.get(name)
    if name in _registry or (known is not None and known.module != module):
        raise InvalidInput(f"two methods are called {name!r}: one in {module}")
    _functions[name] = FunctionMethod(name, paper, card, access, data, module)


def function_methods() -> dict[str, FunctionMethod]:
    """Every method registered by `register_functions`, by name."""
    all_probes()
    return dict(sorted(_functions.items()))


def rows(ids: Sequence[str], **columns: Tensor | np.ndarray | Sequence[object]) -> Rows:
    """An Arrow table with `id` first. Tensors and arrays of two dimensions become list columns."""
    arrays: dict[str, pa.Array] = {"id": pa.array(ids, pa.string())}
    for name, values in columns.items():
        arrays[name] = _arrow(values)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInput(f"rows need columns of one length, got {lengths}")
    return pa.table(arrays)


def _arrow(values: Tensor | np.ndarray | Sequence[object]) -> pa.Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy().copy()  # Arrow would share memory with a tensor that may change
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(0, values.size + 1, max(values.shape[1], 1), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))
    return pa.array(values)
