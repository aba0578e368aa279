"""`snellen audit`."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from snellen.audit import Audit, Examination, Plan, load_plan
from snellen.audit.findings import to_json
from snellen.audit.forecast import Forecast, forecast
from snellen.cli.errors import FAILED_JOBS, INTERRUPTED
from snellen.cli.inputs import ModelFlags, load_inputs, refuse_secrets
from snellen.cli.screen import ProgressScreen, findings_table
from snellen.errors import InvalidInput
from snellen.report import write_report


def run_audit(
    model: str,
    data: str,
    flags: ModelFlags,
    preset: str | None,
    plan_file: Path | None,
    out: str | None,
    seed: int | None,
    dry_run: bool,
    as_json: bool,
    executor: str = "local",
    workers: int | None = None,
) -> int:
    """The whole command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    console = Console(stderr=True)
    refuse_secrets(out or "")
    plan = _plan(preset, plan_file, seed)
    inputs = load_inputs(model, data, flags)
    for warning in inputs.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
    out = out or f"runs/{_slug(model)}-{_slug(data)}-{plan.name}"
    with ProgressScreen(console) as screen:
        examination = Examination(
            inputs.model,
            inputs.dataset,
            plan,
            out,
            progress=screen,
            names=(model, data),
            warnings=inputs.warnings,
            inputs=flags.to_json(),
            executor=executor,
            workers=workers,
        )
        if not dry_run:
            try:
                audit = examination.run()
            except KeyboardInterrupt:
                console.print(
                    f"interrupted; finished jobs are kept. To go on: {shlex.join(['snellen', *sys.argv[1:]])}"
                )
                return INTERRUPTED
    if dry_run:
        _print_forecast(forecast(examination), examination.audit, as_json)
        return 0
    report = write_report(audit, (model, data))
    if as_json:
        sys.stdout.write(to_json(audit.statements).decode() + "\n")
    else:
        _summarise(audit, report, Console())
    return FAILED_JOBS if audit.failures else 0


def _plan(preset: str | None, plan_file: Path | None, seed: int | None) -> Plan:
    if preset and plan_file:
        raise InvalidInput("give either --preset or --plan, not both")
    plan = load_plan(str(plan_file) if plan_file else preset or "quick")
    return plan if seed is None else plan.model_copy(update={"seed": seed})


def _summarise(audit: Audit, report: str, console: Console) -> None:
    quarantined = len(audit.dataset.quarantine)
    console.print(findings_table(audit.statements))
    if quarantined:
        console.print(
            f"not used: {quarantined} of {quarantined + len(audit.dataset)} samples; quarantine.parquet says why"
        )
    for item in audit.left_out:
        console.print(f"left out: {item.probe} ({item.reason})", markup=False)
    if audit.stopped:
        console.print(f"stopped early: {audit.stopped}", markup=False)
    for missed in audit.unreached:
        console.print(f"not reached: {missed.probe} ({missed.missing} of {missed.jobs} jobs)", markup=False)
    for failure in audit.failures:
        console.print(f"failed: {failure.probe}: {failure.error}", markup=False, style="red")
    console.print(f"report: {report}", markup=False, soft_wrap=True)


def _print_forecast(lines: list[Forecast], audit: Audit, as_json: bool) -> None:
    if as_json:
        stored = [{**line._asdict(), "passes": vars(line.passes), "seconds": _known(line.seconds)} for line in lines]
        sys.stdout.write(json.dumps({"jobs": stored, "left_out": [vars(item) for item in audit.left_out]}) + "\n")
        return
    table = Table(
        "probe", "jobs", "finished", "images", "forward", "backward", "about", title="Dry run: nothing was run"
    )
    for line in lines:
        cells = (line.jobs, line.finished, line.images, round(line.passes.forward), round(line.passes.backward))
        table.add_row(line.label, *(f"{cell:,}" for cell in cells), _duration(line.seconds))
    total = sum(line.seconds for line in lines)
    table.add_row("[bold]all", "", "", "", "", "", f"[bold]{_duration(total)}")
    console = Console()
    console.print(table)
    if math.isnan(total):
        console.print("The server was not asked, so that its time an image is not known.")
    else:
        console.print("Time is that of the passes alone, measured on this machine just now; the rest adds a little.")
    for item in audit.left_out:
        console.print(f"left out: {item.probe} ({item.reason})", markup=False)


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-40:] or "run"
