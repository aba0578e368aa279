"""cleanlab's Datalab on the cases of the bench.

python -m benchmarks.faults.peers [--work DIR] [--record]

It gets what its documentation asks for: the labels, the network's probabilities and its last features. A fault that
strikes some images counts as named when an issue type that could mean it (underperforming group; label; near
duplicate) is reported and at least 0.6 of the images flagged are struck ones; that its report has no sentence with the
cause is not held against it. Faults that strike no particular images are beyond what it looks for. On healthy networks
every reported group, copy or label is a false one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks._record import record_table
from benchmarks.faults.cases import OF_EVIDENCE, STRENGTHS, Case, all_cases
from benchmarks.faults.subjects import IMAGES, images_of, network, struck_and_rest
from cleanlab import Datalab

from snellen.demo.network import load_network

ISSUES = ("label", "near_duplicate", "underperforming_group")
OF_DATA = {"test-labels": "label", "contradicting-copies": "near_duplicate", "leakage": "near_duplicate"}
OF_IMAGES = (
    "background-shortcut", "corner-tag", "rotation-weak-class", "small-objects", "tint-swap", "label-noise",
    "weak-texture", "weak-pair", "merged-classes",
)  # fmt: skip


def flagged(case: Case, work: Path) -> tuple[dict[str, np.ndarray], float]:
    """For each issue type which images are flagged, bool `[N]`, and the seconds Datalab took."""
    made, net = images_of(case), load_network(network(case, work))
    with torch.no_grad():
        parts = [net.body(net.stem(part.float() / 255)).mean(dim=(2, 3)) for part in made.images.split(500)]
        features = torch.cat(parts)
        probabilities = net.head(features).softmax(1)
    begun = time.perf_counter()
    lab = Datalab({"label": made.labels.tolist()}, label_name="label", task="classification", verbosity=0)
    lab.find_issues(pred_probs=probabilities.double().numpy(), features=features.numpy())
    seconds = time.perf_counter() - begun
    known = {name for name in ISSUES if f"is_{name}_issue" in lab.get_issues().columns}
    return {name: lab.get_issues(name)[f"is_{name}_issue"].to_numpy() for name in known}, seconds


def names(case: Case, found: dict[str, np.ndarray]) -> bool:
    made, kind = images_of(case), case.fault or ""
    if kind in OF_DATA:
        clean = images_of(Case(None, "clear", case.seed))
        if kind == "contradicting-copies":
            copied = {name.removesuffix("-b") for name in made.ids if name.endswith("-b")}
            struck = np.array([name.removesuffix("-b") in copied for name in made.ids])
        elif kind == "leakage":
            changed = (made.images[:IMAGES] != clean.images).flatten(1).any(1).numpy()
            struck = changed | (made.attributes["split"] == "train")  # either half of a pair is a right answer
        else:
            struck = made.labels != clean.labels
        said = found.get(OF_DATA[kind], np.zeros(len(struck), dtype=bool))
    else:
        struck, _ = struck_and_rest(kind, made, case.target)
        said = found.get("underperforming_group", np.zeros(len(struck), dtype=bool))
    return bool(said.any()) and float(struck[said].mean()) >= OF_EVIDENCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = Path(__file__).with_name("results")
    cases = [case for case in all_cases() if (done / f"{case.key}.json").is_file()]
    hits: dict[tuple[str, str], list[bool]] = {}
    healthy: dict[str, list[int]] = {name: [] for name in ISSUES}
    seconds = []
    for case in cases:
        if case.fault and case.fault not in (*OF_DATA, *OF_IMAGES):
            continue
        found, took = flagged(case, options.work)
        seconds.append(took)
        if case.fault:
            hits.setdefault((case.fault, case.strength), []).append(names(case, found))
        else:
            for name in ISSUES:
                healthy[name].append(int(found[name].sum()) if name in found else 0)
        print(case.key, {name: int(which.sum()) for name, which in found.items()}, flush=True)
    rows = []
    for fault in (*OF_IMAGES, *OF_DATA):
        of = [hits.get((fault, strength), []) for strength in STRENGTHS]
        rows.append([fault, *(f"{sum(some)} / {len(some)}" if some else "not run" for some in of)])
    every = [[hit for (_, s), some in hits.items() if s == strength for hit in some] for strength in STRENGTHS]
    rows.append(["all of these", *(f"{sum(some)} / {len(some)}" for some in every)])
    alarms = "; ".join(
        f"{name} on {sum(count > 0 for count in counts)} of {len(counts)}, {sum(counts)} images in all"
        for name, counts in healthy.items()
    )
    print(*("  ".join(row) for row in rows), f"healthy: {alarms}", sep="\n")
    if options.record:
        record_table(
            "faults-datalab",
            "Fault bench: cleanlab's Datalab on the same cases",
            "`python -m benchmarks.faults.peers --record`: flagged rightly / run, see its docstring for what counts."
            f" Faults that it does not look for are left out. On healthy networks it reports {alarms}. Median time"
            f" {statistics.median(seconds):.1f} s, without the network's passes. deepchecks and giskard-vision were not"
            " run: the latter needs numpy below 2.",
            ["fault", *STRENGTHS],
            rows,
        )


if __name__ == "__main__":
    main()
