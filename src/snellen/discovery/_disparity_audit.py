"""Two models on one data set: what each class lost, the gap between two classes, and its parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.stats import (
    Interval,
    benjamini_hochberg,
    bootstrap_bca,
    mcnemar_exact,
    newcombe_difference,
    paired_difference,
    permutation_test,
)

FEWEST = 10

Labels = NDArray[np.int64]


class Estimate(NamedTuple):
    """A value with its 95 % interval over the test images."""

    value: float
    interval: Interval


class Payment(NamedTuple):
    """Accuracy of one class before and after; `lost` is before minus after (Tango's interval). p: exact McNemar,
    q: adjusted over the classes (Benjamini-Hochberg)."""

    label: int
    n: int
    before: float
    after: float
    lost: Estimate
    p_value: float
    q_value: float


class Disparity(NamedTuple):
    """Accuracy of the majority minus that of the minority before and after (AD, Newcombe's intervals), its rise
    (dAD, bootstrap) with a permutation p-value, and the accuracy lost on all the images given (dAcc, Tango)."""

    gap_before: Estimate
    gap_after: Estimate
    rise: Estimate
    p_value: float
    lost: Estimate


class Decomposition(NamedTuple):
    """inherent: accuracy that robust training costs with equal classes, mean of majority and minority. imbalance: how
    much more it widens the gap under imbalance, dAD(R) - dAD(1). Both with bootstrap intervals."""

    inherent: Estimate
    imbalance: Estimate


def who_paid(labels: Labels, before: Labels, after: Labels) -> list[Payment]:
    """Which classes the second model serves worse, the largest loss first.

    labels, before, after: classes `[n]`, before and after the answers of the two models to the same images.
    """
    first, second = _right(labels, before), _right(labels, after)
    rows = [labels == label for label in np.unique(labels)]
    p_values = [mcnemar_exact(int((second & ~first)[row].sum()), int((first & ~second)[row].sum())) for row in rows]
    paid = [
        Payment(
            int(labels[row][0]),
            int(row.sum()),
            float(first[row].mean()),
            float(second[row].mean()),
            _lost(first[row], second[row]),
            p_value,
            float(q_value),
        )
        for row, p_value, q_value in zip(rows, p_values, benjamini_hochberg(p_values), strict=True)
    ]
    return sorted(paid, key=lambda payment: -payment.lost.value)


def disparity(
    labels: Labels,
    before: Labels,
    after: Labels,
    minority: int,
    rng: np.random.Generator,
    majority: int | None = None,
) -> Disparity:
    """AD of both models, its rise dAD and the accuracy lost dAcc, from their answers `[n]` to the same images.

    majority: a class, or None for all others together. Name the two before looking: taken as the best and the
    worst class of these very images, they would have a gap by chance. dAcc is on the class mix of `labels`. The
    bootstrap of the rise is a point where the models agree on every image. Raises InvalidInput for fewer than 10 images
    on a side.
    """
    first, second = _right(labels, before), _right(labels, after)
    frequent, rare = _sides(labels, minority, majority)
    change = second.astype(float) - first
    both = frequent | rare
    values = np.stack([rare[both], change[both]], axis=1)

    def rise(rows: NDArray[np.generic]) -> float:
        return _mean(rows, 0) - _mean(rows, 1)

    def moved(changes: NDArray[np.generic], side: NDArray[np.generic]) -> float:
        return abs(rise(np.stack([side, changes], axis=1)))

    return Disparity(
        _gap(first, frequent, rare),
        _gap(second, frequent, rare),
        Estimate(rise(values), bootstrap_bca(values, rise, rng)),
        permutation_test(moved, values[:, 1], values[:, 0], rng),
        _lost(first, second),
    )


def decompose(
    labels: Labels,
    balanced: tuple[Labels, Labels],
    imbalanced: tuple[Labels, Labels],
    minority: int,
    rng: np.random.Generator,
    majority: int | None = None,
) -> Decomposition:
    """The inherent and the imbalance part from the answers of four models to the same images.

    balanced, imbalanced: answers `[n]` of the (standard, robust) model trained on equal classes and under imbalance.
    """
    frequent, rare = _sides(labels, minority, majority)
    both = frequent | rare
    lost = [
        (_right(labels, standard).astype(float) - _right(labels, robust))[both]
        for standard, robust in (balanced, imbalanced)
    ]
    values = np.stack([rare[both], *lost], axis=1)

    def inherent(rows: NDArray[np.generic]) -> float:
        return (_mean(rows, 0) + _mean(rows, 1)) / 2

    def imbalance(rows: NDArray[np.generic]) -> float:
        return _mean(rows, 1, 2) - _mean(rows, 0, 2) - (_mean(rows, 1) - _mean(rows, 0))

    found = [Estimate(part(values), bootstrap_bca(values, part, rng)) for part in (inherent, imbalance)]
    return Decomposition(*found)


def _right(labels: Labels, answers: Labels) -> NDArray[np.bool_]:
    if labels.ndim != 1 or labels.shape != answers.shape or len(labels) == 0:
        raise InvalidInput(f"labels and answers must be [n], got {list(labels.shape)} and {list(answers.shape)}")
    return np.asarray(labels == answers)


def _sides(labels: Labels, minority: int, majority: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if minority == majority:
        raise InvalidInput(f"majority and minority must be two classes, got {minority} twice")
    rare = np.asarray(labels == minority)
    frequent = ~rare if majority is None else np.asarray(labels == majority)
    if min(rare.sum(), frequent.sum()) < FEWEST:
        raise InvalidInput(f"majority and minority need {FEWEST} images each, got {frequent.sum()} and {rare.sum()}")
    return frequent, rare


def _mean(rows: NDArray[np.generic], side: int, column: int = 1) -> float:
    """Mean of a column over the rows of one side; NaN, which the bootstrap leaves out, where a resample has none."""
    values = np.asarray(rows, dtype=float)
    picked = values[values[:, 0] == side, column]
    return float(picked.mean()) if len(picked) else float("nan")


def _lost(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    return Estimate(float(first.mean() - second.mean()), paired_difference(first, second))


def _gap(right: NDArray[np.bool_], frequent: NDArray[np.bool_], rare: NDArray[np.bool_]) -> Estimate:
    counts = int(right[frequent].sum()), int(frequent.sum()), int(right[rare].sum()), int(rare.sum())
    return Estimate(counts[0] / counts[1] - counts[2] / counts[3], newcombe_difference(*counts))
