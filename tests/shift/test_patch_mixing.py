"""Mixed patches and labels, donors of other classes, occluders of a given size, and a map of contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom
from snellen.shift._donor_pool import donor_pool
from snellen.shift.patch_mixing import PatchReplacement, contrastive_rise, occluded, patch_mix, selectivity_score

RANDOM = SampleRandom(0, "test")


class Data:
    """Samples in memory."""

    def __init__(self, images: Tensor, labels: Tensor, masks: Tensor | None = None, order: Sequence[int] = ()) -> None:
        self.images, self.labels, self.masks = images, labels, masks
        self.order = list(order) or list(range(len(images)))

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or 50
        for start in range(0, len(self), size):
            part = self.order[start : start + size]
            masks = None if self.masks is None else self.masks[part]
            yield Batch([f"s{i}" for i in part], self.images[part], self.labels[part], masks)


class Brightest(nn.Module):
    """Decides by the brightest pixel: a single foreign patch can govern it, a mean patch cannot."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.amax(dim=(1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], dim=1)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spotted(count: int) -> tuple[Tensor, Tensor]:
    """Class 0: dim noise. Class 1: bright spots in every cell."""
    images = 0.3 * torch.rand(count, 3, 32, 32, generator=stream(5))
    labels = torch.arange(count) % 2
    images[labels == 1, :, 1::4, 1::4] = 1.0
    return (images * 255).round() / 255, labels


def model(module: nn.Module | None = None) -> TorchModel:
    return TorchModel(module or Brightest(), ModelSpec("m", ("dim", "spotted"), (32, 32)))


def context() -> Context:
    return Context(model().spec, pa.table({"id": [], "label": []}))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.floats(0, 1), st.sampled_from([2, 4, 8]), st.integers(0, 10**6))
def test_every_pixel_is_one_of_two_and_labels_follow_the_patches(
    batch: int, share: float, side: int, seed: int
) -> None:
    images, labels = torch.rand(batch, 3, 16, 24), torch.arange(batch) % 3
    mixed = patch_mix(images, labels, stream(seed), num_classes=3, share=share, patch=side, smoothing=0.0)
    cells = (16 // side) * (24 // side)
    assert mixed.share == round(share * cells) / cells
    assert (mixed.pixels.flatten(1).sum(dim=1) == round(share * cells) * side * side).all()
    assert (mixed.partners != torch.arange(batch)).all()
    assert sorted(mixed.partners.tolist()) == list(range(batch))
    shown = torch.where(mixed.pixels[:, None], images[mixed.partners], images)
    assert torch.equal(mixed.images, shown)
    inside = mixed.pixels.unfold(1, side, side).unfold(2, side, side).flatten(3).float().mean(dim=-1)
    assert ((inside == 0) | (inside == 1)).all()
    assert torch.allclose(mixed.targets.sum(dim=1), torch.ones(batch))
    wanted = torch.zeros(batch, 3)
    for i in range(batch):
        wanted[i, labels[i]] += 1 - mixed.share
        wanted[i, labels[mixed.partners[i]]] += mixed.share
    assert torch.allclose(mixed.targets, wanted)


def test_no_share_is_the_identity_and_all_of_it_is_the_partner() -> None:
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    none = patch_mix(images, labels, stream(), num_classes=3, share=0.0, smoothing=0.0)
    assert torch.equal(none.images, images)
    assert torch.equal(none.targets.argmax(dim=1), labels)
    everything = patch_mix(images, labels, stream(), num_classes=3, share=1.0, smoothing=0.0)
    assert torch.equal(everything.images, images[everything.partners])
    assert torch.equal(everything.targets.argmax(dim=1), labels[everything.partners])
    smooth = patch_mix(images, none.targets, stream(), share=0.0, smoothing=0.1)
    assert torch.allclose(smooth.targets, 0.9 * none.targets + 0.1 / 3)


def test_shares_are_uniform_over_batches_and_patches_over_places() -> None:
    images, labels = torch.rand(40, 1, 32, 32), torch.zeros(40, dtype=torch.long)
    generator = stream()
    shares = [patch_mix(images[:2], labels[:2], generator, num_classes=2).share for _ in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.std(shares) == pytest.approx(12**-0.5, abs=0.03)
    chosen = torch.zeros(8, 8)
    for _ in range(50):
        chosen += patch_mix(images, labels, generator, num_classes=2, share=0.25).pixels[:, ::4, ::4].sum(dim=0)
    expected = 50 * 40 * 0.25
    assert float(((chosen - expected) ** 2).sum() / expected / (48 / 63)) < 103.4  # 0.1 % point, 63 degrees


def test_a_model_linear_in_patches_mixes_its_answers_like_the_labels() -> None:
    read = torch.rand(3, 32, 32, generator=stream(3))
    images = torch.rand(2, 3, 32, 32, generator=stream(4))
    generator = stream(1)
    answers = []
    for _ in range(1500):
        mixed = patch_mix(images, torch.tensor([0, 1]), generator, num_classes=2, share=0.3)
        answers.append(float((mixed.images[0] * read).sum()))
    own, other = ((image * read).sum() for image in images)
    wanted = float((1 - mixed.share) * own + mixed.share * other)
    assert np.mean(answers) == pytest.approx(wanted, abs=4 * np.std(answers) / len(answers) ** 0.5)


def test_bad_batches_are_refused() -> None:
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    with pytest.raises(InvalidInput, match="partner"):
        patch_mix(images[:1], labels[:1], stream(), num_classes=3)
    with pytest.raises(InvalidInput, match="num_classes must be given"):
        patch_mix(images, labels, stream())
    with pytest.raises(InvalidInput, match="labels must be in 0 to 1"):
        patch_mix(images, labels, stream(), num_classes=2)
    with pytest.raises(InvalidInput, match="share"):
        patch_mix(images, labels, stream(), num_classes=3, share=1.5)
    with pytest.raises(InvalidInput, match="divide"):
        patch_mix(images, labels, stream(), num_classes=3, patch=5)
    with pytest.raises(InvalidInput, match="smoothing"):
        patch_mix(images, labels, stream(), num_classes=3, smoothing=1.0)
    with pytest.raises(InvalidInput, match="labels must be int64"):
        patch_mix(images, labels.float(), stream(), num_classes=3)


def test_donors_are_of_another_class_and_do_not_depend_on_the_order_of_the_data() -> None:
    images, _ = spotted(60)
    labels = torch.arange(60) % 5
    pool = donor_pool(Data(images, labels), 3, RANDOM)
    turned = donor_pool(Data(images, labels, order=list(range(60))[::-1]), 3, RANDOM)
    assert pool.ids == turned.ids
    assert torch.equal(pool.images, turned.images)
    assert pool.labels.bincount().tolist() == [3] * 5
    rows = pool.foreign(labels, [stream(i) for i in range(60)])
    assert (pool.labels[rows] != labels).all()
    assert len(set(rows.tolist())) > 8
    shown = pool.show(rows, images)
    assert torch.allclose(shown[0], images[int(pool.ids[int(rows[0])][1:])], atol=1e-6)
    with pytest.raises(InvalidInput, match="two classes"):
        donor_pool(Data(images, labels * 0), 3, RANDOM).foreign(labels[:1] * 0, [stream()])


def test_a_model_of_the_brightest_pixel_is_distracted_and_one_of_all_pixels_is_less() -> None:
    images, labels = spotted(200)
    probe = PatchReplacement(shares=(0.1, 0.25, 0.5), grids=(2, 4))
    table = probe.run(model(), Data(images, labels), {}, RANDOM)
    gap, area, *falls = probe.findings(table, context())
    assert gap.value == pytest.approx(0.5, abs=0.02)  # a spot turns class 0, nothing turns class 1
    assert gap.p_value is not None
    assert gap.p_value < 1e-6
    assert gap.ci is not None
    assert gap.ci[0] <= 0.5 <= gap.ci[1]
    assert gap.effect == gap.value
    assert all(int(sample[1:]) % 2 == 0 for sample in gap.evidence)
    assert area.baseline == 1.0
    assert all(fall.effect == 0 for fall in falls)  # lost information is not a fault
    assert {curve.title for curve in probe.exhibits(table, context())} == {
        "Accuracy against share: replaced, dropped and occluded patches",
        "Accuracy against grid: shuffled tiles",
    }

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            bright = images.mean(dim=(1, 2, 3)) - 0.17
            return torch.stack([-bright, bright], dim=1)

    steady = probe.findings(probe.run(model(Mean()), Data(images, labels), {}, RANDOM), context())[0]
    assert steady.value is not None
    assert steady.value < gap.value


def test_untouched_rows_are_clean_accuracy_and_a_row_does_not_depend_on_the_batch() -> None:
    images, labels = spotted(24)
    wrong = labels.clone()
    wrong[:6] = 1 - wrong[:6]
    probe = PatchReplacement(shares=(0.3,), grids=(2, 7))
    table = probe.run(model(), Data(images, wrong), {}, RANDOM)
    clean = table.filter(pa.compute.equal(table["shift"], "clean"))
    assert sum(clean["correct"].to_pylist()) == 18
    assert set(table["shift"].to_pylist()) == {"clean", "foreign_patches", "dropped_patches", "shuffled_tiles"}

    class Small(Data):
        def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
            return super().batches(5)

    again = probe.run(model(), Small(images, wrong), {}, RANDOM)
    keys = [("id", "ascending"), ("shift", "ascending"), ("severity", "ascending")]
    assert table.sort_by(keys).equals(again.sort_by(keys))


def test_cost_is_what_is_spent_and_labels_are_enough() -> None:
    images, labels = spotted(8)
    blind = model().restrict(Access.LABELS)
    probe = PatchReplacement()
    before = blind.ledger.totals
    probe.run(blind, Data(images, labels), {}, RANDOM)
    assert (blind.ledger.totals - before).forward == probe.cost(8).forward


def test_too_few_images_decide_nothing() -> None:
    images, labels = spotted(6)
    images[:] = images[:1]  # nothing to tell apart
    probe = PatchReplacement(shares=(0.5,), grids=())
    found = probe.findings(probe.run(model(), Data(images, labels), {}, RANDOM), context())
    assert not found[0].enough_data
    assert "not enough data" in found[0].title
    assert probe.findings(pa.table({}), context()) == []
    assert probe.exhibits(pa.table({}), context()) == []


def discs(count: int, height: int = 32, width: int = 32) -> Tensor:
    y, x = torch.arange(height)[:, None], torch.arange(width)
    centres = torch.randint(6, min(height, width) - 6, (count, 2), generator=stream(8))
    return torch.stack([(y - int(cy)) ** 2 + (x - int(cx)) ** 2 <= 20 for cy, cx in centres])


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 16, 16), (3, 97, 211), (1, 48, 20)])
def test_an_occluder_covers_what_it_should_and_the_objects_centre(channels: int, height: int, width: int) -> None:
    images, masks = torch.rand(6, channels, height, width), discs(6, height, width)
    before = torch.zeros(6, height, width, dtype=torch.bool)
    for share in (0.05, 0.1, 0.3, 0.9):
        hidden = occluded(images, masks, share, [stream(i) for i in range(6)])
        assert torch.allclose(hidden.coverage, torch.full((6,), round(share * height * width) / (height * width)))
        for mask, pixels in zip(masks, hidden.pixels, strict=True):
            centre = mask.nonzero().float().mean(dim=0).round().long()
            assert pixels[centre[0], centre[1]]
        outside = ~hidden.pixels[:, None].expand_as(images)
        assert torch.equal(hidden.images[outside], images[outside])
        assert not (before & ~hidden.pixels).any()
        before = hidden.pixels
        assert float(hidden.images.min()) >= 0
        assert float(hidden.images.max()) <= 1
    assert (hidden.object_covered > 0.5).all()


def test_occluders_are_a_condition_where_there_are_masks() -> None:
    images, labels = spotted(20)
    masks = discs(20)
    masks[3] = False
    probe = PatchReplacement(shares=(0.3,), grids=(), covers=(0.1, 0.3))
    table = probe.run(model(), Data(images, labels, masks), {}, RANDOM)
    covered = table.filter(pa.compute.equal(table["shift"], "occluders"))
    assert set(covered["severity"].to_pylist()) == {0.1, 0.3}
    assert "s3" not in covered["id"].to_pylist()
    assert len(covered) == 38
    unchanged = occluded(images, masks, 0.3, [stream(i) for i in range(20)])
    assert torch.equal(unchanged.images[3], images[3])
    assert not unchanged.kept[3]
    blanked = table.filter(pa.compute.equal(table["shift"], "blanks"))
    assert blanked["id"].to_pylist() == covered["id"].to_pylist()
    _, gap, *rest = probe.findings(table, context())
    assert gap.subject["corruption"] == "occluders against blanks"
    assert gap.value == pytest.approx(0.5, abs=0.03)  # a photograph is bright somewhere, a blank is not
    assert gap.effect == gap.value
    assert all(finding.effect == 0 for finding in rest)
    for bad in ({"share": 0.0}, {"share": 1.0}, {"masks": masks.float()}, {"masks": masks[:3]}):
        with pytest.raises(InvalidInput):
            occluded(**{"images": images, "masks": masks, "share": 0.2, "generators": [stream()] * 20, **bad})


def test_contrast_is_where_the_classes_are_and_zero_for_a_model_without_eyes() -> None:
    image = torch.zeros(3, 32, 32)
    image[:, 4:12, 4:12], image[:, 20:28, 20:28] = 1.0, 1.0

    def two_places(images: Tensor) -> Tensor:
        a, b = images[:, :, 4:12, 4:12].mean(dim=(1, 2, 3)), images[:, :, 20:28, 20:28].mean(dim=(1, 2, 3))
        return torch.stack([4 * a, 4 * b, torch.zeros_like(a)], dim=1)

    seen = contrastive_rise(two_places, image, 0, 1, stream(), masks=800)
    assert seen.shape == (32, 32)
    assert float(seen[4:12, 4:12].mean()) > 0.01
    assert float(seen[20:28, 20:28].mean()) < -0.01
    opposite = contrastive_rise(two_places, image, 1, 0, stream(), masks=800)
    assert torch.allclose(seen, -opposite, atol=1e-6)
    ours = torch.zeros(32, 32, dtype=torch.bool)
    ours[:16, :16] = True
    assert selectivity_score(seen, ours) > 0.5
    assert selectivity_score(seen, ~ours) == pytest.approx(1 - selectivity_score(seen, ours), abs=1e-5)

    # The card's formula, mean of d m / p, gives a constant model d and not 0; taking the mean of d away gives 0.
    def blind(images: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.0, 0.0]).expand(len(images), 3)

    assert torch.allclose(contrastive_rise(blind, image, 0, 1, stream(), masks=100), torch.zeros(32, 32), atol=1e-6)


def test_maps_come_in_any_size_and_bad_ones_are_refused() -> None:
    def linear(images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2)

    assert contrastive_rise(linear, torch.rand(3, 37, 50), 0, 1, stream(), masks=10).shape == (37, 50)
    image = torch.rand(3, 16, 16)
    for bad in ({"masks": 1}, {"cells": 1}, {"keep": 1.0}):
        with pytest.raises(InvalidInput):
            contrastive_rise(linear, image, 0, 1, stream(), **bad)
    for a, b in ((0, 0), (0, 3), (-1, 0)):
        with pytest.raises(InvalidInput):
            contrastive_rise(linear, image, a, b, stream())
    with pytest.raises(InvalidInput, match="image must be"):
        contrastive_rise(linear, image[None], 0, 1, stream())
    with pytest.raises(InvalidInput, match="in_context"):
        selectivity_score(image[0], torch.ones(3, 3, dtype=torch.bool))


def test_bad_settings_are_refused() -> None:
    for bad in (
        {"shares": ()},
        {"shares": (0.5, 0.2)},
        {"shares": (0.0, 0.2)},
        {"shares": (1.2,)},
        {"covers": (1.0,)},
        {"grids": (1, 2)},
        {"grids": (4, 2)},
        {"donors": 0},
        {"patch": 0},
    ):
        with pytest.raises(InvalidInput):
            PatchReplacement(**bad)
    images, _ = spotted(4)
    with pytest.raises(InvalidInput, match="two classes"):
        PatchReplacement().run(model(), Data(images, torch.zeros(4, dtype=torch.long)), {}, RANDOM)
