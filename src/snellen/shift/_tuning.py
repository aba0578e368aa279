"""Parts of the partial-tuning protocol: the probe of transfer, the count of parameters, and the rows of its tables."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom
from snellen.stats import bootstrap_bca, mcnemar_exact, needed_samples, paired_difference, wilson

METHOD = "shift/partial-tuning-protocol"
CORRUPTED = "corrupted"
VISIBLE = 0.05
"""enough_data asks whether a difference of this size would be seen."""

Row: TypeAlias = dict[str, str | int | float | bool]


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> NDArray[np.bool_]:
    """Which test samples a logistic regression on standardised features `[N, D]` gets right, bool `[n]`."""
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(train_labels.unique()) < 2:
        raise InvalidInput(
            f"features must be [N, D] and [n, D] with two or more classes, got {list(train.shape)}, {list(test.shape)}"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train.cpu().double().numpy(), train_labels.cpu().numpy())
    right = probe.predict(test.cpu().double().numpy()) == test_labels.cpu().numpy()
    return np.asarray(right, dtype=bool)


class ParameterCount(NamedTuple):
    total: int
    trained: int

    @property
    def share(self) -> float:
        return self.trained / self.total if self.total else 0.0


def count_parameters(module: nn.Module) -> ParameterCount:
    """Parameters in all and those with requires_grad; a parameter shared by two layers counts once."""
    parameters = list(module.parameters())
    return ParameterCount(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )


def frozen_fingerprint(module: nn.Module, trained: Collection[str]) -> str:
    """A hash of every parameter and buffer whose name starts with none of `trained`: equal before and after a tuning
    that kept to its part, batch-norm statistics included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        if not name.startswith(tuple(trained)):
            digest.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.astype(float).mean())


def accuracy_row(name: str, measure: str, scores: NDArray[np.float64], seed: int) -> Row:
    """One model on one measure; scores: share right per image `[n]`."""
    n, value = len(scores), _mean(scores)
    if measure == CORRUPTED:
        interval = bootstrap_bca(scores, _mean, SampleRandom(seed, METHOD).numpy(name))
    else:
        interval = wilson(int(scores.sum()), n)
    needed = needed_samples(min(VISIBLE, value), value) if value > 0 else 0
    row: Row = {
        "model": name,
        "measure": measure,
        "n": n,
        "accuracy": value,
        "low": interval.low,
        "high": interval.high,
    }
    return row | {"needed": needed, "enough_data": n >= needed}


def comparison_row(
    name: str, against: str, measure: str, own: NDArray[np.float64], other: NDArray[np.float64], seed: int
) -> Row:
    """One model minus one baseline on the same images; p is NaN where shares are not 0 or 1."""
    if measure == CORRUPTED:
        interval = bootstrap_bca(own - other, _mean, SampleRandom(seed, METHOD).numpy(name, against))
        p_value = math.nan
    else:
        first, second = own > 0.5, other > 0.5
        interval = paired_difference(first, second)
        p_value = mcnemar_exact(int((~first & second).sum()), int((first & ~second).sum()))
    row: Row = {"model": name, "against": against, "measure": measure, "n": len(own)}
    return row | {"difference": _mean(own - other), "low": interval.low, "high": interval.high, "p_value": p_value}
