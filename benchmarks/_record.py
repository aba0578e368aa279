"""One writer for benchmarks/results.json, from which the page of benchmarks is made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results.json")


def record_table(
    key: str, title: str, how: str, columns: Sequence[str], rows: Sequence[Sequence[str]], path: Path = RESULTS
) -> None:
    """Puts one table into the results file, keeping those of other keys.

    how: one or two sentences on the state of the machine, batch, repetitions and command. Every row has one cell a
    column.
    """
    uneven = [list(row) for row in rows if len(row) != len(columns)]
    if uneven:
        raise ValueError(f"every row needs {len(columns)} cells, got {uneven[0]}")
    tables = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tables[key] = {"title": title, "how": how, "columns": list(columns), "rows": [list(row) for row in rows]}
    path.write_text(json.dumps(tables, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def machine_state(threads: int, device: str = "cpu") -> str:
    """Processor, cores, load, threads and torch as words. Call it before the work, so that the load is not its own."""
    accelerator = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return (
        f"{platform.machine()} with {os.cpu_count()} cores{accelerator}, load {os.getloadavg()[0]:.1f} before,"
        f" {threads} thread{'' if threads == 1 else 's'}, torch {torch.__version__}"
    )
