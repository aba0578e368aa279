"""What a model says of itself: classes, geometry, normalisation, identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from snellen.errors import InvalidInput

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class ModelSpec:
    """The facts about a model that the engine and the report need.

    Images reach the model as RGB (or grey, `channels=1`) in [0, 1]; the wrapper resizes and normalises.
    """

    name: str
    """What the user called it."""
    class_names: tuple[str, ...]
    """One name an output, in output order."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Per-channel mean subtracted after scaling to [0, 1]."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Per-channel divisor."""
    interpolation: Interpolation = "bilinear"
    """How images are brought to `input_size`."""
    crop_fraction: float = 1.0
    """Centre crop: the short side is resized to `input_size / crop_fraction`. 1 keeps the whole short side."""
    task: str = "classification"
    fingerprint: str = ""
    """Hash of architecture and weights; part of every job's key."""
    class_aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names for a class (a WordNet id, say) -> the name in `class_names`."""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise InvalidInput(f"class_names needs at least 2 classes, got {list(self.class_names)}")
        if len(set(self.class_names)) != len(self.class_names):
            twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
            raise InvalidInput(f"class_names must be different from each other, these come twice: {twice[:5]}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InvalidInput(f"mean and std need 1 or 3 values each, got {len(self.mean)} and {len(self.std)}")
        if any(value <= 0 for value in self.std):
            raise InvalidInput(f"std must be positive, got {self.std}")
        if not 0 < self.crop_fraction <= 1:
            raise InvalidInput(f"crop_fraction must be in (0, 1], got {self.crop_fraction}")
        if min(self.input_size) < 1:
            raise InvalidInput(f"input_size must be positive, got {self.input_size}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def class_index(self, name: str) -> int | None:
        """The output of a class name or alias, None when the model does not have it."""
        canonical = self.class_aliases.get(name, name)
        return self.class_names.index(canonical) if canonical in self.class_names else None


def fingerprint_weights(architecture: str, tensors: Mapping[str, Tensor]) -> str:
    """A 16-byte hex digest of an architecture's name and its named tensors (values, shapes, dtypes)."""
    digest = hashlib.blake2b(architecture.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
