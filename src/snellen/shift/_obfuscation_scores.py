"""Scores of the obfuscation benchmark from right and wrong answers (Stimberg et al., 2023).

A filter is as good as the disguise that gets past it, so besides the mean over obfuscations there is the worst case:
the share of images recognised under every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._obfuscate import HELD_OUT, TRAINING
from snellen.stats import wilson_arrays

TOP = (1, 3, 5, 10)
ALL = (*TRAINING, *HELD_OUT)


class Ranking(NamedTuple):
    """One obfuscation's answers. ids: I samples. classes: int `[I, K]`, the likeliest class first."""

    ids: Sequence[str]
    classes: NDArray[np.int64]


class Score(NamedTuple):
    """Shares in [0, 1] with 95 % intervals, float64 `[N]`, one a top-n."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class ObfuscationScores:
    """n: images. top: the N list lengths. obfuscations: accuracy under each. mean_*: averages over the obfuscations
    that a defender may know (training), that nobody trains on (hold_out), and all. worst_*: right under every one."""

    n: int
    top: tuple[int, ...]
    obfuscations: Mapping[str, Score]
    mean_training: Score
    mean_hold_out: Score
    mean_all: Score
    worst_training: Score
    worst_hold_out: Score
    worst_all: Score


def obfuscation_scores(
    correct: ArrayLike,
    *,
    names: Sequence[str] = ALL,
    top: Sequence[int] = TOP,
    labels: Sequence[int] | None = None,
) -> ObfuscationScores:
    """All scores of the benchmark.

    correct: bool `[O, I, N]`, whether image i's label is in the first top[n] ids under obfuscation names[o]; the clean
    images are no obfuscation. labels: one an image weights each by 1 / count(label), so classes count alike; None
    weights images alike.

    Intervals are Wilson's over images. With weights they use Kish's effective sample size; for means over obfuscations
    they are too wide, because an image's mean varies less than one right-or-wrong answer. Raises InvalidInput.
    """
    right = np.asarray(correct)
    if right.dtype != bool or right.shape != (len(names), *right.shape[1:2], len(top)) or right.size == 0:
        raise InvalidInput(
            f"correct must be bool [{len(names)} obfuscations, images, {len(top)} list lengths] with at least one"
            f" image, got {right.dtype} {list(right.shape)}"
        )
    unknown = [name for name in names if name not in ALL]
    if unknown or len(set(names)) != len(names):
        raise InvalidInput(f"names must be different ones of the {len(ALL)} obfuscations, got {unknown or list(names)}")
    known, held_out = ([i for i, name in enumerate(names) if name in group] for group in (TRAINING, HELD_OUT))
    if not known or not held_out:
        raise InvalidInput(f"names must hold training and held-out obfuscations, got {list(names)}")
    weights = _weights(labels, right.shape[1])

    def mean(rows: list[int]) -> Score:
        return _score(right[rows].mean(axis=0), weights)

    def worst(rows: list[int]) -> Score:
        return _score(np.asarray(right[rows].all(axis=0)), weights)

    every = [*known, *held_out]
    return ObfuscationScores(
        n=right.shape[1],
        top=tuple(top),
        obfuscations={name: _score(right[i], weights) for i, name in enumerate(names)},
        mean_training=mean(known),
        mean_hold_out=mean(held_out),
        mean_all=mean(every),
        worst_training=worst(known),
        worst_hold_out=worst(held_out),
        worst_all=worst(every),
    )


def _weights(labels: Sequence[int] | None, images: int) -> NDArray[np.float64]:
    """Weights `[I]`, of any sum."""
    if labels is None:
        return np.ones(images)
    if len(labels) != images:
        raise InvalidInput(f"labels must be one an image: {images}, got {len(labels)}")
    _, place, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[place])


def _score(by_image: NDArray[np.generic], weights: NDArray[np.float64]) -> Score:
    """by_image: `[I, N]` in [0, 1]."""
    total = float(weights.sum())
    value = np.clip(weights @ by_image.astype(np.float64) / total, 0.0, 1.0)
    effective = max(round(total**2 / float(np.square(weights).sum())), 1)
    # Counts must be whole: each bound takes the one that makes the interval wider.
    fewer = np.floor(value * effective + 1e-6).astype(np.int64)
    more = np.ceil(value * effective - 1e-6).astype(np.int64)
    return Score(value, wilson_arrays(fewer, effective).low, wilson_arrays(more, effective).high)


def top_correct(
    rankings: Mapping[str, Ranking],
    ids: Sequence[str],
    labels: Sequence[int],
    *,
    names: Sequence[str] = ALL,
    top: Sequence[int] = TOP,
) -> NDArray[np.bool_]:
    """Whether the label is in the first n ids, bool `[O, I, N]`, from ranked lists of every obfuscation.

    rankings: by name of the obfuscation; all of `names` must be there, with the samples `ids` in that order, and with
    lists as long as the longest of `top`. labels: one an id. Raises InvalidInput.
    """
    if not len(labels) or len(labels) != len(ids):
        raise InvalidInput(f"labels must be one for each of the {len(ids)} ids and at least one, got {len(labels)}")
    missing = [name for name in names if name not in rankings]
    if missing:
        raise InvalidInput(f"rankings must hold every obfuscation, these are missing: {', '.join(missing)}")
    if not top or min(top) < 1:
        raise InvalidInput(f"top must be list lengths of 1 or more, got {list(top)}")
    truth = np.asarray(labels)[:, None]
    result = np.empty((len(names), len(ids), len(top)), dtype=bool)
    for o, name in enumerate(names):
        ranking = rankings[name]
        classes = np.asarray(ranking.classes)
        if list(ranking.ids) != list(ids):
            raise InvalidInput(f"rankings of {name} must be of the same ids in the same order as the labels")
        if classes.ndim != 2 or len(classes) != len(ids) or classes.shape[1] < max(top):
            raise InvalidInput(
                f"rankings of {name} must be [{len(ids)}, {max(top)} or more], got {list(classes.shape)}"
            )
        found = (classes == truth).cumsum(axis=1) > 0
        result[o] = found[:, [n - 1 for n in top]]
    return result


def ranked_classes(scores: Tensor, keep: int = 10, classes: int | None = None) -> Tensor:
    """The `keep` likeliest classes, best first, int64 `[B, keep]`, of scores `[B, K]`; ties go to the lower class.

    classes: only the last so many outputs are classes, for networks with 1001 outputs whose first is a background.
    """
    if scores.ndim != 2 or not 1 <= keep <= (classes or scores.shape[1]) <= scores.shape[1]:
        raise InvalidInput(f"scores must be [B, K] with K >= classes >= keep = {keep}, got {list(scores.shape)}")
    kept = scores[:, scores.shape[1] - (classes or scores.shape[1]) :]
    return kept.argsort(dim=1, descending=True, stable=True)[:, :keep]


def grouped_probabilities(probabilities: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Mean probability inside each coarse group of classes, `[B, G]` of `[B, K]`, as for shape-bias categories."""
    if probabilities.ndim != 2 or not groups or not all(groups):
        raise InvalidInput(f"groups must hold one class each or more, got {[len(group) for group in groups]}")
    highest = max(max(group) for group in groups)
    if min(min(group) for group in groups) < 0 or highest >= probabilities.shape[1]:
        raise InvalidInput(f"groups must hold classes in 0..{probabilities.shape[1] - 1}, got {highest}")
    return torch.stack([probabilities[:, list(group)].mean(dim=1) for group in groups], dim=1)
