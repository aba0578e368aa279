"""`ShiftCurve`: how often a model is right along one shift, and what can be said from it.

All points of a curve come from the same images, so differences along it are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm

from snellen.errors import InvalidInput
from snellen.stats import Interval, IntervalArrays, bootstrap_bca, paired_difference, wilson_arrays

CLEAN = "clean"


class Estimate(NamedTuple):
    """A value with its 95 % interval (NaN where fewer than two samples allow none) and sample size."""

    value: float
    low: float
    high: float
    n: int


class Crossing(NamedTuple):
    """The severity at which accuracy has dropped by a given amount, with its 95 % interval.

    `math.inf` where the curve, or the bound, does not get there within the severities that were tried.
    """

    severity: float
    low: float
    high: float


@dataclass(frozen=True)
class ShiftCurve:
    """Right or wrong for n samples at S severities.

    severities: `[S]` ascending, the first 0 (untouched). correct: bool `[S, n]`, in the order of `ids`.
    """

    shift: str
    ids: Sequence[str]
    severities: NDArray[np.float64]
    correct: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.correct.shape != (len(self.severities), len(self.ids)):
            raise InvalidInput(
                f"correct must be [severities, samples] = [{len(self.severities)}, {len(self.ids)}],"
                f" got {list(self.correct.shape)}"
            )
        if not len(self.severities) or self.severities[0] != 0 or (np.diff(self.severities) <= 0).any():
            raise InvalidInput(f"severities must start at 0 and ascend, got {self.severities.tolist()}")

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """`[S]` in [0, 1]."""
        accuracy: NDArray[np.float64] = self.correct.mean(axis=1)
        return accuracy

    def band(self) -> IntervalArrays:
        """Wilson's 95 % interval at each severity, each by itself."""
        return wilson_arrays(self.correct.sum(axis=1), np.full(len(self.severities), len(self.ids)))

    def simultaneous_band(self, rng: np.random.Generator, resamples: int = 2000) -> IntervalArrays:
        """A band that holds the whole curve at once with 95 % confidence.

        The largest studentised deviation along the curve is bootstrapped over samples, which keeps their pairing; its
        95 % quantile takes the place of 1.96 in Wilson's interval.
        """
        n, accuracy = len(self.ids), self.accuracy
        spread = np.sqrt(accuracy * (1 - accuracy) / n)
        moving = spread > 0
        quantile = norm.ppf(0.975)
        if moving.any():
            counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
            drawn = counts @ self.correct[moving].T.astype(np.float64) / n
            largest = (np.abs(drawn - accuracy[moving]) / spread[moving]).max(axis=1)
            quantile = max(quantile, float(np.quantile(largest, 0.95)))
        level = float(2 * norm.cdf(quantile) - 1)
        return wilson_arrays(self.correct.sum(axis=1), np.full(len(self.severities), n), level)

    def area(self, rng: np.random.Generator) -> Estimate:
        """Mean accuracy over the severity axis, in [0, 1]: the area under the curve by trapezoids, divided by its
        length. The interval is a BCa bootstrap over samples."""
        span = self.severities[-1] - self.severities[0]
        if span == 0:
            by_sample = self.correct[0].astype(np.float64)
        else:
            by_sample = np.trapezoid(self.correct.astype(np.float64), self.severities, axis=0) / span
        return mean_estimate(by_sample, rng)

    def drop(self, index: int) -> Interval:
        """95 % interval of the accuracy lost between severity 0 and `severities[index]`, from paired samples."""
        return paired_difference(self.correct[0], self.correct[index])

    def severity_of_drop(self, drop: float) -> Crossing:
        """Where accuracy has first fallen by `drop` (0 to 1), interpolated linearly between severities.

        The interval holds every severity at which a paired test does not tell the accumulated drop from `drop`.
        """
        if not 0 < drop <= 1:
            raise InvalidInput(f"drop must be in (0, 1], got {drop}")
        lost = self.accuracy[0] - self.accuracy
        bounds = [Interval(0.0, 0.0), *(self.drop(index) for index in range(1, len(self.severities)))]
        return Crossing(
            self._first_at(lost, drop),
            self._first_at(np.array([bound.high for bound in bounds]), drop),
            self._first_at(np.array([bound.low for bound in bounds]), drop),
        )

    def critical_severity(self) -> NDArray[np.float64]:
        """`[n]`: the smallest severity at which each sample is wrong, 0 if already untouched, inf if never."""
        wrong = ~self.correct
        return np.where(wrong.any(axis=0), self.severities[wrong.argmax(axis=0)], math.inf)

    def _first_at(self, values: NDArray[np.float64], level: float) -> float:
        reached = np.flatnonzero(values >= level)
        if not len(reached):
            return math.inf
        after = int(reached[0])
        if after == 0:
            return 0.0
        before = values[after - 1]
        share = (level - before) / (values[after] - before)
        return float(self.severities[after - 1] + share * (self.severities[after] - self.severities[after - 1]))


def on_common_samples(curves: Sequence[ShiftCurve]) -> list[ShiftCurve]:
    """The curves cut down to the samples that all of them have, in the first one's order; empty if none is shared."""
    if not curves:
        return []
    common = set(curves[0].ids).intersection(*(curve.ids for curve in curves[1:]))
    ids = [sample_id for sample_id in curves[0].ids if sample_id in common]
    if not ids:
        return []
    places = [{sample_id: i for i, sample_id in enumerate(curve.ids)} for curve in curves]
    return [
        replace(curve, ids=ids, correct=curve.correct[:, [place[i] for i in ids]])
        for curve, place in zip(curves, places, strict=True)
    ]


def mean_estimate(values: NDArray[np.float64], rng: np.random.Generator) -> Estimate:
    """Mean of one value a sample with a BCa bootstrap interval."""
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, len(values))
    low, high = bootstrap_bca(values, _mean, rng)
    return Estimate(float(values.mean()), low, high, len(values))


def curves_of(table: pa.Table) -> list[ShiftCurve]:
    """One curve a shift from rows `id`, `shift`, `severity`, `correct`, in the order in which the shifts appear.

    The rows of shift "clean" give severity 0 of every curve. A curve keeps the samples that have all its severities:
    a budget may have ended the run, or a shift could not be made of an image.
    """
    if not table.num_rows:
        return []
    ids, sample = _codes(table.column("id"))
    shifts, shift = _codes(table.column("shift"))
    if CLEAN not in shifts:
        return []
    severity = table.column("severity").to_numpy()
    correct = table.column("correct").to_numpy(zero_copy_only=False).astype(bool)

    state = np.full(len(ids), -1, dtype=np.int8)
    untouched = shift == shifts.index(CLEAN)
    state[sample[untouched]] = correct[untouched]

    curves = []
    for code, name in enumerate(shifts):
        if name == CLEAN:
            continue
        mine = shift == code
        severities = np.unique(severity[mine])
        grid = np.full((len(severities) + 1, len(ids)), -1, dtype=np.int8)
        grid[0] = state
        grid[1 + np.searchsorted(severities, severity[mine]), sample[mine]] = correct[mine]
        complete = np.flatnonzero((grid >= 0).all(axis=0))
        curves.append(
            ShiftCurve(
                name, [ids[i] for i in complete], np.concatenate([[0.0], severities]), grid[:, complete].astype(bool)
            )
        )
    return curves


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.astype(float).mean())
