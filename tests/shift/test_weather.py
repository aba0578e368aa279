from __future__ import annotations

import colorsys
import types

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from snellen.randomness import torch_generator
from snellen.shift import _weather
from snellen.shift._blur import draw_angles
from snellen.shift._catalogue import corrupt
from snellen.shift._weather import FOG, SNOW, frost_texture, plasma

Pixels = NDArray[np.uint8]


def reference_plasma(uniform: NDArray[np.float64], side: int, decay: float) -> NDArray[np.float64]:
    """Diamond-square cell by cell, from the card; `uniform` is read squares, then horizontal, then vertical edges."""
    heights = np.zeros((side, side))
    wobble, step, draws = 100.0, side, iter(uniform)

    def move(points: list[tuple[int, int]]) -> float:
        mean = sum(heights[y % side, x % side] for y, x in points) / 4
        return float(mean + wobble * wobble * (2 * next(draws) - 1))

    while step >= 2:
        half = step // 2
        for y in range(half, side, step):
            for x in range(half, side, step):
                heights[y, x] = move([(y + dy, x + dx) for dy in (-half, half) for dx in (-half, half)])
        cross = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for y, x in [(y, x) for y in range(0, side, step) for x in range(half, side, step)]:
            heights[y, x] = move([(y + dy, x + dx) for dy, dx in cross])
        for y, x in [(y, x) for y in range(half, side, step) for x in range(0, side, step)]:
            heights[y, x] = move([(y + dy, x + dx) for dy, dx in cross])
        step, wobble = half, wobble / decay
    return (heights - heights.min()) / np.ptp(heights)


@pytest.mark.parametrize("decay", [1.4, 2, 3])
def test_plasma_equals_diamond_square_point_by_point(decay: float) -> None:
    uniform = torch.rand(2, 32 * 32 - 1, generator=torch_generator("plasma"))
    ours = plasma(uniform, 32, decay)
    for row, cloud in zip(uniform, ours, strict=True):
        assert np.abs(cloud.numpy() - reference_plasma(row.double().numpy(), 32, decay)).max() < 1e-5


@pytest.mark.parametrize("severity", [1, 5])
def test_fog_keeps_the_brightest_value_possible(severity: int, images: Tensor) -> None:
    weight, decay = FOG.imagenet[severity - 1]
    fogged = corrupt(images[:1], "fog", severity, [torch_generator(2)], quantise=False)
    uniform = torch.rand(256 * 256 - 1, generator=torch_generator(2))
    cloud = plasma(uniform[None], 256, decay)[:, None, :224, :224]
    brightest = images[:1].max()
    assert torch.allclose(fogged, (images[:1] + weight * cloud) * brightest / (brightest + weight), atol=1e-5)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_snow_equals_a_transcription_with_the_peers_motion(
    severity: int, peer: types.ModuleType, photos: Pixels, images: Tensor
) -> None:
    mean, std, factor, threshold, radius, sigma, share = SNOW.imagenet[severity - 1]
    generator = torch_generator(4)
    shown = int(np.ceil(224 / factor))
    noise = torch.randn(1, shown, shown, generator=generator)[0].double().numpy() * std + mean
    (angle,) = draw_angles([generator], -135.0, -45.0)

    layer = ndimage.zoom(noise, factor, order=1)[:224, :224]
    layer[layer < threshold] = 0
    layer = np.uint8(np.clip(layer, 0, 1) * 255) / 255.0
    layer = np.round(peer._motion_blur(layer, radius=int(radius), sigma=sigma, angle=angle) * 255) / 255
    x = photos[0] / 255.0
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    x = share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5)
    expected = np.uint8(np.clip(x + layer[..., None] + np.rot90(layer, 2)[..., None], 0, 1) * 255)

    ours = corrupt(images[:1], "snow", severity, [torch_generator(4)])[0].permute(1, 2, 0).numpy() * 255
    apart = np.abs(ours - expected)
    assert apart.max() <= 2  # a flake at the threshold's very edge or an 8-bit step may tip
    assert (apart > 0.5).mean() < 0.01


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_equals_the_peer(severity: int, peer: types.ModuleType, photos: Pixels, images: Tensor) -> None:
    ours = corrupt(images, "brightness", severity).permute(0, 2, 3, 1).numpy() * 255
    for mine, photo in zip(ours, photos, strict=True):
        assert np.abs(mine - np.uint8(peer.brightness(Image.fromarray(photo), severity))).max() <= 1.001


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch_generator(7))
    image[..., 0, 0] = 0
    result = corrupt(image, "brightness", 3.0, quantise=False)
    (amount,) = _weather.BRIGHTNESS.constants(3.0, 16)
    for before, after in zip(image.flatten(2)[0].T.tolist(), result.flatten(2)[0].T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1.0))
        assert after == pytest.approx(expected, abs=1e-5)


def test_frost_and_fog_of_weight_zero_are_the_identity(images: Tensor) -> None:
    for name in ("frost", "fog"):
        almost = corrupt(images, name, 1e-6, [torch_generator(i) for i in range(4)], quantise=False)
        assert (almost - images).abs().max() < 1e-4


def test_frost_textures_look_like_the_published_photos(peer: types.ModuleType) -> None:
    """Mean, contrast and neighbour correlation of a 224 px crop lie in the range of the six photos."""
    black = np.zeros((224, 224, 3), np.uint8)
    state = np.random.get_state()
    np.random.seed(0)
    # severity 1 on black is 0.4 of the photo
    reference = [np.asarray(peer.frost(Image.fromarray(black), 1)) / 255 / 0.4 for _ in range(40)]
    np.random.set_state(state)
    blank = torch.zeros(20, 3, 224, 224)
    ours = frost_texture(blank, 1.0, [torch_generator(i) for i in range(20)]).permute(0, 2, 3, 1).numpy()

    def look(crops: NDArray[np.float64]) -> NDArray[np.float64]:
        grey = np.asarray(crops).mean(axis=-1)
        near = [np.corrcoef(g[:, :-4].ravel(), g[:, 4:].ravel())[0, 1] for g in grey]
        return np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2)), near], axis=1)

    photo, texture = look(np.stack(reference)), look(ours)
    assert np.all(texture.mean(axis=0) > photo.min(axis=0))
    assert np.all(texture.mean(axis=0) < photo.max(axis=0))
    assert ours[..., 2].mean() > ours[..., 0].mean()  # bluish, as ice is
