"""Confident learning (Northcutt et al., 2021): which labels contradict what the model is sure of, and how many.

p: float64 `[n, K]`, out-of-sample probabilities; labels: int64 `[n]`, the given labels. C: `[K, K]`, rows are given
and columns are true labels. Constants and the order of steps follow cleanlab, so that results equal its own; where
scores are equal the earlier image comes first, which cleanlab leaves to chance.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.errors import InvalidInput

Rule = Literal[
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
    "low_self_confidence", "low_normalized_margin",
]  # fmt: skip

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TIE = 1e-6
"""Probabilities this close are equal; what is equal goes in favour of the given label."""
LOWEST_THRESHOLD = 2e-6
UNREACHED = 2.0
"""The threshold of a class that no label names."""
KEPT = 1
"""So many images a class are never flagged."""


class NoiseMatrices(NamedTuple):
    """given_if_true: P(given | true) `[given, true]`; true_if_given: P(true | given) `[given, true]`. 0/0 counts 0."""

    given_if_true: Floats
    true_if_given: Floats


def check_inputs(labels: Labels, p: Floats) -> None:
    """Refuse what is no labelling with probabilities of at least 2 classes."""
    if p.ndim != 2 or p.shape[1] < 2:
        raise InvalidInput(f"probabilities must be [n, K] with K of at least 2, got {list(p.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != p.shape[:1]:
        raise InvalidInput(
            f"labels must be {len(p)} integers, one a row of probabilities, got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < p.shape[1]:
        raise InvalidInput(f"labels must be in [0, K = {p.shape[1]}), got {labels.min()} to {labels.max()}")
    if not (np.all(p >= 0) and np.allclose(p.sum(axis=1), 1, atol=1e-4)):
        raise InvalidInput("probabilities must not be negative and each row must sum to 1")


def class_thresholds(labels: Labels, p: Floats) -> Floats:
    """Mean probability `[K]` of a class over the images labelled so: what counts as sure for that class."""
    check_inputs(labels, p)
    counts = np.bincount(labels, minlength=p.shape[1])
    total = np.bincount(labels, weights=self_confidence(labels, p), minlength=p.shape[1])
    mean = np.maximum(total / np.maximum(counts, 1), LOWEST_THRESHOLD)
    return np.where(counts == 0, UNREACHED, mean)


def confident_classes(p: Floats, thresholds: Floats) -> Labels:
    """The class `[n]` each image surely shows, -1 for none; of several the most probable of all classes."""
    reached = p >= thresholds - TIE
    several = reached.sum(axis=1) > 1
    found = np.where(several, p.argmax(axis=1), reached.argmax(axis=1))
    return np.where(reached.any(axis=1), found, -1).astype(np.int64)


def count_joint(labels: Labels, confident: Labels, classes: int) -> Labels:
    """The confident joint C `[K, K]` before calibration; every class keeps at least one right label."""
    sure = confident >= 0
    joint = np.bincount(labels[sure] * classes + confident[sure], minlength=classes**2).reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    return joint.astype(np.int64)


def calibrate_joint(joint: Labels, labels: Labels) -> Labels:
    """C scaled so that each row sums to the images of that label, in whole numbers."""
    counts = np.bincount(labels, minlength=len(joint))
    scaled = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1) * counts[:, None]
    return round_rows(scaled)


def confident_joint(labels: Labels, p: Floats) -> Labels:
    """The calibrated confident joint C `[K, K]`; it sums to n, row s to the images labelled s."""
    confident = confident_classes(p, class_thresholds(labels, p))
    return calibrate_joint(count_joint(labels, confident, p.shape[1]), labels)


def round_rows(values: Floats) -> Labels:
    """Whole numbers with the row totals kept: rounded, then mended where the rounding was furthest off."""
    rounded = np.rint(values)
    short = np.rint(values.sum(axis=1)) - rounded.sum(axis=1)
    for row in np.flatnonzero(short):
        order = np.argsort((values - rounded)[row], kind="stable")
        step = np.sign(short[row])
        mended = (order[::-1] if step > 0 else order)[: int(abs(short[row]))]
        rounded[row, mended] += step
    return rounded.astype(np.int64)


def noise_matrices(joint: Labels) -> NoiseMatrices:
    """Which labels a true class was given, and which true class hides behind a label."""
    columns, rows = joint.sum(axis=0, keepdims=True), joint.sum(axis=1, keepdims=True)
    return NoiseMatrices(joint / np.maximum(columns, 1), joint / np.maximum(rows, 1))


def self_confidence(labels: Labels, p: Floats) -> Floats:
    """Probability `[n]` of the given label; low is suspicious."""
    return p[np.arange(len(labels)), labels]


def normalized_margin(labels: Labels, p: Floats) -> Floats:
    """(p of the label - the largest other p + 1) / 2, `[n]` in [0, 1]; low is suspicious."""
    others = p.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray((self_confidence(labels, p) - others.max(axis=1) + 1) / 2)


def agrees(labels: Labels, p: Floats) -> Bools:
    """Whether the model's answer `[n]` is the given label, ties in its favour."""
    return normalized_margin(labels, p) >= (1 - TIE) / 2


def find_label_issues(labels: Labels, p: Floats, rule: Rule = "prune_by_noise_rate") -> Bools:
    """Flags `[n]` of labels that are probably wrong, by one of the paper's (and cleanlab's) rules.

    prune_by_noise_rate: of each pair (given s, true y) the C[s, y] images of the largest p_y - p_s. prune_by_class:
    of each label the images of the smallest p_s, as many as C has off its diagonal. both: flagged by either one and
    the other. confident_learning: surely of another class. predicted_neq_given: the answer is another class.
    low_self_confidence, low_normalized_margin: the lowest scores, as many as confident_learning flags.
    Misleads on the data the model was trained with: it may have learnt the wrong labels by heart.
    """
    check_inputs(labels, p)
    if rule == "predicted_neq_given":
        return ~agrees(labels, p)
    confident = confident_classes(p, class_thresholds(labels, p))
    sure = (confident >= 0) & (confident != labels) & ~agrees(labels, p)
    if rule == "confident_learning":
        return np.asarray(sure)
    if rule in ("low_self_confidence", "low_normalized_margin"):
        score = self_confidence if rule == "low_self_confidence" else normalized_margin
        flags = np.zeros(len(labels), dtype=bool)
        flags[np.argsort(score(labels, p), kind="stable")[: sure.sum()]] = True
        return flags
    counts = _prunable(calibrate_joint(count_joint(labels, confident, p.shape[1]), labels))
    by_noise_rate, by_class = _pruned(labels, p, counts)
    chosen = {"prune_by_noise_rate": by_noise_rate, "prune_by_class": by_class, "both": by_noise_rate & by_class}
    return chosen[rule] & ~agrees(labels, p)


def _prunable(joint: Labels) -> Labels:
    """C with at least one image left in each class, taken evenly from the row's other pairs."""
    diagonal = np.maximum(joint.diagonal(), KEPT)
    others = np.maximum(np.count_nonzero(joint, axis=1) - 1, 1)
    counts = np.maximum(joint - ((diagonal - joint.diagonal()) / others)[:, None], 0)
    np.fill_diagonal(counts, diagonal)
    return np.asarray(counts, dtype=np.int64)


def _pruned(labels: Labels, p: Floats, counts: Labels) -> tuple[Bools, Bools]:
    by_noise_rate, by_class = np.zeros((2, len(labels)), dtype=bool)
    for given in range(len(counts)):
        here = np.flatnonzero(labels == given)
        if len(here) <= KEPT:
            continue
        for true in np.flatnonzero(counts[given]):
            if true != given:
                margin = p[here, true] - p[here, given]
                by_noise_rate[here[np.argsort(-margin, kind="stable")[: counts[given, true]]]] = True
        fewest = np.argsort(p[here, given], kind="stable")[: max(len(here) - counts[given, given], 0)]
        by_class[here[fewest]] = True
    return by_noise_rate, by_class
