"""Every shift of images by name, and `corrupt`, which applies one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.shift._bar_cifar import BAR_CIFAR
from snellen.shift._bar_lights import BAR_LIGHTS
from snellen.shift._bar_patterns import BAR_PATTERNS
from snellen.shift._blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from snellen.shift._digital import contrast, elastic_transform, jpeg_compression, pixelate
from snellen.shift._extra import EXTRA
from snellen.shift._noise import gaussian_noise, impulse_noise, shot_noise
from snellen.shift._obfuscate import OBFUSCATIONS
from snellen.shift._random_field import RANDOM_FIELDS
from snellen.shift._transform import Shift
from snellen.shift._weather import brightness, fog, frost, snow
from snellen.shift.low_resolution import LOW_RESOLUTION

MAX_SEVERITY = 5.0

IMAGENET_C: Mapping[str, Shift] = {
    "gaussian_noise": Shift("noise", random=gaussian_noise),
    "shot_noise": Shift("noise", random=shot_noise),
    "impulse_noise": Shift("noise", random=impulse_noise),
    "defocus_blur": Shift("blur", defocus_blur),
    "glass_blur": Shift("blur", random=glass_blur),
    "motion_blur": Shift("blur", random=motion_blur),
    "zoom_blur": Shift("blur", zoom_blur),
    "snow": Shift("weather", random=snow),
    "frost": Shift("weather", random=frost),
    "fog": Shift("weather", random=fog),
    "brightness": Shift("weather", brightness),
    "contrast": Shift("digital", contrast),
    "elastic_transform": Shift("digital", random=elastic_transform),
    "pixelate": Shift("digital", pixelate),
    "jpeg_compression": Shift("digital", jpeg_compression),
}
CORRUPTIONS: tuple[str, ...] = tuple(IMAGENET_C)
"""The 15 of ImageNet-C, which mCE is defined on."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    group: tuple(name for name, shift in IMAGENET_C.items() if shift.group == group)
    for group in ("noise", "blur", "weather", "digital")
}

BAR: tuple[str, ...] = (*BAR_PATTERNS, *BAR_LIGHTS)
"""The 10 of ImageNet-C-bar, chosen to be unlike the 15 (Mintun et al., 2021)."""

SHIFTS: Mapping[str, Shift] = {
    **IMAGENET_C,
    **EXTRA,
    **BAR_PATTERNS,
    **BAR_LIGHTS,
    **BAR_CIFAR,
    **OBFUSCATIONS,
    **RANDOM_FIELDS,
    **LOW_RESOLUTION,
}
"""Everything `corrupt` knows; a family of shifts is one file with a mapping of its own."""


def corrupt(
    images: Tensor,
    name: str,
    severity: float,
    generators: Sequence[Generator] | None = None,
    *,
    quantise: bool = True,
) -> Tensor:
    """One shift of the images at a continuous severity, for example fog (Hendrycks & Dietterich, 2019).

    images: float `[B, C, H, W]` in [0, 1], C = 1 or 3, sides of at least 16 px, on any device. name: one of `SHIFTS`.
    severity: 0 (the images themselves) to 5. For ImageNet-C's, integers are the published constants, those of CIFAR-C
    up to 32 px on the short side and those of ImageNet-C at 224 px, interpolated between (`shift/_severity.py`).
    generators: one a sample, read by that sample alone, so a row does not depend on its batch; may be left out for
    shifts that draw nothing (`SHIFTS[name].random is None`). quantise: cut the result to 8 bits downwards, as the
    published files were.

    Returns a new tensor of the same shape, dtype and device in [0, 1]. Raises InvalidInput. Misleads for frost, whose
    texture is procedural, and when compared with scores on the published files, which were saved as JPEG once more.
    """
    return apply_shift(SHIFTS[check_name(name)], images, severity, generators, name=name, quantise=quantise)


@torch.no_grad()
def apply_shift(
    shift: Shift,
    images: Tensor,
    severity: float,
    generators: Sequence[Generator] | None = None,
    *,
    name: str = "this shift",
    quantise: bool = True,
) -> Tensor:
    """As `corrupt`, for a shift that need not be in the catalogue."""
    severity = check_severity(severity)
    check_batch(images, shift.min_side)
    if severity == 0:
        return images.clone()

    exact = images if images.dtype == torch.float32 else images.float()
    if shift.random is not None and (generators is None or len(generators) != len(images)):
        given = "none" if generators is None else str(len(generators))
        raise InvalidInput(f"generators must hold one torch.Generator a sample for {name}: {len(images)}, got {given}")
    result = shift(exact, severity, generators or ()).clamp(0, 1)
    if quantise:
        # A thousandth of a level keeps whole levels whole in spite of float32 rounding.
        result = result.mul_(255).add_(1e-3).floor_().div_(255)
    return result.to(images.dtype)


def check_name(name: str) -> str:
    """Refuse what is not one of `SHIFTS`."""
    if name not in SHIFTS:
        near = get_close_matches(name, SHIFTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f": {', '.join(SHIFTS)}"
        raise InvalidInput(f"name must be one of the {len(SHIFTS)} shifts, got {name!r}{hint}")
    return name


def check_severity(severity: float) -> float:
    """Refuse a severity outside [0, 5]."""
    if not (math.isfinite(severity) and 0 <= severity <= MAX_SEVERITY):
        raise InvalidInput(f"severity must be in [0, {MAX_SEVERITY:g}], got {severity}")
    return float(severity)


def check_severities(severities: Sequence[float]) -> None:
    """Refuse a list that is empty, not ascending, or leaves (0, 5]."""
    for severity in severities:
        check_severity(severity)
    if not severities or not all(a < b for a, b in zip((0.0, *severities), severities, strict=False)):
        raise InvalidInput(f"severities must be above 0 and ascending, got {list(severities)}")


def check_batch(images: Tensor, min_side: int) -> None:
    """Refuse what is not a float batch `[B, 1 or 3, H, W]` in [0, 1] with sides of `min_side` or more."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise InvalidInput(
            f"images must be a float tensor [B, C, H, W] with 1 or 3 channels, got {images.dtype} {list(images.shape)}"
        )
    if len(images) == 0 or min(images.shape[-2:]) < min_side:
        raise InvalidInput(
            f"images must be at least one, with sides of {min_side} px or more, got {list(images.shape)}"
        )
    lowest, highest = (float(bound) for bound in images.aminmax())
    if not (lowest >= 0 and highest <= 1):
        raise InvalidInput(f"images must lie in [0, 1], got values from {lowest} to {highest}")
