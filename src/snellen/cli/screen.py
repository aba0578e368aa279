"""Tables and progress on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from snellen.audit import Statement
from snellen.audit.progress import Work

COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}


class ProgressScreen:
    """A bar a probe and one over all, on stderr, so that stdout stays for results."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._overall: TaskID | None = None

    def __enter__(self) -> ProgressScreen:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, work: Sequence[Work]) -> None:
        total, done = sum(item.images for item in work), sum(item.done for item in work)
        self._overall = self._bars.add_task("[bold]all probes", total=total, completed=done, rate="")
        for item in work:
            if item.images:
                self._tasks[item.label] = self._bars.add_task(
                    item.label, total=item.images, completed=item.done, rate="", start=False
                )
        if done:
            self.note(f"resumed: {done} of {total} sample passes were already there")

    def advance(self, label: str, images: int) -> None:
        for task in (self._tasks.get(label), self._overall):
            if task is None:
                continue
            if not self._bars.tasks[self._bars.task_ids.index(task)].started:
                self._bars.start_task(task)
            self._bars.advance(task, images)
            speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
            self._bars.update(task, rate=f"{speed:,.1f}/s" if speed else "")

    def finish(self, label: str, trouble: str | None = None) -> None:
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))
        mark = "[yellow]![/yellow]" if trouble else "[green]✓[/green]"
        self._console.print(f" {mark} {label}" + (f"  [yellow]{escape(trouble)}[/yellow]" if trouble else ""))

    def note(self, text: str) -> None:
        self._console.print(f"[dim]{escape(text)}[/dim]")


def findings_table(statements: Sequence[Statement], shown: int = 10) -> Table:
    """The gravest findings."""
    counts = {level: sum(s.severity == level for s in statements) for level in COLOURS}
    summary = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    table = Table(title=f"{len(statements)} findings ({summary or 'none'})", title_justify="left", show_lines=False)
    table.add_column("severity", no_wrap=True)
    table.add_column("finding", ratio=1)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for statement in statements[:shown]:
        colour = COLOURS[statement.severity]
        finding = statement.finding
        interval = "" if finding.ci is None else f"{finding.ci[0]:.3f} to {finding.ci[1]:.3f}"
        label = f"[{colour}]{statement.severity}[/{colour}]"
        table.add_row(label, escape(statement.title), interval, f"{finding.n:,}")
    return table
