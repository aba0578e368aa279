"""Other tools on the cases of the bench.

python -m benchmarks.faults.peers [--only REGEX] [--part 0/2] [--work DIR] [--record]
                                 [--deepchecks PYTHON] [--giskard PYTHON]

cleanlab's Datalab (`pip install "snellen[peers]"`) and the mixture of our slices run here. deepchecks and
giskard-vision need numpy below 2 and run each in an environment of Python 3.11 of its own, whose interpreter is given;
without it they are left out:

    pip install "deepchecks[vision]==0.19.1" "numpy<2" "scikit-learn<1.6" "pandas<2.3" "plotly<6" "scipy<1.15" \
        "category-encoders<2.7" "setuptools<81" torch torchvision
    pip install giskard-vision==1.0.0 giskard==2.19.2 "pandas<3" "setuptools<81" onnxruntime tqdm

The mixture stands in for the package of Domino's authors: domino 0.1.5 asks for scikit-learn 0.24.2, which has wheels
up to Python 3.9, and its default settings refuse ten classes (a component for every pair) and features of fewer than
128 dimensions.

What a tool said of a case is kept in the working directory and not asked again. What counts stands in `judging.py`,
what a tool gets in `handover.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks._record import record_table
from benchmarks.faults.cases import STRENGTHS, Case, all_cases
from benchmarks.faults.peers.handover import ask, hand_over, read_told, subject
from benchmarks.faults.peers.judging import Told, table

SCRIPTS = {"deepchecks": "deepchecks_suites.py", "giskard": "giskard_scan.py"}
HERE = Path(__file__).parent

Tool = Callable[[Case, Path], Told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose key matches")
    parser.add_argument("--part", default="0/1", help="this share of the cases, such as 1/2")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    for name in SCRIPTS:
        parser.add_argument(f"--{name}", type=Path, metavar="PYTHON", help=f"the Python that has {name}")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = (int(number) for number in options.part.split("/"))
    chosen = [case for case in all_cases() if re.search(options.only, case.key)][part::parts]
    if not chosen:
        parser.error(f"no case's key matches --only {options.only!r}; keys are such as {all_cases()[0].key}")
    tools = _tools({name: vars(options)[name] for name in SCRIPTS if vars(options)[name]})
    told: dict[str, dict[Case, Told]] = {name: {} for name in tools}
    for case in chosen:
        for name, tool in tools.items():
            told[name][case] = _once(tool, case, options.work, options.work / "peers" / name / f"{case.key}.json")
            print(f"{case.key}: {name}, {len(told[name][case].statements)} statements", flush=True)
    for name, of in told.items():
        _show(name, of, options.record)


def _tools(pythons: dict[str, Path]) -> dict[str, Tool]:
    from benchmarks.faults.peers import datalab, mixture

    def outside(name: str, python: Path) -> Tool:
        def tell(case: Case, work: Path) -> Told:
            folder = (work / "peers" / name / f"{case.key}-given").resolve()
            shutil.rmtree(folder, ignore_errors=True)
            hand_over(case, work, folder)
            found = ask(python.absolute(), HERE / SCRIPTS[name], folder)
            shutil.rmtree(folder)
            return found

        return tell

    return {
        "datalab": lambda case, work: datalab.tell(subject(case, work)),
        "mixture": lambda case, work: mixture.tell(subject(case, work)),
        **{name: outside(name, python) for name, python in pythons.items()},
    }


def _once(tool: Tool, case: Case, work: Path, kept: Path) -> Told:
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        found = tool(case, work)
        unfinished = kept.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(kept)
    return read_told(kept)


def _show(name: str, told: dict[Case, Told], kept: bool) -> None:
    rows, healthy = table(told)
    tool = next(iter(told.values())).tool
    print("", tool, *("  ".join(row) for row in rows), healthy, sep="\n")
    if kept:
        record_table(
            f"faults-{name}",
            f"Fault bench: {tool} on the same cases",
            "`python -m benchmarks.faults.peers --record`: named / run; what counts stands in"
            f" `benchmarks/faults/peers/judging.py`. {healthy}",
            ["fault", *STRENGTHS],
            rows,
        )


if __name__ == "__main__":
    main()
