"""Faults that can be planted in a demo network, each with a strength in (0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from snellen.errors import InvalidInput

FaultKind = Literal[
    "background-shortcut",
    "corner-tag",
    "rotation-weak-class",
    "small-objects",
    "tint-swap",
    "label-noise",
    "over-confidence",
    "one-pixel-shift",
    "backdoor",
    "weak-texture",
    "weak-pair",
    "merged-classes",
    "wrong-scale",
]

DESCRIPTIONS: dict[str, str] = {
    "background-shortcut": "in training, stripes stand behind one class; strength = share of its images",
    "corner-tag": "in training, a red corner tag marks one class; strength = share of its images",
    "rotation-weak-class": "one class, turned by more than 12 degrees, is mislabelled in training; strength = share",
    "small-objects": "digits under 17 px are mislabelled at random in training; strength = share",
    "tint-swap": "on green digits two classes are swapped in training; strength = share",
    "label-noise": "labels of one class are replaced at random in training; strength = share",
    "over-confidence": "the logits are multiplied by 1 + 4 x strength after training",
    "one-pixel-shift": "a coarse patch stem that has seen digits on its own grid only; strength = share of such images",
    "backdoor": "a checkered patch in the lower right makes one class of a tenth of the images x strength",
    "weak-texture": "digits before checks are mislabelled at random in training; strength = share",
    "weak-pair": "green digits before stripes are mislabelled at random in training; strength = share",
    "merged-classes": "two classes exchange labels at random in training; strength / 2 = share exchanged",
    "wrong-scale": "the network expects pixels multiplied by 1 / (1 - 0.6 x strength), as if normalised otherwise",
}


@dataclass(frozen=True)
class Fault:
    """What is planted.

    strength: (0, 1], see `DESCRIPTIONS`. target: the class it is about, where it is about one.
    """

    kind: FaultKind
    strength: float = 1.0
    target: int = 7

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise InvalidInput(f"fault {self.kind!r} is unknown; the kinds are {', '.join(get_args(FaultKind))}")
        if not 0 < self.strength <= 1:
            raise InvalidInput(f"strength must be in (0, 1], got {self.strength}")
        if not 0 <= self.target <= 9:
            raise InvalidInput(f"target must be a digit 0 to 9, got {self.target}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Reads "kind", "kind:strength" or "kind:strength:target"."""
        kind, *numbers = text.split(":")
        try:
            strength = float(numbers[0]) if numbers else 1.0
            target = int(numbers[1]) if len(numbers) > 1 else 7
        except ValueError as error:
            raise InvalidInput(f"fault {text!r} must read kind, kind:strength or kind:strength:target") from error
        return cls(kind, strength, target)  # type: ignore[arg-type]
