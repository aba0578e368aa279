"""Balanced errors: every class counts the same, however few samples it has (Di Salvo et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.shift._curve import CLEAN, Estimate, curves_of
from snellen.shift._mce import CorruptionError, mean_corruption_error, relative_mean_corruption_error
from snellen.stats import bias_corrected_interval

RESAMPLES = 2000


def balanced_error(answers: ArrayLike, labels: ArrayLike, thresholds: Sequence[float] | None = None) -> float:
    """1 - balanced accuracy: the share of wrong answers, each class counting the same.

    thresholds None: answers are classes `[N]`, labels int `[N]`, every class up to the largest label present. One
    threshold: answers are scores `[N]` or `[N, 2]` (the last column counts), labels 0 or 1. L thresholds: scores and
    labels `[N, L]`, mean over the L binary tasks. A score above its threshold is a yes. Raises InvalidInput that lists
    the classes without a sample, for which balanced accuracy is undefined.
    """
    given, truth = np.asarray(answers), np.asarray(labels)
    if thresholds is None:
        if given.shape != truth.shape:
            raise InvalidInput(f"answers must be one for each of the {len(truth)} labels, got {list(given.shape)}")
        return 1 - float(_recalls(given == truth, truth, _class_count(truth)).mean())
    if len(thresholds) == 1 and truth.ndim == 1:
        truth, given = truth[:, None], given[:, None] if given.ndim == 1 else given[:, -1:]
    if truth.ndim != 2 or given.shape != truth.shape or len(thresholds) != truth.shape[1]:
        raise InvalidInput(
            f"thresholds must be one for each of the labels {list(truth.shape)} and scores {list(given.shape)},"
            f" got {len(thresholds)}"
        )
    said = given > np.asarray(thresholds)
    per_label = [_recalls(said[:, k] == truth[:, k], truth[:, k], 2).mean() for k in range(len(thresholds))]
    return 1 - float(np.mean(per_label))


def errors_by_severity(
    answers: ArrayLike, labels: ArrayLike, thresholds: Sequence[float] | None = None, severities: int = 5
) -> list[float]:
    """`balanced_error` of each severity; answers hold all samples at severity 1, then all at 2, ... `[S * N, ...]`."""
    given, count = np.asarray(answers), len(np.asarray(labels))
    if len(given) != severities * count:
        raise InvalidInput(
            f"answers must be {severities} for each of the {count} labels, severity by severity, got {len(given)}"
        )
    return [balanced_error(part, labels, thresholds) for part in np.split(given, severities)]


@dataclass(frozen=True)
class BalancedErrors:
    """Balanced errors in [0, 1]: clean, and one a severity by artefact."""

    clean: float
    by_artefact: Mapping[str, Sequence[float]]


def balanced_errors(table: Rows) -> BalancedErrors:
    """The balanced errors of a `shift/medical` table, for example a baseline's. Raises InvalidInput as above."""
    labels = labels_of(table)
    curves = [curve for curve in curves_of(table) if curve.ids]
    if not curves:
        raise InvalidInput("table must have clean rows and the same samples under at least one artefact, got none")
    clean, by_artefact = math.nan, {}
    for curve in curves:
        truth = np.array([labels[sample] for sample in curve.ids])
        clean, *shifted = [1 - float(_recalls(row, truth, _class_count(truth)).mean()) for row in curve.correct]
        by_artefact[curve.shift] = shifted
    return BalancedErrors(clean, by_artefact)


def balanced_corruption_error(errors: BalancedErrors, baseline: BalancedErrors) -> CorruptionError:
    """BE: mean over artefacts of mean error / the baseline's mean error; 1 is as good as the baseline.

    Raises InvalidInput where the baseline makes no errors, or lacks an artefact.
    """
    return _shares(mean_corruption_error(errors.by_artefact, baseline.by_artefact))


def relative_balanced_corruption_error(errors: BalancedErrors, baseline: BalancedErrors) -> CorruptionError:
    """rBE: as BE, for what the artefacts add to the clean error. Raises InvalidInput where they add none to the
    baseline's. Misleads for a poor model: who has little to lose degrades little."""
    return _shares(
        relative_mean_corruption_error(errors.by_artefact, errors.clean, baseline.by_artefact, baseline.clean)
    )


def _shares(percent: CorruptionError) -> CorruptionError:
    if percent.reason:
        raise InvalidInput(f"baseline cannot be divided by: {percent.reason}")
    return CorruptionError(percent.value / 100, {name: value / 100 for name, value in percent.by_corruption.items()})


def balanced_mean(values: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> Estimate:
    """Mean over classes of the class means of `values [N]`, with a bootstrap interval that resamples within classes."""
    parts = [values[labels == label] for label in np.unique(labels)]
    drawn = np.zeros(RESAMPLES)
    for part in parts:
        drawn += [part[rng.integers(0, len(part), len(part))].mean() for _ in range(RESAMPLES)]
    point = float(np.mean([part.mean() for part in parts]))
    interval = bias_corrected_interval(point, drawn / len(parts))
    return Estimate(point, interval.low, interval.high, len(values))


def _recalls(correct: NDArray[np.bool_], truth: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    if truth.ndim != 1 or not len(truth) or truth.min() < 0 or truth.max() >= classes:
        raise InvalidInput(f"labels must be [N] from 0 to {classes - 1}, got {list(truth.shape)}")
    sizes = np.bincount(truth.astype(np.int64), minlength=classes)
    if (sizes == 0).any():
        raise InvalidInput(f"labels must hold every class, there are none of {np.flatnonzero(sizes == 0).tolist()}")
    recalls: NDArray[np.float64] = np.bincount(truth.astype(np.int64), correct, minlength=classes) / sizes
    return recalls


def _class_count(truth: NDArray[np.int64]) -> int:
    return int(truth.max(initial=0)) + 1


def labels_of(table: Rows) -> dict[str, int]:
    """The label of each sample of a table of shifted predictions."""
    pairs = zip(*(table.column(name).to_pylist() for name in ("id", "label", "shift")), strict=True)
    return {sample: label for sample, label, shift in pairs if shift == CLEAN}
