"""Robust inference by crop selection: exact scores, exact certificates, and the change rate the theory gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.signal import fftconvolve
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom
from snellen.shift.rics import (
    CropSelection,
    RobustCropSelection,
    certified,
    crop_scores,
    expected_change_rate,
    positions_for,
    select_crops,
    select_roll,
    take_crops,
)
from snellen.shift.translations import DIRECTIONS, translated


def noise(count: int, side: int, seed: int = 0, channels: int = 1) -> Tensor:
    """White noise at 8 bits."""
    drawn = torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(seed))
    return drawn.float() / 255


def chosen(images: Tensor, crop: int, kernel: Tensor | None = None) -> tuple[Tensor, Tensor]:
    tops, lefts, _ = select_crops(crop_scores(images, crop, kernel))
    return tops, lefts


def change_rate(images: Tensor, crop: int, kernel: Tensor | None = None) -> float:
    """Share of images whose chosen crop is another one after a move of one pixel to the right."""
    before_top, before_left = chosen(translated(images, 0, 0, 1), crop, kernel)
    after_top, after_left = chosen(translated(images, 0, 1, 1), crop, kernel)
    return float(((before_top != after_top) | (before_left != after_left + 1)).float().mean())


def test_scores_equal_a_direct_correlation_and_scipy_exactly() -> None:
    images = noise(3, 40)
    kernel = torch.randint(-50, 50, (25, 25), generator=torch.Generator().manual_seed(1)).double()
    scores = crop_scores(images, 25, kernel)
    grey = images.double().mul(255).round() * 299  # grey images weigh their one channel
    direct = torch.nn.functional.conv2d(grey, kernel[None, None])[:, 0]
    assert torch.equal(scores, direct)
    flipped = kernel.flip(0, 1).numpy()
    peer = fftconvolve(grey[0, 0].numpy(), flipped, mode="valid")
    assert np.abs(scores[0].numpy() - peer).max() < 1e-9 * np.abs(peer).max()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [4, 21, 40])
def test_a_score_depends_on_the_pixels_of_its_crop_alone(channels: int, crop: int) -> None:
    image = noise(1, 48, channels=channels)
    scores = crop_scores(image, crop)
    assert scores.shape[1:] == (48 - crop + 1, 48 - crop + 1)
    for top, left in ((0, 0), (3, 5), (48 - crop, 48 - crop)):
        elsewhere = noise(1, 48, seed=9, channels=channels)
        elsewhere[..., 2 : 2 + crop, 1 : 1 + crop] = image[..., top : top + crop, left : left + crop]
        assert crop_scores(elsewhere, crop)[0, 2, 1] == scores[0, top, left]


def test_white_noise_changes_its_crop_about_as_often_as_theory_says_and_a_broad_filter_does_not() -> None:
    images, crop = noise(1500, 66), 40
    expected = expected_change_rate(25, 1)
    assert expected == pytest.approx(2 / 26)
    assert change_rate(images, crop) <= 1.5 * expected
    axis = torch.arange(40, dtype=torch.float64) - 19.5
    broad = (1000 * torch.exp(-(axis[:, None] ** 2 + axis**2) / 200)).round()
    assert change_rate(images[:400], crop, broad) > 3 * expected


def test_exchangeable_scores_change_with_the_stated_probability() -> None:
    rng = np.random.default_rng(0)
    n, positions = 20_000, 24
    scores = rng.random((n, positions + 1))
    before, after = scores[:, :-1].argmax(axis=1), scores[:, 1:].argmax(axis=1) + 1
    rate, expected = (before != after).mean(), expected_change_rate(positions, 1)
    assert abs(rate - expected) < 3 * np.sqrt(expected * (1 - expected) / n)


def test_positions_for_a_rate_are_the_fewest() -> None:
    assert positions_for(0.05, 1) == 39
    for rate, shift in ((0.05, 1), (0.1, 2), (0.3, 1)):
        positions = positions_for(rate, shift)
        assert expected_change_rate(positions, shift) <= rate < expected_change_rate(positions - 1, shift)


def test_a_certified_image_never_changes_its_crop() -> None:
    images, crop, shift = noise(300, 40), 20, 2
    proved = certified(crop_scores(images, crop), shift)
    assert 0.1 < proved.float().mean() < 0.95
    tops, lefts = chosen(translated(images, 0, 0, shift), crop)
    for dy in range(-shift, shift + 1):
        for dx in range(-shift, shift + 1):
            moved_tops, moved_lefts = chosen(translated(images, dy, dx, shift), crop)
            same = (moved_tops + dy == tops) & (moved_lefts + dx == lefts)
            assert same[proved].all()


def test_a_certified_image_gives_the_same_logits_to_the_last_bit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    images, crop = noise(64, 30), 20
    wrapped = RobustCropSelection(network, crop, resize=False)
    proved = certified(crop_scores(images, crop), 1)
    with torch.no_grad():
        base = wrapped(translated(images, 0, 0, 1))
        moved = [wrapped(translated(images, dy, dx, 1)) for dy, dx in DIRECTIONS]
    assert proved.any()
    assert all(torch.equal(logits[proved], base[proved]) for logits in moved)
    assert any(not torch.equal(logits, base) for logits in moved)  # the rest is not promised anything


def test_the_cyclic_variant_is_invariant_to_every_roll() -> None:
    images = noise(2, 16, channels=3)
    rolled = select_roll(images)
    for dy in range(16):
        for dx in range(16):
            assert torch.equal(select_roll(images.roll((dy, dx), (-2, -1))), rolled)


def test_a_constant_image_takes_its_centre_and_is_not_certified() -> None:
    scores = crop_scores(torch.full((1, 3, 21, 21), 0.5), 11)
    tops, lefts, tied = select_crops(scores)
    assert (int(tops), int(lefts), bool(tied)) == (5, 5, True)
    assert not certified(scores, 1)
    assert take_crops(torch.rand(1, 3, 21, 21), select_crops(scores), 11).shape == (1, 3, 11, 11)


def test_the_probe_finds_fewer_changes_for_a_model_that_reads_absolute_position() -> None:
    class Grid(nn.Module):
        """Reads every fourth pixel only."""

        def forward(self, images: Tensor) -> Tensor:
            bright = images[:, :, ::4, ::4].mean(dim=(1, 2, 3)) - 0.5
            return torch.stack([-bright, bright], dim=1)

    images = noise(200, 42, channels=3)
    spec = ModelSpec("grid", ("dark", "bright"), (40, 40), mean=(0.0,) * 3, std=(1.0,) * 3)
    subject = TorchModel(Grid(), spec)
    batch = Batch([f"s{i}" for i in range(200)], images, subject.labels(images))
    probe = CropSelection(crop_share=0.5)
    table = probe.run(subject, batch, SampleRandom(0, "test"))
    changed, selected = (table[name].to_numpy(zero_copy_only=False) for name in ("plain_changed", "selected_changed"))
    proved = table["certified"].to_numpy(zero_copy_only=False)
    assert not selected[proved].any()
    assert selected.mean() < changed.mean()
    assert subject.ledger.totals.forward == 200 + probe.cost(200).forward
    (found,) = probe.findings(table, Context(spec, pa.table({"id": [], "label": []})))
    assert found.value == pytest.approx(changed.mean() - selected.mean())
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert probe.findings(table.slice(0, 0), Context(spec, pa.table({"id": [], "label": []}))) == []


def test_bad_input_is_refused() -> None:
    images = noise(1, 20)
    for crop in (0, 20, 30):
        with pytest.raises(InvalidInput, match="crop must be"):
            crop_scores(images, crop)
    with pytest.raises(InvalidInput, match="whole numbers"):
        crop_scores(images, 10, torch.rand(10, 10))
    with pytest.raises(InvalidInput, match="finite"):
        select_crops(torch.full((1, 4, 4), float("nan")))
    with pytest.raises(InvalidInput, match="more than 8 positions"):
        certified(crop_scores(images, 15), 2)
    with pytest.raises(InvalidInput, match="change_rate"):
        positions_for(0.0, 1)
    for settings in ({"crop_share": 1.0}, {"pixels": 0}):
        with pytest.raises(InvalidInput):
            CropSelection(**settings)
