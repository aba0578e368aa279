"""The corruptions by name, and `corrupt`, which applies one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.shift._blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from snellen.shift._digital import contrast, elastic_transform, jpeg_compression, pixelate
from snellen.shift._noise import gaussian_noise, impulse_noise, shot_noise
from snellen.shift._weather import brightness, fog, frost, snow

MAX_SEVERITY = 5.0
MIN_SIDE = 16

GROUPS: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)

DETERMINISTIC: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "defocus_blur": defocus_blur,
    "zoom_blur": zoom_blur,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
RANDOM: Mapping[str, Callable[[Tensor, float, Sequence[Generator]], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "elastic_transform": elastic_transform,
}


@torch.no_grad()
def corrupt(
    images: Tensor,
    name: str,
    severity: float,
    generators: Sequence[Generator] | None = None,
    *,
    quantise: bool = True,
) -> Tensor:
    """One of the 15 corruptions of ImageNet-C at a continuous severity (Hendrycks & Dietterich, 2019).

    images: float `[B, C, H, W]` in [0, 1], C = 1 or 3, sides of at least 16 px, on any device. name: one of
    `CORRUPTIONS`. severity: 0 (the images themselves) to 5; integers are the published constants, those of CIFAR-C up
    to 32 px on the short side and those of ImageNet-C at 224 px, interpolated between (`shift/_severity.py`).
    generators: one a sample, read by that sample alone, so a row does not depend on its batch; may be left out for
    defocus_blur, zoom_blur, brightness, contrast, pixelate and jpeg_compression. quantise: cut the result to 8 bits
    downwards, as the published files were.

    Returns a new tensor of the same shape, dtype and device in [0, 1]. Raises InvalidInput. Misleads for frost, whose
    texture is procedural, and when compared with scores on the published files, which were saved as JPEG once more.
    """
    severity = check_severity(severity)
    check_name(name)
    _check_batch(images)
    if severity == 0:
        return images.clone()

    exact = images if images.dtype == torch.float32 else images.float()
    if name in DETERMINISTIC:
        result = DETERMINISTIC[name](exact, severity)
    else:
        if generators is None or len(generators) != len(images):
            given = "none" if generators is None else str(len(generators))
            raise InvalidInput(
                f"generators must hold one torch.Generator a sample for {name}: {len(images)}, got {given}"
            )
        result = RANDOM[name](exact, severity, generators)
    if quantise:
        # A thousandth of a level keeps whole levels whole in spite of float32 rounding.
        result = result.mul(255).add_(1e-3).floor_().div_(255)
    return result.to(images.dtype)


def check_name(name: str) -> str:
    """Refuse what is not one of `CORRUPTIONS`."""
    if name not in CORRUPTIONS:
        near = get_close_matches(name, CORRUPTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}{hint}")
    return name


def check_severity(severity: float) -> float:
    """Refuse a severity outside [0, 5]."""
    if not (math.isfinite(severity) and 0 <= severity <= MAX_SEVERITY):
        raise InvalidInput(f"severity must be in [0, {MAX_SEVERITY:g}], got {severity}")
    return float(severity)


def _check_batch(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise InvalidInput(
            f"images must be a float tensor [B, C, H, W] with 1 or 3 channels, got {images.dtype} {list(images.shape)}"
        )
    if len(images) == 0 or min(images.shape[-2:]) < MIN_SIDE:
        raise InvalidInput(
            f"images must be at least one, with sides of {MIN_SIDE} px or more, got {list(images.shape)}"
        )
    lowest, highest = (float(bound) for bound in images.aminmax())
    if not (lowest >= 0 and highest <= 1):
        raise InvalidInput(f"images must lie in [0, 1], got values from {lowest} to {highest}")
