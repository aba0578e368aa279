"""Foreign image content for overlays, collages and styles.

The default are crops of the two photographs that scikit-learn ships (a Chinese temple and a flower), so that nothing
has to be downloaded and a sample never depends on its batch. Which crop a sample gets follows from numbers of its own
generator. Two photographs are few: an effect of a donor's content, rather than of the disguise, needs donors of one's
own to be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.data.decode import BadImage, Geometry, decode
from snellen.errors import InvalidInput
from snellen.randomness import uniform
from snellen.shift._weather import grey

NUMBERS = 4
"""Draws that settle a crop: which picture, how large a window, where from the top, where from the left."""
SMALLEST_WINDOW = 0.5
"""Share of the largest window that fits, along a side."""


@dataclass(frozen=True)
class Donors:
    """files: image files to crop from; none = scikit-learn's two photographs."""

    files: tuple[str, ...] = ()

    def crop(self, numbers: Tensor, height: int, width: int, like: Tensor) -> Tensor:
        """One crop `[C, height, width]` in [0, 1], on the device and with the channels of `like` `[..., C, H, W]`.

        numbers: `[4]` in [0, 1). A window of the target's shape, half to all of what fits the picture, is resized.
        """
        which, zoom, down, right = numbers.tolist()
        pictures = pictures_of(self.files)
        picture = pictures[int(which * len(pictures))]
        rows, columns = picture.shape[-2:]
        largest = min(rows / height, columns / width)
        share = largest * (SMALLEST_WINDOW + (1 - SMALLEST_WINDOW) * zoom)
        tall, wide = max(math.floor(share * height), 1), max(math.floor(share * width), 1)
        top, left = int(down * (rows - tall + 1)), int(right * (columns - wide + 1))
        window = picture[:, top : top + tall, left : left + wide]
        if like.shape[-3] == 1:
            window = grey(window[None])[0]
        crop = F.interpolate(window[None], size=(height, width), mode="bilinear", antialias=True)[0]
        return crop.clamp_(0, 1).to(like.device)

    def crops(self, numbers: Tensor, like: Tensor) -> Tensor:
        """A crop a sample, of the shape of `like` `[B, C, H, W]`. numbers: `[B, 4]` in [0, 1)."""
        height, width = like.shape[-2:]
        return torch.stack([self.crop(row, height, width, like) for row in numbers])

    def drawn(self, generators: Sequence[Generator], like: Tensor) -> Tensor:
        """`crops` with numbers from the samples' generators."""
        return self.crops(uniform(generators, (NUMBERS,)), like)


PHOTOGRAPHS = Donors()


@cache
def pictures_of(files: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The pictures as float `[3, H, W]` in [0, 1], read once. Raises InvalidInput for a file that is no image."""
    if not files:
        from sklearn.datasets import load_sample_images

        photographs = [torch.tensor(photograph).permute(2, 0, 1) for photograph in load_sample_images().images]
    else:
        photographs = [_read(file) for file in files]
    return tuple(photograph.float().div(255) for photograph in photographs)


def _read(file: str) -> Tensor:
    try:
        return decode(Path(file).read_bytes(), Geometry())
    except (OSError, BadImage) as error:
        raise InvalidInput(f"donors must be image files, got {file!r}: {error}") from error
