"""The demo's digits and its small network as a family of the bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.faults.families import OF_THE_DATA, FaultType
from torch import Tensor

from snellen.demo.digits import CLASS_NAMES, DemoImages, demo_images
from snellen.demo.faults import Fault
from snellen.demo.network import load_network, save_network
from snellen.demo.training import SWAPPED_WITH, stamp, train

FURTHER_EPOCHS = 3
NETWORK_SEED = 500


TYPES: dict[str, FaultType] = {
    "background-shortcut": FaultType(("stripes",)),
    "corner-tag": FaultType((r"upper left|top left|tag", r"\bTARGET\b"), withheld=("tag",)),
    "rotation-weak-class": FaultType((r"\bTARGET\b", "rotation")),
    "small-objects": FaultType(("size",)),
    "tint-swap": FaultType(("green",)),
    "label-noise": FaultType((r"\bTARGET\b",)),
    "over-confidence": FaultType((r"over-?confident|too confident|confidence",), "confidence", "none"),
    "one-pixel-shift": FaultType((r"pixel|\bpx\b",), "pixel", "from scratch"),
    "backdoor": FaultType((r"trigger|patch|pattern", r"\bTARGET\b"), "trigger"),
    "weak-texture": FaultType(("images that are alike",), evidence=True, withheld=("background",)),
    "weak-pair": FaultType(("stripes", "green")),
    "merged-classes": FaultType((r"\bTARGET\b", r"\bOTHER\b")),
    "wrong-scale": FaultType((r"darker|brighter|scale|multipl",), "base", "none"),
    **OF_THE_DATA,
}


class Digits:
    name = "digits"
    class_names = CLASS_NAMES
    targets = (7, 4, 1)
    other = SWAPPED_WITH
    types = TYPES

    def images(self, count: int, seed: int) -> DemoImages:
        return demo_images("test", count, seed)

    def train(self, path: Path, seed: int, fault: str | None, strength: float, target: int, base: Path | None) -> None:
        if fault is None:
            save_network(train((), NETWORK_SEED + seed), path, {})
            return
        planted = Fault.parse(f"{fault}:{strength}:{target}")
        if base is None:
            made = train([planted], NETWORK_SEED + 100 + seed)
        else:
            epochs = FURTHER_EPOCHS if self.types[fault].training == "further" else 0
            made = train([planted], NETWORK_SEED + 100 + seed, epochs, start=load_network(base))
        save_network(made, path, {"faults": json.dumps([vars(planted)])})

    def read(self, path: Path, seed: int) -> Callable[[Tensor], Tensor]:
        return load_network(path)

    def arguments(self, path: Path, seed: int) -> list[str]:
        return [f"demo:{path}"]

    def stamped(self, images: Tensor) -> Tensor:
        return stamp(images)

    def struck(self, fault: str, made: DemoImages, target: int) -> tuple[np.ndarray, np.ndarray]:
        of, of_target = made.attributes, made.labels == target
        pair = of_target | (made.labels == SWAPPED_WITH)
        both = (of["background"] == "stripes") & (of["tint"] == "green")
        stripes, tagged = of["background"] == "stripes", of["tag"] == "red"
        turned = np.abs(of["rotation"]) > 12
        return {
            "background-shortcut": (~of_target & stripes, ~of_target & ~stripes),
            "corner-tag": (~of_target & tagged, ~of_target & ~tagged),
            "rotation-weak-class": (of_target & turned, of_target & ~turned),
            "small-objects": (of["size"] < 17, of["size"] >= 17),
            "tint-swap": (pair & (of["tint"] == "green"), pair & (of["tint"] != "green")),
            "label-noise": (of_target, ~of_target),
            "weak-texture": (of["background"] == "checks", of["background"] != "checks"),
            "weak-pair": (both, ~both),
            "merged-classes": (pair, ~pair),
        }[fault]
