"""Reduced resolution: the transform, the measures with their discount for chance, the panel, the probe."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context, Rows
from snellen.randomness import SampleRandom, torch_generator
from snellen.shift.low_resolution import (
    LOW_RESOLUTION,
    WEIGHTS,
    LowResolution,
    agreement,
    improved_relative_robustness,
    layer_distances,
    reduce_resolution,
    relative_robustness,
    search_weights,
    simple_aggregate,
    weighted_aggregate,
)

accuracies = st.floats(0, 1)


@pytest.mark.parametrize(("severity", "side"), [(2, 128), (3, 64), (4, 32), (5, 16)])
def test_whole_severities_are_the_papers_sides(images: Tensor, severity: float, side: int) -> None:
    assert torch.equal(LOW_RESOLUTION["low_resolution"](images, severity), reduce_resolution(images, side))


def test_severity_zero_is_its_limit_and_detail_goes_steadily(images: Tensor) -> None:
    shift = LOW_RESOLUTION["low_resolution"]
    assert torch.equal(shift(images, 1e-4), images)
    loss = [float((shift(images, severity) - images).square().mean()) for severity in np.arange(0, 5.1, 0.5)]
    assert all(a < b for a, b in itertools.pairwise(loss))


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (97, 211), (512, 512)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_keeps_shape_and_range(channels: int, size: tuple[int, int]) -> None:
    images = (torch.rand(2, channels, *size, generator=torch_generator(0)) > 0.5).float()  # overshoots most
    for severity in (0.3, 1.0, 3.5, 5.0):
        result = LOW_RESOLUTION["low_resolution"](images, severity)
        assert result.shape == images.shape
        assert 0 <= result.min() <= result.max() <= 1


def test_constant_images_stay_and_the_full_side_changes_nothing(images: Tensor) -> None:
    flat = torch.full((2, 3, 64, 96), 0.37)
    assert (reduce_resolution(flat, 7) - flat).abs().max() < 1e-5
    assert torch.equal(reduce_resolution(images, 224), images)


def test_reduction_is_torchs_bicubic(images: Tensor) -> None:
    small = F.interpolate(images, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(
        reduce_resolution(images, 32), F.interpolate(small, 224, mode="bicubic", antialias=True).clamp(0, 1)
    )


def test_a_row_does_not_depend_on_its_batch(images: Tensor) -> None:
    assert torch.equal(reduce_resolution(images, 20)[2:3], reduce_resolution(images[2:3], 20))


@given(accuracy=accuracies, full=st.floats(0.01, 1), classes=st.integers(2, 1000))
def test_the_discount_never_adds_and_ends_at_chance(accuracy: float, full: float, classes: int) -> None:
    plain = relative_robustness(accuracy, full)
    improved = improved_relative_robustness(accuracy, full, 1 / classes)
    assert 0 <= improved <= plain
    if full <= 1 / classes:
        assert improved == 0


def test_full_resolution_is_fully_robust_and_the_discount_is_the_cards() -> None:
    assert relative_robustness(0.7, 0.7) == 1
    assert improved_relative_robustness(0.2, 0.2, 0.1) == pytest.approx(0.86, abs=0.01)
    assert improved_relative_robustness(0.15, 0.15, 0.1) == pytest.approx(0.39, abs=0.01)


def test_equal_weights_make_the_weighted_mean_the_plain_one() -> None:
    robustness = {name: 0.1 * i for i, name in enumerate("abcd")}
    assert weighted_aggregate(robustness, dict.fromkeys("abcd", 0.3)) == pytest.approx(simple_aggregate(robustness))
    heavy = weighted_aggregate({"EuroSAT": 1.0, "Food101": 0.0})
    assert heavy == pytest.approx(1 / 1.01)
    assert len(WEIGHTS) == 15


def test_agreement_is_scipys_spearman() -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.random(9).round(1).tolist() for name in "abc"}
    weights = {"a": 0.2, "b": 1.0, "c": 0.5}
    mean = np.average(list(scores.values()), axis=0, weights=list(weights.values()))
    expected = [spearmanr(mean, row).statistic for row in scores.values()]
    found = agreement(scores, weights)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.lowest == pytest.approx(min(expected))


def test_the_search_serves_the_data_set_that_the_plain_mean_ignores() -> None:
    rng = np.random.default_rng(1)
    quality = rng.random(12)
    scores = {name: (quality + 0.02 * rng.standard_normal(12)).tolist() for name in "abcde"}
    scores["outlier"] = rng.random(12).tolist()
    weights = search_weights(scores)
    before, after = agreement(scores, dict.fromkeys(scores, 1.0)), agreement(scores, weights)
    assert after.lowest > before.lowest + 0.1
    assert after.mean + after.lowest > before.mean + before.lowest
    assert all(0.01 <= weight <= 1 for weight in weights.values())
    assert weights["outlier"] > np.mean([weights[name] for name in "abcde"])


def test_few_models_keep_equal_weights() -> None:
    assert search_weights({"a": [0.1, 0.2, 0.3], "b": [0.3, 0.2, 0.1]}) == {"a": 1.0, "b": 1.0}


def test_layers_that_see_the_same_are_at_no_distance() -> None:
    features = [torch.rand(4, 9, 16, generator=torch_generator(i)) for i in range(3)]
    assert layer_distances(features, features) == pytest.approx([0] * 3, abs=1e-6)
    assert layer_distances(features[:1], [-features[0]]) == pytest.approx([2.0])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: reduce_resolution(torch.rand(1, 3, 32, 48), 33), "side"),
        (lambda: reduce_resolution(torch.rand(1, 3, 32, 48), 0), "side"),
        (lambda: relative_robustness(0.1, 0.0), "full_accuracy"),
        (lambda: improved_relative_robustness(0.1, 0.5, 1.0), "2 classes"),
        (lambda: weighted_aggregate({"MNIST": 0.5}), "MNIST"),
        (lambda: weighted_aggregate({"EuroSAT": 0.5}, {"EuroSAT": 0.0}), "weights"),
        (lambda: simple_aggregate({}), "none"),
        (lambda: search_weights({"a": [0.1, 0.2]}), "3 models"),
        (lambda: search_weights({"a": [0.1, 0.2, 0.3], "b": [0.1] * 4}), "3 models"),
        (lambda: agreement({"a": [0.1, 0.2, 0.3]}, {"b": 1.0}), "weights"),
        (lambda: layer_distances([torch.rand(1, 2, 3)], []), "same layers"),
        (lambda: LowResolution(sides=()), "sides"),
        (lambda: LowResolution(sides=(32, 16)), "sides"),
        (lambda: LowResolution(sides=(0, 16)), "sides"),
    ],
)
def test_bad_input_is_refused(call: object, named: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidInput, match=named):
        call()


# Probe


SPEC = ModelSpec("digits", tuple("0123456789"), (32, 32), mean=(0.0,), std=(1.0,))
PROBE = LowResolution(sides=(4, 8, 16, 64))
RANDOM = SampleRandom(0, PROBE.name)
CONTEXT = Context(SPEC, pa.table({"id": [], "label": []}))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return F.interpolate(grey, size=(32, 32), mode="bilinear").clamp(0, 1), torch.from_numpy(labels).long()


def network(digits: tuple[Tensor, Tensor], steps: int) -> TorchModel:
    images, labels = (part[:1000] for part in digits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(layers.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(layers(images), labels).backward()
        optimiser.step()
    return TorchModel(layers, SPEC)


def batch_of(digits: tuple[Tensor, Tensor], start: int, stop: int) -> Batch:
    return Batch([f"digit-{i}" for i in range(start, stop)], digits[0][start:stop], digits[1][start:stop])


@pytest.fixture(scope="module")
def table(digits: tuple[Tensor, Tensor]) -> Rows:
    return PROBE.run(network(digits, 60), batch_of(digits, 1000, 1400), RANDOM)


def test_sides_not_below_the_images_are_left_out(table: Rows) -> None:
    assert sorted(set(table["severity"].to_pylist())) == [0, 1, 2, 3]


def test_no_side_below_the_images_is_an_error(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InvalidInput, match="short side of 32 px"):
        LowResolution(sides=(32, 64)).run(network(digits, 0), batch_of(digits, 0, 4), RANDOM)


def test_cost_bounds_what_is_spent_and_labels_are_enough(digits: tuple[Tensor, Tensor]) -> None:
    blind = network(digits, 0).restrict(Access.LABELS)
    LowResolution(sides=(4, 8)).run(blind, batch_of(digits, 0, 10), RANDOM)
    assert blind.ledger.totals.forward == LowResolution(sides=(4, 8)).cost(10).forward == 30


def test_findings_give_the_improved_robustness_of_every_side(table: Rows) -> None:
    findings = {f.subject["pixels"]: f for f in PROBE.findings(table, CONTEXT) if "pixels" in f.subject}
    assert list(findings) == [16, 8, 4]
    correct = {
        severity: np.mean([row["correct"] for row in table.to_pylist() if row["severity"] == severity])
        for severity in (0, 1, 2, 3)
    }
    for side, finding in findings.items():
        expected = improved_relative_robustness(correct[math.log2(32 / float(side))], correct[0], 0.1)
        assert finding.value == pytest.approx(expected)
        assert finding.ci is not None
        assert finding.ci[0] <= expected <= finding.ci[1]
        assert f"At {side} px" in finding.title
        assert finding.effect == 0
    assert findings[4].value < findings[16].value


def test_a_guessing_model_is_not_called_robust(digits: tuple[Tensor, Tensor]) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(torch.arange(10.0))
    table = PROBE.run(TorchModel(constant, SPEC), batch_of(digits, 0, 400), RANDOM)
    finding = PROBE.findings(table, CONTEXT)[-1]
    assert finding.value is not None
    assert finding.value < 0.05
    assert "1.00 of the accuracy" in finding.title


def test_few_samples_are_said_to_be_few_and_none_say_nothing(table: Rows) -> None:
    few = table.filter(pa.array([int(i.split("-")[1]) < 1012 for i in table["id"].to_pylist()]))
    finding = PROBE.findings(few, CONTEXT)[-1]
    assert not finding.enough_data
    assert "not enough data: n = 12, needs about" in finding.title
    assert PROBE.findings(table.slice(0, 0), CONTEXT) == []
    assert PROBE.exhibits(table.slice(0, 0), CONTEXT) == []
