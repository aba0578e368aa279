"""A model of somebody who sees by pooled statistics and noise: for rehearsals, NO SUBSTITUTE FOR PEOPLE.

Misleads about the far periphery: the noise of a statistic is fixed, and larger windows are fewer, so that accuracy
falls towards chance for every pair of pictures, also for those that people tell apart there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.discovery._metamer_trials import CHANCE, PLACES, Answer, Task, Trial
from snellen.discovery._window_statistics import window_statistics
from snellen.errors import InvalidInput
from snellen.randomness import derive_seed

Numbers = NDArray[np.float64]
LABEL: Literal["simulated"] = "simulated"
"""Observers of this kind are called "simulated-0", "simulated-1", ..., so that no table can pass them off as people."""
CALIBRATION_DRAWS = 400


def simulate_answers(
    trials: Sequence[Trial],
    images: Mapping[str, Tensor],
    noise: float,
    pixels_per_degree: float,
    observers: int = 1,
    seed: int = 0,
) -> list[Answer]:
    """Answers of simulated observers to every trial of a table; no substitute for people.

    images: stimulus name -> `[C, H, W]`, all of one size. A picture at eccentricity e is known by its statistics in
    windows of 0.5 e degrees, each with Gaussian noise of standard deviation `noise`, above 0 (see `calibrate_noise`).
    In oddity the picture farthest from the other two is the odd one, in matching the nearer of two is the match. An
    answer depends on (seed, observer, trial) alone.
    """
    if not noise > 0 or not pixels_per_degree > 0 or observers < 1:
        raise InvalidInput(
            "noise and pixels_per_degree must be above 0 and observers at least 1,"
            f" got {noise}, {pixels_per_degree} and {observers}"
        )
    deltas, dimensions = differences(trials, images, pixels_per_degree)
    answers = []
    for trial, delta, size in zip(trials, deltas.tolist(), dimensions.tolist(), strict=True):
        for observer in range(observers):
            name = f"{LABEL}-{observer}"
            rng = np.random.default_rng(derive_seed(seed, name, trial.trial_id))
            role = int(chosen_roles(np.array([delta]), size, noise, 1, trial.task, rng)[0, 0])
            answers.append(Answer(trial.trial_id, name, _place_of(role, trial, rng)))
    return answers


def calibrate_noise(
    trials: Sequence[Trial],
    images: Mapping[str, Tensor],
    pixels_per_degree: float,
    accuracy: float = 0.9,
    seed: int = 0,
) -> float:
    """The noise at which the observer is right on this share of the trials, which should be one reference cell.

    The card's choice: originals against metamers of the standard encoder at the smallest eccentricity. Raises
    InvalidInput for images that do not differ, or an accuracy that is not between chance and 1.
    """
    chance = max((CHANCE[trial.task] for trial in trials), default=1.0)
    if not chance < accuracy < 1:
        raise InvalidInput(f"accuracy must be above chance ({chance:.2f}) and below 1, got {accuracy}")
    deltas, dimensions = differences(trials, images, pixels_per_degree)
    if float(deltas.max()) == 0:
        raise InvalidInput("the images of the trials must differ, got none that do")

    def reached(noise: float) -> float:
        right = []
        for trial, delta, size in zip(trials, deltas, dimensions.tolist(), strict=True):
            rng = np.random.default_rng(derive_seed(seed, "calibration", trial.trial_id))
            roles = chosen_roles(delta[None], size, noise, CALIBRATION_DRAWS, trial.task, rng)
            right.append(float((roles == _right_role(trial.task)).mean()))
        return float(np.mean(right))

    low, high = 1e-6 * float(deltas.max()), 10 * float(deltas.max())  # noise
    for _ in range(30):  # the same draws at every noise, so that accuracy falls in it and bisection is sound
        middle = (low * high) ** 0.5
        low, high = (middle, high) if reached(middle) > accuracy else (low, middle)
    return float((low * high) ** 0.5)


def differences(
    trials: Sequence[Trial], images: Mapping[str, Tensor], pixels_per_degree: float
) -> tuple[Numbers, NDArray[np.int64]]:
    """Distance `[n]` of the statistics of the two different pictures of each trial, and their number `[n]`."""
    deltas, dimensions = np.zeros(len(trials)), np.zeros(len(trials), dtype=np.int64)
    for eccentricity in sorted({trial.eccentricity for trial in trials}):
        rows = [row for row, trial in enumerate(trials) if trial.eccentricity == eccentricity]
        shown = [sorted({trials[row].first, trials[row].second, trials[row].third}) for row in rows]
        names = sorted({name for pair in shown for name in pair})
        missing = [name for name in names if name not in images]
        if missing or any(len(pair) != 2 for pair in shown):
            raise InvalidInput(f"every trial must show two different stimuli that images hold, missing: {missing[:3]}")
        with torch.no_grad():
            found = window_statistics(
                torch.stack([images[name] for name in names]), max(1.0, 0.5 * eccentricity * pixels_per_degree)
            )
        statistics = dict(zip(names, found.double(), strict=True))
        deltas[rows] = [float((statistics[a] - statistics[b]).norm()) for a, b in shown]
        dimensions[rows] = found.shape[1]
    return deltas, dimensions


def chosen_roles(
    deltas: Numbers, dimensions: int, noise: float, draws: int, task: Task, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Which picture is named, int64 `[n, draws]`: 0 and 1 show the same, 2 another one at distance `deltas` `[n]`.

    In oddity the odd one is named (2 is right). In matching 0 is at the centre and its match is named (1 is right).
    """
    near, first, second = noisy_distances(deltas, dimensions, noise, draws, rng)
    if task == "matching":
        return np.where(near < first, 1, 2)
    # The picture with the largest distance to the other two is the one that the shortest distance leaves out.
    return np.asarray(np.stack([second, first, near]).argmin(axis=0))


def noisy_distances(
    deltas: Numbers, dimensions: int, noise: float, draws: int, rng: np.random.Generator
) -> tuple[Numbers, Numbers, Numbers]:
    """Squared distances 0-1, 0-2, 1-2 `[n, draws]` of statistics with noise, where 2 differs by `deltas`.

    Only along the difference is there more than noise. In the other dimensions the Gram matrix of the two contrasts
    (0 - 1) / sqrt 2 and (0 + 1 - 2 * 2) / sqrt 6 is Wishart, drawn by Bartlett's decomposition: exact, and as cheap for
    thousands of statistics as for three.
    """
    if dimensions < 3:
        raise InvalidInput(f"dimensions must be at least 3, got {dimensions}")
    shape = (len(deltas), draws)
    pp = rng.chisquare(dimensions - 1, shape)
    cross = rng.normal(size=shape)
    qq = cross**2 + rng.chisquare(dimensions - 2, shape)
    pq = np.sqrt(pp) * cross
    along = rng.normal(size=(3, *shape))
    along[2] += deltas[:, None] / noise

    near = 2 * pp + (along[0] - along[1]) ** 2
    first = (3 * qq + pp) / 2 + np.sqrt(3) * pq + (along[0] - along[2]) ** 2
    second = (3 * qq + pp) / 2 - np.sqrt(3) * pq + (along[1] - along[2]) ** 2
    return near, first, second


def _right_role(task: Task) -> int:
    return 2 if task == "oddity" else 1


def _place_of(role: int, trial: Trial, rng: np.random.Generator) -> int:
    """Where a role stands in the trial."""
    if role == _right_role(trial.task):
        return trial.answer
    others = [place for place in range(1, PLACES[trial.task] + 1) if place != trial.answer]
    return int(rng.choice(others))
