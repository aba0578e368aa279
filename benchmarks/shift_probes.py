"""What the conditions of every shift probe cost to make, beside a ResNet-50 forward pass of an image.

python benchmarks/shift_probes.py [--batch 8] [--rounds 3] [--threads 2] [--record]

Every probe that can be shown makes all its conditions of a batch of photo crops at 224 px, with a disc as the object's
mask; the time is divided by conditions and images. The last line is JSON; --record writes the table into
benchmarks/results.json. Single transforms are in benchmarks/corruptions.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from _record import machine_state, record_table
from corruptions import photo_crops, resnet_cost
from snellen.audit.plan import build_probe
from snellen.probe import Batch, Showable
from snellen.randomness import SampleRandom
from snellen.shift._medical_tables import MODALITIES

PROBES: list[tuple[str, dict[str, object]]] = [
    ("shift/translations", {}),
    ("shift/crop-selection", {}),
    ("shift/obfuscations", {}),
    ("shift/low-resolution", {}),
    ("shift/random-fields", {}),
    ("shift/patch-perturbation", {}),
    ("shift/attribute-edits", {}),
    *(("shift/medical", {"modality": modality}) for modality in MODALITIES),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    state = machine_state(options.threads)
    images = (torch.from_numpy(photo_crops(options.batch, 224)).permute(0, 3, 1, 2).float() / 255).contiguous()
    axis = torch.arange(224) - 112
    disc = (axis[:, None] ** 2 + axis**2 < 50**2).expand(options.batch, -1, -1)
    ids = [f"s{i}" for i in range(options.batch)]
    batch = Batch(ids, images, torch.zeros(options.batch, dtype=torch.int64), disc)
    resnet = resnet_cost(images, options.rounds, "cpu")

    rows, shares = [], []
    for name, settings in PROBES:
        probe = build_probe(name, settings)
        assert isinstance(probe, Showable)
        times, count = [], 0
        for _ in range(options.rounds):
            begun = time.perf_counter()
            count = sum(1 for _ in probe.conditions(batch, SampleRandom(0, name)))
            times.append((time.perf_counter() - begun) / count / options.batch * 1e3)
        cost = statistics.median(times)
        shares.append(cost / resnet)
        label = " ".join([name, *(str(value) for value in settings.values())])
        rows.append([label, str(count), f"{cost:.2f}", f"{cost / resnet:.3f}"])
        print("  ".join(rows[-1]), flush=True)
    if options.record:
        record_table(
            "shift-probes",
            "Conditions of the shift probes beside a ResNet-50 pass",
            f"{state}; 224 px, batch {options.batch}, medians of {options.rounds} rounds;"
            f" `python benchmarks/shift_probes.py`. A ResNet-50 pass took {resnet:.1f} ms an image. Wanted: at most"
            " 0.25.",
            ["probe", "conditions", "ms a condition and image", "of a ResNet-50 pass"],
            rows,
        )
    print(json.dumps({"benchmark": "shift-probes", "worst": max(shares)}))


if __name__ == "__main__":
    main()
