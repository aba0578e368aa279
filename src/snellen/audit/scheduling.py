"""Handing jobs to an executor, taking in what came of them, and making tables readable when they are whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from snellen.audit.executor import Executor, Outcome, Task
from snellen.audit.jobs import Entry, Job, Jobs
from snellen.audit.progress import Progress
from snellen.audit.record import Audit, FailedJob
from snellen.errors import BudgetExhausted, ModelUnavailable


class Schedule:
    """The jobs of one run on their way. What fails and what stops the run is noted in the audit."""

    def __init__(self, audit: Audit, jobs: Mapping[str, Jobs], executor: Executor, progress: Progress) -> None:
        self.audit = audit
        self.jobs = jobs
        self.executor = executor
        self.progress = progress
        self._open: dict[str, int] = {}
        self._in_flight = 0
        self._tried = not audit.model.remote

    def run(self, analyse: Callable[[Entry], str | None], compute: bool = True) -> None:
        """Every entry in order; an executor that takes several jobs at a time gets those of the next entry too.

        analyse: does an entry that only reads tables, and says what went wrong. compute: False hands out no job.
        """
        for entry in self.audit.entries:
            if set(entry.probe.needs) & {name.partition("#")[0] for name in self._open}:
                self._settle()
            if not entry.touches_model:
                self.progress.finish(entry.label, analyse(entry))
                continue
            self._open[entry.label] = 1  # held open until all its jobs are handed over
            for job in self.jobs[entry.label]:
                if not compute:
                    break
                if self.audit.store.has(entry.probe.name, job.key):
                    continue
                while self._in_flight >= self.executor.capacity:
                    self._take(self.executor.wait())
                if not self._can_go_on():
                    break
                self.executor.submit(self._task(job))
                self._in_flight += 1
                self._open[entry.label] += 1
            self._close(entry.label)
        self._settle()

    def _task(self, job: Job) -> Task:
        probe = job.entry.probe
        tables = {name: self.audit.tables.files[name] for name in probe.needs if name in self.audit.tables.files}
        return Task(job.entry.label, probe, job.key, job.rows, tables)

    def _can_go_on(self) -> bool:
        """A remote model is asked one image, on the books, before the first job: a wrong spec fails once, not often."""
        if not self._tried and self.audit.stopped is None:
            self._tried = True
            try:
                self.audit.model.try_out()
            except (BudgetExhausted, ModelUnavailable) as error:
                self.audit.stopped = str(error)
        return self.audit.stopped is None

    def _settle(self) -> None:
        while self._in_flight:
            self._take(self.executor.wait())

    def _take(self, outcome: Outcome) -> None:
        audit, task = self.audit, outcome.task
        self._in_flight -= 1
        if outcome.written:
            audit.store.note(task.probe.name, task.key, outcome.partial)
        if outcome.error is not None:
            audit.failures.append(FailedJob(task.label, task.key, outcome.error, outcome.traceback))
        if outcome.stopped is not None and audit.stopped is None:
            audit.stopped = outcome.stopped
        self._close(task.label)

    def _close(self, label: str) -> None:
        """One of an entry's jobs less; after the last one its table can be read."""
        audit = self.audit
        self._open[label] -= 1
        if self._open[label]:
            return
        del self._open[label]
        jobs = self.jobs[label]
        audit.tables.add(label, jobs.entry.probe.name, (job.key for job in jobs))
        mine = [failure for failure in audit.failures if failure.probe == label]
        trouble = f"{len(mine)} of {len(jobs)} jobs failed: {mine[-1].error}" if mine else None
        if not mine and len(audit.tables.files.get(label, ())) < len(jobs):
            trouble = audit.stopped
        self.progress.finish(label, trouble)
