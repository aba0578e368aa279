"""Where pixels come from: encoded bytes that somebody reads, or arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from snellen.data.decode import BadImage, Geometry, MissingImage, decode, image_size
from snellen.errors import InvalidInput


class ImageSource(Protocol):
    """Images by position. `in_memory` sources need no threads."""

    in_memory: bool

    def __len__(self) -> int: ...
    def pixels(self, position: int, geometry: Geometry) -> Tensor:
        """uint8 `[C, H, W]`; raises `BadImage`."""
        ...

    def digest(self, position: int) -> bytes:
        """16 bytes that change when the image's content changes; raises `BadImage` when it cannot be read."""
        ...

    def size(self, position: int) -> tuple[int, int] | None:
        """Height and width without decoding, None when unknown."""
        ...


class EncodedImages:
    """Images kept as encoded bytes; `read` brings the bytes of one position or raises OSError or `BadImage`."""

    in_memory = False

    def __init__(self, count: int, read: Callable[[int], bytes]) -> None:
        self._count = count
        self._read = read

    def __len__(self) -> int:
        return self._count

    def pixels(self, position: int, geometry: Geometry) -> Tensor:
        return decode(self._bytes(position), geometry)

    def digest(self, position: int) -> bytes:
        return hashlib.blake2b(self._bytes(position), digest_size=16).digest()

    def size(self, position: int) -> tuple[int, int] | None:
        try:
            return image_size(self._bytes(position))
        except BadImage:
            return None

    def _bytes(self, position: int) -> bytes:
        try:
            return self._read(position)
        except FileNotFoundError as error:
            raise MissingImage("the file is missing") from error
        except OSError as error:
            raise BadImage(f"the file cannot be read: {error.strerror or error}") from error


class ArrayImages:
    """Images in memory: uint8 `[N, C, H, W]`, or float in [0, 1] of that shape."""

    in_memory = True

    def __init__(self, images: Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(images)
        if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
            raise InvalidInput(f"images must be [N, 3, H, W] or [N, 1, H, W], got {list(tensor.shape)}")
        if tensor.is_floating_point():
            if len(tensor) and not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise InvalidInput("float images must lie in [0, 1] and be finite")
            tensor = (tensor * 255).round().to(torch.uint8)
        if tensor.dtype != torch.uint8:
            raise InvalidInput(f"images must be uint8 or float, got {tensor.dtype}")
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def pixels(self, position: int, geometry: Geometry) -> Tensor:
        image = self.tensor[position]
        if geometry.channels != image.shape[0]:
            image = image.expand(3, -1, -1) if geometry.channels == 3 else _grey(image)
        if geometry.size is None or tuple(image.shape[-2:]) == geometry.size:
            return image
        return _through_pillow(image, geometry)

    def digest(self, position: int) -> bytes:
        return hashlib.blake2b(self.tensor[position].contiguous().numpy().tobytes(), digest_size=16).digest()

    def size(self, position: int) -> tuple[int, int] | None:
        return (int(self.tensor.shape[2]), int(self.tensor.shape[3]))


def _grey(image: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (image.float() * weights).sum(0, keepdim=True).round().to(torch.uint8)


def _through_pillow(image: Tensor, geometry: Geometry) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    resized: Tensor = pil_to_tensor(geometry.apply(to_pil_image(image)))
    return resized
