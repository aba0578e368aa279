"""`snellen export`: a run for other tools."""

from __future__ import annotations

import fsspec
from rich.console import Console

from snellen.audit.export import export_csv
from snellen.audit.stored_run import StoredRun, open_run
from snellen.errors import InvalidInput
from snellen.report.model_card import model_card
from snellen.report.tracking import export_mlflow


def export_run(run: str, to: str, out: str | None) -> int:
    """The whole command; returns the exit status."""
    if to not in WRITERS:
        raise InvalidInput(f"--to must be one of {', '.join(WRITERS)}, got {to!r}")
    written = WRITERS[to](open_run(run), out)
    console = Console()
    for line in written:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _to_csv(run: StoredRun, out: str | None) -> list[str]:
    return export_csv(run, out or f"{run.url.rstrip('/')}/csv")


def _to_model_card(run: StoredRun, out: str | None) -> list[str]:
    address = out or f"{run.url.rstrip('/')}/model-card.md"
    card = model_card(run)
    try:
        with fsspec.open(address, "w", encoding="utf-8", auto_mkdir=True) as file:
            file.write(card)
    except OSError as error:
        raise InvalidInput(f"--out {address!r} cannot be written: {error.strerror or error}") from error
    return [address]


def _to_mlflow(run: StoredRun, out: str | None) -> list[str]:
    address = out or "mlruns"
    return [f"{address}: run {export_mlflow(run, address)}"]


WRITERS = {"csv": _to_csv, "model-card": _to_model_card, "mlflow": _to_mlflow}
