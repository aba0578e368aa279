"""An audit from end to end: inspect the data, run what is missing, judge, write the run directory."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import pyarrow as pa

from snellen.audit.executor import Executor, LocalExecutor, Worker, described
from snellen.audit.findings import Statement, repeat_command, statements, to_json
from snellen.audit.jobs import Entry, Job, analysis_job, expand, jobs_of, most_telling_first
from snellen.audit.journal import Journal
from snellen.audit.manifest import as_parquet, describe_run, quarantine_table
from snellen.audit.plan import Plan, settings_of
from snellen.audit.progress import Progress, Silent, Work
from snellen.audit.ray_executor import RayExecutor
from snellen.audit.record import Audit, FailedJob, Unreached
from snellen.audit.scheduling import Schedule
from snellen.audit.store import JobRecord, Store, total_cost
from snellen.audit.tables import StoredTables
from snellen.data import Dataset, Geometry, Loader, align_classes, fingerprint
from snellen.errors import InvalidInput
from snellen.models import LedgerTotals, Model
from snellen.probe import Analysis, Context, Finding

log = logging.getLogger(__name__)


def loader_for(model: Model, dataset: Dataset) -> Loader:
    """Reads the data set as the model wants to see it."""
    spec = model.spec
    geometry = Geometry(spec.input_size, spec.crop_fraction, spec.interpolation, spec.channels)
    return Loader(dataset, geometry, model.device)


def executor_of(name: str, worker: Worker, progress: Progress, workers: int | None = None) -> Executor:
    """The executor that a user names."""
    if name == "local":
        if workers not in (None, 1):
            raise InvalidInput(f"the local executor has one worker, got {workers}; use --executor ray for more")
        return LocalExecutor(worker, progress.advance)
    if name in ("ray", "ray:auto") or name.startswith("ray://"):
        address = {"ray": os.environ.get("RAY_ADDRESS"), "ray:auto": "auto"}.get(name, name)
        return RayExecutor(worker, progress.advance, address, workers)
    raise InvalidInput(f"executor must be local, ray, ray:auto or ray://HOST:PORT, got {name!r}")


class Examination:
    """One audit being carried out: to make it inspects the data, `run` does the jobs."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        plan: Plan,
        out: str,
        *,
        progress: Progress | None = None,
        names: tuple[str, str] | None = None,
        warnings: list[str] | None = None,
        inputs: Mapping[str, object] | None = None,
        executor: str = "local",
        workers: int | None = None,
    ) -> None:
        """executor: "local", "ray" (at `RAY_ADDRESS`, else made for the run), "ray:auto" or "ray://HOST:PORT".
        workers: Ray actors, None for one a device. names: what the user called model and data, for the commands that
        repeat a statement. inputs: the flags that opened them, kept so that `snellen report` can open them again."""
        self.progress = progress or Silent()
        self.model, self.plan = model, plan
        self.names = names or (model.spec.name, dataset.name)
        self.inputs = dict(inputs or {})
        self.begun = time.time()
        store = Store(out)  # first: where nothing can be stored, nothing need be read
        dataset = align_classes(dataset, model.spec.class_names, model.spec.class_aliases)
        spec = model.spec
        loader = loader_for(model, dataset)
        pa.default_memory_pool().release_unused()  # what reading the list of images needed meanwhile
        self.progress.note(f"inspecting {len(dataset)} images")
        dataset, self.digests = loader.inspect()
        pa.default_memory_pool().release_unused()
        if len(dataset) == 0:
            reasons = {sample.reason for sample in dataset.quarantine}
            raise InvalidInput(
                f"none of the {len(dataset.quarantine)} samples can be used: {'; '.join(sorted(reasons)[:3])}"
            )
        context = Context(spec, dataset.table, dataset.attributes, plan.seed)
        entries, left_out = expand(plan, dataset, model.access)
        if model.ledger.limited:
            entries = most_telling_first(entries)
        found = [*(warnings or []), *dataset.warnings]
        self.audit = Audit(
            plan,
            model,
            loader,
            dataset,
            context,
            entries,
            left_out,
            store,
            StoredTables(store),
            warnings=found,
            inputs=self.inputs,
        )
        self.journal = Journal(store, model.ledger)
        self.worker = Worker(model, loader, plan.seed, store)
        self.executor = executor_of(executor, self.worker, self.progress, workers)
        self.jobs = {entry.label: jobs_of(entry, plan, spec, self.digests) for entry in entries if entry.touches_model}
        self.analyses: dict[str, Job] = {}

    def run(self, compute: bool = True) -> Audit:
        """Do what is missing, judge everything, write the run directory. Ctrl-C leaves a directory to resume from.

        compute: False judges what is stored and runs no probe on the model.
        """
        audit, store = self.audit, self.audit.store
        store.write(self.plan.to_yaml().encode(), "plan.yaml")
        store.write(quarantine_table(audit.dataset.quarantine), "quarantine.parquet")
        self._write_manifest("running")
        self.progress.begin([self._work(entry) for entry in audit.entries])
        ledger = self.model.ledger
        ledger.attach(self.journal.earlier(), self.journal)
        try:
            Schedule(audit, self.jobs, self.executor, self.progress).run(self._run_analysis, compute)
        except KeyboardInterrupt:
            self._write_manifest("interrupted")
            raise
        finally:
            self.executor.close()
            ledger.attach(LedgerTotals(), None)
            self.journal.close()
        audit.statements = self._judge()
        audit.unreached = self._unreached()
        store.write(to_json(audit.statements), "findings.json")
        store.write(self._jobs_table(), "jobs.parquet")
        unfinished = "stopped early" if audit.stopped else "incomplete" if audit.unreached else None
        self._write_manifest(unfinished or "finished")
        return audit

    def _work(self, entry: Entry) -> Work:
        jobs = self.jobs.get(entry.label)
        if jobs is None:
            return Work(entry.label, 0, 0)
        done = sum(len(job.rows) for job in jobs if self.audit.store.has(entry.probe.name, job.key))
        return Work(entry.label, jobs.images, done)

    def _run_analysis(self, entry: Entry) -> str | None:
        audit = self.audit
        missing = [name for name in entry.probe.needs if name not in audit.tables]
        if missing:
            return f"there is no table {missing[0]!r} to read"
        needed = {
            other.label: self.jobs.get(other.label) or [self.analyses[other.label]]
            for other in audit.entries
            if other.probe.name in entry.probe.needs and (other.touches_model or other.label in self.analyses)
        }
        job = analysis_job(entry, self.plan, self.model.spec, audit.context.samples, needed)
        self.analyses[entry.label] = job
        read = [one for jobs in needed.values() for one in jobs]
        partial = not all(audit.store.has(one.entry.probe.name, one.key) for one in read)
        if partial or not audit.store.has(entry.probe.name, job.key):
            begun = time.perf_counter()
            try:
                rows = cast(Analysis, entry.probe).run(audit.tables, audit.context)
            except Exception as error:  # any fault of a probe is that job's fault alone
                self._failed(entry.label, job.key, error)
                return audit.failures[-1].error
            record = JobRecord(0, 0, time.perf_counter() - begun)
            audit.store.commit(entry.probe.name, job.key, rows, record, partial=partial)
        audit.tables.add(entry.label, entry.probe.name, [job.key])
        return None

    def _failed(self, label: str, key: str, error: Exception) -> None:
        self.audit.failures.append(FailedJob(label, key, described(error), "".join(traceback.format_exception(error))))
        log.debug("job %s of %s failed", key, label, exc_info=error)

    def _judge(self) -> list[Statement]:
        audit = self.audit
        found: list[tuple[str, str, Finding]] = []
        for entry in audit.entries:
            table = audit.tables.get(entry.label)
            if table is None:
                continue
            settings = settings_of(entry.probe)
            repeat = repeat_command(entry.probe.name, *self.names, settings, entry.samples, self.plan.seed, self.inputs)
            try:
                mine = entry.probe.findings(table, audit.context)
            except Exception as error:  # the rows are safe; only the statements of this probe are missing
                self._failed(entry.label, "findings", error)
                continue
            if note := self._incomplete(entry):
                mine = [replace(finding, title=finding.title.rstrip(".") + note) for finding in mine]
            found += [(entry.label, repeat, finding) for finding in mine]
        return statements(found)

    def _jobs_table(self) -> bytes:
        """The jobs that this run is made of: a directory may hold those of other plans and models too."""
        made: dict[str, Sequence[Job]] = {**self.jobs, **{label: [job] for label, job in self.analyses.items()}}
        parts = [pa.table({"label": pa.array([], pa.string()), "key": pa.array([], pa.string())})]
        parts += [
            pa.table({"label": pa.repeat(label, len(jobs)), "key": pa.array((job.key for job in jobs), pa.string())})
            for label, jobs in made.items()
        ]
        return as_parquet(pa.concat_tables(parts))

    def _incomplete(self, entry: Entry) -> str:
        """What the titles of a probe must add when it did not see all its samples."""
        jobs = self.jobs.get(entry.label)
        if jobs is None or all(self.audit.store.has(entry.probe.name, job.key) for job in jobs):
            return ""
        there = sum(len(job.rows) for job in jobs if self.audit.store.has(entry.probe.name, job.key))
        return f" (the run stopped early: {there:,} of {jobs.images:,} images done, in the data's order)"

    def _unreached(self) -> list[Unreached]:
        """Entries of which jobs are missing although none of them failed."""
        audit = self.audit
        failed = {failure.key for failure in audit.failures}
        found = []
        for label, jobs in self.jobs.items():
            name = jobs.entry.probe.name
            missing = sum(1 for job in jobs if not audit.store.has(name, job.key) and job.key not in failed)
            if missing:
                found.append(Unreached(label, missing, len(jobs)))
        return found

    def _write_manifest(self, status: str) -> None:
        spent = self.journal.earlier() + self.journal.spent
        described = describe_run(
            self.audit, status, self.names, fingerprint(self.digests), self.begun, self._costs(), spent, self.inputs
        )
        self.audit.store.write(json.dumps(described, indent=1).encode(), "manifest.json")

    def _costs(self) -> dict[str, JobRecord]:
        """What each probe cost, summed over its finished jobs of this run and of those before it."""
        return {label: total_cost(self.audit.tables.records(label)) for label in self.audit.tables}
