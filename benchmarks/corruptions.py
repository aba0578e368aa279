"""All shifts of the catalogue, ImageNet-C's beside `imagecorruptions` 1.1.2: milliseconds an image, medians of rounds.

python benchmarks/corruptions.py [--quick] [--device cpu|cuda] [--size 224] [--batch 16] [--severity 3] [--threads 2]
                                 [--record]

The peer gets one uint8 image after the other, as its interface wants; ours gets the batch, float in and 8-bit result
out. `equal` is the greatest difference in grey levels for the corruptions that draw nothing. The last column sets the
cost against a ResNet-50 forward pass of an image on the same device. The last line is JSON; --record writes the table
into benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor

from _record import machine_state, record_table
from snellen.randomness import torch_generator
from snellen.shift._catalogue import SHIFTS
from snellen.shift._extra import EXTRA
from snellen.shift.corruptions import CORRUPTIONS, corrupt

Peer = Callable[[NDArray[np.uint8], str], NDArray[np.uint8]]


def photo_crops(count: int, size: int) -> NDArray[np.uint8]:
    """Crops of scikit-learn's two photos, uint8 `[B, H, W, 3]`; real content matters to JPEG."""
    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    crops = []
    for index in range(count):
        photo = photos[index % len(photos)]
        y, x = (int(rng.integers(0, side - size + 1)) for side in photo.shape[:2])
        crops.append(photo[y : y + size, x : x + size])
    return np.stack(crops)


def load_peer(severity: int) -> Peer | None:
    """`imagecorruptions`, with a stand-in for the `pkg_resources` that setuptools no longer ships."""
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or found.origin is None:
        return None
    if importlib.util.find_spec("pkg_resources") is None:
        folder = Path(found.origin).parent
        stand_in = types.ModuleType("pkg_resources")
        setattr(stand_in, "resource_filename", lambda _, name: str(folder / name))
        sys.modules["pkg_resources"] = stand_in
    from imagecorruptions import corrupt as peer_corrupt

    return lambda image, name: peer_corrupt(image, severity=severity, corruption_name=name)


def milliseconds(work: Callable[[], object], count: int, device: str) -> float:
    """Wall time of one call an image."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e3


def resnet_cost(images: Tensor, rounds: int, device: str) -> float:
    """A ResNet-50 forward pass in float32, channels last, milliseconds an image."""
    network = torchvision.models.resnet50().eval().to(device, memory_format=torch.channels_last)
    batch = images.to(memory_format=torch.channels_last)
    with torch.no_grad():
        network(batch)
        return statistics.median(milliseconds(lambda: network(batch), len(images), device) for _ in range(rounds))


def record(
    figures: dict[str, dict[str, float | None]], options: argparse.Namespace, count: int, rounds: int, state: str
) -> None:
    rows = []
    for name, figure in figures.items():
        ours, peer, apart = figure["ours_ms"] or 0.0, figure["peer_ms"], figure["levels_apart"]
        rows.append(
            [
                name,
                f"{ours:.2f}",
                "–" if peer is None else f"{peer:.2f}",
                "–" if peer is None else f"{peer / ours:.1f}",
                "–" if apart is None else f"{apart:.0f}",
                f"{figure['of_resnet50']:.3f}",
            ]
        )
    compared = [figures[name] for name in CORRUPTIONS if figures[name]["peer_ms"] is not None]
    if compared:
        ours, peer = (sum(figure[key] or 0.0 for figure in compared) for key in ("ours_ms", "peer_ms"))
        together = f"{len(compared)} of ImageNet-C together"
        rows.append([together, f"{ours:.1f}", f"{peer:.1f}", f"{peer / ours:.1f}", "–", "–"])
    command = (
        f"python benchmarks/corruptions.py --device {options.device} --size {options.size} --batch {count}"
        f" --severity {options.severity} --threads {options.threads}"
    )
    record_table(
        "corruptions" if options.device == "cpu" else f"corruptions-{options.device}",
        f"Shifts of the catalogue, ImageNet-C's beside imagecorruptions 1.1.2, on {options.device}",
        f"{state}; severity {options.severity} at {options.size} px, batch {count}, medians of {rounds} alternated"
        f" rounds; `{command}`. The peer runs on the processor, one image at a time; a dash where it fails with today's"
        " NumPy or the corruption is random.",
        ["shift", "ours (ms an image)", "peer (ms)", "peer / ours", "grey levels apart", "of a ResNet-50 pass"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=0, help="images a batch; 16, or 4 with --quick")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/results.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps the table in its full form; leave --quick out")
    count, rounds = options.batch or (4 if options.quick else 16), 2 if options.quick else 5
    torch.set_num_threads(options.threads)
    state = machine_state(options.threads, options.device)

    photos = photo_crops(count, options.size)
    images = (torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255).contiguous().to(options.device)
    peer = load_peer(options.severity)
    resnet = resnet_cost(images, rounds, options.device)

    print(f"{'corruption':20}{'ours ms':>9}{'peer ms':>9}{'ratio':>8}{'equal':>7}{'of a ResNet-50 pass':>21}")
    ours_total = peer_total = 0.0
    figures: dict[str, dict[str, float | None]] = {}
    for name in SHIFTS:
        known = peer if name in (*CORRUPTIONS, *EXTRA) else None

        def ours(name: str = name) -> Tensor:
            return corrupt(images, name, options.severity, [torch_generator(name, i) for i in range(count)])

        def theirs(name: str = name, known: Peer | None = known) -> list[NDArray[np.uint8]]:
            return [] if known is None else [known(photo, name) for photo in photos]

        result = (ours() * 255).round().permute(0, 2, 3, 1).cpu().numpy()
        try:
            reference = theirs()
        except (AttributeError, TypeError):  # fog and glass blur use what NumPy and scikit-image have removed
            reference = []

        ours_ms, peer_ms = [], []
        for _ in range(rounds):
            ours_ms.append(milliseconds(ours, count, options.device))
            if reference:
                peer_ms.append(milliseconds(theirs, count, "cpu"))
        mine = statistics.median(ours_ms)
        other = statistics.median(peer_ms) if peer_ms else None
        apart = None
        if reference and SHIFTS[name].random is None:
            apart = float(np.abs(result - np.stack(reference).astype(float)).max())
        if other is not None and name in CORRUPTIONS:
            ours_total, peer_total = ours_total + mine, peer_total + other
        figures[name] = {"ours_ms": mine, "peer_ms": other, "levels_apart": apart, "of_resnet50": mine / resnet}
        theirs_text = f"{other:9.2f}{other / mine:8.1f}" if other is not None else f"{'-':>9}{'-':>8}"
        equal = "-" if apart is None else f"{apart:.0f}"
        print(f"{name:20}{mine:9.2f}{theirs_text}{equal:>7}{mine / resnet:21.3f}", flush=True)

    compared = sum(figures[name]["peer_ms"] is not None for name in CORRUPTIONS)
    ratio = peer_total / ours_total if ours_total else None
    if ratio is not None:
        sums = f"ours {ours_total:.1f} ms, peer {peer_total:.1f} ms, {ratio:.1f} times as fast"
        print(f"{compared} of ImageNet-C together: {sums}")
    print(f"ResNet-50 forward: {resnet:.2f} ms an image")
    if options.record:
        record(figures, options, count, rounds, state)
    summary = {
        "benchmark": "corruptions",
        "ratio": ratio,
        "compared": compared,
        "resnet50_ms": resnet,
        "worst_of_resnet50": max(figure["of_resnet50"] or 0.0 for figure in figures.values()),
        **{key: getattr(options, key) for key in ("device", "size", "severity", "threads")},
        "batch": count,
        "figures": figures,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
