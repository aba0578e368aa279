"""`Shift`: one way the world changes an image, with a continuous strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

Deterministic = Callable[[Tensor, float], Tensor]
Random = Callable[[Tensor, float, Sequence[Generator]], Tensor]


@dataclass(frozen=True)
class Shift:
    """A transform of images float32 `[B, C, H, W]` in [0, 1] by a severity in (0, 5].

    It returns a new tensor of the same shape on the same device; values outside [0, 1] are clipped by `corrupt`.
    Continuous in the severity with the identity as its limit at 0. Exactly one of the two functions is given.
    """

    group: str
    """Family of charts it is drawn with: "noise", "overlay", ..."""
    deterministic: Deterministic | None = None
    random: Random | None = None
    """Also takes one CPU generator a sample; reads each for its own sample alone and in an order that does not depend
    on the severity, so that a sample's curve is the same accident getting worse."""
    min_side: int = 16
    """Smallest height and width in pixels."""

    def __call__(self, images: Tensor, severity: float, generators: Sequence[Generator] = ()) -> Tensor:
        if self.random is not None:
            return self.random(images, severity, generators)
        assert self.deterministic is not None
        return self.deterministic(images, severity)
