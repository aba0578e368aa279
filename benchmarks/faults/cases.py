"""The cases of the bench: which fault, how strong, on which data, and which sentence would name it.

A finding names a fault when its title does, in words fixed here before the first audit was run (but "px", which a
first run showed to be how the report writes pixels); where the metadata withhold the attribute, most of the evidence
images of the finding must be such as were struck instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from snellen.demo.digits import DemoImages
from snellen.demo.faults import Fault
from snellen.demo.training import SWAPPED_WITH

Strength = Literal["clear", "moderate", "faint"]
STRENGTHS: dict[Strength, float] = {"clear": 1.0, "moderate": 0.6, "faint": 0.3}
SEEDS = (0, 1, 2)
TARGETS = (7, 4, 1)
"""The class a fault is about, by seed; never the one that it is confused with."""
HEALTHY = 20
OF_EVIDENCE = 0.6
"""Share of a finding's evidence that must be struck images, where the metadata do not hold the attribute."""

Training = Literal["from scratch", "further", "none"]


@dataclass(frozen=True)
class FaultType:
    """One way of going wrong.

    words: regular expressions that must all occur in the title; TARGET and OTHER stand for the two classes. struck:
    bool `[N]` of the images concerned, given the target class; None where no evidence is asked. withheld: attributes
    that the metadata leave out. training: how the network gets the fault; "none" also where the data are at fault.
    """

    words: Sequence[str]
    training: Training = "further"
    struck: Callable[[DemoImages, int], np.ndarray] | None = None
    withheld: Sequence[str] = ()
    of_the_data: bool = False


def _checks(data: DemoImages, target: int) -> np.ndarray:
    return data.attributes["background"] == "checks"


TYPES: dict[str, FaultType] = {
    "background-shortcut": FaultType(("stripes",)),
    "corner-tag": FaultType((r"upper left|top left|tag", r"\bTARGET\b"), withheld=("tag",)),
    "rotation-weak-class": FaultType((r"\bTARGET\b", "rotation")),
    "small-objects": FaultType(("size",)),
    "tint-swap": FaultType(("green",)),
    "label-noise": FaultType((r"\bTARGET\b",)),
    "over-confidence": FaultType((r"over-?confident|too confident|confidence",), training="none"),
    "one-pixel-shift": FaultType((r"pixel|\bpx\b",), training="from scratch"),
    "backdoor": FaultType((r"trigger|patch|pattern", r"\bTARGET\b")),
    "weak-texture": FaultType((), struck=_checks, withheld=("background",)),
    "weak-pair": FaultType(("stripes", "green")),
    "merged-classes": FaultType((r"\bTARGET\b", r"\bOTHER\b")),
    "wrong-scale": FaultType((r"darker|brighter|scale|multipl",), training="none"),
    "test-labels": FaultType((r"label", r"\bTARGET\b"), training="none", of_the_data=True),
    "contradicting-copies": FaultType((r"twice|same picture|duplicate|cop(y|ies)",), training="none", of_the_data=True),
    "leakage": FaultType((r"train",), training="none", of_the_data=True),
}


@dataclass(frozen=True)
class Case:
    """fault None is a healthy network on faultless data."""

    fault: str | None
    strength: Strength
    seed: int

    @property
    def key(self) -> str:
        return f"{self.fault}-{self.strength}-{self.seed}" if self.fault else f"healthy-{self.seed}"

    @property
    def target(self) -> int:
        return TARGETS[self.seed % len(TARGETS)]

    @property
    def planted(self) -> Fault | None:
        """What is planted in the network; None for healthy ones and faults of the data."""
        if self.fault is None or TYPES[self.fault].of_the_data:
            return None
        return Fault.parse(f"{self.fault}:{STRENGTHS[self.strength]}:{self.target}")

    @property
    def withheld(self) -> Sequence[str]:
        return TYPES[self.fault].withheld if self.fault else ()


def all_cases() -> list[Case]:
    """Faults and healthy networks in turn, so that a bench that was stopped early has some of everything."""
    faulty = [Case(fault, strength, seed) for seed in SEEDS for strength in STRENGTHS for fault in TYPES]
    healthy = [Case(None, "clear", seed) for seed in range(HEALTHY)]
    every = len(faulty) // len(healthy)
    mixed: list[Case] = []
    for place, case in enumerate(faulty):
        mixed += [healthy.pop(0)] if place % every == 0 and healthy else []
        mixed.append(case)
    return mixed + healthy


def names_the_fault(case: Case, title: str, evidence: Sequence[str], data: DemoImages) -> bool:
    """Whether a finding with this title and these evidence ids (file names without suffix) tells the planted fault."""
    kind = TYPES[case.fault or ""]
    for words in kind.words:
        pattern = words.replace("TARGET", str(case.target)).replace("OTHER", str(SWAPPED_WITH))
        if not re.search(pattern, title, re.IGNORECASE):
            return False
    if kind.struck is None:
        return True
    struck = set(np.array(data.ids)[kind.struck(data, case.target)].tolist())
    return bool(evidence) and sum(name in struck for name in evidence) / len(evidence) >= OF_EVIDENCE
