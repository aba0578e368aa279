"""The bench's tables, made from the results of its cases."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, record_table
from benchmarks.faults.cases import STRENGTHS, TYPES, Case, all_cases

from snellen.stats import wilson

NOTICEABLE = 0.05
"""A fault that costs less than this on fresh images is listed as hardly there: the network did not learn it."""

Result = dict[str, Any]


def record(folder: Path, into: Path = RESULTS) -> None:
    """Writes recall by fault and strength, and false alarms, of the cases that were run."""
    done = {
        case: json.loads((folder / f"{case.key}.json").read_text(encoding="utf-8"))
        for case in all_cases()
        if (folder / f"{case.key}.json").is_file()
    }
    faulty = {case: result for case, result in done.items() if case.fault}
    healthy = [result for case, result in done.items() if not case.fault]
    rows = [_row(name, {c: r for c, r in faulty.items() if c.fault == name}) for name in TYPES]
    rows.append(_row("all", faulty))
    false = [[f for f in result["other"] if not f["held on fresh images"]] for result in healthy]
    alarmed, told_some = sum(bool(some) for some in false), sum(bool(result["other"]) for result in healthy)
    low, high = wilson(alarmed, len(healthy)) if healthy else (0.0, 1.0)
    seconds = sorted(float(result["cpu_seconds"]) for result in done.values())
    kinds = Counter(finding["probe"] for some in false for finding in some)
    told = ", ".join(f"{name} {count}" for name, count in kinds.most_common()) or "none"
    record_table(
        "faults",
        "Fault bench: planted faults that the audit names",
        "`python -m benchmarks.faults run`, preset `discover`, 1,200 images a case; a cell is named / run, behind it"
        " the median cost of the fault on 6,000 fresh images (faults of the data: share of images struck). Named: a"
        " finding of severity medium or more has the cause in its title. In brackets: cases in which the network hardly"
        f" has the fault (under {NOTICEABLE:g}), not counted. Healthy networks: {told_some} of {len(healthy)} with a"
        f" finding of medium or more other than falls under shifts; {alarmed} ({low:.2f} to {high:.2f}) with one that"
        f" the same probe does not make again, at low or more, on 6,000 fresh images ({told}). Median time of an audit"
        f" {statistics.median(seconds) if seconds else 0:.0f} s of one core. {len(done)} of {len(all_cases())} cases"
        " have been run.",
        ["fault", *STRENGTHS],
        rows,
        into,
    )
    for row in rows:
        print("  ".join(row))
    print(f"healthy: {told_some} of {len(healthy)} told something, {alarmed} falsely; {told}")


def _row(name: str, results: dict[Case, Result]) -> list[str]:
    cells = []
    for strength in STRENGTHS:
        of = [result for case, result in results.items() if case.strength == strength]
        there = [result for result in of if float(result["effect"]) >= NOTICEABLE]
        named = sum(bool(result["naming"]) for result in there)
        cell = f"{named} / {len(there)}" if of else "not run"
        if len(of) > len(there):
            cell += f" ({len(of) - len(there)})"
        if of and name != "all":
            cell += f", {statistics.median(float(str(result['effect'])) for result in of):.2f}"
        cells.append(cell)
    return [name, *cells]
