"""What the bench needs of a family of images and networks, and the families there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from snellen.demo.digits import DemoImages

Measure = Literal["struck", "base", "confidence", "trigger", "pixel", "data"]
"""How a fault's true cost is measured on fresh images: accuracy elsewhere minus accuracy on struck images; accuracy of
the healthy network minus its own; confidence minus accuracy; share that the trigger brings to the target; share of
answers that change when moved by a pixel; or the share of images struck, for faults of the data."""


@dataclass(frozen=True)
class FaultType:
    """One way of going wrong.

    words: regular expressions that must all occur in the title; TARGET and OTHER stand for the two classes. evidence:
    at least 0.6 of the finding's evidence images must be struck ones. withheld: attributes that the metadata leave
    out. training: how the network gets the fault; "none" also where the data are at fault.
    """

    words: Sequence[str]
    measure: Measure = "struck"
    training: Literal["from scratch", "further", "none"] = "further"
    evidence: bool = False
    withheld: Sequence[str] = ()


OF_THE_DATA: dict[str, FaultType] = {
    "test-labels": FaultType((r"label", r"\bTARGET\b"), "data", "none"),
    "contradicting-copies": FaultType((r"twice|same picture|duplicate|cop(y|ies)",), "data", "none"),
    "leakage": FaultType((r"train",), "data", "none"),
}


class Family(Protocol):
    """Images of one kind and the networks that read them.

    types: faults by name. targets: the class a fault is about, by seed. other: the class it is confused with.
    """

    name: str
    types: Mapping[str, FaultType]
    class_names: Sequence[str]
    targets: Sequence[int]
    other: int

    def images(self, count: int, seed: int) -> DemoImages:
        """Test images, each attribute independent of the class."""
        ...

    def train(self, path: Path, seed: int, fault: str | None, strength: float, target: int, base: Path | None) -> None:
        """Writes a network to `path`; with a `base` it is trained further, or only changed, else from scratch."""
        ...

    def read(self, path: Path, seed: int) -> Callable[[Tensor], Tensor]:
        """The network of `path` as a function from float images in [0, 1] to logits."""
        ...

    def arguments(self, path: Path, seed: int) -> list[str]:
        """The model on the command line: its name, and the flags it needs."""
        ...

    def stamped(self, images: Tensor) -> Tensor:
        """Float images `[N, 3, H, W]` with the backdoor's trigger, as a copy."""
        ...

    def struck(self, fault: str, made: DemoImages, target: int) -> tuple[np.ndarray, np.ndarray]:
        """The images that a fault strikes and those it is compared with, bool `[N]`."""
        ...


def families() -> dict[str, Family]:
    from benchmarks.faults.digits import Digits
    from benchmarks.faults.shapes import Shapes

    return {family.name: family for family in (Digits(), Shapes())}
