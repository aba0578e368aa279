import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.audit.findings import statements
from snellen.data import Dataset, load_dataset
from snellen.discovery._block_pool import read_pool
from snellen.discovery._blocks import blocks_of, donors_of, exchange, grown
from snellen.discovery.block_reliance import BlockReliance
from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.models.loading import load_model
from snellen.performance.predictions import Predictions
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom, torch_generator

PROBE = BlockReliance()
NAMES = tuple("abc")


def examine(model, data, order=None, batch_size=256, probe=PROBE):
    """Table, findings and their severities."""
    loader = loader_for(model, data)
    random = SampleRandom(0, "predictions")
    parts = [
        Predictions().run(model, Batch(b.ids, b.images, b.labels), random)
        for b in loader.batches(np.arange(len(data)), 256)
    ]
    order = np.arange(len(data)) if order is None else order
    view = SampleView(loader, order, BatchSize(3, 32, 32, batch_size))
    table = probe.run(model, view, {"predictions": pa.concat_tables(parts)}, SampleRandom(0, probe.name))
    context = Context(model.spec, data.table, (), 0)
    found = statements([(probe.name, "", finding) for finding in probe.findings(table, context)])
    return table, found, probe.exhibits(table, context)


class Reader(torch.nn.Module):
    """Answers by the mean colour of a square: the channel that is brightest there."""

    def __init__(self, top, left, side):
        super().__init__()
        self.at = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))

    def forward(self, images):
        return images[self.at].mean(dim=(2, 3))


def coloured(n=300, seed=0, masks=True, tagged=True):
    """Grey noise with a square in the class's colour in the middle and, `tagged`, another in the upper left corner."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    images = torch.from_numpy(rng.uniform(0.3, 0.5, (n, 3, 32, 32))).float()
    images[torch.arange(n), labels, 12:20, 12:20] = 1.0
    if tagged:
        images[torch.arange(n), labels, 1:6, 1:6] = 1.0
    mask = np.zeros((n, 32, 32), dtype=bool)
    mask[:, 12:20, 12:20] = True
    return Dataset.from_arrays(images, labels, NAMES, masks=mask if masks else None)


def model_of(network):
    return TorchModel(network.eval(), ModelSpec("reader", NAMES, (32, 32)))


# -------------------------------------------------------------------------------------------------------- the parts


def pair(channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 4, channels, 16, 20, generator=generator).unbind()


def test_tiles_cover_the_image_once_and_frame_and_centre_too():
    regions = {b.name: b.region for b in blocks_of(3, 17, 22, 4, False) if b.region is not None}
    tiles = [region for name, region in regions.items() if name not in ("frame", "centre")]
    assert len(tiles) == 16
    assert (torch.stack(tiles).sum(dim=0) == 1).all()
    assert torch.equal(regions["frame"], ~regions["centre"])
    assert sum(b.rim for b in blocks_of(3, 17, 22, 4, False)) == 5  # four corners and the frame


@pytest.mark.parametrize("channels", [1, 3])
def test_an_exchange_with_itself_changes_nothing(channels):
    images, _ = pair(channels)
    masks = torch.zeros(4, 16, 20, dtype=torch.bool)
    masks[:, 5:9, 5:9] = True
    for block in blocks_of(channels, 16, 20, 4, True):
        torch.testing.assert_close(exchange(images, images, block, masks, masks).images, images)


def test_the_two_sides_of_a_split_add_up_to_a_whole_exchange():
    images, donors = pair()
    images, donors = 0.3 + 0.2 * images, 0.3 + 0.2 * donors  # nothing is clamped
    blocks = {block.name: block for block in blocks_of(3, 16, 20, 4, False)}
    for first, second in (("coarse structure", "fine structure"), ("colour", "luminance"), ("frame", "centre")):
        one, other = (exchange(images, donors, blocks[name]).images for name in (first, second))
        torch.testing.assert_close(one + other, images + donors, atol=1e-5, rtol=0)


def test_luminance_stays_when_colour_is_exchanged():
    images, donors = (0.4 + 0.2 * each for each in pair())
    block = next(b for b in blocks_of(3, 16, 20, 4, False) if b.name == "colour")
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((exchange(images, donors, block).images * luma).sum(1), (images * luma).sum(1))


def test_background_and_object_share_the_pixels_and_the_background_brings_no_object():
    images, donors = pair()
    masks, others = torch.zeros(2, 4, 16, 20, dtype=torch.bool).unbind()
    masks[:, 3:6, 3:6], others[:, 8:12, 9:14] = True, True
    background, thing = [b for b in blocks_of(3, 16, 20, 4, True) if b.part in ("background", "object")]
    outside, inside = (exchange(images, donors, b, masks, others) for b in (background, thing))
    torch.testing.assert_close(outside.area + inside.area, torch.ones(4))
    assert outside.clear.all()
    assert not inside.clear.any()
    at = others.unsqueeze(1).expand_as(images)
    assert torch.equal(outside.images[at], images[at])
    assert torch.equal(inside.images[at], donors[at])


def test_a_tile_is_clear_only_without_the_donors_object():
    images, donors = pair()
    masks, others = torch.zeros(2, 4, 16, 20, dtype=torch.bool).unbind()
    others[:2, 0, 0] = True
    corner = blocks_of(3, 16, 20, 4, True)[0]
    assert exchange(images, donors, corner, masks, others).clear.tolist() == [False, False, True, True]
    assert not exchange(images, donors, corner).clear.any()


def test_masks_grow_on_every_side():
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, 10, 10] = True
    wanted = torch.zeros_like(masks)
    wanted[0, 8:13, 8:13] = True
    assert torch.equal(grown(masks), wanted)


def test_donors_have_the_answer_asked_for_and_are_never_the_image_itself():
    answers = torch.tensor([0, 0, 1, 1, 1, 2])
    generators = [torch_generator(i) for i in range(6)]
    foreign, own = donors_of(answers, generators, True), donors_of(answers, generators, False)
    assert (answers[foreign] != answers).all()
    assert own[5] == -1
    assert (answers[own[:5]] == answers[:5]).all()
    assert (own[:5] != torch.arange(5)).all()


# -------------------------------------------------------------------------------------------------------- the probe


@pytest.mark.parametrize("masks", [True, False])
def test_a_model_that_reads_a_corner_is_told_so_for_every_class(masks):
    table, found, exhibits = examine(model_of(Reader(0, 0, 7)), coloured(masks=masks))
    named = [s.finding for s in found if s.finding.kind == "shortcut"]
    assert {f.subject["answer"] for f in named} == set(NAMES)
    assert {f.subject["part"] for f in named} == {"upper left corner"}
    assert all(
        f.value == 1.0 and f.baseline == 0.0 and s.severity == "critical" for f, s in zip(named, found, strict=False)
    )
    assert all(("suspected" in f.title) == (not masks) for f in named)
    assert exhibits[0].bars[0].value == 1.0
    confirmation = set(table.filter(pc.equal(table["half"], "confirmation"))["id"].to_pylist())
    assert set(named[0].evidence) <= confirmation


@pytest.mark.parametrize("masks", [True, False])
def test_a_model_that_reads_the_object_is_not_blamed(masks):
    _, found, _ = examine(model_of(Reader(12, 12, 8)), coloured(masks=masks))
    assert {s.finding.kind for s in found} == {"explanation"}
    assert found[0].severity == "info"
    assert found[0].finding.subject["which"] == ("object" if masks else "centre") or found[0].finding.value == 1.0


def test_few_images_say_how_many_are_needed():
    _, found, _ = examine(model_of(Reader(0, 0, 7)), coloured(n=30))
    assert len(found) == 1
    assert not found[0].finding.enough_data
    assert "needs about" in found[0].finding.title


def test_one_class_and_empty_data_give_no_rows():
    data = coloured(n=40)
    one = data.take(np.flatnonzero(data.labels == 0))
    table, found, exhibits = examine(model_of(Reader(0, 0, 7)), one)
    assert table.num_rows == 0
    assert found == []
    assert exhibits == []


def test_rows_do_not_depend_on_order_or_batches():
    data = coloured(n=60)
    first, _, _ = examine(model_of(Reader(0, 0, 7)), data)
    second, _, _ = examine(model_of(Reader(0, 0, 7)), data, np.random.default_rng(0).permutation(60), 7)
    assert first.equals(second)


def test_passes_are_those_of_the_cost():
    model, data = model_of(Reader(0, 0, 7)), coloured(n=60)
    examine(model, data)
    assert model.ledger.totals.forward == 60 + PROBE.cost(60).forward


def test_large_sets_are_cut_to_a_random_subset():
    table, _, _ = examine(model_of(Reader(0, 0, 7)), coloured(n=60), probe=BlockReliance(most=30))
    assert len(pc.unique(table["id"])) <= 30


def test_the_tag_of_the_demo_is_found_and_the_healthy_demo_is_not_blamed():
    data = dataclasses.replace(load_dataset("demo"), masks=None)
    _, found, _ = examine(load_model("demo").model, data, probe=BlockReliance(most=800))
    _, healthy, _ = examine(load_model("demo:healthy").model, data, probe=BlockReliance(most=300))
    assert {s.severity for s in healthy} == {"info"}
    named = [s.finding for s in found if s.severity in ("medium", "high", "critical")]
    assert [dict(f.subject) for f in named] == [{"part": "upper left corner", "answer": "1"}]


@pytest.mark.parametrize("wrong", [{"grid": 1}, {"most": 5}, {"min_effect": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InvalidInput):
        BlockReliance(**wrong)


def test_the_pool_is_drawn_from_the_samples_at_hand_and_not_from_all_answers():
    data = coloured(60)
    model = model_of(Reader(12, 12, 8))
    answers = pa.table({"id": list(data.ids), "predicted": [0] * 60})
    random = SampleRandom(0, PROBE.name)

    def drawn(rows, batch_size, most):
        view = SampleView(loader_for(model, data), np.array(rows), BatchSize(3, 32, 32, batch_size))
        return read_pool(view, answers, random, most)

    assert set(drawn(range(20), 7, 20).ids) == set(data.ids[:20])
    small, again, large = drawn(range(60), 7, 10), drawn(range(59, -1, -1), 60, 10), drawn(range(60), 60, 25)
    assert small.ids == again.ids
    assert torch.equal(small.images, again.images)
    assert set(small.ids) < set(large.ids)
