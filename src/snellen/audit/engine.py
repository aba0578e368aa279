"""An audit from end to end: inspect the data, run what is missing, judge, write the run directory."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from snellen.audit.executor import LocalExecutor
from snellen.audit.findings import Statement, repeat_command, statements, to_json
from snellen.audit.jobs import Entry, Job, LeftOut, analysis_job, expand, jobs_of
from snellen.audit.manifest import describe_run, quarantine_table
from snellen.audit.plan import Plan, settings_of
from snellen.audit.progress import Progress, Silent, Work
from snellen.audit.store import JobRecord, Store
from snellen.audit.tables import StoredTables
from snellen.data import Dataset, Geometry, Loader, align_classes, fingerprint
from snellen.errors import InvalidInput, SnellenError
from snellen.models import Model
from snellen.probe import Analysis, Context, Finding

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedJob:
    """A job whose probe raised; the run went on without it."""

    probe: str
    key: str
    error: str
    traceback: str


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
    budget_note: str | None = None
    warnings: list[str] = field(default_factory=list)


def loader_for(model: Model, dataset: Dataset) -> Loader:
    """Reads the data set as the model wants to see it."""
    spec = model.spec
    geometry = Geometry(spec.input_size, spec.crop_fraction, spec.interpolation, spec.channels)
    return Loader(dataset, geometry, model.device)


class Examination:
    """One audit being carried out. `prepare` looks at the data; `run` does the jobs."""

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
    ) -> None:
        """names: what the user called model and data, for the commands that repeat a statement. inputs: the flags that
        opened them, kept in the manifest so that `snellen report` can open them again."""
        self.progress = progress or Silent()
        self.model, self.plan = model, plan
        self.names = names or (model.spec.name, dataset.name)
        self.inputs = dict(inputs or {})
        self.begun = time.time()
        dataset = align_classes(dataset, model.spec.class_names, model.spec.class_aliases)
        spec = model.spec
        loader = loader_for(model, dataset)
        self.progress.note(f"inspecting {len(dataset)} images")
        inspection = loader.inspect()
        dataset, self.digests = inspection
        if len(dataset) == 0:
            reasons = {sample.reason for sample in dataset.quarantine}
            raise InvalidInput(
                f"none of the {len(dataset.quarantine)} samples can be used: {'; '.join(sorted(reasons)[:3])}"
            )
        context = Context(spec, dataset.table, dataset.attributes, plan.seed)
        entries, left_out = expand(plan, dataset, model.access)
        store = Store(out)
        found = [*(warnings or []), *dataset.warnings]
        self.audit = Audit(
            plan, model, loader, dataset, context, entries, left_out, store, StoredTables(store), warnings=found
        )
        self.executor = LocalExecutor(model, loader, plan.seed)
        self.jobs = {
            entry.label: jobs_of(entry, plan, spec, dataset, self.digests) for entry in entries if entry.touches_model
        }

    def run(self, compute: bool = True) -> Audit:
        """Do what is missing, judge everything, write the run directory. Ctrl-C leaves a directory to resume from.

        compute: False judges what is stored and runs no probe on the model.
        """
        self.compute = compute
        audit, store = self.audit, self.audit.store
        store.write(self.plan.to_yaml().encode(), "plan.yaml")
        store.write(quarantine_table(audit.dataset.quarantine), "quarantine.parquet")
        self._write_manifest("running")
        self.progress.begin([self._work(entry) for entry in audit.entries])
        try:
            for entry in audit.entries:
                trouble = self._run_probe(entry) if entry.touches_model else self._run_analysis(entry)
                self.progress.finish(entry.label, trouble)
        except KeyboardInterrupt:
            self._write_manifest("interrupted")
            raise
        audit.statements = self._judge()
        store.write(to_json(audit.statements), "findings.json")
        self._write_manifest("stopped by the budget" if audit.budget_note else "finished")
        return audit

    def _work(self, entry: Entry) -> Work:
        jobs = self.jobs.get(entry.label, [])
        done = sum(len(job.rows) for job in jobs if self.audit.store.has(entry.probe.name, job.key))
        return Work(entry.label, sum(len(job.rows) for job in jobs), done)

    def _run_probe(self, entry: Entry) -> str | None:
        audit = self.audit
        failed = 0
        for job in self.jobs[entry.label]:
            if audit.store.has(entry.probe.name, job.key):
                continue
            if not self.compute:
                continue
            if audit.budget_note:
                break
            try:
                result = self.executor.run(job, audit.tables, lambda images: self.progress.advance(entry.label, images))
            except Exception as error:  # any fault of a probe is that job's fault alone
                failed += 1
                self._failed(job, error)
                continue
            if result.rows is not None:
                out_of_budget = result.out_of_budget is not None
                audit.store.commit(entry.probe.name, job.key, result.rows, result.record, partial=out_of_budget)
            if result.out_of_budget is not None:
                audit.budget_note = str(result.out_of_budget)
        audit.tables.add(entry.label, entry.probe.name, [job.key for job in self.jobs[entry.label]])
        if failed:
            return f"{failed} of {len(self.jobs[entry.label])} jobs failed: {audit.failures[-1].error}"
        return audit.budget_note

    def _run_analysis(self, entry: Entry) -> str | None:
        audit = self.audit
        missing = [name for name in entry.probe.needs if name not in audit.tables]
        if missing:
            return f"there is no table {missing[0]!r} to read"
        partial = audit.budget_note is not None or bool(audit.failures)
        keys = {
            other.label: [job.key for job in self.jobs.get(other.label, [])]
            for other in audit.entries
            if other.probe.name in entry.probe.needs
        }
        job = analysis_job(entry, self.plan, self.model.spec, audit.context.samples, keys)
        self.jobs[entry.label] = [job]
        if partial or not audit.store.has(entry.probe.name, job.key):
            begun = time.perf_counter()
            try:
                rows = cast(Analysis, entry.probe).run(audit.tables, audit.context)
            except Exception as error:  # any fault of a probe is that job's fault alone
                self._failed(job, error)
                return audit.failures[-1].error
            record = JobRecord(0, 0, time.perf_counter() - begun)
            audit.store.commit(entry.probe.name, job.key, rows, record, partial=partial)
        audit.tables.add(entry.label, entry.probe.name, [job.key])
        return None

    def _failed(self, job: Job, error: Exception) -> None:
        described = str(error) if isinstance(error, SnellenError) else f"{type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))
        self.audit.failures.append(FailedJob(job.entry.label, job.key, described, text))
        log.debug("job %s of %s failed", job.key, job.entry.label, exc_info=error)

    def _judge(self) -> list[Statement]:
        audit = self.audit
        found: list[tuple[str, str, Finding]] = []
        for entry in audit.entries:
            table = audit.tables.get(entry.label)
            if table is None:
                continue
            settings = settings_of(entry.probe)
            repeat = repeat_command(entry.probe.name, *self.names, settings, entry.samples, self.plan.seed)
            try:
                found += [(entry.label, repeat, finding) for finding in entry.probe.findings(table, audit.context)]
            except Exception as error:  # the rows are safe; only the statements of this probe are missing
                self._failed(Job(entry, entry.rows, "findings"), error)
        return statements(found)

    def _write_manifest(self, status: str) -> None:
        data = fingerprint(self.audit.dataset.ids, self.audit.dataset.labels, self.digests)
        described = describe_run(self.audit, status, self.names, data, self.begun, self._costs(), self.inputs)
        self.audit.store.write(json.dumps(described, indent=1).encode(), "manifest.json")

    def _costs(self) -> dict[str, JobRecord]:
        """What each probe cost, summed over its finished jobs of this run and of those before it."""
        costs = {}
        for label in self.audit.tables:
            found = self.audit.tables.records(label)
            costs[label] = JobRecord(
                sum(record.forward for record in found),
                sum(record.backward for record in found),
                sum(record.seconds for record in found),
            )
        return costs
