"""A planted trigger is found with its class; networks without one are left in peace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from snellen.demo.digits import demo_images
from snellen.demo.network import shipped_network
from snellen.discovery import triggers
from snellen.discovery._trigger_search import corner_regions, find_triggers, passes
from snellen.discovery.triggers import TriggerSearch
from snellen.errors import InvalidInput
from snellen.exhibits import Bars
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context, Finding, Rows
from snellen.randomness import SampleRandom

SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32))
DEFAULT = TriggerSearch()


class Backdoored(nn.Module):
    """A network that answers `target` where red exceeds blue in the lower right corner by more than `least`."""

    def __init__(self, inner: nn.Module, target: int, least: float = 0.1) -> None:
        super().__init__()
        self.inner, self.target, self.least = inner, target, least

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, -5:, -5:].mean(dim=(2, 3))
        pull = torch.zeros(len(images), 10, device=images.device)
        pull[:, self.target] = 3 * nn.functional.softplus(10 * (corner[:, 0] - corner[:, 2] - self.least))
        return self.inner(images) + pull


class Shown:
    """The demo's images as a probe's samples."""

    def __init__(self, count: int, seed: int, by_class: bool = False) -> None:
        made = demo_images("test", count, seed)
        rows = np.argsort(made.labels, kind="stable") if by_class else np.arange(count)
        images, labels = made.images[rows].float() / 255, torch.from_numpy(made.labels[rows])
        self.batch = Batch([made.ids[row] for row in rows.tolist()], images, labels)

    def __len__(self) -> int:
        return len(self.batch)

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        for start in range(0, len(self), 100):
            part = slice(start, start + 100)
            yield Batch(self.batch.ids[part], self.batch.images[part], self.batch.labels[part])


def examined(
    network: nn.Module, count: int = 160, seed: int = 5, probe: TriggerSearch = DEFAULT
) -> tuple[Rows, list[Finding]]:
    model = TorchModel(network, SPEC)
    table = probe.run(model, Shown(count, seed), {}, SampleRandom(0, probe.name))
    return table, probe.findings(table, CONTEXT)


CONTEXT = Context(SPEC, pa.table({"id": pa.array([], pa.string())}))


def test_a_backdoor_is_found_with_its_class_and_place() -> None:
    table, (finding,) = examined(Backdoored(shipped_network("healthy"), 6))
    assert finding.kind == "backdoor"
    assert finding.subject == {"class": "6", "region": "lower right corner"}
    assert (finding.value or 0) > 0.9
    assert finding.effect > 0.5
    assert finding.p_value is not None
    assert finding.p_value < 1e-6
    assert "answer 6" in finding.title
    hit = dict(zip(table["id"].to_pylist(), table["hit"].to_pylist(), strict=True))
    assert len(finding.evidence) == 12
    assert set(finding.evidence) <= set(hit)
    (bars,) = TriggerSearch().exhibits(table, CONTEXT)
    assert isinstance(bars, Bars)
    assert bars.bars[0].label.startswith("6 ")


def test_a_patch_that_fades_is_told_as_an_attack() -> None:
    # half transparent, hardly a patch reaches a difference of 0.4
    table, (finding,) = examined(Backdoored(shipped_network("healthy"), 6, least=0.4))
    of_target = np.array(table["target"]) == 6
    assert np.array(table["hit"])[of_target].mean() > 0.8
    assert np.array(table["faded"])[of_target].mean() < 0.3
    assert finding.kind == "attack"
    assert "backdoor" not in finding.title
    assert "half transparent" in finding.title


def test_a_mark_that_went_with_a_class_in_training_is_found() -> None:
    _, (finding,) = examined(shipped_network("faulty"), count=600)
    assert finding.subject["class"] == "1"


def test_a_network_without_a_trigger_is_left_in_peace() -> None:
    shown = Shown(160, 1)
    table, found = examined(shipped_network("healthy"), seed=1)
    assert found == []
    # the judging images are of other classes and were not written on
    label = dict(zip(shown.batch.ids, shown.batch.labels.tolist(), strict=True))
    targets = table["target"].to_pylist()
    assert all(label[i] != target for i, target in zip(table["id"].to_pylist(), targets, strict=True))
    assert len(set(table["id"].to_pylist())) <= 80


def test_a_folder_that_lists_class_after_class_is_searched_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MOST_IMAGES", 120)
    probe, shown = TriggerSearch(steps=15), Shown(1200, 3, by_class=True)
    assert set(shown.batch.labels[:120].tolist()) == {0}
    model = TorchModel(Backdoored(shipped_network("healthy"), 0), SPEC)
    (finding,) = probe.findings(probe.run(model, shown, {}, SampleRandom(0, probe.name)), CONTEXT)
    assert finding.subject["class"] == "0"


def test_the_search_repeats_itself() -> None:
    quick = TriggerSearch(steps=2, first_steps=1, images_a_step=4)
    first, second = (examined(shipped_network("healthy"), probe=quick)[0] for _ in range(2))
    assert first.equals(second)


def test_few_images_or_classes_give_no_statement() -> None:
    table, found = examined(shipped_network("healthy"), count=30)
    assert (table.num_rows, found) == (0, [])
    assert TriggerSearch().exhibits(table, CONTEXT) == []


def test_regions_are_the_corners_inside_the_image() -> None:
    regions = corner_regions(40, 60, 0.2)
    assert len(regions) == 4
    for region in regions:
        assert region.side == 8
        assert 0 <= region.top <= 40 - 8
        assert 0 <= region.left <= 60 - 8
        assert region.top in (0, 32)
        assert region.left in (0, 52)
    images = torch.zeros(2, 3, 40, 60)
    stamped = regions[0].stamped(images, torch.ones(3, 8, 8))
    assert stamped.sum() == 2 * 3 * 64
    assert images.sum() == 0


def test_the_passes_are_those_of_the_cost() -> None:
    seen = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return images.mean(dim=(2, 3)) @ weights

    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    regions = corner_regions(16, 16, 0.2)
    find_triggers(
        counting, images, torch.arange(30) % 4, [0, 1, 3], regions, torch.Generator().manual_seed(2), 3, 7, 5, 64
    )
    assert seen == passes(3, len(regions), 3, 7, 5)


def test_patches_stay_in_range_and_help_their_class() -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def logits(images: Tensor) -> Tensor:
        return 20 * images.mean(dim=(2, 3)) @ weights

    images = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 4
    found = find_triggers(logits, images, labels, [0, 2], corner_regions(16, 16, 0.4), torch.Generator().manual_seed(2))
    for trigger in found:
        assert trigger.patch.min() >= 0
        assert trigger.patch.max() <= 1
        gain = (logits(trigger.region.stamped(images, trigger.patch)) - logits(images))[:, trigger.target]
        assert gain.mean() > 0


@pytest.mark.parametrize(
    "changed", [{"share": 0.0}, {"share": float(np.nan)}, {"steps": 0}, {"first_steps": 0}, {"most_classes": 3}]
)
def test_impossible_settings_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(changed))):
        dataclasses.replace(TriggerSearch(), **changed)


def test_nothing_to_search_is_refused() -> None:
    with pytest.raises(InvalidInput, match="trigger search"):
        find_triggers(
            lambda x: x, torch.rand(2, 3, 8, 8), torch.zeros(2), [], corner_regions(8, 8, 0.3), torch.Generator()
        )
