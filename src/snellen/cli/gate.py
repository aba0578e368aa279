"""`snellen gate`: does a run keep a policy?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from snellen.audit.gate import Verdict, judge
from snellen.audit.policy import load_policy
from snellen.audit.stored_run import open_run
from snellen.cli.output import write_file
from snellen.report.page import interval, number
from snellen.report.verdicts import MARKS, junit_xml, markdown_summary

BROKEN = 1
COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow"}


def run_gate(
    run: str, policy: Path, baseline: str | None, junit: Path | None, summary: Path | None, as_json: bool
) -> int:
    """The whole command; returns the exit status: 0 the policy is kept, 1 it is not."""
    rules = load_policy(policy)
    examined = open_run(run)
    verdicts = judge(rules, examined, None if baseline is None else open_run(baseline))
    kept = all(verdict.accepted for verdict in verdicts)
    if junit is not None:
        write_file("--junit", junit, junit_xml(verdicts, run))
    if summary is not None:
        write_file("--summary", summary, markdown_summary(verdicts, run).encode())
    if as_json:
        sys.stdout.write(json.dumps({"kept": kept, "verdicts": [v.to_json() for v in verdicts]}, indent=1) + "\n")
        return 0 if kept else BROKEN
    console = Console()
    if not examined.complete:
        Console(stderr=True).print(f"[yellow]warning:[/yellow] the run is {examined.manifest.status}, not whole")
    console.print(_table(verdicts))
    for verdict in verdicts:
        if verdict.decision != "passed":
            console.print(f"{MARKS[verdict.decision]} {verdict.name}: {verdict.detail}", markup=False, highlight=False)
            for line in (verdict.why, verdict.repeat):
                if line:
                    console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    return 0 if kept else BROKEN


def _table(verdicts: list[Verdict]) -> Table:
    passed = sum(verdict.decision == "passed" for verdict in verdicts)
    table = Table(title=f"{passed} of {len(verdicts)} conditions passed", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("condition", ratio=1)
    for name in ("value", "95 % interval", "bound", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in verdicts:
        colour = COLOURS[verdict.decision]
        table.add_row(
            f"[{colour}]{MARKS[verdict.decision]}[/{colour}]",
            escape(verdict.name),
            number(verdict.value),
            interval(verdict.interval),
            number(verdict.bound),
            number(verdict.n),
        )
    return table
