"""ImageNet-C's validation corruptions against the peer, and C-bar's against what the paper defines them by."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from snellen.randomness import torch_generator
from snellen.shift._bar_patterns import coloured_noise, gradient_noise, pixel_grid
from snellen.shift._catalogue import BAR, corrupt
from snellen.shift._extra import EXTRA


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch_generator("bar", first + index) for index in range(count)]


def grey_field(count: int = 2, side: int = 224, level: float = 0.5) -> Tensor:
    return torch.full((count, 3, side, side), level)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_blur_equals_scipys(severity: int, images: Tensor) -> None:
    # The peer's own cannot run with today's scikit-image.
    ours = corrupt(images[:1], "gaussian_blur", severity, quantise=False)[0]
    expected = [ndimage.gaussian_filter(c, (1, 2, 3, 4, 6)[severity - 1], mode="nearest") for c in images[0].numpy()]
    assert np.abs(ours.numpy() - np.stack(expected)).max() < 1e-4


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_saturate_equals_the_peer(severity: int, photos: np.ndarray, images: Tensor, peer: types.ModuleType) -> None:
    ours = corrupt(images[:2], "saturate", severity)
    for index in range(2):
        theirs = np.uint8(peer.saturate(photos[index], severity)).astype(float)
        apart = np.abs(ours[index].permute(1, 2, 0).numpy() * 255 - theirs)
        assert apart.max() <= 1.01
        assert apart.mean() < 0.3  # both cut to 8 bits, on either side of a whole level


@pytest.mark.parametrize(("name", "tolerance"), [("speckle_noise", 0.05), ("spatter", 0.15)])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_what_is_drawn_has_the_peers_moments(
    name: str, tolerance: float, severity: int, photos: np.ndarray, images: Tensor, peer: types.ModuleType
) -> None:
    np.random.seed(0)
    pictures = [Image.fromarray(photo) for photo in np.concatenate([photos] * 4)]
    theirs = np.stack([np.clip(getattr(peer, name)(picture, severity), 0, 255) / 255 for picture in pictures])
    before = np.stack([np.asarray(picture) / 255 for picture in pictures])
    ours = corrupt(images.repeat(4, 1, 1, 1), name, severity, generators(16)).permute(0, 2, 3, 1).numpy()
    for moment in (np.mean, np.std):
        change, expected = (moment(np.abs(result - before)) for result in (ours, theirs))
        assert change == pytest.approx(expected, rel=tolerance)


def test_saturation_keeps_grey_images_and_passes_through_the_image_between_two_and_three(images: Tensor) -> None:
    one_channel = images[:, :1]
    assert torch.equal(corrupt(one_channel, "saturate", 5), one_channel)
    through = 2 + (1 - 0.1) / (2 - 0.1)
    assert torch.allclose(corrupt(images, "saturate", through, quantise=False), images, atol=1e-5)


def test_single_frequency_is_one_line_of_the_spectrum_and_has_the_published_amplitude() -> None:
    wave = corrupt(grey_field(), "single_frequency", 3, generators(2), quantise=False)[:, 0] - 0.5
    assert wave.abs().amax(dim=(1, 2)).tolist() == pytest.approx([19.6 * 2 / 255] * 2, rel=0.01)
    power = torch.fft.rfft2(wave).abs() ** 2
    top = power.flatten(1).topk(30, dim=1).values.sum(dim=1)
    assert (top / power.sum(dim=(1, 2)) > 0.9).all()


@pytest.mark.parametrize(("power", "slope"), [(-2, -2.0), (1, 1.0)])
def test_coloured_noise_has_unit_variance_and_its_spectrum(power: int, slope: float) -> None:
    noise = coloured_noise(grey_field(8), generators(8), 1, power)[:, 0]
    assert torch.allclose(noise.std(dim=(1, 2)), torch.ones(8), atol=1e-3)
    amplitude = torch.fft.rfft2(noise).abs().mean(dim=0)
    frequency = torch.hypot(torch.fft.fftfreq(224, 1 / 224)[:, None], torch.fft.rfftfreq(224, 1 / 224)[None])
    ring = (frequency > 8) & (frequency < 100)
    fitted = np.polyfit(frequency[ring].log().numpy(), amplitude[ring].log().numpy(), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.05)


def test_blue_noise_blackens_the_stated_share_and_leaves_the_rest() -> None:
    struck = corrupt(grey_field(4, level=0.6), "blue_noise_sample", 5, generators(4), quantise=False)
    assert struck.unique().tolist() == pytest.approx([0.0, 0.6])
    expected = torch.distributions.Normal(0, 1).cdf(torch.tensor(0.3 * 5.6 - 2.5))
    assert float((struck == 0).float().mean()) == pytest.approx(float(expected), abs=0.01)


def test_the_checkerboard_strikes_one_colour_in_the_stated_share() -> None:
    struck = [float((corrupt(grey_field(40, 64, 0.9), "checkerboard_cutout", s, generators(40)) < 0.8).float().mean())
              for s in (1, 3, 5)]  # fmt: skip
    # CIFAR's levels hold up to 32 px and ImageNet's at 224 px; 64 px lies between.
    assert 0.05 < struck[0] < 0.1 < struck[1] < struck[2] < 0.3


def test_gradient_noise_vanishes_on_its_lattice_and_is_smooth_between() -> None:
    rows, columns = (axis / 8 for axis in pixel_grid(grey_field(3, 65)))
    noise = gradient_noise(rows, columns, generators(3), grey_field(3, 65))
    assert noise[:, ::8, ::8].abs().max() < 1e-6
    assert (noise[:, 1:] - noise[:, :-1]).abs().max() < 0.5
    assert 0.2 < noise.std() < 0.6


def test_sparkles_only_brighten_and_their_inverse_keeps_the_centre_of_its_star() -> None:
    field = grey_field(3, level=0.4)
    assert (corrupt(field, "sparkles", 4, generators(3), quantise=False) >= 0.4 - 1e-6).all()
    inverse = corrupt(field, "inverse_sparkles", 5, generators(3), quantise=False)
    assert (inverse >= 0.4 - 1e-6).all()
    assert inverse.amin(dim=(1, 2, 3)).max() < 0.45
    assert inverse[:, :, ::223, ::223].mean() > 0.9  # the corners are far from the star


def test_lines_are_grey_and_as_many_as_stated() -> None:
    black = torch.zeros(1, 3, 64, 64)
    drawn = [float((corrupt(black, "lines", s, generators(1)) > 0.4).float().mean()) for s in (0.2, 1, 3, 5)]
    assert drawn == sorted(drawn)
    assert corrupt(black, "lines", 5, generators(1)).max() <= 128 / 255


def test_turns_and_warps_leave_a_constant_image_constant() -> None:
    flat = grey_field(2, 48, 0.3)
    for name in ("pinch_and_twirl", "ripple", "circular_motion_blur", "chromatic_aberration"):
        assert (corrupt(flat, name, 5, generators(2), quantise=False) - 0.3).abs().max() < 1e-5


def test_chromatic_aberration_moves_the_channels_apart(images: Tensor) -> None:
    one_channel = images[:, :1].expand(-1, 3, -1, -1)
    fringed = corrupt(one_channel, "chromatic_aberration", 3, generators(4), quantise=False)
    for left, right in ((0, 1), (1, 2), (0, 2)):
        assert (fringed[:, left] - fringed[:, right]).abs().mean() > 0.01


def test_the_names_are_the_papers() -> None:
    assert len(BAR) == 10
    assert set(EXTRA) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
