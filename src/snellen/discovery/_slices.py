"""Judging on the confirmation half what the discovery half suspects."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snellen.probe import Rows
from snellen.stats import benjamini_hochberg, exceedance_p_value

LEVEL = 0.05
PERMUTATIONS = 1999

Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Slice:
    """A slice that is worse than the rest of its classes on the discovery half; counts are of the confirmation half.

    baseline: accuracy outside the slice, in its mix of classes. suspected_drop: the same difference on the discovery
    half, which is flattered by the search. p_value: adjusted over all tried.
    """

    number: int
    n: int
    correct: int
    baseline: float
    suspected_drop: float
    p_value: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def drop(self) -> float:
        return self.baseline - self.accuracy


def judged(table: Rows, min_count: int, rng: np.random.Generator) -> list[Slice]:
    """The slices worth a test, in the order of their numbers.

    Which are tested is decided on the discovery half, and by counts. p: right and wrong answers of the confirmation
    half are shuffled within each true class; how many right ones then fall into the slice is a sum of hypergeometric
    numbers, which are drawn directly.
    """
    slices, labels, correct = (table[name].to_numpy() for name in ("slice", "label", "correct"))
    confirmation = np.asarray(table["half"].to_numpy() == "confirmation")
    labels = np.unique(labels, return_inverse=True)[1]
    tried: list[Slice] = []
    for number in range(int(slices.max()) + 1):
        inside = slices == number
        n = int((inside & confirmation).sum())
        if 2 * min(n, int((inside & ~confirmation).sum())) < min_count:
            continue
        suspected = _expected(labels, correct, inside, ~confirmation) - correct[inside & ~confirmation].mean()
        if suspected <= 0:
            continue
        right = int(correct[inside & confirmation].sum())
        baseline = _expected(labels, correct, inside, confirmation)
        p_value = _p_value(labels[confirmation], correct[confirmation], inside[confirmation], rng)
        tried.append(Slice(number, n, right, baseline, float(suspected), p_value))
    adjusted = benjamini_hochberg([s.p_value for s in tried]).tolist()
    return [replace(s, p_value=p) for s, p in zip(tried, adjusted, strict=True)]


def _expected(labels: Codes, correct: Bools, inside: Bools, half: Bools) -> float:
    """Accuracy of the half outside the slice, weighted by the classes inside; a class all inside is its own rest."""
    classes = int(labels.max()) + 1
    mix = np.bincount(labels[half & inside], minlength=classes)
    own = np.bincount(labels[half & inside & correct], minlength=classes)
    rest = np.bincount(labels[half & ~inside], minlength=classes)
    right = np.bincount(labels[half & ~inside & correct], minlength=classes)
    return float(np.where(rest > 0, right * mix / np.maximum(rest, 1), own).sum() / mix.sum())


def _p_value(labels: Codes, correct: Bools, inside: Bools, rng: np.random.Generator) -> float:
    right = np.bincount(labels[correct])
    wrong = np.bincount(labels[~correct], minlength=len(right))
    right = np.pad(right, (0, len(wrong) - len(right)))
    taken = np.bincount(labels[inside], minlength=len(right))
    open_ = (right > 0) & (wrong > 0) & (taken > 0)  # elsewhere shuffling changes nothing
    observed = np.count_nonzero(inside & correct & open_[labels])
    drawn = rng.hypergeometric(right[open_], wrong[open_], taken[open_], (PERMUTATIONS, int(open_.sum()))).sum(axis=1)
    return exceedance_p_value(-float(observed), -drawn.astype(np.float64))
