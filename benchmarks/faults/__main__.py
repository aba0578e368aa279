"""Recall of planted faults and false alarms of the whole audit.

python -m benchmarks.faults run [--part 0/2] [--only REGEX] [--work DIR]    one case after the other, resumable
python -m benchmarks.faults table                                          the tables of what has been run so far

Networks are trained once and kept in the working directory (from ten seconds to two minutes of a core each).
Results stand in benchmarks/faults/results/, one file a case; a case that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

import torch
from benchmarks.faults.cases import all_cases
from benchmarks.faults.examination import examine
from benchmarks.faults.table import record

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--part", default="0/1", help="this share of the cases, such as 1/2")
    parser.add_argument("--only", default="", help="cases whose key matches")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    options = parser.parse_args()
    if options.what == "table":
        record(RESULTS)
        return
    torch.set_num_threads(1)
    part, parts = (int(number) for number in options.part.split("/"))
    chosen = [case for case in all_cases() if re.search(options.only, case.key)]
    RESULTS.mkdir(exist_ok=True)
    for case in chosen[part::parts]:
        path = RESULTS / f"{case.key}.json"
        if path.is_file():
            continue
        result = {"commit": _commit(), **examine(case, options.work)}
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
        named = ("named" if result["naming"] else "missed") if case.fault else "healthy"
        print(f"{case.key}: {named}, {len(result['other'])} others, {result['cpu_seconds']} s", flush=True)


def _commit() -> str:
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


if __name__ == "__main__":
    main()
