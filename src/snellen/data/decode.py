"""From bytes that nobody vouches for to pixels, or to a reason why not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from snellen.errors import SnellenError

MAX_PIXELS = 100_000_000
"""Larger images are taken for decompression bombs and not decoded."""

# Formats whose decoders are pure image code. EPS, PDF and friends start other programs and stay shut.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class BadImage(SnellenError):
    """An image that cannot be used; the message is the reason that goes to the quarantine."""


class MissingImage(BadImage):
    """There is no file or cell to read; for a mask that means a sample without one."""


@dataclass(frozen=True)
class Geometry:
    """How a decoded image becomes what the model sees: short side resized to cover, then a centre crop.

    size: height and width, None keeps the image's own. crop_fraction: part of the resized image that the crop keeps.
    channels: 3 for RGB, 1 for grey.
    """

    size: tuple[int, int] | None = None
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    channels: int = 3

    def apply(self, image: Image.Image) -> Image.Image:
        """The image at `size`. An image that has it already is not resampled."""
        if self.size is None or (image.height, image.width) == self.size:
            return image
        height, width = self.size
        scale = max(height / image.height, width / image.width) / self.crop_fraction
        resized_width = max(width, round(image.width * scale))
        resized_height = max(height, round(image.height * scale))
        resized = image.resize((resized_width, resized_height), _RESAMPLING[self.interpolation])
        left, top = (resized_width - width) // 2, (resized_height - height) // 2
        return resized.crop((left, top, left + width, top + height))


def decode(encoded: bytes, geometry: Geometry) -> Tensor:
    """Encoded bytes to uint8 `[channels, H, W]`. Raises `BadImage` with the reason.

    EXIF orientation is applied, palettes are expanded, transparency is laid over white, 16-bit values are scaled to
    8 bit, and float images must be finite and lie in [0, 1] or [0, 255].
    """
    if not encoded:
        raise BadImage("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and large sizes are judged below, not printed
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(f"{image.width} x {image.height} pixels is more than {MAX_PIXELS:,}")
                if geometry.size is not None and geometry.interpolation != "nearest":
                    # A JPEG can be decoded at 1/2, 1/4, 1/8 of its size; twice the target loses nothing visible.
                    image.draft(None, (2 * geometry.size[1], 2 * geometry.size[0]))
                image.load()
                upright = ImageOps.exif_transpose(image)
                plain = geometry.apply(_to_mode(upright, "RGB" if geometry.channels == 3 else "L"))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"the image looks like a decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError) as error:
        # Pillow's decoders signal damaged files by any of these.
        raise BadImage(f"truncated or damaged: {error}") from error
    pixels = np.array(plain, dtype=np.uint8)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).contiguous()


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Height and width from the header, None when there is none to read."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage("pixel values are not finite (NaN or infinity)")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif image.mode == "F" and (low < 0 or high > 255):
        raise BadImage(f"float pixel values from {low:g} to {high:g}; accepted are [0, 1] and [0, 255]")
    elif image.mode.startswith("I"):
        if low < 0 or high > 65535:
            raise BadImage(f"integer pixel values from {low:g} to {high:g}; accepted are 0 to 65535")
        values = values / 257
    return Image.fromarray(np.round(values).astype(np.uint8), "L")
