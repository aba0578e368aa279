from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snellen.errors import InvalidInput
from snellen.shift.corruptions import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CORRUPTIONS,
    mean_corruption_error,
    relative_mean_corruption_error,
)


def test_the_baseline_scores_exactly_100_against_itself() -> None:
    assert mean_corruption_error(ALEXNET_ERRORS).value == 100.0
    assert relative_mean_corruption_error(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR).value == 100.0


def test_the_baseline_covers_the_fifteen_corruptions() -> None:
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS


@given(share=st.floats(0, 1))
def test_mce_is_linear_in_the_errors(share: float) -> None:
    scaled = {name: share * error for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(scaled).value == pytest.approx(100 * share, abs=1e-9)


def test_severities_are_averaged_before_the_division() -> None:
    scored = mean_corruption_error({"fog": [0.2, 0.6]}, {"fog": [0.5, 0.5]})
    assert scored.by_corruption == {"fog": pytest.approx(80.0)}


def test_a_flawless_baseline_gives_nan_with_its_reason() -> None:
    scored = mean_corruption_error({"fog": 0.2, "snow": 0.1}, {"fog": 0.0, "snow": 0.2})
    assert math.isnan(scored.value)
    assert "fog" in scored.reason
    assert scored.by_corruption["snow"] == pytest.approx(50.0)


@pytest.mark.parametrize("baseline_error", [0.1, 0.05])
def test_a_baseline_that_does_not_degrade_gives_nan_with_its_reason(baseline_error: float) -> None:
    scored = relative_mean_corruption_error({"fog": 0.4}, 0.1, {"fog": baseline_error}, 0.1)
    assert math.isnan(scored.value)
    assert "no degradation under fog" in scored.reason


@pytest.mark.parametrize("errors", [{}, {"fogg": 0.1}, {"fog": 1.2}, {"fog": math.nan}, {"fog": []}])
def test_unusable_errors_are_refused(errors: dict[str, float | list[float]]) -> None:
    with pytest.raises(InvalidInput):
        mean_corruption_error(errors)
