"""Random fields: their statistics, local maps that contain the global ones, and tolerance as the probe states it."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift._random_field import folded_share, local_colour, smooth_fields, warp_places
from snellen.shift.random_fields import (
    FieldAmounts,
    RandomFields,
    field_colour,
    field_places,
    field_warp,
    random_field,
    random_field_augmentation,
    sample,
    strength_of,
)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch_generator("fields", first + index) for index in range(count)]


def constant(value: float, size: tuple[int, int] = (40, 40), count: int = 1) -> Tensor:
    return torch.full((count, *size), value)


def test_fields_have_mean_zero_and_variance_one() -> None:
    fields = random_field(generators(500), 1, 24, 24)[:, 0]
    at_a_pixel = fields[:, 5, 17]
    assert abs(float(at_a_pixel.mean())) < 3 / math.sqrt(500)
    assert float(at_a_pixel.var()) == pytest.approx(1, abs=3 * math.sqrt(2 / 500))
    assert float(fields.var()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gamma", [2.0, 4.0])
def test_the_spectrum_falls_as_stated_in_every_direction(gamma: float) -> None:
    # Windowed, because a crop is not periodic and its edges would leak into high frequencies.
    window = torch.hann_window(96, periodic=False)
    fields = random_field(generators(120), 1, 96, 96, gamma)[:, 0] * window[:, None] * window
    power = (torch.fft.fft2(fields).abs() ** 2).mean(dim=0)
    vertical, horizontal = torch.meshgrid(torch.fft.fftfreq(96, 1 / 96), torch.fft.fftfreq(96, 1 / 96), indexing="ij")
    frequency = torch.hypot(vertical, horizontal)
    for direction in (vertical.abs() > 2 * horizontal.abs(), horizontal.abs() > 2 * vertical.abs()):
        ring = (frequency > 5) & (frequency < 25) & direction
        slope = np.polyfit(frequency[ring].log().numpy(), power[ring].log().numpy(), 1)[0]
        assert slope == pytest.approx(-gamma, abs=0.35)


def test_parameters_are_independent_and_larger_gamma_is_smoother() -> None:
    fields = random_field(generators(300), 3, 16, 16)[:, :, 8, 8]
    correlation = torch.corrcoef(fields.T) - torch.eye(3)
    assert correlation.abs().max() < 0.17  # 3 / sqrt(300)
    rough, smooth = (random_field(generators(20), 1, 48, 48, gamma).diff(dim=-1).std() for gamma in (2.0, 6.0))
    assert smooth < 0.5 * rough


def test_strength_zero_is_the_identity() -> None:
    images = torch.rand(3, 3, 40, 56)
    assert torch.allclose(field_warp(images, 0.0, generators(3)), images, atol=1e-5)
    assert torch.allclose(field_colour(images, 0.0, generators(3)), images, atol=1e-5)


def test_constant_fields_give_torchvisions_affine_map() -> None:
    images = torch.rand(1, 1, 41, 41)
    turn, zero = math.radians(25), constant(0.0, (41, 41))
    none = torch.zeros(1, 2, 41, 41)
    ours = sample(images, warp_places(none, constant(turn, (41, 41)), none, zero))
    peer = tv.rotate(images, math.degrees(turn), interpolation=tv.InterpolationMode.BILINEAR)
    assert (ours - peer)[..., 10:31, 10:31].abs().max() < 1e-4

    grown = sample(images, warp_places(none, zero, torch.full((1, 2, 41, 41), math.log(1 / 1.5)), zero))
    peer = tv.affine(images, 0.0, [0, 0], 1.5, [0.0], interpolation=tv.InterpolationMode.BILINEAR)
    assert (grown - peer)[..., 5:36, 5:36].abs().max() < 1e-4

    moved = sample(images, warp_places(torch.full((1, 2, 41, 41), 4 / 41), zero, none, zero))
    assert torch.allclose(moved[..., :-4, :-4], images[..., 4:, 4:], atol=1e-4)


def test_constant_colour_fields_give_torchvisions_jitter() -> None:
    images = torch.rand(2, 3, 20, 20) * 0.5 + 0.25
    none = constant(0.0, (20, 20), 2)
    assert torch.allclose(local_colour(images, none + 0.1, none, none, none), images + 0.1, atol=1e-5)
    contrast = local_colour(images, none, none + math.log(0.7), none, none)
    assert torch.allclose(contrast, tv.adjust_contrast(images, 0.7), atol=2e-3)
    saturation = local_colour(images, none, none, none + math.log(0.4), none)
    assert torch.allclose(saturation, tv.adjust_saturation(images, 0.4), atol=2e-3)


def test_grey_stays_grey_under_hue_and_saturation_and_one_channel_is_met() -> None:
    grey = torch.rand(2, 1, 24, 24).expand(-1, 3, -1, -1)
    only = FieldAmounts(brightness=0.0, contrast=0.0, saturation=0.4, hue=0.2)
    assert torch.allclose(field_colour(grey, 1.0, generators(2), amounts=only), grey, atol=2e-3)
    one = field_colour(grey[:, :1], 2.0, generators(2))
    assert one.shape == (2, 1, 24, 24)


def test_no_sample_moves_further_than_the_field_and_strong_warps_do_not_fold() -> None:
    images = torch.rand(4, 3, 64, 64)
    only_moves = FieldAmounts(turn=0.0, scale=0.0, shear=0.0, move=0.02)
    identity = field_places(images, 0.0, generators(4))
    moved = field_places(images, 1.0, generators(4), amounts=only_moves) - identity
    field = smooth_fields(images, generators(4), 6, 4.0)[:, :2]
    assert moved.abs().amax() <= 2 * 0.02 * field.abs().amax() + 1e-5
    strong = field_places(images, 2.0, generators(4))
    assert folded_share(strong).max() <= 0.01
    turned_inside_out = identity.flip(2)
    assert (folded_share(turned_inside_out) == 1).all()


def test_masks_follow_the_image_through_the_same_places() -> None:
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 12:30, 20:40] = 1
    places = field_places(mask, 1.0, generators(1))
    soft, hard = sample(mask, places), sample(mask, places, mode="nearest")
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert ((soft > 0.5).float() - hard).abs().mean() < 0.02


def test_the_augmentation_strikes_with_its_probability_and_by_its_seed() -> None:
    images = torch.rand(200, 3, 16, 16)
    assert torch.equal(random_field_augmentation(images, generators(200), probability=0.0), images)
    once, twice = (random_field_augmentation(images, generators(200)) for _ in range(2))
    assert torch.equal(once, twice)
    untouched = (once == images).flatten(1).all(dim=1).float().mean()
    assert float(untouched) == pytest.approx(0.25, abs=0.1)


def test_the_probe_states_accuracy_and_tolerance() -> None:
    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images[:, :, :12, :12].mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
            return torch.stack([-value, value], dim=1)

    spec = ModelSpec("corner", ("a", "b"), (24, 24), mean=(0.0,) * 3, std=(1.0,) * 3)
    model = TorchModel(Corner(), spec)
    images = torch.nn.functional.interpolate(torch.rand(150, 3, 5, 5), size=24, mode="bilinear").mul(255).round() / 255
    batch = Batch([f"s{i}" for i in range(150)], images, model.labels(images))
    probe = RandomFields()
    before = model.ledger.totals
    table = probe.run(model, batch, SampleRandom(0, "x"))
    assert (model.ledger.totals - before).forward == probe.cost(150).forward
    context = Context(spec, pa.table({"id": [], "label": []}))
    stated = {str(f.subject["corruption"]): f for f in probe.findings(table, context) if "measure" in f.subject}
    for finding in stated.values():
        assert finding.ci is not None
        assert finding.value is not None
        assert finding.ci[0] <= finding.value <= finding.ci[1]
        assert 0 < finding.value <= 5
    assert probe.findings(table.slice(0, 0), context) == []


def test_strengths_double_and_bad_settings_are_refused() -> None:
    assert [strength_of(s) for s in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)] == [0, 0.25, 0.5, 1, 2, 4]
    assert strength_of(0.999) == pytest.approx(strength_of(1.0), abs=1e-3)
    with pytest.raises(InvalidInput, match="gamma"):
        random_field(generators(1), 1, 8, 8, gamma=-1.0)
    with pytest.raises(InvalidInput, match="turn"):
        FieldAmounts(turn=-1.0)
    with pytest.raises(InvalidInput, match="gamma"):
        RandomFields(gamma=-2.0)
    with pytest.raises(InvalidInput, match="8 px"):
        random_field_augmentation(torch.rand(1, 3, 6, 20), generators(1))
    with pytest.raises(InvalidInput, match="probability"):
        random_field_augmentation(torch.rand(1, 3, 16, 16), generators(1), probability=2.0)
