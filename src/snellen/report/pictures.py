"""Thumbnails and heat maps as data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

THUMBNAIL = 96
"""Longest side in pixels; smaller images are enlarged without smoothing so that their pixels can be seen."""

# Dark blue through violet and orange to pale yellow: ordered in lightness, readable in grey and by the colour-blind.
_RAMP = np.array([[13, 8, 60], [94, 20, 120], [182, 50, 90], [240, 110, 40], [252, 190, 70], [255, 250, 200]], float)


def thumbnail(image: Tensor) -> str:
    """A data address of an image float32 `[C, H, W]` in [0, 1]."""
    return _address(_scaled(as_picture(image)))


def overlay(image: Tensor, heat_map: Sequence[Sequence[float]]) -> str:
    """The heat map over the grey image: strength is |value| over its 99th percentile."""
    values = np.abs(np.nan_to_num(np.asarray(heat_map, dtype=np.float64)))
    scale = np.percentile(values, 99)
    strength = np.clip(values / scale, 0, 1) if scale > 0 else np.zeros_like(values)
    pixels = np.asarray(as_picture(image).convert("L"), dtype=np.float64)
    if strength.shape != pixels.shape:
        resized = Image.fromarray(strength.astype(np.float32)).resize((pixels.shape[1], pixels.shape[0]))
        strength = np.clip(np.asarray(resized, dtype=np.float64), 0, 1)
    steps = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(strength, steps, _RAMP[:, channel]) for channel in range(3)], axis=2)
    weight = (0.25 + 0.65 * strength)[:, :, None]
    mixed = (1 - weight) * pixels[:, :, None] + weight * colour
    return _address(_scaled(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))))


def as_picture(image: Tensor) -> Image.Image:
    """An image float32 `[C, H, W]` in [0, 1] as a Pillow image, RGB or grey."""
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _scaled(image: Image.Image) -> Image.Image:
    factor = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
