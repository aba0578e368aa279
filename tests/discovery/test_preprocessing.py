"""A wrong scale, channel order or orientation is named; a model that sees what it was trained on is left in peace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snellen.demo.digits import demo_images
from snellen.demo.network import shipped_network
from snellen.discovery.preprocessing import PreprocessingCheck, ways
from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context, Finding
from snellen.randomness import SampleRandom

Change = Callable[[Tensor], Tensor]
SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32))


class Seen(nn.Module):
    """A network whose input is changed before it sees it."""

    def __init__(self, inner: nn.Module, change: Change) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.change(images))


def examined(change: Change, count: int = 150, seed: int = 31) -> list[Finding]:
    made = demo_images("test", count, seed)
    model = TorchModel(Seen(shipped_network("healthy"), change), SPEC)
    probe = PreprocessingCheck()
    batch = Batch(made.ids, made.images.float() / 255, torch.from_numpy(made.labels))
    table = probe.run(model, batch, SampleRandom(0, probe.name))
    return probe.findings(table, Context(model.spec, table.slice(0, 0)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x: x.flip(1), "BGR"),
        (lambda x: x * 0.45, "brighter"),
        (lambda x: x / 255, "0 to 255"),
        (lambda x: (x + 1) / 2, "-1 to 1"),
        (lambda x: 1 - x, "inverted"),
        (lambda x: x.rot90(1, (2, 3)), "90 degrees to the right"),
    ],
)
def test_a_wrong_input_is_named_with_the_cure(change: Change, named: str) -> None:
    (finding,) = examined(change)
    assert named in finding.title
    assert finding.effect > 0.05
    assert finding.p_value is not None
    assert finding.p_value < 0.05
    assert finding.ci is not None
    assert finding.ci[0] <= (finding.value or 0) <= finding.ci[1]
    assert finding.evidence


@pytest.mark.parametrize("seed", range(2))
def test_a_model_that_sees_what_it_was_trained_on_is_left_in_peace(seed: int) -> None:
    assert [f.title for f in examined(lambda x: x, seed=seed) if f.enough_data and f.effect >= 0.02] == []


def test_too_few_images_say_how_many_are_needed() -> None:
    (finding,) = examined(lambda x: x * 0.6, count=20)
    assert not finding.enough_data
    assert "not enough data: n = 20, needs about" in finding.title


def test_every_way_keeps_the_shape_and_changes_the_image() -> None:
    images = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    names = []
    for name, changed in ways(images):
        names.append(name)
        assert changed.shape == images.shape
        assert torch.isfinite(changed).all()
        assert not torch.equal(changed, images)
    assert torch.equal(images, before)
    assert len(set(names)) == len(names)
    assert not any("90 degrees" in name for name in names)


def test_one_channel_has_no_colours_to_exchange() -> None:
    assert not any("BGR" in name or "grey" in name for name, _ in ways(torch.rand(1, 1, 8, 8)))


def test_rows_do_not_depend_on_the_batches() -> None:
    made = demo_images("test", 40, 3)
    model = TorchModel(shipped_network("healthy"), SPEC)
    probe, images, labels = PreprocessingCheck(), made.images.float() / 255, torch.from_numpy(made.labels)

    def told(*parts: slice) -> dict[tuple[str, str], bool]:
        found = {}
        for part in parts:
            table = probe.run(model, Batch(made.ids[part], images[part], labels[part]), SampleRandom(0, probe.name))
            keys = zip(table["id"].to_pylist(), table["way"].to_pylist(), strict=True)
            found |= dict(zip(keys, table["correct"].to_pylist(), strict=True))
        return found

    assert told(slice(0, 40)) == told(slice(0, 13), slice(13, 40))


def test_no_rows_give_no_statement() -> None:
    made = demo_images("test", 2, 3)
    model = TorchModel(shipped_network("healthy"), SPEC)
    probe = PreprocessingCheck()
    table = probe.run(model, Batch(made.ids, made.images / 255, torch.from_numpy(made.labels)), SampleRandom(0, "x"))
    context = Context(model.spec, table.slice(0, 0))
    assert probe.findings(table.slice(0, 0), context) == []
    assert probe.exhibits(table.slice(0, 0), context) == []
    (bars,) = probe.exhibits(table, context)
    assert len(bars.bars) <= 12


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidInput, match="min_effect"):
        dataclasses.replace(PreprocessingCheck(), min_effect=float(np.nan))
