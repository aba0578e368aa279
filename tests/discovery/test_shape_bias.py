import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import canny
from sklearn.datasets import load_sample_images

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.audit.findings import statements
from snellen.data import Dataset, load_dataset
from snellen.discovery.shape_bias import (
    ShapeBiasProbe,
    canny_edges,
    coarse_answers,
    contour,
    cue_conflict,
    scramble,
    shape_bias,
    silhouette,
    tile_order,
)
from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.models.loading import load_model
from snellen.performance.predictions import Predictions
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom

PROBE = ShapeBiasProbe()


def images(n=6, channels=3, height=16, width=24, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def squares(n=6, height=16, width=24):
    masks = torch.zeros(n, height, width, dtype=torch.bool)
    masks[:, 4:11, 6:15] = True
    return masks


# ------------------------------------------------------------------------------------------------------ the stimuli


@settings(max_examples=25, deadline=None)
@given(grid=st.sampled_from([2, 4, 8]), seed=st.integers(0, 100))
def test_scrambling_keeps_the_pixels_and_is_undone_by_the_inverse(grid, seed):
    x = images(2)
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(seed))
    mixed = scramble(x, order)
    assert torch.equal(mixed.flatten(2).sort().values, x.flatten(2).sort().values)
    assert torch.equal(scramble(mixed, order.argsort()), x)


def test_the_identity_gives_the_input_bit_for_bit_and_places_are_row_by_row():
    x = images()
    assert torch.equal(scramble(x, torch.arange(4)), x)
    assert torch.equal(scramble(x, [1, 0, 2, 3])[:, :, :8, :12], x[:, :, :8, 12:])


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_the_fixed_order_leaves_no_tile_in_its_place(grid):
    order = tile_order(grid)
    assert torch.equal(order.sort().values, torch.arange(grid * grid))
    assert (order != torch.arange(grid * grid)).all()
    assert torch.equal(order, tile_order(grid))


def test_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(InvalidInput, match="divide"):
        scramble(images(width=22), tile_order(4))
    with pytest.raises(InvalidInput, match="permutation"):
        scramble(images(), [0, 0, 1, 2])


def test_silhouette_and_contour_show_the_mask_and_nothing_else():
    x, masks = images(), squares()
    black = silhouette(x, masks)
    assert torch.equal(black[:, 0] == 0, masks)
    line = contour(x, masks)[:, 1] == 0
    assert line[0].sum() == 2 * 7 + 2 * 9 - 4
    assert torch.equal(line & masks, line)
    assert torch.equal(silhouette(images(seed=1), masks), black)


@pytest.mark.parametrize(("sigma", "low", "high"), [(0.4, 0.35, 0.9), (1.0, 0.1, 0.3), (2.0, 0.05, 0.2)])
def test_edges_are_those_of_scikit_image(sigma, low, high):
    photograph = torch.tensor(load_sample_images().images[0][:200, :300]).permute(2, 0, 1)[None] / 255
    for x in (images(4), images(3, channels=1), photograph):
        ours = canny_edges(x, sigma, low, high).numpy()
        weights = torch.tensor([0.2125, 0.7154, 0.0721]).view(1, 3, 1, 1)
        grey = x[:, 0] if x.shape[1] == 1 else (x * weights).sum(dim=1)
        peer = np.stack([canny(g.double().numpy(), sigma, low, high) for g in grey])
        assert (ours != peer).mean() < 1e-3
        assert ours.any()


def test_edges_do_not_leak_from_one_image_to_the_next():
    x = images(4)
    assert torch.equal(canny_edges(x)[2:3], canny_edges(x[2:3]))


def test_cue_conflict_has_the_shape_of_one_and_the_colours_of_the_other():
    x, masks = images(), squares()
    textures = images(seed=2) * 0.1
    textures[masks.unsqueeze(1).expand_as(textures)] += 0.8
    mixed = cue_conflict(x, masks, textures, masks)
    inside = masks.unsqueeze(1).expand_as(mixed)
    assert (mixed[inside] >= 0.8).all()
    assert (mixed[~inside] == 0.5).all()


def test_an_object_of_one_texture_lends_it_whole():
    masks = squares()
    stripes = (torch.arange(24) % 2).float().expand(6, 3, 16, 24)
    mixed = cue_conflict(images(), masks, stripes, masks)
    assert set(mixed[0, 0][masks[0]].tolist()) == {0.0, 1.0}
    assert (mixed.std(dim=2)[:, :, 6:15] < 0.5).all()


def test_masks_of_another_size_are_refused():
    with pytest.raises(InvalidInput, match="size"):
        silhouette(images(), squares(width=20))
    with pytest.raises(InvalidInput, match="bool"):
        contour(images(), squares().float())


# -------------------------------------------------------------------------------------------------------- the score


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500))
def test_shape_bias_lies_between_the_planted_extremes(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randint(4, (40,), generator=generator)
    texture = (shape + torch.randint(1, 4, (40,), generator=generator)) % 4
    anything = torch.randint(4, (40,), generator=generator)
    assert shape_bias(shape, shape, texture).bias == 1.0
    assert shape_bias(texture, shape, texture).bias == 0.0
    found = shape_bias(anything, shape, texture)
    assert found.low <= found.bias <= found.high
    assert found.shape + found.texture <= 40


def test_no_conflict_is_refused_and_no_answer_for_either_is_not_a_number():
    with pytest.raises(InvalidInput, match="different classes"):
        shape_bias(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert np.isnan(shape_bias(torch.tensor([2]), torch.tensor([0]), torch.tensor([1])).bias)


def test_coarse_answers_add_up_the_fine_probabilities():
    logits = torch.tensor([[0.4, 0.3, 0.3, 9.0]]).log()
    groups = torch.tensor([0, 1, 1, -1])
    assert coarse_answers(logits, groups).item() == 1
    assert coarse_answers(logits, groups, average=True).item() == 0
    with pytest.raises(InvalidInput, match="groups"):
        coarse_answers(logits, groups[:3])


# -------------------------------------------------------------------------------------------------------- the probe


class Texture(torch.nn.Module):
    """Answers 1 where the grey values in the middle change much from pixel to pixel."""

    def forward(self, x):
        rough = x[:, :, 12:20, 12:20].diff(dim=-1).abs().mean(dim=(1, 2, 3))
        return torch.stack([0.3 - rough, rough - 0.3], dim=1)


class Shape(torch.nn.Module):
    """Answers 1 where there is something beside the middle, to the right: a wide object."""

    def forward(self, x):
        wide = (x[:, :, 14:18, 22:26] - x[:, :, 0:4, 0:4]).abs().mean(dim=(1, 2, 3))
        return torch.stack([0.05 - wide, wide - 0.05], dim=1)


def objects(n=200, masks=True):
    """Class 0: a smooth tall box; class 1: a striped wide one; on mid grey."""
    labels = np.arange(n) % 2
    x, mask = torch.full((n, 3, 32, 32), 0.5), torch.zeros(n, 32, 32, dtype=torch.bool)
    mask[::2, 4:28, 10:22] = True
    mask[1::2, 10:22, 4:28] = True
    stripes = (torch.arange(32) % 2).float().expand(32, 32)
    fill = torch.where(torch.from_numpy(labels == 1).view(-1, 1, 1), stripes, torch.tensor(0.9)).unsqueeze(1)
    x = torch.where(mask.unsqueeze(1), fill, x)
    return Dataset.from_arrays(x, labels, ("tall", "wide"), masks=mask if masks else None)


def examine(model, data, order=None, batch_size=64, probe=PROBE):
    loader, random = loader_for(model, data), SampleRandom(0, "predictions")
    parts = [
        Predictions().run(model, Batch(b.ids, b.images, b.labels), random)
        for b in loader.batches(np.arange(len(data)), 256)
    ]
    view = SampleView(loader, np.arange(len(data)) if order is None else order, BatchSize(3, 32, 32, batch_size))
    table = probe.run(model, view, {"predictions": pa.concat_tables(parts)}, SampleRandom(0, probe.name))
    context = Context(model.spec, data.table, (), 0)
    return table, probe.findings(table, context), probe.exhibits(table, context)


def model_of(network):
    return TorchModel(network.eval(), ModelSpec("planted", ("tall", "wide"), (32, 32)))


@pytest.mark.parametrize(("network", "bias"), [(Texture(), 0.0), (Shape(), 1.0)])
def test_planted_cues_are_told_apart(network, bias):
    _, found, exhibits = examine(model_of(network), objects())
    conflict = next(f for f in found if f.metric == "shape bias")
    assert conflict.value == bias
    assert ("the shape:" if bias else "the texture:") in conflict.title
    assert {f.effect for f in found} == {0.0}
    assert {s.severity for s in statements([("p", "", f) for f in found])} == {"info"}
    assert len(exhibits[0].bars) == len(found) == 6


def test_without_masks_only_the_versions_that_need_none_are_shown():
    _, found, _ = examine(model_of(Shape()), objects(masks=False))
    assert {f.subject["version"] for f in found} == {"scrambled 2 x 2", "scrambled 4 x 4", "edges"}


def test_few_images_say_how_many_are_needed():
    _, found, _ = examine(model_of(Shape()), objects(20))
    assert all(not f.enough_data and "needs about" in f.title for f in found)


def test_rows_do_not_depend_on_order_or_batches_and_passes_are_those_of_the_cost():
    model, data = model_of(Shape()), objects(60)
    first, _, _ = examine(model, data)
    assert model.ledger.totals.forward == 60 + PROBE.cost(60).forward
    second, _, _ = examine(model, data, np.random.default_rng(0).permutation(60), 7)
    assert first.equals(second)


def test_a_model_that_is_never_right_gives_no_rows():
    data = objects(40)
    wrong = Dataset.from_arrays(
        torch.stack([data.pixels(i, loader_for(model_of(Shape()), data).geometry) for i in range(40)]),
        1 - data.labels, ("tall", "wide"),
    )  # fmt: skip
    table, found, exhibits = examine(model_of(Shape()), wrong)
    assert (table.num_rows, found, exhibits) == (0, [], [])


def test_the_healthy_demo_is_described_and_not_blamed():
    data = load_dataset("demo")
    _, found, _ = examine(load_model("demo:healthy").model, data.take(np.arange(300)))
    assert {f.subject["version"] for f in found} > {"cue conflict", "silhouette", "contour"}
    assert all(f.effect == 0 and f.enough_data for f in found if f.metric != "shape bias")


@pytest.mark.parametrize("wrong", [{"grids": ()}, {"grids": (1,)}, {"grids": (4, 2)}, {"most": 3}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InvalidInput):
        dataclasses.replace(PROBE, **wrong)
