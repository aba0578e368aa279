"""The engine without a model: rows a second, and memory against the number of samples.

The model costs nothing and the images lie in memory, so what is measured is loading, batching, the `predictions` probe,
Arrow, Parquet and the job bookkeeping. Each size runs in a process of its own, so that its peak memory is its own.

    python benchmarks/engine.py [--quick] [--record]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from _record import record_table
from snellen.audit import Examination, Plan
from snellen.data import Dataset
from snellen.data.decode import Geometry
from snellen.models import ModelSpec, TorchModel

CLASSES = tuple(str(i) for i in range(10))
SIZES = (10_000, 100_000, 1_000_000)


class EndlessImages:
    """A source of any length that holds a thousand images; so memory shows the engine and not the pictures."""

    in_memory = True

    def __init__(self, count: int) -> None:
        self._count = count
        self._images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1000, 3, 32, 32), dtype=np.uint8))

    def __len__(self) -> int:
        return self._count

    def pixels(self, position: int, geometry: Geometry) -> torch.Tensor:
        return self._images[position % 1000]

    def digest(self, position: int) -> bytes:
        return position.to_bytes(16, "big")

    def size(self, position: int) -> tuple[int, int]:
        return (32, 32)


def free_model(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0, 0, :10]


def one(count: int) -> dict[str, float]:
    """Seconds and peak memory of an audit with `predictions` alone."""
    import pyarrow as pa

    torch.set_num_threads(1)
    table = pa.table({"id": [f"{i:08d}" for i in range(count)], "label": np.arange(count) % 10})
    dataset = Dataset("endless", table, CLASSES, EndlessImages(count), np.arange(count))
    model = TorchModel(free_model, ModelSpec("free", CLASSES, (32, 32), fingerprint="free"))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        examination = Examination(model, dataset, Plan.model_validate({"probes": ["predictions"]}), folder)
        inspected = time.perf_counter()
        examination.run()
        ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"inspect": inspected - begun, "run": ended - inspected, "peak_mib": peak}


def main() -> None:
    if "--one" in sys.argv:
        print(json.dumps(one(int(sys.argv[-1]))))
        return
    rows, figures = [], {}
    for count in SIZES[:1] if "--quick" in sys.argv else SIZES:
        runs = []
        for _ in range(3 if count < 1_000_000 else 1):
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(count)], capture_output=True, check=True, text=True
            )
            runs.append(json.loads(done.stdout))
        middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        figures[str(count)] = {**middle, "rows_a_second": count / middle["run"]}
        rows.append(
            [
                f"{count:,}",
                f"{count / middle['run']:,.0f}",
                f"{count / middle['inspect']:,.0f}",
                f"{middle['peak_mib']:,.0f}",
            ]
        )
        print(*rows[-1], sep="  ")
    if "--record" in sys.argv:
        record_table(
            "engine",
            "Engine: rows a second and memory",
            "A model that costs nothing, images in memory, `predictions` alone, one thread, a process a size;"
            " `python benchmarks/engine.py`. Peak memory includes torch itself.",
            ["samples", "rows a second", "inspected a second", "peak memory (MiB)"],
            rows,
        )
    print(json.dumps({"benchmark": "engine", "sizes": figures}))


if __name__ == "__main__":
    main()
