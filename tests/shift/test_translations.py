"""Moves by a pixel: what moves, what stays, and what a rate of fooled images means."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom
from snellen.shift.translations import DIRECTIONS, Translations, neighbour_changed, rotated, translated, zoomed

RANDOM = SampleRandom(0, "test")


class CornerReader(nn.Module):
    """Decides by one pixel near the corner: any move of a pixel changes what it reads."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, :, 3, 3].mean(dim=1) - 0.5
        return torch.stack([-bright, bright], dim=1)


class MeanReader(nn.Module):
    """Decides by the mean, which a cyclic move keeps."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], dim=1)


def model(module: nn.Module, side: int = 18) -> TorchModel:
    spec = ModelSpec("m", ("dark", "bright"), (side, side), mean=(0.0,) * 3, std=(1.0,) * 3)
    return TorchModel(module, spec)


@pytest.fixture(scope="module")
def batch() -> Batch:
    images = torch.rand(60, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    labels = (images[:, :, 4, 4].mean(dim=1) > 0.5).long()
    return Batch([f"s{i}" for i in range(60)], images, labels)


def context(spec: ModelSpec) -> Context:
    return Context(spec, pa.table({"id": [], "label": []}))


def test_a_window_moves_over_real_content(batch: Batch) -> None:
    moved = translated(batch.images, 1, -2, 3)
    assert torch.equal(moved, batch.images[:, :, 4:18, 1:15])
    assert torch.equal(translated(batch.images, 0, 0, 0), batch.images)


def test_every_border_agrees_inside_and_is_named_for_what_it_makes_up(batch: Batch) -> None:
    reflected, cyclic = (translated(batch.images, 1, 1, 1, border) for border in ("reflect", "cyclic"))
    assert torch.equal(reflected[..., :-1, :-1], batch.images[..., 1:, 1:])
    assert torch.equal(cyclic[..., :-1, :-1], batch.images[..., 1:, 1:])
    assert torch.equal(cyclic[..., -1, :-1], batch.images[..., 0, 1:])
    assert torch.equal(reflected[..., -1, :-1], batch.images[..., -2, 1:])


def test_no_turn_and_no_zoom_is_the_image(batch: Batch) -> None:
    assert torch.allclose(rotated(batch.images, 0.0), batch.images, atol=1e-5)
    assert torch.allclose(zoomed(batch.images, 0.0), batch.images, atol=1e-5)


def test_a_quarter_turn_of_an_oblong_image_turns_its_middle() -> None:
    images = torch.rand(1, 1, 31, 41)
    turned = rotated(images, 90.0)
    square = images[..., 5:36]
    assert torch.allclose(turned[..., 1:-1, 6:35], torch.rot90(square, 1, (-2, -1))[..., 1:-1, 1:-1], atol=1e-4)


def test_a_model_of_one_pixel_is_fooled_and_one_of_the_mean_is_not_by_rolls(batch: Batch) -> None:
    fragile, stable = model(CornerReader()), model(MeanReader(), side=20)
    probe = Translations()
    table = probe.run(fragile, batch, RANDOM)
    moves = table.filter(pa.compute.equal(table["shift"], "translation"))
    assert (moves["correct"].to_numpy(zero_copy_only=False)).all()  # the label is what it reads in the base window
    fooled = (moves["wrong"].to_numpy() > 0).mean()
    assert fooled > 0.9
    (found, *_) = probe.findings(table, context(fragile.spec))
    assert found.value == pytest.approx(fooled)
    assert found.effect == pytest.approx(min(2 * fooled, 1))
    assert found.p_value is not None
    assert found.p_value < 1e-6

    rolled = Translations(border="cyclic", companions=False).run(stable, batch, RANDOM)
    assert rolled["changed"].to_numpy().max() == 0


def test_the_rate_does_not_fall_when_moves_are_added(batch: Batch) -> None:
    one = Translations(pixels=(1,), companions=False, border="reflect").run(model(CornerReader(), 20), batch, RANDOM)
    both = Translations(pixels=(1, 2), companions=False, border="reflect").run(model(CornerReader(), 20), batch, RANDOM)
    first = dict(zip(one["id"].to_pylist(), one["wrong"].to_pylist(), strict=True))
    for row in both.to_pylist():
        if row["pixels"] == 1:
            assert row["wrong"] == first[row["id"]]


def test_cost_is_what_is_spent_and_labels_are_enough(batch: Batch) -> None:
    blind = model(MeanReader()).restrict(Access.LABELS)
    for probe in (Translations(), Translations(pixels=(1, 3)), Translations(companions=False)):
        before = blind.ledger.totals
        probe.run(blind, batch, RANDOM)
        assert (blind.ledger.totals - before).forward == probe.cost(60).forward


def test_too_few_images_decide_nothing(batch: Batch) -> None:
    few = Batch(batch.ids[:5], batch.images[:5], (batch.images[:5].mean(dim=(1, 2, 3)) > 0.5).long())
    stable = model(MeanReader(), 20)
    probe = Translations(companions=False, border="cyclic")
    (found,) = probe.findings(probe.run(stable, few, RANDOM), context(stable.spec))
    assert not found.enough_data
    assert "not enough data" in found.title
    assert found.effect == 0.0


def test_an_embedding_that_moves_changes_its_neighbour(batch: Batch) -> None:
    gallery = torch.rand(30, 3 * 400)
    same, cosine = neighbour_changed(lambda x: x.flatten(1), gallery, batch.images, batch.images)
    assert not same.any()
    assert torch.allclose(cosine, torch.ones(60))
    moved, cosine = neighbour_changed(lambda x: x.flatten(1), gallery, batch.images, batch.images.roll(1, -1))
    assert moved.float().mean() > 0.3
    assert (cosine < 0.999).all()


def test_bad_moves_are_refused(batch: Batch) -> None:
    with pytest.raises(InvalidInput, match="within the margin"):
        translated(batch.images, 2, 0, 1)
    with pytest.raises(InvalidInput, match="twice the margin"):
        translated(batch.images, 0, 0, 10)
    for settings in ({"pixels": ()}, {"pixels": (2, 1)}, {"pixels": (0,)}, {"border": "torn"}):
        with pytest.raises(InvalidInput):
            Translations(**settings)
    with pytest.raises(InvalidInput, match="gallery"):
        neighbour_changed(lambda x: x, torch.rand(1, 3), batch.images, batch.images)
    assert len(set(DIRECTIONS)) == 8
