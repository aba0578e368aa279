"""Data sets whose features have a known complexity: linear and slab coordinates, and images stacked from two sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

LEVELS: dict[int, tuple[dict[int, float], dict[int, float]]] = {
    3: ({0: 1.0}, {1: 1.0}),
    5: ({0: 3 / 4, 2: 1 / 4}, {1: 1.0}),
    7: ({0: 1 / 2, 2: 1 / 2}, {1: 7 / 8, 3: 1 / 8}),
}
"""Slabs -> for class 0 and class 1: how often a point lies in the slab so many steps from the middle one."""


class SlabData(NamedTuple):
    """x: float64 `[n, d]`, rotated where a rotation was asked for. y: 0 or 1 `[n]`. simple, complex: coordinates, in
    the feature basis `x @ rotation.T`. rotation: `[d, d]`, the identity without one."""

    x: Floats
    y: Labels
    simple: tuple[int, ...]
    complex: tuple[int, ...]
    rotation: Floats


@dataclass(frozen=True)
class Slabs:
    """One linear coordinate and slab coordinates, independent of each other given the class (Shah et al., 2020)."""

    slabs: tuple[int, ...] = (5,) * 19
    """3, 5 or 7 for every slab coordinate; the paper's LMS-5 has nineteen of 5."""
    linear: bool = True
    """Whether there is a linear coordinate, the simple feature; without it the coordinates of fewest slabs are."""
    margin: float = 0.1
    """Of the linear coordinate, in (0, 1) of the width."""
    slab_margin: float = 0.1
    """Half the gap between slabs, in (0, 1) of the width."""
    width: float = 1.0
    """Coordinates lie in [-width, width]; above 0."""
    noise: int = 0
    """Further coordinates, uniform in [0, width], that say nothing."""
    corrupted: float = 0.0
    """Share of samples in [0, 1] whose linear coordinate misleads."""
    corruption: Literal["flip", "margin"] = "flip"
    """flip: x becomes -x. margin: x is drawn anew from within the margin."""
    rotated: bool = False

    def __post_init__(self) -> None:
        if not set(self.slabs) <= set(LEVELS) or not (self.slabs or self.linear):
            raise InvalidInput(f"slabs must be 3, 5 or 7 for each coordinate, got {list(self.slabs)}")
        if not (0 < self.margin < 1 and 0 < self.slab_margin < 1):
            raise InvalidInput(f"margins must be in (0, 1), got {self.margin} and {self.slab_margin}")
        if not self.width > 0 or self.noise < 0:
            raise InvalidInput(f"width must be above 0 and noise at least 0, got {self.width} and {self.noise}")
        for count in set(self.slabs):
            slab_width(count, self.slab_margin * self.width, self.width)
        if not 0 <= self.corrupted <= 1 or self.corruption not in ("flip", "margin"):
            raise InvalidInput(
                f"corrupted must be in [0, 1] and corruption flip or margin, got {self.corrupted}, {self.corruption!r}"
            )

    def draw(self, n: int, rng: np.random.Generator) -> SlabData:
        """`n` samples, classes by a fair coin."""
        if n < 1:
            raise InvalidInput(f"n must be at least 1, got {n}")
        y = rng.integers(0, 2, n)
        columns = []
        if self.linear:
            x = linear_coordinate(y, self.margin * self.width, self.width, rng)
            struck = rng.random(n) < self.corrupted
            bound = self.margin * self.width
            columns.append(np.where(struck, -x if self.corruption == "flip" else rng.uniform(-bound, bound, n), x))
        columns += [slab_coordinate(y, count, self.slab_margin * self.width, self.width, rng) for count in self.slabs]
        columns += [rng.uniform(0, self.width, n) for _ in range(self.noise)]
        informative = len(self.slabs) + self.linear
        fewest = min(self.slabs, default=0)
        simple = (0,) if self.linear else tuple(i for i, count in enumerate(self.slabs) if count == fewest)
        rotation = np.eye(len(columns))
        if self.rotated:
            rotation = np.linalg.qr(rng.normal(size=rotation.shape))[0]
        rest = tuple(i for i in range(informative) if i not in simple)
        return SlabData(np.stack(columns, axis=1) @ rotation, y, simple, rest, rotation)


def linear_coordinate(y: Labels, margin: float, width: float, rng: np.random.Generator) -> Floats:
    """`[n]`: uniform from `margin` to `width`, negative for class 0."""
    return (2.0 * y - 1) * (margin + (width - margin) * rng.random(len(y)))


def slab_width(slabs: int, margin: float, width: float) -> float:
    """Width of each of `slabs` slabs on [-width, width] with gaps of 2 x `margin`."""
    wide = (2 * width - 2 * (slabs - 1) * margin) / slabs
    if wide <= 0:
        raise InvalidInput(f"{slabs} slabs with gaps of {2 * margin:g} do not fit in a width of {2 * width:g}")
    return wide


def slab_coordinate(y: Labels, slabs: int, margin: float, width: float, rng: np.random.Generator) -> Floats:
    """`[n]`: classes in alternating slabs, class 0 in the middle one. slabs: 3, 5 or 7. margin: half a gap."""
    if slabs not in LEVELS:
        raise InvalidInput(f"slabs must be 3, 5 or 7, got {slabs}")
    if y.ndim != 1 or not np.isin(y, (0, 1)).all():
        raise InvalidInput("y must hold the classes 0 and 1")
    wide = slab_width(slabs, margin, width)
    step = np.zeros(len(y))
    for label, shares in enumerate(LEVELS[slabs]):
        step = np.where(y == label, rng.choice(list(shares), len(y), p=list(shares.values())), step)
    side = rng.choice((-1.0, 1.0), len(y))
    return side * np.where(
        step == 0, rng.uniform(0, wide / 2, len(y)), (step - 0.5) * wide + 2 * margin * step + wide * rng.random(len(y))
    )


def stacked_images(
    top: Tensor, top_labels: Tensor, bottom: Tensor, bottom_labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images `[n, C, H1 + H2, W]` of two sets, one above the other, that have nothing in common but their class.

    top, bottom: `[N, C, H, W]` of one width and channel count. labels: 0 or 1. Each top image is used once, with a
    bottom image drawn from its class; the labels `[N]` are the top's. MNIST-CIFAR of the paper is such a stack.
    """
    if top.shape[1] != bottom.shape[1] or top.shape[3] != bottom.shape[3]:
        raise InvalidInput(
            f"both image sets need one channel count and width, got {list(top.shape)} and {list(bottom.shape)}"
        )
    if not set(top_labels.tolist()) <= set(bottom_labels.tolist()):
        raise InvalidInput("every class of the top images must occur among the bottom images")
    chosen = torch.zeros_like(top_labels)
    for label in top_labels.unique().tolist():
        of_class = torch.nonzero(bottom_labels == label).flatten()
        rows = top_labels == label
        chosen[rows] = of_class[torch.from_numpy(rng.integers(0, len(of_class), int(rows.sum())))]
    return torch.cat([top, bottom[chosen]], dim=2), top_labels
