"""How fast does accuracy fall under 15 everyday degradations, from barely visible to severe?

Paper: Hendrycks & Dietterich, 2019 (ImageNet-C, with the CIFAR-C constants for small images). Every image is degraded
by noise, blur, weather and digital processing at five published severities, and predicted again; accuracies are
compared on the same images. Severity is continuous here, and constants follow the image size.

When it misleads: accuracy under synthetic corruption predicts accuracy under natural shift only loosely, a model
trained on one of the noises looks robust against its neighbours, and frost is a procedural texture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from snellen.errors import InvalidInput
from snellen.probe import Batch, Condition, Passes, register
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, GROUPS, SHIFTS, check_name, check_severities, corrupt
from snellen.shift._curve import Crossing, Estimate, ShiftCurve, curves_of
from snellen.shift._mce import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CorruptionError,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from snellen.shift._trials import ShiftProbe

__all__ = [
    "ALEXNET_CLEAN_ERROR",
    "ALEXNET_ERRORS",
    "CORRUPTIONS",
    "GROUPS",
    "SHIFTS",
    "CorruptionError",
    "Corruptions",
    "Crossing",
    "Estimate",
    "ShiftCurve",
    "corrupt",
    "curves_of",
    "mean_corruption_error",
    "relative_mean_corruption_error",
]


@register
@dataclass(frozen=True)
class Corruptions(ShiftProbe):
    """Accuracy under the 15 corruptions of ImageNet-C against severity (Hendrycks & Dietterich, 2019)."""

    name: ClassVar[str] = "shift/corruptions"
    paper: ClassVar[str] = "Hendrycks and Dietterich, 2019"
    card: ClassVar[str | None] = "imagenet-c-core"
    version: ClassVar[int] = 2

    names: tuple[str, ...] = CORRUPTIONS
    """Which shifts; the paper's 15, but any of the catalogue's can be named."""
    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Each in (0, 5], ascending; the paper's 1 to 5."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        if not self.names or len(set(self.names)) != len(self.names):
            raise InvalidInput(f"names must be one or more different shifts, got {list(self.names)}")
        check_severities(self.severities)

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        for name in self.names:
            for severity in self.severities:
                # One stream for all severities of a corruption: a sample's curve is the same rain falling harder.
                generators = random.generators(batch.ids, name)
                yield Condition(name, severity, corrupt(batch.images, name, severity, generators))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(self.names) * len(self.severities)))

    def group(self, shift: str) -> str:
        return SHIFTS[shift].group
