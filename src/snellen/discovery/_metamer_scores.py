"""How often observers were right, and how that changes towards the periphery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snellen.discovery._metamer_trials import CHANCE, Answer, Comparison, Task, Trial, check_answers, check_balance
from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom
from snellen.stats import Interval, bias_corrected_interval, wilson

Counts = NDArray[np.float64]
RESAMPLES = 1000
FEWEST_OBSERVERS = 5
NEWTON_STEPS = 25


@dataclass(frozen=True)
class AccuracyCell:
    """Right answers of all observers in one cell. interval: Wilson, 95 %, as if all answers were independent."""

    encoder: str
    task: Task
    comparison: Comparison
    eccentricity: float
    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> Interval:
        return wilson(self.right, self.n)

    @property
    def reached_chance(self) -> bool:
        """Whether chance lies in the interval: with few answers it always does."""
        low, high = self.interval
        return low <= CHANCE[self.task] <= high


@dataclass(frozen=True)
class Slope:
    """log_odds: change of the log-odds of a right answer per degree of eccentricity. interval: 95 %, bootstrap over
    observers; None with fewer than 5 of them, where it would be too narrow."""

    encoder: str
    task: Task
    comparison: Comparison
    log_odds: float
    interval: Interval | None
    observers: int


@dataclass(frozen=True)
class MetamerScores:
    cells: tuple[AccuracyCell, ...]
    slopes: tuple[Slope, ...]


def score(trials: Sequence[Trial], answers: Sequence[Answer], seed: int = 0) -> MetamerScores:
    """Accuracy of every encoder, task, comparison and eccentricity, and slopes where there are two eccentricities.

    Raises InvalidInput for an unbalanced table, unknown trials, and answers that are there twice.
    """
    check_balance(trials)
    check_answers(answers, trials)
    if not answers:
        raise InvalidInput("answers must hold at least one, got none")
    table = {trial.trial_id: trial for trial in trials}
    observers = sorted({answer.observer for answer in answers})
    cells: list[AccuracyCell] = []
    slopes = []
    groups: dict[tuple[str, Task, Comparison], list[tuple[int, float, bool]]] = {}
    for answer in answers:
        trial = table[answer.trial_id]
        given = (observers.index(answer.observer), trial.eccentricity, answer.response == trial.answer)
        groups.setdefault((trial.encoder, trial.task, trial.comparison), []).append(given)
    for key in sorted(groups):
        who, degrees, right = (np.array(column) for column in zip(*groups[key], strict=True))
        levels, place = np.unique(degrees, return_inverse=True)
        counts = np.zeros((2, len(observers), len(levels)))
        np.add.at(counts, (right.astype(int), who, place), 1)
        correct, total = counts[1].sum(axis=0), counts.sum(axis=(0, 1))
        cells += [
            AccuracyCell(*key, float(level), int(r), int(n)) for level, r, n in zip(levels, correct, total, strict=True)
        ]
        if len(levels) > 1:
            took_part = counts[:, counts.sum(axis=(0, 2)) > 0]
            slopes.append(_slope(key, levels, took_part, SampleRandom(seed, "metamers").numpy(*key)))
    return MetamerScores(tuple(cells), tuple(slopes))


def _slope(key: tuple[str, Task, Comparison], levels: Counts, counts: Counts, rng: np.random.Generator) -> Slope:
    """counts: wrong and right answers `[2, observers, levels]`."""
    observers = counts.shape[1]
    point = float(logistic_slope(levels, counts.sum(axis=1)[:, None])[0])
    if observers < FEWEST_OBSERVERS:
        return Slope(*key, point, None, observers)
    weights = rng.multinomial(observers, np.full(observers, 1 / observers), size=RESAMPLES).astype(float)
    drawn = logistic_slope(levels, np.einsum("ro,aol->arl", weights, counts))
    return Slope(*key, point, bias_corrected_interval(point, drawn), observers)


def logistic_slope(levels: Counts, counts: Counts) -> Counts:
    """Slopes `[R]` of R logistic regressions on levels `[L]`. counts: wrong and right answers `[2, R, L]`.

    Half an answer is added to each count, so that a level without mistakes has finite log-odds (Haldane, 1956).
    """
    wrong, right = counts + 0.5
    total = wrong + right
    centre, scale = levels.mean(), levels.std()
    x = (levels - centre) / scale
    design = np.stack([np.ones_like(x), x], axis=1)
    beta = np.zeros((counts.shape[1], 2))
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(beta @ design.T)))
        slope = (right - total * p) @ design
        bend = np.einsum("rl,li,lj->rij", total * p * (1 - p), design, design)
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        beta = beta + np.clip(step, -2, 2)
    return np.asarray(beta[:, 1] / scale)
