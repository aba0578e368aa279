"""Training and attacking a linear two-class model, where one step of the adversary is exact."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snellen.discovery._disparity_theory import LinearRule, Norm
from snellen.errors import InvalidInput

STEPS, LEARNING_RATE = 400, 0.05
FEWEST = 10


def one_step(weights: Tensor, x: Tensor, y: Tensor, eps: float, norm: Norm) -> Tensor:
    """The worst perturbation of `x` `[n, d]` for sign(w.x + b): every margin falls by exactly eps ||w||_q.

    y: -1 or +1 `[n]`. Nothing is clipped, so on images this is stronger than an attack inside [0, 1].
    """
    direction = weights.sign() if norm == "linf" else F.normalize(weights, dim=0)
    return x - eps * y[:, None] * direction


def train_linear(x: Tensor, y: Tensor, eps: float = 0.0, norm: Norm = "l2") -> LinearRule:
    """Logistic regression against the exact one-step adversary: softplus(-(y (w.x + b) - eps ||w||_q)).

    x: `[n, d]`. y: -1 or +1 `[n]`, both present, at least 10 of each. eps = 0: standard training. 400 full-batch
    steps of Adam (0.05) from 0, so nothing is random; the paper's minibatches and choice of the learning rate are left
    out, since the loss is convex.
    """
    if x.ndim != 2 or not bool(torch.isfinite(x).all()):
        raise InvalidInput(f"x must be finite [n, d], got {list(x.shape)}")
    counts = [int((y == side).sum()) for side in (-1, 1)]
    if sum(counts) != len(x) or min(counts) < FEWEST:
        raise InvalidInput(f"y must hold -1 and +1, at least {FEWEST} of each, got {counts[0]} and {counts[1]}")
    if norm not in ("l2", "linf") or not 0 <= eps < np.inf:
        raise InvalidInput(f"norm must be l2 or linf and eps at least 0, got {norm!r} and {eps}")
    weights = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=LEARNING_RATE)
    for _ in range(STEPS):
        margin = y * (x @ weights + bias) - eps * weights.norm(2 if norm == "l2" else 1)
        optimiser.zero_grad()
        F.softplus(-margin).mean().backward()
        optimiser.step()
    return LinearRule(weights.detach().double().numpy(), float(bias.detach()))


def imbalanced_rows(
    labels: NDArray[np.int64], minority: int, ratio: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sorted rows in which every other class has `ratio` times as many samples as `minority`.

    The others are cut to the smallest of them, the minority to a `ratio`-th of that. Raises InvalidInput for fewer
    than 10 samples of a class, one class, ratio < 1, or a minority too small to begin with.
    """
    if not 1 <= ratio < np.inf:
        raise InvalidInput(f"ratio must be at least 1, got {ratio}")
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2 or minority not in values:
        raise InvalidInput(f"labels must hold class {minority} and another, got classes {values.tolist()}")
    most = int(min(counts[values != minority].min(), counts[values == minority][0] * ratio))
    wanted = {value: int(most / ratio) if value == minority else most for value in values.tolist()}
    if min(wanted.values()) < FEWEST:
        raise InvalidInput(f"a ratio of {ratio:g} leaves {min(wanted.values())} samples of a class, needs {FEWEST}")
    chosen = [rng.choice(np.flatnonzero(labels == value), count, replace=False) for value, count in wanted.items()]
    return np.sort(np.concatenate(chosen))
