from __future__ import annotations

import io
import types

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from snellen.randomness import torch_generator
from snellen.shift._catalogue import corrupt
from snellen.shift._digital import ELASTIC_TRANSFORM, JPEG_COMPRESSION, PIXELATE, displace

Pixels = NDArray[np.uint8]


def levels(images: Tensor) -> NDArray[np.float64]:
    return (images.double() * 255).round().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["contrast", "pixelate", "jpeg_compression"])
def test_determined_corruptions_equal_the_peer(
    name: str, severity: int, peer: types.ModuleType, photos: Pixels, images: Tensor
) -> None:
    ours = levels(corrupt(images, name, severity))
    for mine, photo in zip(ours, photos, strict=True):
        assert np.abs(mine - np.uint8(getattr(peer, name)(Image.fromarray(photo), severity))).max() <= 1


@pytest.mark.parametrize("size", [(97, 211), (32, 32), (16, 40)])
@pytest.mark.parametrize("severity", [1, 2.7, 5])
def test_pixelate_is_pillows_box_there_and_back(severity: float, size: tuple[int, int]) -> None:
    height, width = size
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=torch_generator(1))
    (factor,) = PIXELATE.constants(severity, min(size))
    photo = Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    small = photo.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX)).astype(float)
    assert np.abs(levels(corrupt(pixels.float() / 255, "pixelate", severity))[0] - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_at_the_rounded_quality(channels: int, images: Tensor) -> None:
    image = images[:1, :channels]
    (quality,) = JPEG_COMPRESSION.constants(2.5, 224)
    file = io.BytesIO()
    Image.fromarray(levels(image)[0].astype(np.uint8).squeeze()).save(file, "JPEG", quality=int(quality + 0.5))
    expected = np.asarray(Image.open(file)).reshape(224, 224, channels)
    assert np.array_equal(levels(corrupt(image, "jpeg_compression", 2.5))[0], expected)


@pytest.mark.parametrize("severity", [1, 3, 5, 1.5])
def test_contrast_keeps_the_mean_of_each_channel(severity: float) -> None:
    images = torch.rand(2, 3, 40, 56, generator=torch_generator(1))
    result = corrupt(images, "contrast", severity, quantise=False)
    assert torch.allclose(result.mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=1e-6)


def test_displacement_equals_scipys_mirrored_sampling() -> None:
    image = torch.rand(1, 1, 30, 43, generator=torch_generator(1))
    shift = 20 * torch.rand(1, 2, 30, 43, generator=torch_generator(2)) - 10
    rows, columns = np.mgrid[:30, :43]
    places = rows + shift[0, 1].numpy(), columns + shift[0, 0].numpy()
    expected = ndimage.map_coordinates(image[0, 0].double().numpy(), places, order=1, mode="reflect")
    assert np.abs(displace(image, shift)[0, 0].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_elastic_transform_equals_a_transcription_with_opencv(severity: int, photos: Pixels, images: Tensor) -> None:
    cv2 = pytest.importorskip("cv2")
    alpha, sigma, reach = ELASTIC_TRANSFORM.imagenet[severity - 1]
    generator = torch_generator(3)
    shifts = (torch.rand(3, 2, generator=generator).numpy() * 2 - 1) * reach
    noise = torch.rand(2, 224, 224, generator=generator).double().numpy() * 2 - 1

    arm = 224 // 3
    corners = np.float32([[112 + arm, 112 + arm], [112 + arm, 112 - arm], [112 - arm, 112 - arm]])
    affine = cv2.getAffineTransform(corners, (corners + shifts).astype(np.float32))
    x = cv2.warpAffine(photos[0].astype(np.float32) / 255, affine, (224, 224), borderMode=cv2.BORDER_REFLECT_101)
    dx, dy = (alpha * ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3) for field in noise)
    rows, columns = np.mgrid[:224, :224]
    channels = [
        ndimage.map_coordinates(x[..., c], (rows + dy, columns + dx), order=1, mode="reflect") for c in (0, 1, 2)
    ]
    expected = np.stack(channels, axis=-1) * 255

    ours = corrupt(images[:1], "elastic_transform", severity, [torch_generator(3)], quantise=False)
    apart = np.abs(ours[0].permute(1, 2, 0).numpy() * 255 - expected)
    # OpenCV rounds places to 1/32 pixel, which shows at sharp edges
    assert apart.mean() < 0.5
    assert np.quantile(apart, 0.99) < 5
