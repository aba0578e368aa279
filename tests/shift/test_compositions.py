"""Combinations of shifts: order, batches, a search that finds the planted worst, and figures from fresh images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift._catalogue import corrupt
from snellen.shift.compositions import WorstCombination, compose

SPEC = ModelSpec("m", ("dark", "bright"), (16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
CONTEXT = Context(SPEC, pa.table({"id": [], "label": []}))


class Fields:
    """400 noisy fields, dark (0) or bright (1)."""

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.labels = torch.arange(400) % 2
        level = 0.42 + 0.16 * self.labels.view(-1, 1, 1, 1)
        self.images = (level + 0.15 * torch.randn(400, 3, 16, 16, generator=drawn)).clamp(0, 1).mul(255).round() / 255

    def __len__(self) -> int:
        return 400

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        for start in range(0, 400, 64):
            part = slice(start, start + 64)
            yield Batch([f"s{i}" for i in range(400)[part]], self.images[part], self.labels[part])


class Brightness(nn.Module):
    """Right on untouched fields; brightness of +0.15 fools it, and what dims afterwards saves it."""

    def forward(self, images: Tensor) -> Tensor:
        value = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-value, value], dim=1) * 50


def generators(names: tuple[str, ...], count: int) -> dict[str, list[torch.Generator]]:
    return {name: [torch_generator(name, i) for i in range(count)] for name in names}


def test_steps_follow_each_other_in_order() -> None:
    images = Fields().images[:4]
    names = ("brightness", "gaussian_noise")
    chained = compose(images, [(names[0], 2.0), (names[1], 3.0)], generators(names, 4))
    by_hand = corrupt(corrupt(images, names[0], 2.0), names[1], 3.0, generators(names, 4)[names[1]])
    assert torch.equal(chained, by_hand)
    swapped = compose(images, [(names[1], 3.0), (names[0], 2.0)], generators(names, 4))
    assert not torch.equal(chained, swapped)
    assert torch.equal(compose(images, [], {}), images)


def test_the_search_finds_the_combination_that_was_planted() -> None:
    model = TorchModel(Brightness(), SPEC)
    # Brightness alone lifts dark fields above 0.5; JPEG and pixelate leave the mean as it is.
    probe = WorstCombination(names=("brightness", "pixelate", "jpeg_compression"), severity=4.0, budget=400, judged=100)
    table = probe.run(model, Fields(), {}, SampleRandom(0, probe.name))
    (found,) = probe.findings(table, CONTEXT)
    assert "brightness" in str(found.subject["corruption"])
    assert found.subject["worst_part"] == "brightness"
    assert found.value == pytest.approx(0.5, abs=0.1)  # all dark fields are lost
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.n == 100
    (exhibit,) = probe.exhibits(table, CONTEXT)
    assert len(exhibit.bars) == 4


def test_own_sequences_are_searched_and_the_budget_is_kept() -> None:
    model = TorchModel(Brightness(), SPEC)
    own = (("brightness", "contrast"), ("pixelate",), ("jpeg_compression", "pixelate", "contrast"))
    probe = WorstCombination(combinations=own, severity=3.0, budget=300, judged=60)
    before = model.ledger.totals
    table = probe.run(model, Fields(), {}, SampleRandom(0, probe.name))
    spent = (model.ledger.totals - before).forward
    searched = int(table["queries"].to_numpy().sum())
    assert searched <= 300
    assert spent == searched + (table["label"].to_numpy() >= 0).sum()
    assert probe.findings(table, CONTEXT)[0].subject["corruption"] in {" > ".join(steps) for steps in own}


def test_the_winner_is_judged_on_images_the_search_did_not_see() -> None:
    """Were it judged on the search's images, the winner of many equal candidates would look bad by chance alone."""

    class Coin(nn.Module):
        """Answers by the pixels' low bits: a new coin for every picture."""

        def forward(self, images: Tensor) -> Tensor:
            coin = ((images * 255).round().sum(dim=(1, 2, 3)) % 2) - 0.5
            return torch.stack([-coin, coin], dim=1)

    names = ("gaussian_noise", "shot_noise", "impulse_noise", "snow", "frost", "fog")
    drops = []
    for seed in range(12):
        probe = WorstCombination(names=names, severity=1.0, budget=1500, judged=150)
        table = probe.run(TorchModel(Coin(), SPEC), Fields(), {}, SampleRandom(seed, probe.name))
        drops.append(probe.findings(table, CONTEXT)[0].value)
    assert abs(np.mean(drops)) < 0.05


def test_bad_settings_and_no_data_are_met() -> None:
    for settings in (
        *({"names": ("fog",)}, {"severity": 0.0}, {"budget": 5}, {"judged": 3}),
        *({"combinations": (("fgo",),)}, {"names": ()}),
    ):
        with pytest.raises(InvalidInput):
            WorstCombination(**settings)
    assert WorstCombination().findings(pa.table({}), CONTEXT) == []
    assert WorstCombination().exhibits(pa.table({}), CONTEXT) == []
