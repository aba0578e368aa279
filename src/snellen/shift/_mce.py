"""Mean corruption error: how much a model suffers, measured by what a baseline suffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snellen.errors import InvalidInput

Errors = Mapping[str, "float | Sequence[float]"]
"""Top-1 error in [0, 1] by corruption: the mean over severities, or one value a severity."""

ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, mean over the five severities (Hendrycks & Dietterich, 2019)."""
ALEXNET_CLEAN_ERROR = 0.435


@dataclass(frozen=True)
class CorruptionError:
    """value: percent of the baseline's error, mean over corruptions; NaN where `reason` says why."""

    value: float
    by_corruption: Mapping[str, float]
    reason: str = ""


def mean_corruption_error(errors: Errors, baseline: Errors = ALEXNET_ERRORS) -> CorruptionError:
    """mCE: mean over corruptions of 100 * error / baseline error (Hendrycks & Dietterich, 2019).

    errors: of the model, for any of the corruptions in `baseline`; published figures are over all 15. AlexNet's
    errors are for ImageNet: for other classes give the errors of your own reference model. Raises InvalidInput for an
    error outside [0, 1] or a corruption the baseline lacks. NaN, with the reason, when a baseline error is 0.
    """
    return _ratio(_means(errors, baseline), _means(baseline, baseline), "error")


def relative_mean_corruption_error(
    errors: Errors,
    clean_error: float,
    baseline: Errors = ALEXNET_ERRORS,
    baseline_clean_error: float = ALEXNET_CLEAN_ERROR,
) -> CorruptionError:
    """Relative mCE: as mCE, for what corruption adds to the clean error (Hendrycks & Dietterich, 2019).

    clean_error, baseline_clean_error: in [0, 1]. NaN, with the reason, when the baseline does not get worse under
    some corruption. Misleads for a poor model: who has little to lose degrades little.
    """
    clean, baseline_clean = (
        _mean(clean_error, "clean_error"),
        _mean(baseline_clean_error, "baseline_clean_error"),
    )
    model = {name: value - clean for name, value in _means(errors, baseline).items()}
    reference = {name: value - baseline_clean for name, value in _means(baseline, baseline).items()}
    return _ratio(model, reference, "degradation")


def _ratio(model: Mapping[str, float], reference: Mapping[str, float], what: str) -> CorruptionError:
    undefined = [name for name in model if reference[name] <= 0]
    ratios = {n: math.nan if n in undefined else 100 * (value / reference[n]) for n, value in model.items()}
    if undefined:
        reason = f"the baseline has no {what} under {', '.join(undefined)}, so there is nothing to divide by"
        return CorruptionError(math.nan, ratios, reason)
    return CorruptionError(math.fsum(ratios.values()) / len(ratios), ratios)


def _means(errors: Errors, baseline: Errors) -> dict[str, float]:
    unknown = sorted(set(errors) - set(baseline))
    if unknown or not errors:
        raise InvalidInput(f"errors must be for corruptions of the baseline ({', '.join(baseline)}), got {unknown}")
    return {name: _mean(value, name) for name, value in errors.items()}


def _mean(error: float | Sequence[float], name: str) -> float:
    values = [error] if isinstance(error, int | float) else list(error)
    if not values or not all(0 <= value <= 1 for value in values):
        raise InvalidInput(f"the error of {name} must be in [0, 1], one or one a severity, got {error}")
    return math.fsum(values) / len(values)
