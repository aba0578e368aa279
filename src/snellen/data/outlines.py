"""Masks drawn from COCO segmentations: polygons, and run lengths plain or compressed."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from snellen.data.decode import MAX_PIXELS, BadImage
from snellen.data.sources import EncodedImages


def drawn_masks(outlines: pa.Array) -> EncodedImages:
    """Masks from JSON `{"size": [height, width], "parts": [segmentation, …]}`; null is an image without one."""

    def read(position: int) -> bytes:
        outline = outlines[position].as_py()
        if outline is None:
            raise FileNotFoundError("no segmentation")
        described = json.loads(outline)
        height, width = described["size"]
        if height * width > MAX_PIXELS:
            raise BadImage(f"{width} x {height} pixels is more than {MAX_PIXELS:,}")
        mask = np.zeros((height, width), dtype=bool)
        for part in described["parts"]:
            mask |= _drawn(part, height, width)
        # A portable grey map, so that masks take the same way through the decoder as images do.
        return f"P5 {width} {height} 255\n".encode() + (mask * np.uint8(255)).tobytes()

    return EncodedImages(len(outlines), read)


def _drawn(segmentation: object, height: int, width: int) -> np.ndarray:
    """bool `[height, width]` of one object. Raises `BadImage`."""
    try:
        if isinstance(segmentation, list):
            return _filled([np.asarray(polygon, dtype=np.float64) for polygon in segmentation], height, width)
        if isinstance(segmentation, dict) and segmentation["size"] == [height, width]:
            counts = segmentation["counts"]
            return _runs(_unpacked(counts) if isinstance(counts, str) else counts, height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadImage(f"the segmentation is damaged: {error}") from error
    raise BadImage("the segmentation is neither a list of polygons nor run lengths of the image's size")


def _filled(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Pixels whose centres lie inside one of the polygons, by the even-odd rule."""
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError("a polygon needs x and y of three or more finite points")
        points = np.clip(polygon.reshape(-1, 2), -1e6, 1e6)
        crossed = np.zeros((height, width + 1), dtype=bool)
        for (x, y), (next_x, next_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
            first, last = (int(np.clip(np.ceil(end - 0.5), 0, height)) for end in sorted((y, next_y)))
            rows = np.arange(first, last)
            at = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y) if len(rows) else rows
            crossed[rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)] ^= True
        mask |= np.logical_xor.accumulate(crossed, axis=1)[:, :width]
    return mask


def _runs(counts: object, height: int, width: int) -> np.ndarray:
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or (lengths > height * width).any():
        raise ValueError("run lengths must be numbers from 0 to that of the pixels")
    if lengths.sum() != height * width:
        raise ValueError(f"run lengths do not add up to {height} x {width}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _unpacked(text: str) -> list[int]:
    """The run lengths in COCO's compressed text: five bits a character, from the third on as differences to the last
    but one. (pycocotools accepts texts whose runs do not fill the image; here they are checked like plain ones.)
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length has more than 60 bits")
        if not bits & 0x20:
            number -= (1 << shift) if bits & 0x10 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts
