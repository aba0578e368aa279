"""`snellen report`: the page of a run that is already there."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from snellen.audit import Examination, Plan
from snellen.audit.store import Store
from snellen.cli.inputs import ModelFlags, load_inputs
from snellen.cli.screen import findings_table
from snellen.errors import InvalidInput
from snellen.report import write_report


def rebuild_report(run_directory: str, model: str | None, data: str | None) -> int:
    """Opens the run's model and data again, judges the stored rows and writes the page. No probe runs."""
    stored = Store(run_directory, must_exist=True).read_bytes("manifest.json")
    if stored is None:
        raise InvalidInput(f"{run_directory!r} is no run directory: it has no manifest.json")
    try:
        manifest = json.loads(stored)
        flags = dict(manifest["inputs"])
        plan = Plan.model_validate(manifest["plan"])
        names = (model or manifest["model"]["name"], data or manifest["data"]["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{run_directory}/manifest.json cannot be read: {error}") from error
    if flags.get("classes"):
        flags["classes"] = Path(flags["classes"])
    inputs = load_inputs(*names, ModelFlags(**flags))
    examination = Examination(
        inputs.model,
        inputs.dataset,
        plan,
        run_directory,
        names=names,
        warnings=inputs.warnings,
        inputs=manifest["inputs"],
    )
    audit = examination.run(compute=False)
    path = write_report(audit, names)
    console = Console()
    console.print(findings_table(audit.statements))
    console.print(f"report: {path}", markup=False, soft_wrap=True)
    return 0
