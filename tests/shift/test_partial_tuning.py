"""The protocol that compares tuned models: counts, probes, and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.shift.partial_tuning import (
    Labelled,
    TransferTask,
    TunedModel,
    TuningProtocol,
    corruption_overlap,
    count_parameters,
    frozen_fingerprint,
    linear_probe,
    tuning_report,
)

LABELS = torch.arange(120) % 3


def brightness_task() -> Labelled:
    """Three brightnesses under noise: a task whose errors contrast and noise can cause."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(120, 3, 32, 32, generator=generator) * 0.2
    return Labelled(0.2 + 0.25 * LABELS.view(-1, 1, 1, 1) + noise, LABELS)


def features(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3))


def sharp(images: Tensor) -> Tensor:
    centres = torch.tensor([0.3, 0.55, 0.8])
    return -(images.mean(dim=(1, 2, 3))[:, None] - centres).abs()


def blunt(images: Tensor) -> Tensor:
    return sharp(images * 0.7)


def protocol() -> TuningProtocol:
    task = brightness_task()
    dark = Labelled(task.images * 0.8, LABELS)
    parity = Labelled(task.images, (LABELS > 0).long())
    return TuningProtocol(
        task, {"dark": dark}, TransferTask(parity, parity), ("contrast", "brightness", "gaussian_noise"), (1.0, 5.0)
    )


def test_the_report_says_which_model_is_better_and_by_how_much() -> None:
    models = {"sharp": TunedModel(sharp, features), "blunt": TunedModel(blunt, features, seconds=2.0)}
    report = tuning_report(models, ["blunt"], protocol())
    accuracy = {(row["model"], row["measure"]): row for row in report.accuracies.to_pylist()}
    assert accuracy["sharp", "clean"]["accuracy"] == 1
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in accuracy.values())
    rows = report.comparisons.to_pylist()
    assert [row["measure"] for row in rows] == ["clean", "corrupted", "shift: dark", "transfer"]
    clean = rows[0]
    assert clean["difference"] == pytest.approx(1 - accuracy["blunt", "clean"]["accuracy"])
    assert clean["low"] < clean["difference"] < clean["high"]
    assert clean["p_value"] < 1e-6
    assert rows[3]["difference"] == 0  # the same features
    assert math.isnan(rows[1]["p_value"])
    assert report.costs.to_pylist()[1]["seconds"] == 2


def test_a_model_does_not_differ_from_its_copy() -> None:
    models = {"one": TunedModel(sharp, features), "two": TunedModel(sharp, features)}
    report = tuning_report(models, ["two"], protocol())
    assert all(row["difference"] == 0 for row in report.comparisons.to_pylist())


def test_the_report_does_not_depend_on_the_batch_size() -> None:
    task = brightness_task()
    models = {"sharp": TunedModel(sharp), "blunt": TunedModel(blunt)}
    reports = [
        tuning_report(models, ["blunt"], TuningProtocol(task, {}, None, ("snow", "fog"), (3.0,), batch_size=size))
        for size in (7, 120)
    ]
    assert str(reports[0].comparisons.to_pylist()) == str(reports[1].comparisons.to_pylist())


def test_trained_parameters_are_those_that_require_gradients() -> None:
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    network[0].requires_grad_(False)
    count = count_parameters(network)
    assert (count.total, count.trained) == (220 + 40 + 105, 40 + 105)
    models = {"a": TunedModel(sharp, module=network), "b": TunedModel(blunt)}
    plain = TuningProtocol(brightness_task(), {}, None, ("contrast",), (1.0,))
    costs = tuning_report(models, ["b"], plain).costs.to_pylist()
    assert costs[0]["share"] == pytest.approx(145 / 365)
    assert costs[1]["trained"] is None


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(layer, layer)).total == 20


def test_the_fingerprint_sees_a_moved_statistic_and_not_the_tuned_part() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    before = frozen_fingerprint(network, ["2."])
    with torch.no_grad():
        network[2].weight += 1
    assert frozen_fingerprint(network, ["2."]) == before
    network.train()(torch.rand(8, 6, generator=torch.Generator().manual_seed(0)))
    assert frozen_fingerprint(network, ["2."]) != before


def test_a_linear_probe_reads_what_is_linear_in_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]) > 0).long()
    assert linear_probe(x[:300], y[:300], x[300:], y[300:]).mean() > 0.93
    noise = torch.randint(0, 2, (400,), generator=generator)
    assert linear_probe(x[:300], noise[:300], x[300:], noise[300:]).mean() < 0.65


def test_training_corruptions_met_again_are_listed() -> None:
    assert corruption_overlap({"contrast", "fog"}, protocol()) == ("contrast",)


def test_bad_input_is_refused() -> None:
    models = {"sharp": TunedModel(sharp)}
    with pytest.raises(InvalidInput, match="baselines"):
        tuning_report(models, ["other"], protocol())
    with pytest.raises(InvalidInput, match="features"):
        tuning_report(models, ["sharp"], protocol())
    with pytest.raises(InvalidInput, match="N labels"):
        TuningProtocol(Labelled(torch.rand(4, 3, 32, 32), LABELS), {})
    with pytest.raises(InvalidInput, match="name must be one of"):
        TuningProtocol(brightness_task(), {}, None, ("rain",))
    with pytest.raises(InvalidInput, match="two or more classes"):
        linear_probe(torch.rand(4, 2), torch.zeros(4), torch.rand(2, 2), torch.zeros(2))


def test_scores_of_corruptions_average_over_conditions() -> None:
    models = {"sharp": TunedModel(sharp), "blunt": TunedModel(blunt)}
    both, first, second = (
        np.array(
            [
                row["accuracy"]
                for row in tuning_report(
                    models, ["blunt"], TuningProtocol(brightness_task(), {}, None, names, (3.0,))
                ).accuracies.to_pylist()
                if row["measure"] == "corrupted"
            ]
        )
        for names in (("contrast", "brightness"), ("contrast",), ("brightness",))
    )
    assert both == pytest.approx((first + second) / 2)


def test_the_method_is_registered() -> None:
    assert function_methods()["shift/partial-tuning-protocol"].card == "efficiently-robustify"
