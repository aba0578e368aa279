"""From images in [0, 1] to what a network reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.models.spec import ModelSpec


class Preprocessing:
    """Images `[B, C, H, W]` in [0, 1]: brought to the device, resized to the spec's size, normalised."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._mean = torch.tensor(spec.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
        self._plain = all(m == 0 for m in spec.mean) and all(s == 1 for s in spec.std)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self._device, memory_format=torch.channels_last)
        if tuple(images.shape[-2:]) != self._spec.input_size:
            images = resize(images, self._spec.input_size, self._spec.interpolation)
        return images if self._plain else (images - self._mean) / self._std


def resize(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize `[B, C, H, W]` to `size` (height, width), antialiased where the kernel allows, clipped to [0, 1]."""
    if interpolation == "nearest":
        return F.interpolate(images, size=size, mode="nearest")
    resized = F.interpolate(images, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized.clamp(0, 1) if interpolation == "bicubic" else resized
