"""The line of plain models, what lies above it, and the checks and mixes of generated data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.shift._baseline import from_axis, to_axis
from snellen.shift.effective_robustness import (
    Axis,
    check_generated,
    fit_baseline,
    improbable,
    mix_plan,
    nearest_test_images,
    predict_sets,
    refuse_leaks,
    restrict_classes,
    robustness_table,
)

CLEAN = [0.6, 0.7, 0.8, 0.85, 0.93]
SHIFTED = [0.3, 0.42, 0.5, 0.58, 0.74]


def answers(accuracy: float, n: int, seed: int) -> NDArray[np.bool_]:
    """The first images are the easy ones, so that models agree as real ones do."""
    noise = np.random.default_rng(seed).normal(0, 0.05, n)
    return np.argsort(np.argsort(np.arange(n) / n + noise)) < round(accuracy * n)


def pool(n: int = 2000) -> dict[str, dict[str, NDArray[np.bool_]]]:
    return {
        f"plain {k}": {"clean": answers(c, n, 2 * k), "sketch": answers(s, n, 2 * k + 1)}
        for k, (c, s) in enumerate(zip(CLEAN, SHIFTED, strict=True))
    }


@pytest.mark.parametrize("axis", ["logit", "probit", "linear"])
def test_the_line_is_that_of_polyfit(axis: Axis) -> None:
    baseline = fit_baseline(CLEAN, SHIFTED, axis, 1000, 1000)
    x, y = (
        {"logit": logit, "probit": ndtri, "linear": np.asarray}[axis](np.array(values)) for values in (CLEAN, SHIFTED)
    )
    slope, intercept = np.polyfit(x, y, 1)
    assert (baseline.slope, baseline.intercept) == pytest.approx((slope, intercept))


def test_residuals_of_the_fitted_models_average_to_zero_on_the_logit_scale() -> None:
    baseline = fit_baseline(CLEAN, SHIFTED, "logit", 1000, 1000)
    assert baseline.residuals(CLEAN, SHIFTED).mean() == pytest.approx(0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 2), st.floats(-2, 1), st.sampled_from(["logit", "probit"]))
def test_points_on_the_line_have_no_effective_robustness(slope: float, intercept: float, axis: Axis) -> None:
    shifted = from_axis(intercept + slope * to_axis(CLEAN, axis, 10**6), axis)
    baseline = fit_baseline(CLEAN, shifted.tolist(), axis, 10**6, 10**6)
    assert baseline.effective_robustness(CLEAN, shifted) == pytest.approx(np.zeros(5), abs=1e-6)
    assert baseline.effective_robustness(CLEAN, shifted * 0.9).max() < 0


def test_a_perfect_model_stays_finite() -> None:
    assert to_axis([0.0, 1.0], "logit", 100) == pytest.approx([logit(0.005), logit(0.995)])
    assert np.isfinite(fit_baseline([0.0, 0.5, 1.0], [0.0, 0.4, 1.0], "probit", 50, 50).slope)


def test_a_line_through_the_origin_has_the_ratio_for_slope() -> None:
    assert fit_baseline([0.2, 0.3, 0.4], [0.09, 0.135, 0.18], "linear", intercept=False).slope == pytest.approx(0.45)


def test_tau_of_the_base_is_zero_and_rho_agrees_with_the_line() -> None:
    models = pool()
    table = robustness_table(models, list(models), "plain 0", np.random.default_rng(0)).to_pylist()
    by_model = {(row["model"], row["set"]): row for row in table}
    assert by_model["plain 0", "sketch"]["tau"] == by_model["plain 0", "mean"]["tau"] == 0
    assert by_model["plain 4", "sketch"]["tau"] == pytest.approx(0.44, abs=1e-9)
    baseline = fit_baseline(CLEAN, SHIFTED, "logit", 2000, 2000)
    expected = baseline.effective_robustness(CLEAN, SHIFTED)
    assert [by_model[f"plain {k}", "sketch"]["rho"] for k in range(5)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_model_above_the_line_is_told_from_the_line() -> None:
    models = pool() | {"robust": {"clean": answers(0.8, 2000, 50), "sketch": answers(0.65, 2000, 51)}}
    table = robustness_table(models, list(pool()), "plain 2", np.random.default_rng(0)).to_pylist()
    row = next(row for row in table if (row["model"], row["set"]) == ("robust", "sketch"))
    assert 0.05 < row["rho_low"] < row["rho"] < row["rho_high"] < 0.25
    assert row["tau"] == pytest.approx(0.15)
    assert row["tau_low"] < row["tau"] < row["tau_high"]
    assert row["enough_data"]


def test_few_images_are_called_too_few() -> None:
    models = pool(40)
    table = robustness_table(models, list(models), "plain 0", np.random.default_rng(0), resamples=200)
    assert not any(table["enough_data"].to_pylist())
    assert min(table["needed"].to_pylist()) > 40


def test_the_interval_of_rho_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        models = {
            f"m{k}": {"clean": rng.random(400) < c, "shift": rng.random(400) < expit(logit(c) - 1)}
            for k, c in enumerate([0.5, 0.6, 0.7, 0.8, 0.9])
        }
        models["robust"] = {"clean": rng.random(400) < 0.7, "shift": rng.random(400) < 0.6}
        row = robustness_table(models, [f"m{k}" for k in range(5)], "m0", rng, resamples=300).to_pylist()[-2]
        covered += row["rho_low"] <= 0.6 - expit(logit(0.7) - 1) <= row["rho_high"]
    assert covered >= 52  # 57 expected; fewer than 52 has a chance of 2 %


def test_masks_restrict_logits_and_labels_alike() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 10
    chosen = [7, 2, 5]
    small = restrict_classes(logits, labels, chosen)
    assert torch.equal(torch.tensor(chosen)[small.labels], labels[small.kept])
    assert torch.equal(small.logits, logits[small.kept][:, chosen])
    assert int(small.kept.sum()) == 15
    whole = predict_sets(lambda x: x, {"all": [(logits, labels)]}, {"all": list(range(10))})["all"]
    assert np.array_equal(whole, (logits.argmax(dim=1) == labels).numpy())


def test_a_set_is_read_batch_by_batch() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 4
    parts = list(zip(logits.split(7), labels.split(7), strict=True))
    found = predict_sets(lambda x: x, {"a": parts, "b": [(logits, labels)]}, {"a": [0, 2], "b": [0, 2]})
    assert np.array_equal(found["a"], found["b"])
    assert len(found["a"]) == 15


def test_share_zero_is_the_real_set_in_order() -> None:
    labels = torch.arange(40) % 4
    plan = mix_plan(labels, labels, generated_share=0, seed=3)
    assert np.array_equal(plan.real, np.arange(40))
    assert len(plan.generated) == 0
    assert plan.epochs_for_equal_updates(40, 12) == 12


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 1), st.integers(0, 50))
def test_the_plan_holds_the_counts_it_states(generated: float, real: float, seed: int) -> None:
    real_labels, generated_labels = torch.arange(60) % 3, torch.arange(90) % 3
    plan = mix_plan(real_labels, generated_labels, real_share=real, generated_share=generated, seed=seed)
    for label, (from_real, from_generated) in plan.counts.items():
        assert int((real_labels[plan.real] == label).sum()) == from_real == round(real * 20)
        assert int((generated_labels[plan.generated] == label).sum()) == from_generated == round(generated * 30)
    larger = mix_plan(real_labels, generated_labels, real_share=1, generated_share=1, seed=seed)
    assert set(plan.generated) <= set(larger.generated)
    again = mix_plan(real_labels, generated_labels, real_share=real, generated_share=generated, seed=seed)
    assert np.array_equal(plan.generated, again.generated)


def test_equal_updates_means_fewer_epochs_over_the_union() -> None:
    labels = torch.arange(80) % 4
    assert mix_plan(labels, labels, seed=0).epochs_for_equal_updates(80, 10) == 5


def test_near_duplicates_are_found_and_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    test, generated = torch.randn(50, 16, generator=generator), torch.randn(2000, 16, generator=generator)
    generated[1234] = test[17] * 3  # cosine distance does not see length
    near = nearest_test_images(generated, test)
    assert int(near.nearest[1234]) == 17
    assert float(near.distance[1234]) < 1e-5
    assert int((near.distance < 0.01).sum()) == 1
    with pytest.raises(InvalidInput, match="1234 near test 17"):
        refuse_leaks(generated, test, 0.01)
    refuse_leaks(torch.cat([generated[:1234], generated[1235:]]), test, 0.01)


def test_improbable_images_are_those_below_the_threshold() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.5, 0.5]])
    assert improbable(probabilities, torch.tensor([0, 1, 1])).tolist() == [False, True, False]


def test_bad_input_is_refused() -> None:
    labels, images = torch.tensor([0, 0, 1, 1]), torch.rand(4, 3, 8, 8)
    with pytest.raises(InvalidInput, match="lacking"):
        mix_plan(labels, torch.tensor([0, 0]), seed=0)
    with pytest.raises(InvalidInput, match="generated_share"):
        mix_plan(labels, labels, generated_share=1.5, seed=0)
    with pytest.raises(InvalidInput, match="must be"):
        check_generated(torch.rand(4, 3, 9, 8), labels, images)
    with pytest.raises(InvalidInput, match="must lie in"):
        check_generated(images * 255, labels, images)
    with pytest.raises(InvalidInput, match="3 models"):
        fit_baseline([0.1, 0.2], [0.1, 0.2], "linear")
    with pytest.raises(InvalidInput, match="different accuracy"):
        fit_baseline([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "linear")
    with pytest.raises(InvalidInput, match="n samples"):
        fit_baseline(CLEAN, SHIFTED, "logit")
    with pytest.raises(InvalidInput, match="classes"):
        restrict_classes(torch.rand(4, 3), labels, [0, 3])
    with pytest.raises(InvalidInput, match="softmax"):
        improbable(torch.tensor([[2.0, -1.0]]), torch.tensor([0]))
    models = pool(50)
    with pytest.raises(InvalidInput, match="baselines"):
        robustness_table(models, ["plain 0", "plain 1"], "plain 0", np.random.default_rng(0))
    models["plain 1"]["sketch"] = models["plain 1"]["sketch"][:-1]
    with pytest.raises(InvalidInput, match="same samples"):
        robustness_table(models, list(models), "plain 0", np.random.default_rng(0))


def test_the_method_is_registered() -> None:
    assert function_methods()["shift/effective-robustness"].card == "generated-datasets"
