"""What an edit of one attribute leaves alone and reaches, and what the probe says of a model that reads a place."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snellen.data import Geometry, Loader, load_dataset
from snellen.demo.digits import demo_images
from snellen.demo.network import shipped_network
from snellen.errors import InvalidInput
from snellen.exhibits import Bars
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom
from snellen.shift._composite import dilated, feather_width, feathered, filled, with_complexity
from snellen.shift.attribute_edits import (
    AttributeEdits,
    Edit,
    complexity,
    grabcut_masks,
    moved,
    separate,
    turned,
    with_background,
    with_background_complexity,
    with_direction,
    with_position,
    with_size,
)
from snellen.stats import mcnemar_exact, paired_difference

RANDOM = SampleRandom(0, "test")


def streams(count: int, purpose: str = "") -> list[torch.Generator]:
    return RANDOM.generators([f"s{i}" for i in range(count)], purpose)


def ellipse(height: int, width: int, share: float = 0.15) -> Tensor:
    """A mask `[H, W]` of about that share of the image, off its middle."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return ((y - 0.45) / 0.8) ** 2 + ((x - 0.55) / 1.25) ** 2 < share / 3.14159


def demo(count: int = 48) -> Batch:
    made = demo_images(count=count)
    return Batch(made.ids, made.images.float() / 255, torch.tensor(made.labels), made.masks.squeeze(1) > 0)


def photo_batch(images: Tensor) -> Batch:
    masks = ellipse(*images.shape[-2:]).expand(len(images), -1, -1)
    return Batch([f"s{i}" for i in range(len(images))], images, torch.arange(len(images)), masks)


def object_pixels_unchanged(images: Tensor, masks: Tensor, edit: Edit) -> bool:
    return torch.equal(edit.images.permute(0, 2, 3, 1)[masks], images.permute(0, 2, 3, 1)[masks])


@pytest.mark.parametrize(("height", "width", "channels"), [(16, 16, 3), (32, 32, 1), (97, 211, 3), (224, 224, 3)])
def test_background_edits_leave_every_pixel_of_the_object(
    images: Tensor, height: int, width: int, channels: int
) -> None:
    small = F.interpolate(images, (height, width), mode="bilinear", antialias=True)[:, :channels].clamp(0, 1)
    batch = photo_batch(small)
    assert batch.masks is not None
    parts = separate(small, batch.masks)
    for strength in (-20.0, 0.0, 20.0):
        assert object_pixels_unchanged(small, batch.masks, with_background_complexity(parts, strength))
    foreign = with_background(parts, small.flip(0))
    assert object_pixels_unchanged(small, batch.masks, foreign)
    away = ~dilated(batch.masks, feather_width(height, width))
    assert object_pixels_unchanged(small.flip(0), away, foreign)


def test_every_edit_stays_in_range_and_shape_and_does_not_depend_on_the_batch(images: Tensor) -> None:
    for batch in (demo(6), photo_batch(F.interpolate(images, (97, 150), mode="area"))):
        assert batch.masks is not None
        whole = list(AttributeEdits().conditions(batch, RANDOM))
        assert len(whole) == 9
        for i in range(len(batch)):
            one = Batch(batch.ids[i : i + 1], batch.images[i : i + 1], batch.labels[i : i + 1], batch.masks[i : i + 1])
            for all_, alone in zip(whole, AttributeEdits().conditions(one, RANDOM), strict=True):
                assert all_.kept is not None
                assert alone.kept is not None
                assert all_.images.shape == batch.images.shape
                assert float(all_.images.min()) >= 0
                assert float(all_.images.max()) <= 1
                assert bool(all_.kept[i]) == bool(alone.kept[0])
                assert torch.allclose(all_.images[i], alone.images[0], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 0.6), st.floats(0.02, 0.6), st.sampled_from([(32, 32), (64, 96), (97, 61)]))
def test_a_size_is_reached_or_flagged(share: float, wanted: float, shape: tuple[int, int]) -> None:
    masks = ellipse(*shape, share=share)[None]
    images = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    edit = with_size(separate(images, masks), wanted)
    rate = float(edit.masks.float().mean())
    assert bool(edit.kept) == (abs(rate - wanted) <= 0.015 and rate >= 0.01)
    if share <= 0.4 and wanted <= 0.3 and shape == (64, 96):  # the frame has room, and pixels are fine enough
        assert bool(edit.kept)


def test_the_three_sizes_of_digits_are_met_closely_and_full_is_the_largest() -> None:
    batch = demo()
    assert batch.masks is not None
    parts = separate(batch.images, batch.masks)
    for size in (0.10, 0.08, 0.05):
        edit = with_size(parts, size)
        rates = edit.masks.flatten(1).float().mean(dim=1)
        assert float(edit.kept.float().mean()) > 0.9
        assert float((rates[edit.kept] - size).abs().max()) <= 0.015
    full = with_size(parts, "full").masks
    reach = torch.maximum(
        full.any(dim=1).float().mean(dim=1), full.any(dim=2).float().mean(dim=1)
    )  # the box spans one side of the frame
    assert float(reach.min()) > 0.85


def test_a_size_that_the_frame_has_no_room_for_is_not_kept() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 2:62, 28:36] = True  # 12 % of the image and as tall as it gets
    parts = separate(torch.rand(1, 3, 64, 64), masks)
    assert not bool(with_size(parts, 0.4).kept)
    assert bool(with_size(parts, 0.1).kept)
    for wrong in (0.0, 1.0, -0.1):
        with pytest.raises(InvalidInput, match="size must be in"):
            with_size(parts, wrong)


def test_shrinking_does_not_alias() -> None:
    stripes = (torch.arange(128) % 2).float().expand(1, 3, 128, 128).contiguous()
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[:, 8:120, 8:120] = True
    edit = with_size(separate(stripes, masks), 0.05)
    inside = edit.images[0, 0][~dilated(~edit.masks, 3)[0]]
    assert bool(edit.kept)
    assert float((inside - 0.5).abs().max()) < 0.05  # stripes of one pixel become grey


def test_position_keeps_every_pixel_of_the_mask_inside() -> None:
    batch = demo()
    assert batch.masks is not None
    parts = separate(batch.images, batch.masks)
    edit = with_position(parts, streams(len(batch)))
    assert torch.equal(edit.masks.flatten(1).sum(1), batch.masks.flatten(1).sum(1))
    assert bool(edit.kept.all())
    same = edit.images.permute(0, 2, 3, 1)[edit.masks], batch.images.permute(0, 2, 3, 1)[batch.masks]
    assert torch.equal(*same)  # row by row, so also in the object's own order


def test_places_are_uniform_over_all_that_fit() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 5:14, 3:15] = True  # leaves 8 rows and 5 columns
    parts = separate(torch.rand(1, 3, 16, 16).expand(2000, -1, -1, -1), masks.expand(2000, -1, -1))
    found = with_position(parts, streams(2000)).masks
    top, left = found.any(2).long().argmax(1), found.any(1).long().argmax(1)
    counts = torch.bincount(top * 5 + left, minlength=40).float()
    assert len(counts) == 40
    assert float(((counts - 50) ** 2 / 50).sum()) < 72.1  # 0.1 % point, 39 degrees


def test_moving_and_turning_by_nothing_are_the_identity() -> None:
    batch = demo(8)
    assert batch.masks is not None
    parts = separate(batch.images, batch.masks)
    zero = torch.zeros(8, dtype=torch.long)
    for edit in (moved(parts, zero, zero, parts.kept), turned(parts, zero)):
        assert torch.equal(edit.images, batch.images)
        assert torch.equal(edit.masks, batch.masks)
        assert bool(edit.kept.all())


def test_turning_by_a_quarter_equals_rotating_the_pixels() -> None:
    masks = torch.zeros(1, 33, 33, dtype=torch.bool)
    masks[:, 10:23, 13:20] = True
    images = torch.rand(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    edit = turned(separate(images, masks), torch.tensor([90]))
    assert torch.equal(edit.masks, masks.rot90(-1, (1, 2)))
    expected = images.rot90(-1, (2, 3)).permute(0, 2, 3, 1)[edit.masks]
    assert torch.allclose(edit.images.permute(0, 2, 3, 1)[edit.masks], expected, atol=1e-4)


def test_angles_are_whole_and_cover_the_range() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 7:9] = True
    parts = separate(torch.zeros(1, 1, 16, 16).expand(300, -1, -1, -1), masks.expand(300, -1, -1))
    edit = with_direction(parts, streams(300), 1)
    unturned = (edit.masks == masks).flatten(1).all(dim=1)
    assert bool(edit.kept.all())
    again = with_direction(parts, streams(300), 45)
    assert 0 <= int((again.masks == masks).flatten(1).all(dim=1).sum()) < 60 < int(unturned.sum())


def test_what_cannot_be_edited_is_flagged() -> None:
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    masks[1] = True  # everything
    masks[2, :, 4:20] = True
    masks[2, 4:20, :] = True  # its box touches all four edges
    masks[3, 10:12, 10:12] = True  # 0.4 %
    parts = separate(torch.rand(4, 3, 32, 32), masks)
    assert parts.kept.tolist() == [False, False, True, False]
    assert with_position(parts, streams(4)).kept.tolist() == [False, False, False, False]
    assert not bool(turned(parts, torch.full((4,), 45)).kept.any())  # its arms leave the image
    assert with_background(parts, torch.rand(4, 3, 32, 32)).kept.tolist() == [False, False, True, False]


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"masks must be bool \[B, H, W\]"):
        separate(torch.rand(2, 3, 32, 32), torch.zeros(2, 16, 16, dtype=torch.bool))
    with pytest.raises(InvalidInput, match=r"masks must be bool \[B, H, W\]"):
        separate(torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32))


def test_a_filled_hole_forgets_the_object_and_continues_its_surroundings(images: Tensor) -> None:
    holes = ellipse(224, 224).expand(4, -1, -1)
    result = filled(images, holes)
    assert torch.equal(result.permute(0, 2, 3, 1)[~holes], images.permute(0, 2, 3, 1)[~holes])
    assert torch.equal(result, filled(torch.where(holes[:, None], torch.rand_like(images), images), holes))
    ramp = (torch.arange(224) / 223).expand(1, 1, 224, 224)
    assert float((filled(ramp, holes[:1]) - ramp).abs().max()) < 0.08
    flat = torch.full((1, 3, 64, 64), 0.3)
    assert torch.allclose(filled(flat, ellipse(64, 64)[None]), flat)


def test_opacity_is_one_on_the_object_and_none_beyond_the_feather() -> None:
    masks = ellipse(64, 64)[None]
    alpha = feathered(masks, 3)
    assert bool((alpha[:, 0][masks] == 1).all())
    assert bool((alpha[:, 0][~dilated(masks, 3)] == 0).all())
    assert sorted(alpha.unique().tolist()) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_complexity_rises_with_the_strength(images: Tensor) -> None:
    digits = demo().images
    for given_ in (images, digits):
        by_strength = [float(complexity(with_complexity(given_, s)).mean()) for s in (-20, -10, 0, 10, 20)]
        assert by_strength == sorted(by_strength)
        assert by_strength[0] < 0.7 * by_strength[2] < 0.7 * by_strength[4] / 1.3
    assert torch.allclose(with_complexity(images, 0.0), images, atol=1e-6)


def test_complexity_has_the_gradient_of_finite_differences() -> None:
    picture = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(complexity, (picture,))


def test_grabcut_finds_an_object_in_the_middle_and_refuses_what_is_none() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    truth = ((y - 30) ** 2 + (x - 34) ** 2) < 15**2
    generator = torch.Generator().manual_seed(0)
    scene = 0.25 * torch.rand(3, 64, 64, generator=generator)
    scene[:, truth] = torch.tensor([0.9, 0.6, 0.1])[:, None] + 0.05 * torch.rand(
        3, int(truth.sum()), generator=generator
    )
    noise = torch.rand(3, 64, 64, generator=generator)
    found = grabcut_masks(torch.stack([scene, noise, torch.full((3, 64, 64), 0.5)]).clamp(0, 1))
    assert found.kept.tolist() == [True, False, False]
    overlap = (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum()
    assert float(overlap) > 0.9
    alone = grabcut_masks(scene[None].clamp(0, 1))
    assert torch.equal(alone.masks[0], found.masks[0])


def test_masks_come_from_the_data_set_or_from_grabcut(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = demo(12)
    assert batch.masks is not None
    bare = Batch(batch.ids, batch.images, batch.labels)
    with pytest.raises(InvalidInput, match=r"mask_file_name.*masks=grabcut"):
        next(AttributeEdits().conditions(bare, RANDOM))

    partly = batch.masks.clone()
    partly[0] = False
    given_ = next(AttributeEdits().conditions(Batch(batch.ids, batch.images, batch.labels, partly), RANDOM))
    assert given_.kept is not None
    assert given_.kept.tolist() == [False] + [True] * 11
    probe = AttributeEdits(masks="grabcut")
    mixed = next(probe.conditions(Batch(batch.ids, batch.images, batch.labels, partly), RANDOM))
    assert torch.equal(mixed.images[1:], given_.images[1:])
    estimated = grabcut_masks(batch.images)
    found = next(probe.conditions(bare, RANDOM))
    assert found.kept is not None
    assert bool((found.kept <= estimated.kept).all())
    assert mixed.kept is not None
    assert bool(mixed.kept[0]) == bool(found.kept[0])

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InvalidInput, match=r"snellen\[masks\]"):
        grabcut_masks(batch.images)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"attributes": ()}, "attributes"),
        ({"attributes": ("size", "size")}, "attributes"),
        ({"sizes": (0.0,)}, "sizes"),
        ({"sizes": (1.0,)}, "sizes"),
        ({"sizes": ()}, "sizes"),
        ({"complexities": (20.0, -20.0)}, "complexities"),
        ({"complexities": (100.0,)}, "complexities"),
        ({"largest_angle": 0}, "largest_angle"),
        ({"masks": "guess"}, "masks"),
    ],
)
def test_settings_outside_the_range_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        AttributeEdits(**settings_)


class CentreReader(nn.Module):
    """Reads the mean colour of the central square alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 13:19, 13:19].mean(dim=(2, 3))


def coloured_squares(count: int) -> Batch:
    """A red, green or blue square in the middle of a grey texture; the label is its colour."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    images = (0.4 + 0.1 * torch.rand(count, 1, 32, 32, generator=generator)).repeat(1, 3, 1, 1)
    colours = 0.2 + 0.7 * F.one_hot(labels, 3).float()
    images[:, :, 13:19, 13:19] = colours[:, :, None, None]
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, 13:19, 13:19] = True
    return Batch([f"s{i}" for i in range(count)], images, labels, masks)


def table_of(probe: AttributeEdits, module: nn.Module, batch: Batch, classes: int) -> tuple[Rows, Context]:
    model = TorchModel(module, ModelSpec("m", tuple(str(i) for i in range(classes)), (32, 32)))
    return probe.run(model, batch, RANDOM), Context(model.spec, pa.table({"id": [], "label": []}))


def test_a_model_that_reads_the_object_alone_loses_nothing_to_backgrounds_and_turns_and_much_to_places() -> None:
    probe = AttributeEdits()
    table, context = table_of(probe, CentreReader(), coloured_squares(300), 3)
    found = {str(finding.subject.get("attribute")): finding for finding in probe.findings(table, context)}
    assert found["background"].value == 0
    assert found["background"].p_value == 1
    assert "no cost" in found["background"].title
    assert found["direction"].value == 0
    # where the square has left the centre altogether the three channels tie and class 0 wins
    assert found["position"].effect > 0.1
    assert found["position"].p_value is not None
    assert found["position"].p_value < 1e-6
    assert found["costliest"].subject["worst"] == "position"
    assert "position costs most" in found["costliest"].title
    assert found["costliest"].effect == 0


def test_findings_repeat_what_the_rows_say() -> None:
    loaded = next(iter(Loader(load_dataset("demo"), Geometry((32, 32))).batches(range(300), 300)))
    batch = Batch(loaded.ids, loaded.images, loaded.labels, loaded.masks)
    probe = AttributeEdits()
    table, context = table_of(probe, shipped_network("faulty"), batch, 10)
    frame = table.to_pylist()
    clean = {row["id"]: row["correct"] for row in frame if row["shift"] == "clean"}
    findings = {str(finding.subject.get("attribute")): finding for finding in probe.findings(table, context)}

    turned_ = {row["id"]: row["correct"] for row in frame if row["shift"] == "direction"}
    before, after = np.array([clean[i] for i in turned_]), np.array(list(turned_.values()))
    assert findings["direction"].value == pytest.approx(before.mean() - after.mean())
    assert findings["direction"].ci == pytest.approx(paired_difference(before, after))
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    assert findings["direction"].p_value == pytest.approx(mcnemar_exact(lost, won))

    by_sample: dict[str, list[float]] = {}
    for row in frame:
        if row["shift"].startswith("size"):
            by_sample.setdefault(row["id"], []).append(float(clean[row["id"]]) - float(row["correct"]))
    size = findings["size"]
    assert size.value == pytest.approx(np.mean([np.mean(changes) for changes in by_sample.values()]))
    assert size.ci is not None
    assert size.ci[0] <= size.value <= size.ci[1]
    assert all(clean[sample_id] for sample_id in size.evidence)
    (bars,) = probe.exhibits(table, context)
    assert isinstance(bars, Bars)
    assert len(bars.bars) == 9
    assert probe.findings(table.slice(0, 0), context) == []
    assert probe.exhibits(table.slice(0, 0), context) == []
    assert probe.findings(table.slice(0, 300), context) == []  # nothing but clean rows


def test_few_images_decide_nothing() -> None:
    probe = AttributeEdits(attributes=("direction",))
    table, context = table_of(probe, CentreReader(), coloured_squares(9), 3)
    _, direction, costliest = probe.findings(table, context)
    for finding in (direction, costliest):
        assert not finding.enough_data
        assert "not enough data: n = 9, needs about" in finding.title


def test_cost_counts_the_conditions() -> None:
    for probe in (AttributeEdits(), AttributeEdits(attributes=("size", "direction"), sizes=(0.1,))):
        conditions = len(list(probe.conditions(demo(2), RANDOM)))
        assert probe.cost(10).forward == 10 * (1 + conditions)
