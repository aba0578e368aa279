"""`snellen compare`: two runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from snellen.audit.compare import Change, Comparison, compare
from snellen.audit.findings import SIGNIFICANT
from snellen.audit.stored_run import StoredFinding, open_run
from snellen.cli.output import write_file
from snellen.cli.screen import COLOURS
from snellen.report.comparison import WHAT_CHANGED, comparison_json, concerns, condition_of, render_comparison
from snellen.report.page import interval, number

SHOWN = 15


def run_compare(before: str, after: str, out: Path | None, as_json: bool) -> int:
    """The whole command; returns the exit status."""
    comparison = compare(open_run(before), open_run(after))
    if out is not None:
        write_file("--out", out, render_comparison(comparison).encode())
    if as_json:
        sys.stdout.write(comparison_json(comparison) + "\n")
        return 0
    _print(comparison, Console())
    if out is not None:
        Console().print(f"page: {out}", markup=False, soft_wrap=True)
    return 0


def _print(comparison: Comparison, console: Console) -> None:
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, style="yellow")
    changes = [change for change in comparison.changes if concerns(change)]
    console.print(_changes_table(changes))
    console.print(_pairs_table(comparison))
    for item in comparison.refused:
        console.print(f"not paired: {item.probe} ({item.reason})", markup=False, highlight=False)


def _changes_table(changes: list[Change]) -> Table:
    title = f"{len(changes)} changed statements" + (f", the {SHOWN} gravest" if len(changes) > SHOWN else "")
    table = Table("change", "statement", "first", "second", title=title, title_justify="left")
    table.columns[1].ratio = 1
    for change in changes[:SHOWN]:
        table.add_row(
            WHAT_CHANGED[change.kind], escape(change.finding.title), _side(change.before), _side(change.after)
        )
    return table


def _side(finding: StoredFinding | None) -> str:
    if finding is None:
        return ""
    colour = COLOURS[finding.severity]
    return f"[{colour}]{finding.severity}[/{colour}] {number(finding.value)}"


def _pairs_table(comparison: Comparison) -> Table:
    whole = [row for row in comparison.pairs if not row.group]
    marked = [row for row in comparison.pairs if row.q_value <= SIGNIFICANT]
    shown = sorted(comparison.pairs, key=lambda row: (row.q_value, -abs(row.difference)))[:SHOWN]
    title = (
        f"{len(comparison.pairs)} paired tests ({len(whole)} conditions, the others by class),"
        f" {len(marked)} with q up to {SIGNIFICANT:g}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("condition", ratio=1)
    for name in ("first and second", "95 % of difference", "q", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in shown:
        table.add_row(
            escape(f"{row.probe}: {condition_of(row)}"),
            f"{number(row.before)}  {number(row.after)}",
            interval((row.low, row.high)),
            f"{row.q_value:.1g}",
            number(row.n),
        )
    return table
