"""A planted mark is named by the mistakes it causes; mistakes without a common cause are not blamed on a part."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from snellen.audit.engine import loader_for
from snellen.audit.executor import BatchSize, SampleView
from snellen.audit.findings import Statement, statements
from snellen.data import Dataset
from snellen.demo.digits import demo_images
from snellen.demo.network import shipped_network
from snellen.discovery.shortcuts import Shortcuts
from snellen.errors import InvalidInput
from snellen.exhibits import Bars
from snellen.models import ModelSpec, TorchModel
from snellen.performance.predictions import Predictions
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom

SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32))
DEFAULT = Shortcuts()


class Marked(nn.Module):
    """Answers 5 where the 8 x 8 px in the upper right are bright red."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, :8, 24:].mean(dim=(2, 3))
        pull = torch.zeros(len(images), 10)
        pull[:, 5] = 200 * (corner[:, 0] - corner[:, 2] - 0.4).relu()
        return self.inner(images) + pull


class Careless(nn.Module):
    """Every eighth image or so, by its pixels' sum, is answered 3 whatever it shows."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = shipped_network("healthy")(images)
        struck = (images.sum(dim=(1, 2, 3)) * 997).long() % 8 == 0
        logits[struck, 3] += 100
        return logits


def marked_digits(count: int = 300, seed: int = 8, every: int = 6) -> Dataset:
    made = demo_images("test", count, seed)
    images = made.images.numpy().copy()
    images[::every, :, :8, 24:] = np.array([230, 20, 20], dtype=np.uint8)[:, None, None]
    return Dataset.from_arrays(images, made.labels, made.class_names)


def examined(
    network: nn.Module, data: Dataset, probe: Shortcuts = DEFAULT, batch_size: int = 64
) -> tuple[Rows, list[Statement], Context]:
    model = TorchModel(network, SPEC)
    loader = loader_for(model, data)
    parts = [
        Predictions().run(model, Batch(b.ids, b.images, b.labels), SampleRandom(0, "predictions"))
        for b in loader.batches(np.arange(len(data)), 256)
    ]
    view = SampleView(loader, np.arange(len(data)), BatchSize(3, 32, 32, batch_size))
    table = probe.run(model, view, {"predictions": pa.concat_tables(parts)}, SampleRandom(0, probe.name))
    context = Context(model.spec, data.table)
    return table, statements([(probe.name, "", finding) for finding in probe.findings(table, context)]), context


def test_a_mark_is_named_with_its_place_its_answer_and_its_harm() -> None:
    table, (told,), context = examined(Marked(shipped_network("healthy")), marked_digits())
    assert told.finding.subject == {"part": "upper right corner", "answer": "5"}
    assert told.severity == "critical"
    assert (told.finding.value or 0) > 0.8
    assert (told.finding.baseline or 0) < 0.2
    assert told.finding.kind == "shortcut"
    assert set(told.finding.evidence) <= set(table["id"].to_pylist())
    (bars,) = DEFAULT.exhibits(table, context)
    assert isinstance(bars, Bars)
    assert bars.bars[0].label.startswith("upper right corner")


def test_a_mark_on_few_images_is_confirmed_by_both_halves() -> None:
    """One half alone, with five or six wrong answers, could not reach the level."""
    _, told, _ = examined(Marked(shipped_network("healthy")), marked_digits(every=20))
    (found,) = [statement for statement in told if statement.severity != "info"]
    assert found.finding.subject == {"part": "upper right corner", "answer": "5"}
    assert found.finding.n < 18


def test_mistakes_without_a_common_part_are_blamed_on_none() -> None:
    table, told, _ = examined(Careless(), marked_digits(every=10**6))
    assert table.num_rows > 0
    assert [statement.title for statement in told if statement.severity != "info"] == []


def test_a_healthy_model_is_not_blamed() -> None:
    _, told, _ = examined(shipped_network("healthy"), marked_digits(every=10**6))
    assert told == []


def test_two_classes_have_no_third_and_are_examined_all_the_same() -> None:
    made = demo_images("test", 900, 8)
    kept = np.flatnonzero(np.isin(made.labels, [0, 1]))
    images = made.images.numpy()[kept].copy()
    images[::4, :, :8, 24:] = np.array([230, 20, 20], dtype=np.uint8)[:, None, None]

    class OneOfTwo(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            corner = pixels[:, :, :8, 24:].mean(dim=(2, 3))
            logits: Tensor = shipped_network("healthy")(pixels)[:, :2]
            return logits + torch.stack([0 * corner[:, 0], 200 * (corner[:, 0] - corner[:, 2] - 0.4).relu()], dim=1)

    data = Dataset.from_arrays(images, made.labels[kept], ("zero", "one"))
    model = TorchModel(OneOfTwo(), ModelSpec("two", ("zero", "one"), (32, 32)))
    loader = loader_for(model, data)
    (batch,) = loader.batches(np.arange(len(data)), 1000)
    predictions = Predictions().run(model, batch, SampleRandom(0, "predictions"))
    view = SampleView(loader, np.arange(len(data)), BatchSize(3, 32, 32, 64))
    table = DEFAULT.run(model, view, {"predictions": predictions}, SampleRandom(0, DEFAULT.name))
    (found,) = DEFAULT.findings(table, Context(model.spec, data.table))
    assert found.subject == {"part": "upper right corner", "answer": "one"}


def test_rows_do_not_depend_on_the_batches() -> None:
    network, data = Marked(shipped_network("healthy")), marked_digits(120)
    assert examined(network, data, batch_size=64)[0].equals(examined(network, data, batch_size=17)[0])


def test_no_mistakes_give_no_rows_and_no_statement() -> None:
    class Right(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot((images[:, 0, 0, 0] * 255 / 25).round().long(), 10).float()

    images = np.zeros((40, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(40) % 10
    images[:, 0, 0, 0] = labels * 25
    table, told, context = examined(Right(), Dataset.from_arrays(images, labels, tuple("0123456789")))
    assert (table.num_rows, told, DEFAULT.exhibits(table, context)) == (0, [], [])


@pytest.mark.parametrize("changed", [{"grid": 1}, {"most": 5}, {"fewest": 1}, {"min_effect": 1.0}])
def test_impossible_settings_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(changed))):
        dataclasses.replace(DEFAULT, **changed)
