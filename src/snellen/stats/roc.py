"""How well a score separates two kinds of samples, and the threshold that separates them best."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid

from snellen.errors import InvalidInput


class Separation(NamedTuple):
    """threshold: flag where score > threshold. youden: true minus false positive rate there. rates of 0 to 1.

    All but the threshold are NaN, and the threshold infinite, when the event always or never happens: then nothing
    can be said about separating it.
    """

    threshold: float
    youden: float
    true_positive_rate: float
    false_positive_rate: float
    auc: float
    curve: NDArray[np.float64]
    """`[thresholds, 2]`: false and true positive rate of each candidate, in the candidates' order."""


def separate(score: ArrayLike, event: ArrayLike, candidates: ArrayLike | None = None) -> Separation:
    """Separate samples with `event` (bool `[n]`) by a `score` that should be high for them.

    The threshold is the candidate with the largest J = true minus false positive rate (Youden, 1950), the first of
    equal ones. candidates: thresholds to try, by default every distinct score and one below all, which gives the exact
    AUC; with others the AUC is the trapezium over the points they give, closed at (0, 0) and (1, 1).
    """
    values, happened = np.asarray(score, dtype=float), np.asarray(event)
    if values.shape != happened.shape or values.ndim != 1 or happened.dtype != bool or np.isnan(values).any():
        raise InvalidInput(
            "score must be numbers and event booleans, lists of one length without NaN,"
            f" got {values.dtype} {list(values.shape)} and {happened.dtype} {list(happened.shape)}"
        )
    if candidates is None:
        tried = np.concatenate([[-math.inf], np.unique(values)])
    else:
        tried = np.asarray(candidates, dtype=float)
    if len(tried) == 0 or happened.all() or not happened.any():
        return Separation(math.inf, math.nan, math.nan, math.nan, math.nan, np.full((len(tried), 2), math.nan))
    tpr, fpr = (_share_above(values[group], tried) for group in (happened, ~happened))
    best = int(np.argmax(tpr - fpr))
    order = np.lexsort((tpr, fpr))
    auc = trapezoid(np.concatenate([[0.0], tpr[order], [1.0]]), np.concatenate([[0.0], fpr[order], [1.0]]))
    return Separation(
        float(tried[best]),
        float(tpr[best] - fpr[best]),
        float(tpr[best]),
        float(fpr[best]),
        float(auc),
        np.stack([fpr, tpr], axis=1),
    )


def _share_above(values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 - np.searchsorted(np.sort(values), thresholds, side="right") / len(values)
