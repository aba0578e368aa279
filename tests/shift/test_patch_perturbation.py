"""Cells of an image: where they lie, what a corruption changes in them, and what a fooling rate counts."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift._catalogue import corrupt
from snellen.shift._patches import cell_count, dropped, patch_side, random_patches, replaced, shuffled
from snellen.shift.patch_perturbation import PatchPerturbation

RANDOM = SampleRandom(0, "test")


class Contrast(nn.Module):
    """Decides by the strongest difference of neighbours, which noise in any cell governs."""

    def forward(self, images: Tensor) -> Tensor:
        rough = images.diff(dim=-1).abs().amax(dim=(1, 2, 3)) - 0.4
        return torch.stack([-rough, rough], dim=1)


class Corner(nn.Module):
    """Decides by the upper left pixel."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, :, 0, 0].mean(dim=1) - 0.5
        return torch.stack([-bright, bright], dim=1)


def model(module: nn.Module, side: int = 32) -> TorchModel:
    return TorchModel(module, ModelSpec("m", ("calm", "rough"), (side, side)))


def smooth(count: int, side: int = 32) -> Batch:
    images = torch.linspace(0.3, 0.7, side).expand(count, 3, side, side).clone()
    return Batch([f"s{i}" for i in range(count)], images, torch.zeros(count, dtype=torch.long))


@pytest.fixture(scope="module")
def table() -> tuple[PatchPerturbation, Batch, pa.Table]:
    probe = PatchPerturbation(names=("impulse_noise", "brightness"), counts=(1, 4))
    batch = smooth(300)
    return probe, batch, probe.run(model(Contrast()), batch, RANDOM)


def context() -> Context:
    return Context(model(Contrast()).spec, pa.table({"id": [], "label": []}))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 5), st.booleans(), st.integers(0, 5), st.integers(0, 10**6))
def test_patches_are_whole_cells_of_the_grid_and_nested(
    rows: int, columns: int, side: int, aligned: bool, count: int, seed: int
) -> None:
    height, width = rows * side, columns * side
    count = min(count, cell_count(height, width, side, aligned))
    streams = [torch.Generator().manual_seed(seed + i) for i in range(3)]
    fewer, more = random_patches(streams, height, width, side, (count // 2, count), aligned)
    assert (more.flatten(1).sum(dim=1) == count * side * side).all()
    assert not (fewer & ~more).any()
    start = 0 if aligned else side // 2
    inner = more[:, start : height - (side - start) * (not aligned), start : width - (side - start) * (not aligned)]
    blocks = inner.unfold(1, side, side).unfold(2, side, side).flatten(3).float()
    assert ((blocks.mean(dim=-1) == 0) | (blocks.mean(dim=-1) == 1)).all()
    assert inner.sum() == more.sum()


def test_every_cell_is_as_likely_as_any_other() -> None:
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    (chosen,) = random_patches(streams, 16, 16, 4, (4,))
    observed = chosen[:, ::4, ::4].flatten(1).sum(dim=0).double()
    expected = 4000 * 4 / 16
    # Without replacement the counts vary less than a multinomial's, by (16 - 4) / (16 - 1).
    chi_square = float(((observed - expected) ** 2).sum() / expected / (12 / 15))
    assert chi_square < 37.7  # 0.1 % point of 15 degrees of freedom


def test_the_default_patch_is_a_transformers_at_its_resolution() -> None:
    assert patch_side(224, 224) == 16
    assert patch_side(384, 384) == 24
    assert patch_side(32, 32) == 4
    assert patch_side(240, 224) == 16
    assert patch_side(97, 211) == 6
    (pixels,) = random_patches([torch_generator("odd")], 97, 211, 6, [16 * 35])
    assert pixels[0, :96, :210].all()
    assert not pixels[0, 96:].any()  # the strip that belongs to no cell
    assert not pixels[0, :, 210:].any()
    with pytest.raises(InvalidInput, match="too small"):
        patch_side(3, 3, most=1)
    with pytest.raises(InvalidInput, match="divide both sides"):
        patch_side(32, 32, 5)
    with pytest.raises(InvalidInput, match="counts must be 0 to 64"):
        random_patches([torch.Generator()], 32, 32, 4, (65,))


@pytest.mark.parametrize("aligned", [True, False])
def test_only_the_cells_change_and_there_the_image_is_the_corrupted_one(aligned: bool) -> None:
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch([f"s{i}" for i in range(5)], images, torch.zeros(5, dtype=torch.long))
    probe = PatchPerturbation(names=("impulse_noise",), counts=(1, 2), patch=8, aligned=aligned)
    whole = corrupt(images, "impulse_noise", 5.0, RANDOM.generators(batch.ids, "impulse_noise"))
    places = random_patches(RANDOM.generators(batch.ids, "cells"), 32, 32, 8, (1, 2), aligned)
    for condition, pixels in zip(probe.conditions(batch, RANDOM), places, strict=True):
        inside = pixels[:, None].expand_as(images)
        assert torch.equal(condition.images[~inside], images[~inside])
        assert torch.equal(condition.images[inside], whole[inside])
        assert (condition.images != images).any()


def test_the_same_place_is_damaged_for_every_corruption_and_batch() -> None:
    batch = smooth(6)
    probe = PatchPerturbation(names=("impulse_noise", "shot_noise"), counts=(1,))
    noise, shot = (c.images != batch.images for c in probe.conditions(batch, RANDOM))
    cells = [changed.any(dim=1).view(6, 8, 4, 8, 4).any(dim=4).any(dim=2) for changed in (noise, shot)]
    assert torch.equal(cells[0], cells[1])
    part = Batch(batch.ids[3:5], batch.images[3:5], batch.labels[3:5])
    alone = [c.images for c in probe.conditions(part, RANDOM)]
    together = [c.images[3:5] for c in probe.conditions(batch, RANDOM)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_no_patch_fools_nobody() -> None:
    images = torch.rand(4, 3, 32, 32)
    (pixels,) = random_patches([torch.Generator() for _ in range(4)], 32, 32, 4, (0,))
    assert torch.equal(replaced(images, 1 - images, pixels), images)


def test_a_model_of_edges_is_fooled_by_noise_in_one_cell_and_not_by_brightness(
    table: tuple[PatchPerturbation, Batch, pa.Table],
) -> None:
    probe, _, rows = table
    found = probe.findings(rows, context())
    one, four = found[:2]
    assert one.metric == "fooling rate"
    assert one.value == pytest.approx(0.5, abs=0.06)  # impulse noise nearly always, brightness never
    assert four.value is not None
    assert one.value is not None
    assert four.value >= one.value
    assert one.ci is not None
    assert one.ci[0] <= one.value <= one.ci[1]
    assert one.title.startswith("One corrupted patch costs")
    falls = {f.subject["corruption"]: f for f in found[3:]}
    assert falls["impulse_noise_patches"].effect > 0.9
    (bars, *curves) = probe.exhibits(rows, context())
    assert bars.title == "Fooling rate by corruption"
    assert {curve.title for curve in curves} == {"Accuracy against count: noise", "Accuracy against count: weather"}


def test_the_rate_is_of_initially_right_images_only() -> None:
    batch = smooth(40)
    wrong = Batch(batch.ids, batch.images, (torch.arange(40) < 20).long())
    probe = PatchPerturbation(names=("brightness",), counts=(1,))
    (rate, *_) = probe.findings(probe.run(model(Contrast()), wrong, RANDOM), context())
    assert rate.n == 20
    assert not rate.enough_data
    assert "not enough data" in rate.title
    nobody = Batch(batch.ids, batch.images, torch.ones(40, dtype=torch.long))
    assert all(
        f.metric != "fooling rate" for f in probe.findings(probe.run(model(Contrast()), nobody, RANDOM), context())
    )


def test_a_model_of_one_pixel_is_fooled_as_often_as_the_patch_falls_there() -> None:
    batch = smooth(600, 16)
    dark = Batch(batch.ids, batch.images, torch.zeros(600, dtype=torch.long))
    probe = PatchPerturbation(names=("brightness",), counts=(1, 4), patch=4)
    found = probe.findings(probe.run(model(Corner(), 16), dark, RANDOM), context())
    for rate, share in zip(found[:2], (1 / 16, 4 / 16), strict=True):
        assert rate.ci is not None
        assert rate.ci[0] <= share <= rate.ci[1]


def test_cost_is_what_is_spent_and_labels_are_enough() -> None:
    blind = model(Contrast()).restrict(Access.LABELS)
    probe = PatchPerturbation(names=("fog", "contrast", "pixelate"), counts=(1, 2, 8))
    before = blind.ledger.totals
    probe.run(blind, smooth(3), RANDOM)
    assert (blind.ledger.totals - before).forward == probe.cost(3).forward


def test_dropping_gives_the_mean_and_shuffling_keeps_every_pixel() -> None:
    images = torch.rand(3, 3, 24, 32)
    streams = [torch.Generator().manual_seed(i) for i in range(3)]
    (pixels,) = random_patches(streams, 24, 32, 4, (5,))
    gone = dropped(images, pixels)
    inside = pixels[:, None].expand_as(images)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    assert torch.equal(gone[inside], mean[inside])
    assert torch.equal(gone[~inside], images[~inside])

    for grid in (2, 4, 8):
        moved = shuffled(images, grid, streams)
        assert torch.equal(moved.flatten(2).sort(dim=2).values, images.flatten(2).sort(dim=2).values)
        assert not torch.equal(moved, images)
        tall, wide = 24 // grid, 32 // grid
        cut = [
            x.unfold(2, tall, tall).unfold(3, wide, wide).permute(0, 2, 3, 1, 4, 5).flatten(3) for x in (images, moved)
        ]
        for before, after in zip(cut[0].flatten(1, 2), cut[1].flatten(1, 2), strict=True):
            assert {tuple(t.tolist()) for t in before} == {tuple(t.tolist()) for t in after}
    assert torch.equal(shuffled(images, 1, streams), images)
    with pytest.raises(InvalidInput, match="grid must divide"):
        shuffled(images, 5, streams)


def test_an_empty_table_says_nothing_and_bad_settings_are_refused(
    table: tuple[PatchPerturbation, Batch, pa.Table],
) -> None:
    probe, _, rows = table
    assert probe.findings(rows.slice(0, 0), context()) == []
    assert probe.exhibits(rows.slice(0, 0), context()) == []
    for bad in (
        {"names": ()},
        {"names": ("sleet",)},
        {"counts": ()},
        {"counts": (2, 1)},
        {"counts": (0,)},
        {"severity": 0.0},
        {"severity": 6.0},
        {"patch": 1},
    ):
        with pytest.raises(InvalidInput):
            PatchPerturbation(**bad)
    with pytest.raises(InvalidInput, match="divide"):
        list(PatchPerturbation(names=("fog",), patch=5).conditions(smooth(1), RANDOM))
