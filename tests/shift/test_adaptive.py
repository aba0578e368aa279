"""Adaptive curves: fewer queries than the grid, and intervals that still cover the truth of all images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import corrupt
from snellen.shift.adaptive import AdaptiveCurve, Level, drop_curve
from snellen.subset import random_subset

SPEC = ModelSpec("digits", tuple("0123456789"), (16, 16), mean=(0.0,), std=(1.0,))
NAMES = ("gaussian_noise", "contrast", "brightness")


class Digits:
    """1600 digits, 16 px, in batches of a given size."""

    def __init__(self, size: int = 200) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)[:1600]
        self.images = F.interpolate(images, size=16, mode="bilinear").mul(255).round() / 255
        self.labels = torch.from_numpy(digits.target)[:1600]
        self.size = size

    def __len__(self) -> int:
        return 1600

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        for start in range(0, 1600, self.size):
            part = slice(start, start + self.size)
            yield Batch([f"s{i}" for i in range(1600)[part]], self.images[part], self.labels[part])


@pytest.fixture(scope="module")
def model() -> TorchModel:
    data = Digits()
    fitted = LogisticRegression(max_iter=200).fit(data.images[:300].flatten(1).numpy(), data.labels[:300])
    linear = nn.Linear(256, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.coef_))
        linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    return TorchModel(nn.Sequential(nn.Flatten(), linear), SPEC)


def run(model: TorchModel, probe: AdaptiveCurve, seed: int = 0) -> Rows:
    return probe.run(model, Digits(), {}, SampleRandom(seed, probe.name))


@pytest.fixture(scope="module")
def truth(model: TorchModel) -> dict[tuple[str, float], float]:
    """The drop over all images, every one with its own draw."""
    data, random = Digits(), SampleRandom(99, "truth")
    ids = [f"s{i}" for i in range(1600)]

    def accuracy(images: Tensor) -> float:
        return float((model.labels(images) == data.labels).float().mean())

    clean = accuracy(data.images)
    return {
        (name, s): clean - accuracy(corrupt(data.images, name, s, random.generators(ids, name)))
        for name in NAMES
        for s in (1.0, 2.0, 3.0, 4.0, 5.0)
    }


def test_intervals_cover_the_truth_and_queries_are_saved(
    model: TorchModel, truth: dict[tuple[str, float], float]
) -> None:
    probe = AdaptiveCurve(names=NAMES, precision=0.06)
    covered, asked, widths, spent = [], [], [], []
    for seed in range(30):
        table = run(model, probe, seed)
        spent.append(table.num_rows)
        for finding in probe.findings(table, Context(SPEC, pa.table({"id": []})))[1:]:
            assert finding.ci is not None
            widths.append((finding.ci[1] - finding.ci[0]) / 2)
        for exhibit in probe.exhibits(table, Context(SPEC, pa.table({"id": []}))):
            for point in exhibit.points:
                if point.x == 0:
                    continue
                name = point.series.replace(" ", "_")
                covered.append(point.low - 1e-9 <= truth[name, point.x] <= point.high + 1e-9)
                asked.append(point.x)
    # 450 intervals that share images and a truth; 95 % of them is what they promise.
    assert np.mean(covered) > 0.92
    assert np.mean(widths) < 0.075
    grid = (1 + 5 * len(NAMES)) * 0.25 * (1.96 / 0.06) ** 2
    assert np.mean(spent) < 0.7 * grid


def test_a_flat_curve_costs_little_and_a_steep_one_is_followed() -> None:
    flat = [Level(0.0, 0.0, 0.0, 0.0, 0), Level(5.0, 0.02, -0.02, 0.06, 90)]
    probe = AdaptiveCurve()
    assert probe._next({level.severity: level for level in flat}) is None
    steep = {0.0: flat[0], 5.0: Level(5.0, 0.6, 0.55, 0.65, 300)}
    assert probe._next(steep) == 3.0
    steep[3.0] = Level(3.0, 0.55, 0.5, 0.6, 300)
    assert probe._next(steep) == 2.0  # the fall is before 3, the rest is flat
    assert AdaptiveCurve(monotone=False)._next({0.0: flat[0], 5.0: flat[1]}) is not None


def test_without_monotonicity_every_severity_is_asked(model: TorchModel) -> None:
    table = run(model, AdaptiveCurve(names=("brightness",), precision=0.1, monotone=False))
    assert sorted(set(table["severity"].to_pylist())) == [0, 1, 2, 3, 4, 5]
    finding = AdaptiveCurve(names=("brightness",)).findings(table, Context(SPEC, pa.table({"id": []})))[1]
    answers = {(row["id"], row["shift"], row["severity"]): row["correct"] for row in table.to_pylist()}
    for sample in finding.evidence:
        assert answers[sample, "clean", 0.0]
        assert not answers[sample, "brightness", 5.0]


def test_bounds_between_known_severities_come_from_the_neighbours() -> None:
    known = [Level(2.0, 0.1, 0.06, 0.14, 200), Level(5.0, 0.4, 0.35, 0.45, 200)]
    first, _, third, _, last = drop_curve(known, (1.0, 2.0, 3.0, 4.0, 5.0), monotone=True)
    assert (first.low, first.high, first.n) == (0.0, 0.14, 0)
    assert (third.drop, third.low, third.high) == pytest.approx((0.2, 0.06, 0.45))
    assert last is known[1]
    assert drop_curve(known, (3.0,), monotone=False)[0].high == 1.0


def test_a_subset_does_not_depend_on_batches_and_a_larger_one_starts_with_it() -> None:
    random = SampleRandom(0, "subset")
    small, other, large = (random_subset(Digits(size), n, random) for size, n in ((200, 50), (33, 50), (200, 120)))
    assert list(small.ids) == list(other.ids) == list(large.ids)[:50]
    assert torch.equal(small.images, large.images[:50])
    assert torch.equal(small.labels, other.labels)
    assert len(random_subset(Digits(), 5000, random)) == 1600
    row = int(small.ids[7][1:])
    assert torch.equal(small.batch(range(7, 8), torch.device("cpu")).images[0], Digits().images[row])


def test_labels_access_is_enough_and_no_answer_is_asked_twice(model: TorchModel) -> None:
    blind = model.restrict(Access.LABELS)
    before = blind.ledger.totals
    table = AdaptiveCurve(names=("contrast",), precision=0.1).run(blind, Digits(), {}, SampleRandom(0, "x"))
    assert (blind.ledger.totals - before).forward == table.num_rows
    keys = list(zip(*(table[name].to_pylist() for name in ("id", "shift", "severity")), strict=True))
    assert len(set(keys)) == len(keys)


def test_bad_settings_are_refused() -> None:
    for settings in ({"precision": 0.0}, {"precision": 0.5}, {"pilot": 5}, {"names": ("smog",)}, {"severities": ()}):
        with pytest.raises(InvalidInput):
            AdaptiveCurve(**settings)
    assert AdaptiveCurve().findings(pa.table({}), Context(SPEC, pa.table({"id": []}))) == []
    assert AdaptiveCurve().exhibits(pa.table({}), Context(SPEC, pa.table({"id": []}))) == []
