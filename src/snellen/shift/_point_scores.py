"""How well points are labelled, and how much of it survives corruption (Kong et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._mce import CorruptionError, mean_corruption_error

Accuracies = Mapping[str, Sequence[float]]
"""A score in [0, 1] by corruption, one value a level: mean IoU, or mAP or NDS for detection."""


class Resilience(NamedTuple):
    """value: percent of the clean score that survives, mean over corruptions."""

    value: float
    by_corruption: Mapping[str, float]


def mean_iou(labels: Tensor, predicted: Tensor, classes: int) -> float:
    """Intersection over union, mean over the classes that occur in either; int64 `[N]` in [0, classes)."""
    return overlap_iou(overlap(labels, predicted, classes)[None])


def overlap(labels: Tensor, predicted: Tensor, classes: int) -> NDArray[np.int64]:
    """Intersections, then unions: `[2 * classes]`."""
    for what, values in (("labels", labels), ("predicted", predicted)):
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= classes):
            raise InvalidInput(f"{what} must be classes 0 to {classes - 1}, got {int(values.min())} to {values.max()}")
    both = torch.bincount(labels[labels == predicted], minlength=classes)
    either = torch.bincount(labels, minlength=classes) + torch.bincount(predicted, minlength=classes) - both
    return torch.cat((both, either)).cpu().numpy()


def overlap_iou(overlaps: NDArray[np.generic]) -> float:
    intersection, union = np.split(overlaps.sum(axis=0).astype(float), 2)
    present = union > 0
    return float((intersection[present] / union[present]).mean()) if present.any() else math.nan


def iou_drop(overlaps: NDArray[np.generic]) -> float:
    clean, corrupted = np.split(overlaps, 2, axis=1)
    return overlap_iou(clean) - overlap_iou(corrupted)


def point_corruption_error(accuracies: Accuracies, baseline: Accuracies) -> CorruptionError:
    """mCE in percent: 100 * sum over levels of (1 - score) / the baseline's, mean over corruptions (Kong et al., 2023).

    Give the scores of your own reference model on the same scans. Raises InvalidInput for a score outside [0, 1].
    """
    return mean_corruption_error(_errors(accuracies), _errors(baseline))


def _errors(accuracies: Accuracies) -> dict[str, list[float]]:
    return {name: [1 - score for score in row] for name, row in accuracies.items()}


def mean_resilience_rate(accuracies: Accuracies, clean: float) -> Resilience:
    """mRR in percent: the share of the clean score that survives, mean over levels and corruptions (Kong et al., 2023).

    Works for images as well. Misleads between models of unlike clean scores: a poor one has little to lose.
    """
    in_range = all(len(row) and all(0 <= score <= 1 for score in row) for row in accuracies.values())
    if not accuracies or not in_range or not 0 < clean <= 1:
        raise InvalidInput(
            "accuracies must hold scores in [0, 1], one or more a corruption, and clean must be in (0, 1],"
            f" got {dict(accuracies)} and {clean}"
        )
    rates = {name: 100 * math.fsum(row) / (len(row) * clean) for name, row in accuracies.items()}
    return Resilience(math.fsum(rates.values()) / len(rates), rates)
