from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from snellen.randomness import torch_generator
from snellen.shift._catalogue import corrupt
from snellen.shift._noise import GAUSSIAN_NOISE, IMPULSE_NOISE, SHOT_NOISE


def flat(value: float, side: int = 224) -> Tensor:
    return torch.full((1, 3, side, side), value)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_noise_is_the_reference_on_the_same_draw(severity: int, images: Tensor) -> None:
    (std,) = GAUSSIAN_NOISE.imagenet[severity - 1]
    draw = torch.randn(3, 224, 224, generator=torch_generator("draw")).numpy().astype(float)
    expected = np.uint8(np.clip(images[0].numpy().astype(float) + std * draw, 0, 1) * 255)
    result = corrupt(images[:1], "gaussian_noise", severity, [torch_generator("draw")])[0]
    assert np.abs(result.numpy() * 255 - expected).max() <= 1


@pytest.mark.parametrize("severity", [1, 3, 5, 2.5])
@pytest.mark.parametrize("side", [64, 224])
def test_shot_noise_has_the_moments_of_counted_photons(severity: float, side: int) -> None:
    (variance,) = SHOT_NOISE.constants(severity, side)
    # dark enough that hardly any count exceeds white and is cut
    images = torch.full((8, 3, side, side), 0.2)
    noisy = corrupt(images, "shot_noise", severity, [torch_generator(i) for i in range(8)], quantise=False)
    error = (0.2 * variance / noisy.numel()) ** 0.5
    assert float(noisy.mean()) == pytest.approx(0.2, abs=6 * error + 0.002)
    assert float(noisy.var()) == pytest.approx(0.2 * variance, rel=0.05)
    counts = noisy[noisy < 1] / variance
    assert (counts - counts.round()).abs().max() < 1e-3


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_impulse_noise_is_half_salt_half_pepper(severity: int) -> None:
    (amount,) = IMPULSE_NOISE.imagenet[severity - 1]
    noisy = corrupt(flat(0.4), "impulse_noise", severity, [torch_generator(1)], quantise=False)
    count = noisy.numel()
    for value in (0.0, 1.0):
        share = float((noisy == value).float().mean())
        assert share == pytest.approx(amount / 2, abs=5 * (amount / 2 / count) ** 0.5)
    assert float((noisy == 0.4).float().mean()) == pytest.approx(1 - amount, abs=0.01)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_has_the_strength_of_the_peer(name: str, peer: object, photos: np.ndarray, images: Tensor) -> None:
    image = pytest.importorskip("PIL.Image").fromarray(photos[0])
    state = np.random.get_state()
    np.random.seed(0)
    # Many draws, because the peer's impulse noise follows no seed that could be set.
    reference = np.stack([np.uint8(getattr(peer, name)(image, 3)) for _ in range(10)]).astype(float)
    np.random.set_state(state)
    drawn = corrupt(images[:1].expand(10, -1, -1, -1), name, 3, [torch_generator(3, i) for i in range(10)])
    ours = drawn.permute(0, 2, 3, 1).numpy() * 255
    assert ours.mean() == pytest.approx(reference.mean(), abs=0.5)
    distortion, expected = (np.square(noisy - photos[0]).mean() for noisy in (ours, reference))
    assert distortion == pytest.approx(expected, rel=0.03)
