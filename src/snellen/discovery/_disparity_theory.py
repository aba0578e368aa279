"""Two classes y (mu + sigma Z) with independent Gaussian or stable Z: the best robust linear rule, in closed form.

Class -1 is the majority, `ratio` times as frequent as class +1. A rule sign(w.x + b) under |delta|_p <= eps loses
eps ||w||_q of every margin (1/p + 1/q = 1), so that both accuracies stay one-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar

from snellen.errors import InvalidInput

Floats = NDArray[np.float64]
Norm = Literal["l2", "linf"]
GRID, REACH = 200, 30
"""Offsets tried for heavy tails, whose risk may have two minima, up to so many scales beyond the margin."""


class LinearRule(NamedTuple):
    """sign(weights . x + bias); a bias of -inf always answers the majority."""

    weights: Floats
    bias: float


class ClassAccuracies(NamedTuple):
    majority: float
    minority: float

    @property
    def gap(self) -> float:
        """Accuracy disparity AD: majority minus minority."""
        return self.majority - self.minority


@dataclass(frozen=True)
class Mixture:
    """The classes.

    mu: half the distance of the class centres `[d]`, not all 0. sigma: above 0; the standard deviation of a coordinate
    for alpha = 2, the scale of scipy's `levy_stable` below it. alpha: tail index in [1, 2]: 2 Gaussian, 1.5 Holtsmark,
    1 Cauchy; below 2 all |mu_i| must be equal, since otherwise the best direction has no common form.
    """

    mu: Floats
    sigma: float = 1.0
    alpha: float = 2.0

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or not np.isfinite(self.mu).all() or not self.mu.any():
            raise InvalidInput(f"mu must be a finite vector that is not 0, got shape {list(self.mu.shape)}")
        if not 0 < self.sigma < np.inf or not 1 <= self.alpha <= 2:
            raise InvalidInput(f"sigma must be above 0 and alpha in [1, 2], got {self.sigma} and {self.alpha}")
        if self.alpha < 2 and not np.allclose(abs(self.mu), abs(self.mu[0])):
            raise InvalidInput(f"alpha = {self.alpha} below 2 needs a mu whose entries have one magnitude")

    def cdf(self, z: Floats | float) -> Floats:
        """Of one standard coordinate; Cauchy and Gaussian exactly, others by scipy's integration."""
        if self.alpha in (1, 2):
            return np.asarray((stats.norm if self.alpha == 2 else stats.cauchy).cdf(z))
        return np.asarray(stats.levy_stable.cdf(z, self.alpha, 0))

    def draw(self, majority: int, minority: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
        """Samples `[majority + minority, d]` and labels -1 or +1, majority first."""
        y = np.repeat([-1, 1], [majority, minority])
        shape = (len(y), len(self.mu))
        if self.alpha == 2:
            z = rng.standard_normal(shape)
        elif self.alpha == 1:
            z = rng.standard_cauchy(shape)
        else:
            z = stats.levy_stable.rvs(self.alpha, 0, size=shape, random_state=rng)
        return y[:, None] * self.mu + self.sigma * z, y


def best_rule(mixture: Mixture, ratio: float = 1.0, eps: float = 0.0, norm: Norm = "l2") -> LinearRule:
    """The linear rule of least robust error (Hu et al., 2023).

    ratio: majority to minority, at least 1. eps: at least 0, in the units of x. Gaussian: w is parallel to mu for l2,
    to mu with every entry moved by eps towards 0 for linf, and b = -(sigma ||w||_2)^2 ln(ratio) / (2 D) with the margin
    D = w.mu - eps ||w||_q. Heavier tails: w = sign(mu), b by search, -inf where always answering the majority errs
    least. Raises InvalidInput, also where eps >= ||mu||_p leaves no margin.
    """
    if not 1 <= ratio < np.inf:
        raise InvalidInput(f"ratio must be at least 1, got {ratio}")
    _check(eps, norm)
    reach = float(np.linalg.norm(mixture.mu, 2 if norm == "l2" else np.inf))
    if eps >= reach:
        raise InvalidInput(f"eps must be below {reach:.3g}, the {norm} norm of mu, or no margin is left; got {eps}")
    w = np.sign(mixture.mu)
    if mixture.alpha == 2:
        w = mixture.mu if norm == "l2" else w * np.maximum(abs(mixture.mu) - eps, 0)
    margin, scale = float(w @ mixture.mu) - eps * dual_norm(w, norm), _scale(mixture, w)
    if mixture.alpha == 2:
        return LinearRule(w, -float(scale**2 * np.log(ratio) / (2 * margin)))

    def risk(bias: Floats | float) -> Floats:
        majority, minority = mixture.cdf((margin - bias) / scale), mixture.cdf((margin + bias) / scale)
        return ratio * (1 - majority) + 1 - minority

    tried = -np.linspace(0, margin + REACH * scale, GRID)
    best = int(risk(tried).argmin())
    around = tried[min(best + 1, GRID - 1)], tried[max(best - 1, 0)]
    found = minimize_scalar(lambda bias: float(risk(bias)), bounds=around, method="bounded", options={"xatol": 1e-9})
    return LinearRule(w, float(found.x) if found.fun < 1 else -np.inf)


def accuracies(mixture: Mixture, rule: LinearRule, eps: float = 0.0, norm: Norm = "l2") -> ClassAccuracies:
    """Accuracy of each class under the worst perturbation of size `eps`; eps = 0 is standard accuracy."""
    _check(eps, norm)
    margin = float(rule.weights @ mixture.mu) - eps * dual_norm(rule.weights, norm)
    scale = _scale(mixture, rule.weights)
    return ClassAccuracies(
        float(mixture.cdf((margin - rule.bias) / scale)), float(mixture.cdf((margin + rule.bias) / scale))
    )


def dual_norm(weights: Floats, norm: Norm) -> float:
    """||w||_q: what a perturbation of size 1 can take from w.x."""
    return float(np.linalg.norm(weights, 2 if norm == "l2" else 1))


def _scale(mixture: Mixture, weights: Floats) -> float:
    """Of w.x given the class: stable laws add with the alpha-norm of the weights."""
    return mixture.sigma * float(np.linalg.norm(weights, mixture.alpha))


def _check(eps: float, norm: Norm) -> None:
    if norm not in ("l2", "linf"):
        raise InvalidInput(f"norm must be l2 or linf, got {norm!r}")
    if not 0 <= eps < np.inf:
        raise InvalidInput(f"eps must be at least 0, got {eps}")
