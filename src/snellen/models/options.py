"""What is said about a model from outside: by the user, or by the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from snellen.models.access import Access
from snellen.models.endpoint import Remote


@dataclass(frozen=True)
class ModelOptions:
    """What the user says about a model that cannot say it itself; None where the model or the data is to be asked.

    architecture: "timm:NAME", "torchvision:NAME" or "py:module:function", for a state dict. access: less than what
    the model would grant, to examine it as someone who has less.
    """

    classes: Sequence[str] | None = None
    input_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    architecture: str | None = None
    device: str = "cpu"
    access: Access | None = None
    budget: int | None = None
    """Most images forward and backward."""
    minutes: float | None = None
    """No pass begins after so much time."""
    remote: Remote = field(default_factory=Remote)
    """How a server is asked."""
    template: str = "a photo of a {}."
    """The sentence around a class name, for zero-shot classifiers."""
    compile: bool = False
    """Compile the network with torch.compile."""
    dtype: str = "float32"
    """Arithmetic of the network: "float32" or "bf16"."""


class DataHints(NamedTuple):
    """What the data can say where neither the model nor the user does."""

    class_names: Sequence[str] | None = None
    image_size: tuple[int, int] | None = None
