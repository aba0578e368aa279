from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from snellen.data import BadImage, Geometry
from snellen.data.decode import decode

RGB = Geometry()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def a_picture(width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_of_a_png_arrive_unchanged() -> None:
    picture = a_picture()
    assert np.array_equal(decode(encoded(picture), RGB).numpy().transpose(1, 2, 0), np.asarray(picture))


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = decode(encoded(a_picture(20, 12), "JPEG", exif=exif), RGB)
    assert turned.shape == (3, 20, 12)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"
    image = a_picture().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (20, 12), (128, 128, 128))
    if mode == "HSV":
        image = image.convert("RGB")
    assert decode(encoded(image, kind), RGB).shape == (3, 12, 20)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear), RGB).min() == 255


def test_transparent_palette_is_laid_over_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert decode(encoded(image, transparency=0), RGB).min() == 255


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(values)), RGB)[0, 0].tolist() == [0, 1, 255]


def test_grey_models_get_one_channel() -> None:
    assert decode(encoded(a_picture()), Geometry(channels=1)).shape == (1, 12, 20)


def test_float_images_in_the_unit_range_are_scaled() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decode(encoded(image, "TIFF"), RGB)[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.0, 300.0])
def test_float_images_with_impossible_values_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.0, value]], dtype=np.float32))
    with pytest.raises(BadImage, match="pixel values"):
        decode(encoded(image, "TIFF"), RGB)


def test_an_empty_file_is_named_as_such() -> None:
    with pytest.raises(BadImage, match="0 bytes"):
        decode(b"", RGB)


@pytest.mark.parametrize("content", [b"hello", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 1000])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode(content, RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused_and_never_crash(kind: str, kept: float) -> None:
    whole = encoded(a_picture(64, 64), kind)
    with pytest.raises(BadImage):
        decode(whole[: int(len(whole) * kept)], RGB)


def test_a_decompression_bomb_is_refused_before_it_unfolds() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(BadImage, match=r"bomb|pixels"):
        decode(bomb, RGB)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (64, 64)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_geometry_gives_exactly_the_size_asked_for(size: tuple[int, int], crop: float) -> None:
    for width, height in ((97, 211), (211, 97), (5, 300), (16, 16)):
        assert decode(encoded(a_picture(width, height)), Geometry(size, crop)).shape == (3, *size)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    picture = a_picture(16, 16)
    kept = decode(encoded(picture), Geometry((16, 16), 0.875)).numpy().transpose(1, 2, 0)
    assert np.array_equal(kept, np.asarray(picture))
