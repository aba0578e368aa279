from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, recall_score
from torch import Tensor, nn
from torchmetrics.functional import jaccard_index

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.randomness import SampleRandom
from snellen.shift._multimodal import CLEAN, Condition, failure_subsets, failure_weights, shapley_weights
from snellen.shift.sensor_failure import FailureTable, SensorFailure, evaluate, random_missing, salt_and_pepper

SENSORS = ("rgb", "depth", "event", "lidar")
CHANNELS = {"rgb": 3, "depth": 1, "event": 1, "lidar": 1}
K = 4
Data = list[tuple[dict[str, Tensor], Tensor]]


class Fused(nn.Module):
    """Early concatenation; ignores the event camera."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, K, 1))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.layers(torch.cat([inputs[name] for name in ("rgb", "depth", "lidar")], dim=1))
        return scores


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Fused().eval()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> Data:
    """Two batches of 15 images; labels are the clean answers with noise, and a few ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        inputs = {name: torch.randn(15, c, 12, 10, generator=generator) for name, c in CHANNELS.items()}
        with torch.no_grad():
            labels = model(inputs).argmax(1)
        drawn = torch.rand(labels.shape, generator=generator)
        labels[drawn < 0.2] = torch.randint(0, K, labels.shape, generator=generator)[drawn < 0.2]
        labels[drawn > 0.95] = 255
        batches.append((inputs, labels))
    return batches


@pytest.fixture(scope="module")
def table(model: nn.Module, data: Data) -> FailureTable:
    return evaluate(model, data, SensorFailure(classes=K, rates=(0.0, 0.5, 1.0)))


def test_it_is_known_as_a_function_method() -> None:
    assert function_methods()["shift/sensor-failure"].module == "snellen.shift.sensor_failure"


def test_every_condition_of_the_protocol_is_measured(table: FailureTable) -> None:
    scenarios = [condition.scenario for condition in table.conditions]
    assert {name: scenarios.count(name) for name in dict.fromkeys(scenarios)} == {
        "clean": 1, "missing": 15, "random 0": 14, "random 0.5": 14, "random 1": 14,
        "noise low": 1, "noise mid": 1, "noise high": 1,
    }  # fmt: skip


@given(p=st.lists(st.floats(0, 0.99), min_size=4, max_size=4))
def test_the_weights_are_the_chance_that_not_all_fail(p: list[float]) -> None:
    weights = failure_weights(SENSORS, dict(zip(SENSORS, p, strict=True)))
    assert len(weights) == 15
    assert sum(weights.values()) == pytest.approx(1 - math.prod(p), abs=1e-12)


def test_expectation_at_p_zero_is_clean_and_at_one_half_the_average(table: FailureTable) -> None:
    assert table.expected(0.0) == table.score(CLEAN)
    assert table.expected(0.5).value == pytest.approx(table.average().value, abs=1e-12)


def test_a_rate_for_each_sensor_singles_out_its_conditions(table: FailureTable) -> None:
    only = table.expected({"rgb": 0.3, "depth": 0.0, "event": 0.0, "lidar": 0.0})
    mixed = 0.7 * table.score(CLEAN).value + 0.3 * table.score(Condition("missing", ("rgb",))).value
    assert only.value == pytest.approx(mixed)


@pytest.mark.parametrize("metric", ["miou", "mf1", "macc", "accuracy"])
def test_losing_every_element_is_missing_and_losing_none_is_clean(table: FailureTable, metric: str) -> None:
    for failed in failure_subsets(SENSORS)[1:-1]:
        gone, kept = Condition("random 1", failed), Condition("random 0", failed)
        assert table.score(gone, metric) == table.score(Condition("missing", failed), metric)
        assert table.score(kept, metric) == table.score(CLEAN, metric)


@pytest.mark.parametrize("scenario", ["missing", "random 0.5"])
def test_averages_lie_between_the_worst_and_the_best_condition(table: FailureTable, scenario: str) -> None:
    conditions = [CLEAN, *(Condition(scenario, failed) for failed in failure_subsets(SENSORS)[1:-1])]
    values = [table.score(condition).value for condition in conditions]
    for score in (table.average(scenario), *(table.expected(p, scenario) for p in (0.05, 0.1, 0.2, 0.9))):
        assert min(values) <= score.value <= max(values)
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high


def test_shapley_values_sum_to_full_minus_none(table: FailureTable) -> None:
    total = sum(score.value for score in table.shapley().values())
    none = table.score(Condition("missing", SENSORS)).value
    assert total == pytest.approx(table.score(CLEAN).value - none, abs=1e-12)


def test_shapley_weights_give_back_an_additive_game() -> None:
    worth = {"rgb": 3.0, "depth": -1.0, "event": 0.5, "lidar": 2.0}
    for name in SENSORS:
        weights = shapley_weights(SENSORS, name)
        value = sum(w * sum(worth[m] for m in SENSORS if m not in failed) for failed, w in weights.items())
        assert value == pytest.approx(worth[name])


def test_a_sensor_that_is_not_read_changes_nothing(table: FailureTable) -> None:
    for failed in failure_subsets(("rgb", "depth", "lidar"))[1:]:
        without = tuple(name for name in SENSORS if name in (*failed, "event"))
        for scenario in ("missing", "random 0.5")[: 2 if len(without) < 4 else 1]:
            assert table.score(Condition(scenario, failed)) == table.score(Condition(scenario, without))
    assert table.shapley()["event"].value == pytest.approx(0, abs=1e-12)
    assert table.drop(Condition("missing", ("event",)))[:3] == (0, 0, 0)


def test_metrics_equal_those_of_scikit_learn_and_torchmetrics(
    model: nn.Module, data: Data, table: FailureTable
) -> None:
    with torch.no_grad():
        predicted = torch.cat([model({**x, "rgb": torch.zeros_like(x["rgb"])}).argmax(1) for x, _ in data])
    labels = torch.cat([y for _, y in data])
    counted = labels != 255
    y, z = labels[counted].numpy(), predicted[counted].numpy()
    condition = Condition("missing", ("rgb",))

    theirs = jaccard_index(predicted, labels, "multiclass", num_classes=K, ignore_index=255, average="macro")
    assert table.score(condition).value == pytest.approx(float(theirs), abs=1e-6)
    assert table.score(condition).value == pytest.approx(jaccard_score(y, z, average="macro"), abs=1e-12)
    assert table.class_iou(condition) == pytest.approx(jaccard_score(y, z, average=None), abs=1e-12)
    assert table.score(condition, "mf1").value == pytest.approx(f1_score(y, z, average="macro"))
    assert table.score(condition, "macc").value == pytest.approx(recall_score(y, z, average="macro"))
    assert table.score(condition, "accuracy").value == pytest.approx(accuracy_score(y, z))
    confusion = table.confusion[table.conditions.index(condition)]
    assert confusion.sum() == len(y)
    assert confusion[2, 1] == ((y == 2) & (z == 1)).sum()


def test_a_class_that_is_only_predicted_does_not_enter_the_mean() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, 2:] = 1
    data = [({"a": torch.zeros(1, 1, 4, 4), "b": torch.zeros(1, 1, 4, 4)}, labels)]
    answer = labels.clone()
    answer[:, 0] = 2
    table = evaluate(lambda _: answer, data, SensorFailure(classes=3, rates=(), levels=()))
    assert table.score(CLEAN).value == pytest.approx((0.5 + 1) / 2)
    assert np.nanmean(table.class_iou(CLEAN)) == pytest.approx(0.75)


def test_rows_do_not_depend_on_the_batches(model: nn.Module, data: Data) -> None:
    settings = SensorFailure(classes=K, rates=(0.5,), levels=("high",), fill="last")
    whole = evaluate(model, data, settings)
    small = [({n: t[i : i + 4] for n, t in x.items()}, y[i : i + 4]) for x, y in data for i in range(0, 15, 4)]
    assert np.array_equal(evaluate(model, small, settings).tallies, whole.tallies)
    other = evaluate(model, data, SensorFailure(classes=K, rates=(0.5,), levels=("high",), fill="last", seed=1))
    assert not np.array_equal(other.tallies, whole.tallies)


def test_the_callers_tensors_stay_as_they_are_even_with_a_model_that_works_in_place(data: Data) -> None:
    inputs = {name: tensor.clone() for name, tensor in data[0][0].items()}

    def spoils(given: dict[str, Tensor]) -> Tensor:
        for tensor in given.values():
            tensor.fill_(7)
        return torch.zeros(15, 12, 10, dtype=torch.int64)

    evaluate(spoils, [(inputs, data[0][1])], SensorFailure(classes=K))
    assert all(torch.equal(tensor, data[0][0][name]) for name, tensor in inputs.items())


def test_a_failed_sensor_delivers_what_was_chosen() -> None:
    frames = {"a": torch.arange(1.0, 4)[:, None, None, None].expand(3, 1, 2, 2), "b": torch.ones(3, 2, 2, 2)}
    data = [({n: t[:2] for n, t in frames.items()}, torch.zeros(2, 2, 2, dtype=torch.int64)),
            ({n: t[2:] for n, t in frames.items()}, torch.zeros(1, 2, 2, dtype=torch.int64))]  # fmt: skip

    def delivered(settings: SensorFailure) -> list[list[float]]:
        seen: list[dict[str, Tensor]] = []

        def spy(inputs: dict[str, Tensor]) -> Tensor:
            seen.append(inputs)
            return torch.zeros(len(inputs["a"]), 2, 2, dtype=torch.int64)

        evaluate(spy, data, settings)
        # per batch: clean, a missing, b missing, both missing
        return [
            [*seen[1]["a"][:, 0, 0, 0].tolist(), *seen[5]["a"][:, 0, 0, 0].tolist()],
            seen[2]["b"][0, :, 0, 0].tolist(),
        ]

    def settings(**given: object) -> SensorFailure:
        return SensorFailure(classes=2, rates=(), levels=(), **given)

    assert delivered(settings()) == [[0, 0, 0], [0, 0]]
    assert delivered(settings(fill="last")) == [[0, 1, 2], [0, 0]]
    assert delivered(settings(fill="mean", means={"a": [2], "b": [5, 6]})) == [[2, 2, 2], [5, 6]]


def test_lost_elements_are_independent_in_pixels_and_channels_and_grow_with_the_rate() -> None:
    frames, fill = torch.ones(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)

    def lost(rate: float) -> Tensor:
        generators = SampleRandom(0, "test").generators("abcd")
        return random_missing(frames, fill, rate, generators) == 0

    assert float(lost(0.25).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert bool((lost(0.25) <= lost(0.5)).all())
    both = lost(0.5)[:, 0] & lost(0.5)[:, 1]
    assert float(both.float().mean()) == pytest.approx(0.25, abs=0.02)
    with pytest.raises(InvalidInput, match="one a sample"):
        random_missing(frames, fill, 0.5, SampleRandom(0, "test").generators("a"))


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_salt_and_pepper_are_the_extremes_of_the_sample_at_a_slightly_lower_density(density: float) -> None:
    frames = torch.randn(3, 2, 50, 50, generator=torch.Generator().manual_seed(1))
    noisy = salt_and_pepper(frames, density, SampleRandom(0, "test").generators("abc"))
    for before, after in zip(frames, noisy, strict=True):
        changed = before != after
        assert set(after[changed].tolist()) == {float(before.min()), float(before.max())}
        half = math.ceil(density * before.numel() / 2)
        distinct = 1 - (1 - 1 / before.numel()) ** (2 * half)  # drawn with replacement
        assert int(changed.sum()) <= 2 * half
        assert float(changed.float().mean()) == pytest.approx(distinct, abs=0.01)


def test_gaussian_noise_spares_the_event_camera(data: Data) -> None:
    seen: list[dict[str, Tensor]] = []

    def spy(inputs: dict[str, Tensor]) -> Tensor:
        seen.append(inputs)
        return torch.zeros(15, 12, 10, dtype=torch.int64)

    evaluate(spy, data[:1], SensorFailure(classes=K, rates=(), levels=("low",)))
    changed = {name: float((seen[-1][name] != frames).float().mean()) for name, frames in data[0][0].items()}
    assert changed["event"] < 0.06
    assert min(changed[name] for name in SENSORS if name != "event") == 1


def test_the_interval_covers_the_population_in_most_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(60):
        labels = torch.arange(2).view(1, 1, 2).expand(40, 1, 2).clone()
        wrong = torch.rand(40, generator=generator) < 0.3  # both pixels of an image: IoU of either class is .7 / 1.3
        answer = torch.where(wrong[:, None, None], 1 - labels, labels)
        inputs = {"a": torch.zeros(40, 1, 1, 2), "b": torch.zeros(40, 1, 1, 2)}
        settings = SensorFailure(classes=2, rates=(), levels=())
        score = evaluate(lambda _, answer=answer: answer, [(inputs, labels)], settings).score(CLEAN)
        assert score.low is not None
        assert score.high is not None
        covered += score.low <= 0.7 / 1.3 <= score.high
    assert covered >= 52


def test_few_images_get_no_interval(model: nn.Module, data: Data) -> None:
    score = evaluate(model, data[:1], SensorFailure(classes=K, rates=(), levels=())).score(CLEAN)
    assert score[1:] == (None, None, 15)


@pytest.mark.parametrize(
    "settings",
    [{"classes": 1}, {"rates": (1.2,)}, {"rates": (-0.1,)}, {"levels": ("extreme",)}, {"fill": "noise"}],
)
def test_unusable_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        SensorFailure(**{"classes": 3, **settings})


def _broken() -> Iterator[tuple[str, dict[str, Tensor], Tensor]]:
    a, labels = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    yield "two modalities", {"a": a}, labels
    yield "one height and width", {"a": a, "b": torch.zeros(2, 1, 4, 5)}, labels
    yield "one batch size", {"a": a, "b": torch.zeros(3, 1, 4, 4)}, labels
    yield "float tensors", {"a": a, "b": a.long()}, labels
    yield "must be in 0..2", {"a": a, "b": a}, labels + 3
    yield "must be in 0..2", {"a": a, "b": a}, labels - 1
    yield "integers", {"a": a, "b": a}, labels.float()
    yield "that fit", {"a": a, "b": a}, labels[:1]
    yield "labelled pixel", {"a": a, "b": a}, labels + 255


@pytest.mark.parametrize(("message", "inputs", "labels"), list(_broken()))
def test_unusable_data_are_refused(message: str, inputs: dict[str, Tensor], labels: Tensor) -> None:
    with pytest.raises(InvalidInput, match=message):
        evaluate(lambda given: torch.zeros(2, 3, 4, 4), [(inputs, labels)], SensorFailure(classes=3))


def test_no_data_other_sensors_and_odd_answers_are_refused(data: Data) -> None:
    settings = SensorFailure(classes=K, rates=(), levels=())
    with pytest.raises(InvalidInput, match="labelled pixel"):
        evaluate(lambda given: given["rgb"], [], settings)
    with pytest.raises(InvalidInput, match="scores or class maps"):
        evaluate(lambda given: given["rgb"], data, settings)
    with pytest.raises(InvalidInput, match=r"classes in 0\.\.3"):
        evaluate(lambda given: torch.full((15, 12, 10), 9), data, settings)
    renamed = [data[0], ({"x": data[1][0]["rgb"], **data[1][0]}, data[1][1])]
    with pytest.raises(InvalidInput, match="same modalities"):
        evaluate(lambda given: torch.zeros(15, 12, 10, dtype=torch.int64), renamed, settings)
    with pytest.raises(InvalidInput, match="means"):
        evaluate(lambda given: given["rgb"], data, SensorFailure(classes=K, fill="mean", means={"rgb": [0.1]}))


def test_figures_that_were_not_measured_are_refused(table: FailureTable) -> None:
    with pytest.raises(InvalidInput, match=r"random 0\.5"):
        table.average("random 0.3")
    with pytest.raises(InvalidInput, match="metric"):
        table.average(metric="dice")
    for p in (1.0, -0.1, {"rgb": 0.1}):
        with pytest.raises(InvalidInput, match=r"\[0, 1\)"):
            table.expected(p)
