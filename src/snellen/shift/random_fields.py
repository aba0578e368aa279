"""How much smooth local warping and colour drift does the model tolerate?

Paper: Random Field Augmentations for Self-Supervised Representation Learning (2023). Where ordinary jitter moves or
tints the whole image by one amount, here every amount is a smooth random field: each place is shifted, turned,
stretched and tinted a little differently. The probe turns one strength up: a quarter of the mild setting at severity 1,
the mild setting at 3, four times it at 5. The same fields serve as a training augmentation
(`random_field_augmentation`). A warp that would fold the image over is weakened until it does not.

When it misleads: spectrum, amounts and order were reconstructed, the paper's own were not known to us. The strongest
fields make images that do not occur; look at them with `--show`. Where the guard against folding acts, a stronger
setting no longer means a stronger warp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import apply_shift, check_severities
from snellen.shift._curve import CLEAN, ShiftCurve, curves_of
from snellen.shift._random_field import (
    RANDOM_FIELDS,
    FieldAmounts,
    field_colour,
    field_places,
    field_warp,
    fields_at,
    random_field,
    sample,
    strength_of,
)
from snellen.shift._trials import ShiftProbe

__all__ = [
    "RANDOM_FIELDS",
    "FieldAmounts",
    "RandomFields",
    "field_colour",
    "field_places",
    "field_warp",
    "random_field",
    "random_field_augmentation",
    "sample",
    "strength_of",
]

TOLERATED = 0.05
"""Share of answers that may change before a strength counts as not tolerated."""


def random_field_augmentation(
    images: Tensor, generators: Sequence[Generator], strength: float = 1.0, probability: float = 0.5
) -> Tensor:
    """The paper's augmentation: each image is warped with `probability`, then its colours drift with `probability`.

    images: float `[B, C, H, W]` in [0, 1], sides of 8 px or more. generators: one a sample. strength: multiplies the
    mild amounts; mild ones help and strong ones hurt.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 8 or len(generators) != len(images):
        raise InvalidInput(
            f"images must be [B, C, H, W] with sides of 8 px or more and one generator each, got {list(images.shape)}"
            f" and {len(generators)}"
        )
    if not 0 <= probability <= 1 or strength < 0:
        raise InvalidInput(f"probability must be in [0, 1] and strength 0 or more, got {probability} and {strength}")
    chances = torch.stack([torch.rand(2, generator=generator) for generator in generators]).to(images.device)
    struck = (chances < probability).view(-1, 2, 1, 1, 1)
    images = torch.where(struck[:, 0], field_warp(images, strength, generators), images)
    return torch.where(struck[:, 1], field_colour(images, strength, generators), images)


@register
@dataclass(frozen=True)
class RandomFields(ShiftProbe):
    """Accuracy and stability of answers under local warps and local colour drifts (Random Fields, 2023)."""

    name: ClassVar[str] = "shift/random-fields"
    paper: ClassVar[str] = "Random Field Augmentations, 2023"
    card: ClassVar[str | None] = "random-field-augmentation"

    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """In (0, 5]: 1/4, 1/2, 1, 2 and 4 times the mild amounts."""
    gamma: float = 4.0
    """Smoothness of the fields: 2 rough, 6 very smooth."""

    def __post_init__(self) -> None:
        check_severities(self.severities)
        if not 0 <= self.gamma <= 20:
            raise InvalidInput(f"gamma must be in [0, 20], got {self.gamma}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        for name, shift in fields_at(self.gamma).items():
            for severity in self.severities:
                generators = random.generators(batch.ids, name)
                yield Condition(name, severity, apply_shift(shift, batch.images, severity, generators, name=name))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(RANDOM_FIELDS) * len(self.severities)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return [*super().findings(table, context), *(tolerance(curve) for curve in curves_of(agreement(table)))]


def agreement(table: Rows) -> Rows:
    """The rows with `correct` replaced by: the same answer as on the untouched image."""
    if not table.num_rows:
        return table
    untouched = table.filter(np.array(table["shift"].to_pylist(), dtype=object) == CLEAN)
    first = dict(zip(untouched["id"].to_pylist(), untouched["predicted"].to_pylist(), strict=True))
    same = [first[i] == p for i, p in zip(table["id"].to_pylist(), table["predicted"].to_pylist(), strict=True)]
    return table.set_column(table.column_names.index("correct"), "correct", pa.array(same, pa.bool_()))


def tolerance(curve: ShiftCurve) -> Finding:
    """The strength at which 5 % of the answers have changed."""
    crossing = curve.severity_of_drop(TOLERATED)
    last, spoken = float(curve.severities[-1]), curve.shift.replace("_", " ")
    found, low, high = (min(bound, last) for bound in crossing)
    if np.isinf(crossing.severity):
        title = f"Fewer than {TOLERATED:.0%} of the answers change under a {spoken} up to severity {last:g}"
    else:
        title = (
            f"{TOLERATED:.0%} of the answers change under a {spoken} of severity {found:.2g}"
            f" ({strength_of(found):.2g} times the mild amounts)"
        )
    return Finding(
        kind="shift",
        title=title,
        metric="tolerated severity",
        value=found,
        effect=0.0,  # information: the harm is counted as lost accuracy
        n=len(curve.ids),
        subject={"corruption": curve.shift, "measure": "tolerance"},
        ci=(low, high),
    )
