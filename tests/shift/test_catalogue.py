"""What all corruptions promise together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.randomness import torch_generator
from snellen.shift._catalogue import GROUPS, SHIFTS, corrupt

LEVEL = 1 / 255


def generators(count: int, first: int = 0) -> list[Generator]:
    return [torch_generator("test", first + index) for index in range(count)]


def distortion(images: Tensor, name: str, severity: float) -> float:
    return float((corrupt(images, name, severity, generators(len(images))) - images).square().mean())


def test_every_corruption_is_either_drawn_or_determined() -> None:
    assert all((shift.deterministic is None) != (shift.random is None) for shift in SHIFTS.values())
    assert [len(names) for names in GROUPS.values()] == [3, 4, 4, 4]


@pytest.mark.parametrize("name", SHIFTS)
def test_severity_zero_is_the_image_itself(name: str, images: Tensor) -> None:
    assert torch.equal(corrupt(images, name, 0, generators(4)), images)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_curve_starts_at_the_image(name: str, images: Tensor) -> None:
    near = corrupt(images, name, 0.01, generators(4), quantise=False)
    full = corrupt(images, name, 1, generators(4), quantise=False)
    assert (near - images).abs().mean() < 0.4 * (full - images).abs().mean() + 1e-3


@pytest.mark.parametrize("name", [n for n in SHIFTS if n not in ("shot_noise", "pixelate")])
def test_integer_severities_join_what_lies_around_them(name: str, images: Tensor) -> None:
    # Not claimed for shot noise, whose draws are not coupled, nor for pixelate, whose grid steps by whole pixels.
    before, at, after = (corrupt(images, name, s, generators(4), quantise=False) for s in (1.9999, 2, 2.0001))
    assert (before - at).abs().mean() < 0.006
    assert (after - at).abs().mean() < 0.006


@pytest.mark.parametrize("name", SHIFTS)
def test_the_same_seed_gives_the_same_image_and_global_state_is_untouched(name: str, images: Tensor) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (corrupt(images, name, 3, generators(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    other = corrupt(images, name, 3, generators(4, first=9))
    assert torch.equal(first, other) == (SHIFTS[name].random is None)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_row_does_not_depend_on_its_batch(name: str, images: Tensor) -> None:
    together = corrupt(images, name, 3.5, generators(4), quantise=False)
    alone = [corrupt(images[i : i + 1], name, 3.5, generators(1, first=i), quantise=False) for i in (3, 1)]
    # 8-bit steps inside snow, glass blur and pixelate may tip by one level where float32 sums in another order
    apart = (torch.cat(alone) - together[[3, 1]]).abs()
    assert apart.max() <= LEVEL + 1e-5
    assert (apart > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (97, 211), (211, 97), (512, 512)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SHIFTS)
def test_any_size_keeps_shape_type_and_range(name: str, channels: int, size: tuple[int, int]) -> None:
    images = torch.rand(2, channels, *size, generator=torch_generator("images"))
    severities = (5.0,) if min(size) > 300 else (0.3, 1.0, 3.5, 5.0)
    for severity in severities:
        result = corrupt(images, name, severity, generators(2))
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert result.isfinite().all()
        assert 0 <= result.min() <= result.max() <= 1
        levels = result * 255
        assert (levels - levels.round()).abs().max() < 1e-3


@pytest.mark.parametrize("name", SHIFTS)
def test_input_is_left_alone_and_other_float_types_come_back(name: str, images: Tensor) -> None:
    doubles = images[:2, :, :64, :64].double()
    kept = doubles.clone()
    result = corrupt(doubles, name, 2, generators(2))
    assert result.dtype == torch.float64
    assert torch.equal(doubles, kept)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
@pytest.mark.parametrize("size", [16, 32, 64, 224])
def test_blurs_leave_a_constant_image_constant(name: str, size: int) -> None:
    for severity in (1, 2, 3, 4, 5, 2.4):
        flat = torch.full((2, 3, size, size), 0.6)
        result = corrupt(flat, name, severity, generators(2))
        assert (result - 0.6).abs().max() <= 2 * LEVEL


BLURS = ("defocus_blur", "motion_blur", "zoom_blur")  # for glass blur see test_blur.py


@pytest.mark.parametrize("name", [*GROUPS["noise"], *BLURS, "contrast", "pixelate", "jpeg_compression"])
def test_distortion_grows_with_severity(name: str, images: Tensor) -> None:
    growth = [distortion(images, name, severity) for severity in (0, 1, 2, 3, 4, 5)]
    assert all(a < b for a, b in itertools.pairwise(growth)), growth


@pytest.mark.parametrize("name", [*GROUPS["noise"], "contrast"])
def test_distortion_grows_between_the_published_severities(name: str, images: Tensor) -> None:
    growth = [distortion(images, name, severity) for severity in np.arange(0, 5.1, 0.25)]
    assert all(a < b for a, b in itertools.pairwise(growth)), growth


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"severity": 5.1}, "severity"),
        ({"severity": -0.1}, "severity"),
        ({"severity": float("nan")}, "severity"),
        ({"name": "gaussian_nois"}, "gaussian_noise"),
        ({"images": torch.rand(2, 4, 32, 32)}, "channels"),
        ({"images": torch.rand(3, 32, 32)}, "images"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "images"),
        ({"images": torch.rand(2, 3, 15, 32)}, "16 px"),
        ({"images": torch.rand(0, 3, 32, 32)}, "at least one"),
        ({"images": torch.rand(2, 3, 32, 32) + 1}, r"\[0, 1\]"),
        ({"images": torch.full((2, 3, 32, 32), torch.nan)}, r"\[0, 1\]"),
        ({"generators": None}, "generators"),
        ({"generators": generators(1)}, "generators"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {
        "images": torch.rand(2, 3, 32, 32),
        "name": "gaussian_noise",
        "severity": 2.0,
        "generators": generators(2),
    }
    with pytest.raises(InvalidInput, match=named):
        corrupt(**{**arguments, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SHIFTS)
def test_a_gpu_gives_the_same_image(name: str, images: Tensor) -> None:
    on_cpu = corrupt(images, name, 3, generators(4))
    on_gpu = corrupt(images.cuda(), name, 3, generators(4))
    assert on_gpu.is_cuda
    apart = (on_gpu.cpu() - on_cpu).abs()
    assert apart.mean() < 1e-3
    assert (apart > 1.5 * LEVEL).float().mean() < 1e-3
