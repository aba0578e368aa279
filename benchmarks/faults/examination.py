"""One case: the whole audit on it, by the command line, and what it said."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from benchmarks.faults.cases import Case, names_the_fault
from benchmarks.faults.subjects import file_name, folder, images_of, network, true_effect

PRESET = "discover"
COMMAND = "from snellen.cli import main; main()"
TOLD = ("medium", "high", "critical")
NOT_OF_THE_FAULT = ("shift", "attack", "certificate", "explanation")
"""Kinds that hold of healthy networks too, such as falls under a shift; they neither name a fault nor raise an alarm,
unless the fault's own words are in them."""


def examine(case: Case, work: Path) -> dict[str, Any]:
    """Makes the case if need be, audits it and judges the findings of severity medium or more.

    seconds: wall time of the command; cpu_seconds: of its process, which other work on the machine lengthens less.
    forward, backward: images sent through the network.
    """
    model, data, run = _model(case, work), folder(case, work), work / "runs" / case.key
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = _audit(model, data, run, ["--preset", PRESET])
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    told = [finding for finding in found if finding["severity"] in TOLD]
    evidence = images_of(case)
    names = {Path(file_name(sample_id)).stem: sample_id for sample_id in evidence.ids}
    naming, other = [], []
    for finding in told:
        ids = [names.get(Path(name).stem, name) for name in finding["evidence"]]
        line = {key: finding[key] for key in ("severity", "kind", "probe", "title", "effect", "id")}
        if case.fault and names_the_fault(case, finding["title"], ids, evidence):
            naming.append(line)
        elif finding["kind"] not in NOT_OF_THE_FAULT:
            other.append(line)
    shutil.rmtree(run)
    if not case.fault:
        held = _held(case, work, other)
        other = [{**line, "held on fresh images": line["id"] in held} for line in other]
    return {
        "effect": true_effect(case, work) if case.fault else None,
        "naming": naming,
        "other": other,
        "failed": manifest["failed_jobs"],
        "forward": manifest["ledger"]["forward"],
        "backward": manifest["ledger"]["backward"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime, 1),
    }


def _model(case: Case, work: Path) -> list[str]:
    """The case's model on the command line."""
    return case.family.arguments(network(case, work), case.seed)


def _audit(model: list[str], data: Path, run: Path, plan: list[str]) -> list[dict[str, Any]]:
    """The findings of a whole audit by the command line."""
    shutil.rmtree(run, ignore_errors=True)
    name, *flags = model
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "audit", name, str(data), *flags, *plan, "--out", str(run), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if not (run / "findings.json").is_file():
        raise RuntimeError(f"the audit {run.name} failed: {done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads((run / "findings.json").read_text(encoding="utf-8"))
    return found


def _held(case: Case, work: Path, said: list[dict[str, Any]]) -> set[str]:
    """Ids of the statements that the same probes make again, at severity low or more, on many fresh images."""
    if not said:
        return set()
    plan = work / f"{case.key}.yaml"
    probes = ["predictions", *sorted({line["probe"] for line in said} - {"predictions"})]
    plan.write_text(yaml.safe_dump({"name": "fresh", "probes": probes}), encoding="utf-8")
    again = _audit(
        _model(case, work), folder(case, work, fresh=True), work / "runs" / f"{case.key}-fresh", ["--plan", str(plan)]
    )
    return {finding["id"] for finding in again if finding["severity"] != "info"}
