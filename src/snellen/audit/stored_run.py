"""A run directory opened for reading, without its model and its data.

Whatever stands in the directory was written by somebody else: it is validated here, once, and a damaged or foreign
directory is told in one sentence.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from snellen.audit import findings as findings_format
from snellen.audit import manifest as manifest_format
from snellen.audit.findings import Severity
from snellen.audit.plan import Plan, build_probe, settings_of
from snellen.audit.store import PARTIAL, Store
from snellen.audit.tables import StoredTables
from snellen.errors import InvalidInput
from snellen.probe import Rows

_LABEL = re.compile(r"[\w-]+(/[\w-]+)*(#\d+)?")

_JOBS = pa.schema({"label": pa.string(), "key": pa.string()})

Scalar = str | int | float | bool | None
T = TypeVar("T")


def _inside_the_run(label: str) -> str:
    """Labels become paths below `results`."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is no probe's label")
    return label


class StoredModel(BaseModel):
    name: str
    fingerprint: str
    access: str
    task: str
    classes: tuple[str, ...]


class StoredData(BaseModel):
    name: str
    fingerprint: str
    samples: int
    quarantined: int
    attributes: tuple[str, ...]


class LeftOutProbe(BaseModel):
    probe: str
    reason: str


class FailedProbe(BaseModel):
    probe: str
    error: str


class UnreachedProbe(BaseModel):
    probe: str
    missing: int
    jobs: int


class Ledger(BaseModel):
    forward: float
    backward: float
    by_probe: dict[Annotated[str, AfterValidator(_inside_the_run)], dict[str, float]]


class Manifest(BaseModel):
    """What `manifest.json` says, as far as readers need it."""

    schema_version: int
    status: str
    model: StoredModel
    data: StoredData
    plan: Plan
    left_out: tuple[LeftOutProbe, ...]
    failed_jobs: tuple[FailedProbe, ...]
    stopped: str | None
    unreached: tuple[UnreachedProbe, ...]
    warnings: tuple[str, ...]
    started: str
    versions: dict[str, str]
    ledger: Ledger


class StoredFinding(BaseModel):
    """An object of `findings.json`."""

    schema_version: int
    id: str
    probe: str
    kind: str
    severity: Severity
    title: str
    subject: dict[str, Scalar]
    metric: str
    value: float | None
    baseline: float | None
    effect: float | None
    ci: tuple[float | None, float | None] | None
    n: int
    p_value: float | None
    q_value: float | None
    evidence: tuple[str, ...]
    repeat: str

    @property
    def interval(self) -> tuple[float, float] | None:
        """`ci` when both of its bounds are known."""
        if self.ci is None or self.ci[0] is None or self.ci[1] is None:
            return None
        return self.ci[0], self.ci[1]


class _Versioned(BaseModel):
    schema_version: int


@dataclass(frozen=True)
class StoredRun:
    """findings: gravest first. tables: probe name -> the rows of all its jobs, read when asked for."""

    url: str
    store: Store
    manifest: Manifest
    findings: tuple[StoredFinding, ...]
    tables: Mapping[str, Rows]

    @property
    def complete(self) -> bool:
        manifest = self.manifest
        return manifest.status == "finished" and not manifest.failed_jobs and not manifest.unreached

    @cached_property
    def classes(self) -> dict[str, str]:
        """Sample id -> name of its class, for every sample with a row that has a label."""
        names = self.manifest.model.classes
        found: dict[str, str] = {}
        for probe in self.tables:
            try:
                table = self.tables[probe]
            except InvalidInput:  # damaged, which is told where the probe itself is read
                continue
            if {"id", "label"} <= set(table.column_names):
                for sample, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
                    if isinstance(label, int) and 0 <= label < len(names):
                        found[sample] = names[label]
        return found

    def settings(self, probe: str) -> list[dict[str, object]]:
        """The settings, defaults included, of each line of the plan that names the probe.

        A probe that ran only because another one needs its rows is in no line and has the defaults.
        """
        lines = [line.build() for line in self.manifest.plan.probes if line.probe == probe]
        return [settings_of(built) for built in lines or [build_probe(probe, {})]]


def open_run(url: str) -> StoredRun:
    """The run directory at a local path or any fsspec address; `InvalidInput` when it is none or not readable."""
    store = Store(url, must_exist=True, listed=False)
    stored = store.read_bytes("manifest.json")
    if stored is None:
        raise InvalidInput(f"{url!r} is no run directory: it has no manifest.json")
    where = f"{url}/manifest.json"
    _check_version(_parsed(TypeAdapter(_Versioned), stored, where), manifest_format.SCHEMA_VERSION, where)
    manifest = _parsed(TypeAdapter(Manifest), stored, where)
    found = store.read_bytes("findings.json")
    if found is None:
        raise InvalidInput(
            f"{url!r} has no findings.json: the run is {manifest.status}; the command that began it resumes it"
        )
    where = f"{url}/findings.json"
    for item in _parsed(TypeAdapter(list[_Versioned]), found, where):
        _check_version(item, findings_format.SCHEMA_VERSION, where)
    findings = _parsed(TypeAdapter(tuple[StoredFinding, ...]), found, where)
    return StoredRun(url, store, manifest, findings, StoredTables(store, _files(store, url)))


def _files(store: Store, url: str) -> dict[str, list[str]]:
    """The files of every probe, in the order of its jobs; whole rows before partial ones."""
    content = store.read_bytes("jobs.parquet")
    if content is None:
        raise InvalidInput(
            f"{url!r} has no jobs.parquet: the run is not finished; the command that began it resumes it"
        )
    try:
        jobs = pq.read_table(io.BytesIO(content)).cast(_JOBS).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInput(f"{url}/jobs.parquet is damaged: {str(error).splitlines()[0]}") from error
    found: dict[str, list[str]] = {}
    listed: dict[str, set[str]] = {}
    for job in jobs:
        label, key = str(job["label"]), str(job["key"])
        if not _LABEL.fullmatch(label) or not re.fullmatch(r"[0-9a-f]{32}", key):
            raise InvalidInput(f"{url}/jobs.parquet is damaged: {label!r} {key!r} is no job")
        probe = label.partition("#")[0]
        if probe not in listed:
            listed[probe] = set(store.names(f"results/{probe}"))
        name = next((n for n in (f"{key}.parquet", f"{key}{PARTIAL}.parquet") if n in listed[probe]), None)
        if name is not None and (path := store.path("results", probe, name)) not in found.setdefault(probe, []):
            found[probe].append(path)
    return {probe: paths for probe, paths in found.items() if paths}


def _parsed(shape: TypeAdapter[T], stored: bytes, where: str) -> T:
    try:
        return shape.validate_json(stored)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{where} is damaged: {place + ': ' if place else ''}{first['msg']}") from error


def _check_version(stored: _Versioned, known: int, where: str) -> None:
    if stored.schema_version != known:
        age = "an older" if stored.schema_version < known else "a newer"
        raise InvalidInput(
            f"{where} was written by {age} snellen (schema_version {stored.schema_version}, this one reads {known});"
            " run the audit again with this version"
        )
