"""SkewSize: does what the model answers depend on an attribute that should not matter, given the true class?

For every true class a contingency table, attribute values by answers, and its Cramer's V, 0 (independent) to 1;
SkewSize is the skewness of the V over the classes (SkewSize, 2024). High: a few classes carry the dependence; low or
negative: it is everywhere. It is blind to shift and scale, so it is never shown without mean and maximum. Raw V of n
samples is about sqrt((K - 1) / n) for independent columns already; the bias-corrected V (Bergsma, 2013) and the
permutation test are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snellen.discovery._contingency import (
    ClassDependence,
    answers_that_follow,
    class_tables,
    corrected_cramers_v,
    cramers_v,
    dependences,
    resampled,
)
from snellen.errors import InvalidInput
from snellen.stats import Interval, centred_interval

Floats = NDArray[np.float64]

SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class SkewSize:
    """skewsize: skewness of the V, NaN with a `reason` where all V are equal. Intervals: 95 %, stratified bootstrap."""

    skewsize: float
    corrected_skewsize: float
    mean_v: float
    max_v: float
    mean_corrected_v: float
    mean_corrected_v_interval: Interval
    skewsize_interval: Interval | None
    per_class: Mapping[str, ClassDependence]
    skipped: Mapping[str, str]
    """Classes left out, each with its reason."""
    reason: str = ""


@dataclass(frozen=True)
class FollowingMistakes:
    """share: wrong answers that follow the attribute beyond what chance gives with as many samples, as a part of all
    answers (chance is subtracted in full, so a strong dependence is rather under- than overstated). p_value: of none,
    the smallest over classes after Benjamini-Hochberg. n: mistakes in the classes that could be tested. strongest: the
    class of the smallest p-value (of equal ones that with the most mistakes that follow).
    """

    share: float
    interval: Interval
    p_value: float
    n: int
    strongest: int


def skewsize(
    labels: ArrayLike,
    predicted: ArrayLike,
    attribute: ArrayLike,
    rng: np.random.Generator,
    permutations: int = 999,
    resamples: int = 1000,
    min_count: int = 0,
) -> SkewSize:
    """SkewSize of `n` samples; labels, answers and attribute values are integers or strings, `[n]` each.

    permutations: of the attribute within each class. resamples: of the bootstrap, samples within each class.
    min_count: answers given less often in a class are merged into one column; 0 merges none. Raises `InvalidInput` for
    unequal lengths, missing or fractional labels, a single attribute value, or fewer than three usable classes.
    """
    tables, skipped = class_tables(labels, predicted, attribute, min_count)
    if len(np.unique(np.asarray(attribute).astype(str))) < 2:
        raise InvalidInput("attribute needs at least 2 values, got only one")
    if len(tables) < 3:
        raise InvalidInput(f"labels need at least 3 classes seen with 2 attribute values each, got {len(tables)}")
    per_class = dependences(tables, rng, permutations)
    raw = np.array([found.v for found in per_class.values()])
    corrected = np.array([found.corrected_v for found in per_class.values()])

    drawn = [resampled(table, rng, resamples) for table in tables.values()]
    drawn_raw = np.stack([cramers_v(table) for table in drawn])
    drawn_mean = np.mean([corrected_cramers_v(table) for table in drawn], axis=0)
    value, mean = skewness(raw), float(corrected.mean())
    defined = math.isfinite(value)
    return SkewSize(
        skewsize=value,
        corrected_skewsize=skewness(corrected),
        mean_v=float(raw.mean()),
        max_v=float(raw.max()),
        mean_corrected_v=mean,
        mean_corrected_v_interval=centred_interval(mean, drawn_mean),
        skewsize_interval=centred_interval(value, _skewness(drawn_raw)) if defined else None,
        per_class=per_class,
        skipped=skipped,
        reason="" if defined else "all classes have the same V, so skewness is undefined",
    )


def following_mistakes(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    attribute: NDArray[np.generic],
    rng: np.random.Generator,
    permutations: int = 999,
    resamples: int = 1000,
) -> FollowingMistakes | None:
    """Whether *which* wrong answer is given depends on the attribute, apart from how often; None without mistakes.

    The tables of `skewsize` without their right answers, so that a mere gap in accuracy does not count.
    """
    wrong = labels != predicted
    if not wrong.any():
        return None
    tables = class_tables(labels[wrong], predicted[wrong], attribute[wrong]).usable
    if not tables:
        return None
    found = dependences(tables, rng, permutations)
    sizes = np.array([result.n for result in found.values()])
    shares = np.array([result.share for result in found.values()])
    share = float(sizes @ shares) / len(labels)

    # bootstrap: how many mistakes a class has, and which
    of_class = np.array([(labels == int(name)).sum() for name in found])
    again = np.stack([answers_that_follow(resampled(table, rng, resamples)) for table in tables.values()])
    by_chance = np.array([answers_that_follow(table) for table in tables.values()]) - shares
    counts = rng.binomial(of_class, sizes / of_class, (resamples, len(sizes))).T
    drawn = (counts * (again - by_chance[:, None])).sum(axis=0) / len(labels)
    strongest = min(found, key=lambda name: (found[name].q_value, -found[name].share * found[name].n))
    return FollowingMistakes(
        share,
        centred_interval(share, drawn),
        found[strongest].q_value,
        int(sizes.sum()),
        int(strongest),
    )


def skewness(values: Floats) -> float:
    """Fisher-Pearson skewness, population form; NaN where the variance is below 1e-12."""
    return float(_skewness(values[:, None])[0])


def _skewness(values: Floats) -> Floats:
    """Over the first axis of `[classes, resamples]`."""
    deviation = values - values.mean(axis=0)
    variance = (deviation**2).mean(axis=0)
    flat = variance < SMALLEST_VARIANCE
    return np.where(flat, np.nan, (deviation**3).mean(axis=0) / np.where(flat, 1.0, variance) ** 1.5)
