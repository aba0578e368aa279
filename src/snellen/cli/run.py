"""`snellen run`: one probe."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from snellen.audit import Audit, Examination, Plan
from snellen.audit.engine import loader_for
from snellen.audit.executor import as_batch
from snellen.audit.plan import PlannedProbe, Setting
from snellen.cli.errors import FAILED_JOBS
from snellen.cli.inputs import ModelFlags, load_inputs
from snellen.cli.screen import ProgressScreen, findings_table
from snellen.errors import InvalidInput
from snellen.probe import Showable
from snellen.randomness import SampleRandom
from snellen.report.contact_sheet import contact_sheet, sheet_rows

SHOWN = 20


def run_probe(
    probe: str,
    model: str,
    data: str,
    settings: list[str],
    flags: ModelFlags,
    out: Path | None,
    samples: int | None,
    seed: int | None,
    as_json: bool,
    show: bool = False,
) -> int:
    """The whole command; returns the exit status."""
    if show:
        return show_probe(probe, model, data, settings, flags, out, samples, seed or 0)
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise InvalidInput(f"--out must end in .parquet or .csv, got {out.name!r}")
    entry = PlannedProbe(probe=probe, samples=samples, settings=parse_settings(settings))
    entry.build()  # wrong settings are told before the model is loaded
    plan = Plan(name="run", seed=seed or 0, probes=(entry,))
    inputs = load_inputs(model, data, flags)
    console = Console(stderr=True)
    for warning in inputs.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="snellen-") as folder:
        with ProgressScreen(console) as screen:
            audit = Examination(
                inputs.model,
                inputs.dataset,
                plan,
                folder,
                progress=screen,
                names=(model, data),
                inputs=flags.to_json(),
            ).run()
        _refuse_if_left_out(audit)
        if audit.failures:
            console.print(audit.failures[0].error, style="red", markup=False)
            return FAILED_JOBS
        rows = audit.tables[probe]
    if out is not None:
        _write(rows, out)
    mine = [statement for statement in audit.statements if statement.probe == probe]
    if as_json:
        stored = {"rows": rows.to_pylist(), "findings": [statement.to_json() for statement in mine]}
        sys.stdout.write(json.dumps(stored, default=str) + "\n")
    else:
        screen_out = Console()
        screen_out.print(_rows_table(rows))
        screen_out.print(findings_table(mine, shown=50))
        if out is not None:
            screen_out.print(f"{rows.num_rows:,} rows: {out}", markup=False)
    if audit.stopped:
        console.print(f"stopped early: {audit.stopped}", markup=False)
    return 0


def show_probe(
    name: str,
    model: str,
    data: str,
    settings: list[str],
    flags: ModelFlags,
    out: Path | None,
    samples: int | None,
    seed: int,
) -> int:
    """`--show`: a contact sheet of what the probe does to the first usable images; the model predicts nothing."""
    out = out or Path(f"{name.replace('/', '-')}.png")
    if out.suffix not in (".png", ".jpg", ".webp"):
        raise InvalidInput(f"--out must end in .png, .jpg or .webp with --show, got {out.name!r}")
    probe = PlannedProbe(probe=name, settings=parse_settings(settings)).build()
    if not isinstance(probe, Showable):
        raise InvalidInput(
            f"{name} has no picture of what it does to an image alone, so nothing can be shown; run it without --show"
        )
    inputs = load_inputs(model, data, flags)
    loader = loader_for(inputs.model, inputs.dataset)
    loaded = next(iter(loader.batches(range(min(samples or 1, len(inputs.dataset))), samples or 1)), None)
    if loaded is None:
        raise InvalidInput(f"data {data!r} has no samples to show")
    rows = sheet_rows(loaded.images, probe.conditions(as_batch(loaded), SampleRandom(seed, name)))
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(out)
    Console().print(f"{len(rows)} rows: {out}", markup=False, highlight=False)
    return 0


def parse_settings(words: list[str]) -> dict[str, Setting]:
    """`eps=[0.01,0.02]` and the like, values read as YAML."""
    settings: dict[str, Setting] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidInput(f"settings are written KEY=VALUE, got {word!r}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(f"the value of {key!r} cannot be read: {value!r}") from error
    return settings


def _refuse_if_left_out(audit: Audit) -> None:
    if audit.left_out:
        raise InvalidInput(f"{audit.left_out[0].probe} cannot run: {audit.left_out[0].reason}")


def _write(rows: pa.Table, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        pq.write_table(rows, out)
        return
    nested = [field.name for field in rows.schema if pa.types.is_nested(field.type) or pa.types.is_binary(field.type)]
    for name in nested:
        text = pa.array([json.dumps(value, default=str) for value in rows.column(name).to_pylist()])
        rows = rows.set_column(rows.column_names.index(name), name, text)
    pa.csv.write_csv(rows, out)


def _rows_table(rows: pa.Table) -> Table:
    table = Table(title=f"{rows.num_rows:,} rows, the first {min(SHOWN, rows.num_rows)}", title_justify="left")
    for name in rows.column_names:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in rows.slice(0, SHOWN).to_pylist():
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, bytes)):
        return f"<{len(value)} values>"
    return str(value)
