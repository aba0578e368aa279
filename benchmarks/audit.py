"""The whole audit: wall time of `Examination.run` and the report ÷ time of the passes it cannot do without.

The passes are timed in the same process, before and after, with bare loops over the same network, batch size and memory
layout: forward passes without a graph, and forward plus backward to the input for those that need a derivative.

    python benchmarks/audit.py [--preset quick] [--record]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

import numpy as np
import torch

from _record import record_table
from snellen.audit import Examination, preset
from snellen.audit.jobs import total_passes
from snellen.data import load_dataset
from snellen.models.loading import load_model
from snellen.models.model import Model
from snellen.report import write_report


def pass_seconds(model: Model, batch_size: int, repeats: int = 15) -> tuple[float, float]:
    """Median seconds an image: forward alone, and what a backward pass to the input adds."""
    images = torch.rand(batch_size, 3, *model.spec.input_size).contiguous(memory_format=torch.channels_last)
    network = model.module
    forward, both = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        with torch.no_grad():
            network(images)
        forward.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(network(leaf).sum(), leaf)
        both.append(time.perf_counter() - begun)
    return float(np.median(forward)) / batch_size, float(np.median(both) - np.median(forward)) / batch_size


def main() -> None:
    name = sys.argv[sys.argv.index("--preset") + 1] if "--preset" in sys.argv else "quick"
    loaded, dataset = load_model("demo").model, load_dataset("demo")
    with tempfile.TemporaryDirectory() as folder:
        examination = Examination(loaded, dataset, preset(name), folder)
        batch_size = examination.worker.batch_size.value
        before = pass_seconds(loaded, batch_size)
        begun = time.perf_counter()
        audit = examination.run()
        ran = time.perf_counter()
        write_report(audit, ("demo", "demo"))
        ended = time.perf_counter()
        after = pass_seconds(loaded, batch_size)
        records = {label: audit.tables.records(label) for label in audit.tables}
    forward, backward = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    rows, ideal = [], 0.0
    for entry in audit.entries:
        spent = sum(record.seconds for record in records[entry.label])
        needed = 0.0
        if entry.touches_model:
            promised = [total_passes(job, batch_size) for job in examination.jobs[entry.label]]
            # An attack spares the images that are wrong already, so the fewer of promised and booked passes count.
            needed = forward * min(sum(p.forward for p in promised), sum(r.forward for r in records[entry.label]))
            needed += backward * min(sum(p.backward for p in promised), sum(r.backward for r in records[entry.label]))
        ideal += needed
        rows.append([entry.label, f"{spent:.1f}", f"{needed:.1f}", f"{spent / needed:.2f}" if needed else "–"])
    rows.append(["report", f"{ended - ran:.1f}", "–", "–"])
    rows.append(["whole audit", f"{ended - begun:.1f}", f"{ideal:.1f}", f"{(ended - begun) / ideal:.2f}"])
    for row in rows:
        print(*row, sep="  ")
    if "--record" in sys.argv:
        record_table(
            f"audit-{name}",
            f"Whole audit of the demo, preset {name}",
            "Wall seconds beside the seconds of the passes that cannot be done without, measured in the same run;"
            f" `python benchmarks/audit.py --preset {name}`. On 32 px images with a small network transforms and the"
            " statistics weigh more than they do on a real model.",
            ["probe", "seconds", "ideal seconds", "ratio"],
            rows,
        )
    print(json.dumps({"benchmark": "audit", "preset": name, "wall": ended - begun, "ideal": ideal}))


if __name__ == "__main__":
    main()
