"""Adaptive curves beside the fixed grid of five severities: queries, and distance from the truth.

python benchmarks/adaptive.py [--precision 0.05] [--seeds 5] [--truth 3000] [--record]

Both demo networks, ImageNet-C's 15. The grid is sized beforehand for the precision at the worst accuracy, since nothing
is known then: 0.25 (1.96 / precision)^2 images at every severity. Truth: `--truth` other images at every half severity.
The error of a curve is the root mean square over those severities of its drop against the true drop, straight lines
between the severities that were asked. The last line is JSON; --record writes the table into benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from _record import machine_state, record_table
from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.data import Dataset
from snellen.demo.digits import demo_images
from snellen.models import Model
from snellen.models.loading import load_model
from snellen.models.options import DataHints, ModelOptions
from snellen.probe import Rows
from snellen.randomness import SampleRandom
from snellen.shift._levels import levels_of
from snellen.shift.adaptive import AdaptiveCurve
from snellen.shift.corruptions import CORRUPTIONS, Corruptions

FINE = tuple(np.arange(0.5, 5.1, 0.5).tolist())
GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Shift -> severities and drops, from severity 0 on."""


def data(count: int, seed: int) -> Dataset:
    made = demo_images("test", count, seed)
    return Dataset.from_arrays(made.images, made.labels, made.class_names, ids=made.ids)


def drops(table: Rows) -> Curves:
    curves = {}
    for name, levels in levels_of(table).items():
        severities = np.array([0.0, *(level.severity for level in levels)])
        curves[name] = severities, np.array([0.0, *(level.drop for level in levels)])
    return curves


def grid_rows(model: Model, dataset: Dataset, severities: tuple[float, ...], seed: int) -> Rows:
    import pyarrow as pa

    probe = Corruptions(severities=severities)
    view = SampleView(loader_for(model, dataset), np.arange(len(dataset)), BatchSize(3, 32, 32))
    return pa.concat_tables([probe.run(model, batch, SampleRandom(seed, probe.name)) for batch in view.batches()])


def error(found: Curves, truth: Curves) -> float:
    """Root mean square over shifts and half severities."""
    squares = []
    for name, (severities, values) in truth.items():
        squares.append(np.mean((np.interp(severities, *found[name]) - values) ** 2))
    return float(np.sqrt(np.mean(squares)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--truth", type=int, default=3000)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    state = machine_state(torch.get_num_threads())
    images = math.ceil(0.25 * (1.96 / options.precision) ** 2)
    grid_queries = images * (1 + len(CORRUPTIONS) * len(GRID))

    rows, shares = [], []
    for name in ("demo", "demo:healthy"):
        other = data(options.truth, 990)
        model = load_model(name, ModelOptions(), DataHints(other.class_names, (32, 32))).model
        truth = drops(grid_rows(model, other, FINE, 990))
        spent, ours, grids = [], [], []
        for seed in range(options.seeds):
            dataset = data(1200, 100 + seed)
            probe = AdaptiveCurve(precision=options.precision)
            view = SampleView(loader_for(model, dataset), np.arange(1200), BatchSize(3, 32, 32))
            table = probe.run(model, view, {}, SampleRandom(seed, probe.name))
            spent.append(table.num_rows)
            ours.append(error(drops(table), truth))
            grids.append(error(drops(grid_rows(model, dataset.take(range(images)), GRID, seed)), truth))
        share = float(np.median(spent)) / grid_queries
        shares.append(share)
        rows.append(
            [
                name,
                f"{np.median(spent):,.0f}",
                f"{grid_queries:,}",
                f"{share:.2f}",
                f"{np.median(ours):.3f}",
                f"{np.median(grids):.3f}",
                f"{share * (np.median(ours) / np.median(grids)) ** 2:.2f}",
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    if options.record:
        record_table(
            "adaptive",
            "Adaptive curves beside a fixed grid",
            f"{state}; precision {options.precision:g}, medians over {options.seeds} seeds, truth from"
            f" {options.truth:,} other images; `python benchmarks/adaptive.py`. Error: root mean square distance of the"
            " drop from the truth at every half severity, the 15 of ImageNet-C. Wanted: at most a third of the"
            " queries. The grid is sized for the worst accuracy and so is more precise than asked; the last column is"
            " the share against a grid cut down to our error.",
            ["model", "queries", "the grid's", "share", "error", "the grid's error", "share at equal error"],
            rows,
        )
    print(json.dumps({"benchmark": "adaptive", "shares": shares}))


if __name__ == "__main__":
    main()
