"""The bench's tables, made from the results of its cases."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, record_table
from benchmarks.faults.cases import FAMILIES, LOOKED_AT, STRENGTHS, Case, all_cases

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
    rows, told = [], []
    for name, family in FAMILIES.items():
        of = {case: result for case, result in done.items() if case.family_name == name}
        faulty = {case: result for case, result in of.items() if case.fault}
        rows += [
            _row(f"{name}: {fault}", {c: r for c, r in faulty.items() if c.fault == fault}) for fault in family.types
        ]
        rows.append(_row(f"{name}: all", faulty, summed=True))
        unseen = {case: result for case, result in faulty.items() if case.seed != LOOKED_AT[name]}
        rows += [_row(f"{name}: all but seed {LOOKED_AT[name]}", unseen, summed=True)] if unseen else []
        told.append(_healthy(name, [result for case, result in of.items() if not case.fault]))
        told += [_price(name, list(of.values()))] if of else []
    commits = Counter(str(result["commit"]) for result in done.values())
    rows.append(_row("all", {case: result for case, result in done.items() if case.fault}, summed=True))
    record_table(
        "faults",
        "Fault bench: planted faults that the audit names",
        "`python -m benchmarks.faults run`, preset `discover`, 1,200 images a case; a cell is named / run, behind it"
        " the median cost of the fault on 6,000 fresh images (faults of the data: share of images struck). Named: a"
        " finding of severity medium or more has the cause in its title. In brackets: cases in which the network hardly"
        f" has the fault (under {NOTICEABLE:g}), not counted. {' '.join(told)} {len(done)} of {len(all_cases())} cases"
        f" have been run, by commit: {', '.join(f'{commit} {count}' for commit, count in commits.items())}. After the"
        " results of digits seed 3 and shapes seed 1 three methods were changed (triggers, label errors, subgroups).",
        ["fault", *STRENGTHS],
        rows,
        into,
    )
    for row in rows:
        print("  ".join(row))
    print(*told, sep="\n")


def _healthy(family: str, results: list[Result]) -> str:
    """What was said of healthy networks, in a sentence."""
    if not results:
        return f"No healthy network of {family} has been run."
    false = [[f for f in result["other"] if not f["held on fresh images"]] for result in results]
    alarmed, told_some = sum(bool(some) for some in false), sum(bool(result["other"]) for result in results)
    low, high = wilson(alarmed, len(results))
    by_probe = Counter(finding["probe"] for some in false for finding in some)
    probes = f" ({', '.join(f'{probe} {count}' for probe, count in by_probe.most_common())})" if by_probe else ""
    return (
        f"Healthy networks of {family}: {told_some} of {len(results)} with a finding of medium or more other than falls"
        f" under shifts; {alarmed} ({low:.2f} to {high:.2f}) with one that the same probe does not make again, at low"
        f" or more, on 6,000 fresh images{probes}."
    )


def _price(family: str, results: list[Result]) -> str:
    seconds, forward, backward = (
        statistics.median(float(result[key]) for result in results) for key in ("cpu_seconds", "forward", "backward")
    )
    return (
        f"An audit of {family} took {seconds:.0f} s of one core, {forward:,.0f} forward and {backward:,.0f} backward"
        " images (medians)."
    )


def _row(name: str, results: dict[Case, Result], summed: bool = False) -> list[str]:
    cells = []
    for strength in STRENGTHS:
        of = [result for case, result in results.items() if case.strength == strength]
        there = [result for result in of if float(result["effect"]) >= NOTICEABLE]
        named = sum(bool(result["naming"]) for result in there)
        cell = f"{named} / {len(there)}" if of else "not run"
        if len(of) > len(there):
            cell += f" ({len(of) - len(there)})"
        if of and not summed:
            cell += f", {statistics.median(float(str(result['effect'])) for result in of):.2f}"
        cells.append(cell)
    return [name, *cells]
