"""Constants of a corruption as functions of a continuous severity and of the image size.

Severity: 0 is the identity, 1 to 5 are the published constants, in between they are interpolated linearly.

Size: up to 32 px on the short side the CIFAR-C constants hold, at 224 px those of ImageNet-C, in between they are
mixed linearly in log(side). Beyond 224 px what is a length in pixels grows with side / 224, so that a 512 px picture
looks like its 224 px copy; what is a strength stays. Published numbers exist only at 32 and 224 px: any other size is
our extension and its scores compare with themselves only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

CIFAR_SIDE = 32
IMAGENET_SIDE = 224

Row = tuple[float, ...]


@dataclass(frozen=True)
class SeverityTable:
    """Published constants of one corruption, a row a severity 1 to 5.

    identity: the constants that leave an image as it is; None keeps the value of severity 1, for a constant that says
    nothing when another one is zero. growth: the power of side / 224 by which a constant grows beyond 224 px, 1 for a
    length in pixels, 0 for a strength.
    """

    identity: tuple[float | None, ...]
    imagenet: tuple[Row, Row, Row, Row, Row]
    cifar: tuple[Row, Row, Row, Row, Row]
    growth: tuple[int, ...]

    def constants(self, severity: float, short_side: int) -> Row:
        """The constants at `severity` in [0, 5] for images whose short side has `short_side` pixels."""
        small, large = (self._interpolated(rows, severity) for rows in (self.cifar, self.imagenet))
        share = math.log(short_side / CIFAR_SIDE) / math.log(IMAGENET_SIDE / CIFAR_SIDE)
        mixed = _mix(small, large, min(max(share, 0.0), 1.0))
        scale = max(short_side / IMAGENET_SIDE, 1.0)
        return tuple(value * scale**power for value, power in zip(mixed, self.growth, strict=True))

    def at(self, severity: float, images: Tensor) -> Row:
        """`constants` for a batch `[B, C, H, W]`."""
        return self.constants(severity, min(images.shape[-2:]))

    def _interpolated(self, rows: tuple[Row, ...], severity: float) -> Row:
        first = tuple(known if kept is None else kept for kept, known in zip(self.identity, rows[0], strict=True))
        curve = (first, *rows)
        below = min(int(severity), len(rows) - 1)
        return _mix(curve[below], curve[below + 1], severity - below)


def _mix(low: Row, high: Row, share: float) -> Row:
    # Exact at both ends, where the published numbers are.
    return tuple((1 - share) * a + share * b for a, b in zip(low, high, strict=True))
