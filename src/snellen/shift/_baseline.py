"""The line that plain models lie on: accuracy under shift as clean accuracy predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from snellen.errors import InvalidInput

Axis = Literal["logit", "probit", "linear"]
"""The scale on which the line is straight; accuracies of classifiers are close to it on logit or probit axes."""

MIN_MODELS = 3


class Line(NamedTuple):
    """Slope and intercept on the transformed axes, float64 of any one shape."""

    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """slope, intercept: of the line on the transformed axes. n_clean, n_shifted: samples behind the accuracies, which
    are clipped to [.5/n, 1 - .5/n]; None on linear axes, which need no clipping."""

    slope: float
    intercept: float
    axis: Axis = "logit"
    n_clean: int | None = None
    n_shifted: int | None = None

    def expected(self, clean: ArrayLike) -> NDArray[np.float64]:
        """The shifted accuracy of a plain model with `clean` accuracy in [0, 1]."""
        x = to_axis(clean, self.axis, self.n_clean)
        return from_axis(self.intercept + self.slope * x, self.axis)

    def effective_robustness(self, clean: ArrayLike, shifted: ArrayLike) -> NDArray[np.float64]:
        """Shifted accuracy beyond what `clean` accuracy explains: 0 on the line, positive above it."""
        return _accuracy(shifted) - self.expected(clean)

    def residuals(self, clean: ArrayLike, shifted: ArrayLike) -> NDArray[np.float64]:
        """Distances from the line on the transformed scale; those of the fitted models have mean 0."""
        x, y = to_axis(clean, self.axis, self.n_clean), to_axis(shifted, self.axis, self.n_shifted)
        return y - self.intercept - self.slope * x


def fit_baseline(
    clean: Sequence[float],
    shifted: Sequence[float],
    axis: Axis = "logit",
    n_clean: int | None = None,
    n_shifted: int | None = None,
    *,
    intercept: bool = True,
) -> Baseline:
    """Least squares through plain models of varied quality (Taori et al., 2020; Bansal & Grover, 2023).

    clean, shifted: accuracies in [0, 1] of the same 3 or more models. n_clean, n_shifted: samples behind them, needed
    on logit and probit axes. intercept: False puts the line through the origin. Misleads outside the range of clean
    accuracies it was fitted on, and with few models: nothing in an interval over images shows that.
    """
    if len(clean) != len(shifted) or len(clean) < MIN_MODELS:
        raise InvalidInput(f"clean and shifted need {MIN_MODELS} models or more, got {len(clean)} and {len(shifted)}")
    x, y = to_axis(clean, axis, n_clean), to_axis(shifted, axis, n_shifted)
    if np.ptp(x) < 1e-9:
        raise InvalidInput(f"clean must hold models of different accuracy to fit a line, got {list(clean)}")
    line = least_squares(x, y, intercept=intercept)
    return Baseline(float(line.slope), float(line.intercept), axis, n_clean, n_shifted)


def least_squares(x: NDArray[np.float64], y: NDArray[np.float64], *, intercept: bool = True) -> Line:
    """Lines through points along the last axis, `[..., models]`; NaN where all x are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if not intercept:
            slope = (x * y).sum(axis=-1) / (x**2).sum(axis=-1)
            return Line(slope, np.zeros_like(slope))
        middle_x, middle_y = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
        slope = ((x - middle_x) * (y - middle_y)).sum(axis=-1) / ((x - middle_x) ** 2).sum(axis=-1)
        return Line(slope, middle_y[..., 0] - slope * middle_x[..., 0])


def to_axis(accuracy: ArrayLike, axis: Axis, n: int | None = None) -> NDArray[np.float64]:
    """Accuracies in [0, 1] on the chosen axis; on logit and probit clipped to [.5/n, 1 - .5/n] first."""
    values = _accuracy(accuracy)
    if axis == "linear":
        return values
    if axis not in ("logit", "probit"):
        raise InvalidInput(f"axis must be 'logit', 'probit' or 'linear', got {axis!r}")
    if n is None or n < 1:
        raise InvalidInput(f"n samples must be given to clip accuracies on a {axis} axis, got {n}")
    clipped = values.clip(0.5 / n, 1 - 0.5 / n)
    return np.asarray(special.logit(clipped) if axis == "logit" else special.ndtri(clipped), dtype=np.float64)


def from_axis(values: NDArray[np.float64], axis: Axis) -> NDArray[np.float64]:
    """Back to accuracies."""
    if axis == "linear":
        return values
    return np.asarray(special.expit(values) if axis == "logit" else special.ndtr(values), dtype=np.float64)


def _accuracy(accuracy: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(accuracy, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise InvalidInput(f"accuracies must be in [0, 1], got {values.tolist()}")
    return values
