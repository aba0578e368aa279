"""Between which two classes does the model err as surely as it is right? There the labels may be wrong.

A model's own mistakes lie near its boundaries: it is less sure of them than of right answers. Where a label is wrong
the answer is right, and as sure as any. So of the images answered t, those labelled s are compared by their margin (the
largest logit minus the second) with those labelled t, by the area under the ROC curve: 0.5 where the mistakes are as
sure, 1 where every mistake is less sure. No calibration is needed. Our own criterion; it cannot tell a wrong label from
a wrong rule that the model is sure of, and the statement says so: of 24 small networks trained on 150 digits 8 were as
sure that a way of writing 1 is a 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from snellen.discovery._confident_learning import Floats, Labels
from snellen.stats import benjamini_hochberg

FEWEST, FEWEST_RIGHT = 5, 10
"""Mistakes of a pair, and right answers to set against them."""
ORDINARY = 0.75
"""Area that a model's own mistakes reach at least; of 101 pairs of 61 networks of the fault bench with true labels only
those with a planted shortcut or exchange of classes had an upper bound below it."""
TELLING = 0.8
"""Area of all other mistakes below which the margin tells nothing of being right."""
MOST_TIES = 0.2
LEVEL = 0.05
MOST_EVIDENCE = 12


@dataclass(frozen=True)
class SureMistakes:
    """Images labelled `label` (n of them) of which `flagged` are answered `sure_of`.

    area: under the ROC curve of right answers against these by the margin. value: share of the label's images that are
    more than mistakes of the area ORDINARY would leave; low, high: its 95 % interval by the delta method.
    """

    label: int
    sure_of: int
    n: int
    flagged: int
    area: float
    value: float
    low: float
    high: float
    p_value: float
    evidence: tuple[str, ...]


def sure_mistakes(ids: Sequence[str], labels: Labels, logits: Floats) -> list[SureMistakes]:
    """Pairs whose area is significantly below ORDINARY after adjusting for all pairs compared, the largest first.

    labels: int64 `[n]`; logits: `[n, K]`. Nothing is said where margins are tied, as with answers without scores.
    """
    answers, margins = logits.argmax(axis=1), _margins(logits)
    wrong = answers != labels
    surer = _shares_above(margins[~wrong], margins)
    compared = []
    for answer in np.unique(answers).tolist():
        right = margins[~wrong & (answers == answer)]
        counts = np.bincount(labels[wrong & (answers == answer)], minlength=logits.shape[1])
        if len(right) < FEWEST_RIGHT:
            continue
        for label in np.flatnonzero(counts >= FEWEST).tolist():
            here = np.flatnonzero((answers == answer) & (labels == label))
            rest = np.flatnonzero(wrong & ~((answers == answer) & (labels == label)))
            if len(rest) >= FEWEST and surer[rest].mean() < TELLING:
                continue
            compared.append((label, answer, here, right))
    tested = [
        (label, answer, here, *_area(right, margins[here]))
        for label, answer, here, right in compared
        if np.isin(margins[here], right).mean() <= MOST_TIES
    ]
    if not tested:
        return []
    p_values = benjamini_hochberg([norm.cdf((area - ORDINARY) / spread) for *_, area, spread in tested])
    found = []
    for (label, answer, here, area, spread), p_value in zip(tested, p_values.tolist(), strict=True):
        if p_value <= LEVEL:
            n = int((labels == label).sum())
            share, beyond = len(here) / n, float(np.clip((ORDINARY - area) / (ORDINARY - 0.5), 0, 1))
            error = np.hypot(beyond * np.sqrt(share * (1 - share) / n), share * spread / (ORDINARY - 0.5))
            low, high = np.clip(share * beyond + norm.ppf((0.025, 0.975)) * error, 0, 1).tolist()
            surest = here[np.argsort(-margins[here], kind="stable")][:MOST_EVIDENCE]
            found.append(
                SureMistakes(
                    label,
                    answer,
                    n,
                    len(here),
                    area,
                    share * beyond,
                    low,
                    high,
                    p_value,
                    tuple(ids[row] for row in surest.tolist()),
                )
            )
    return sorted(found, key=lambda pair: (-pair.value, pair.label, pair.sure_of))


def _margins(logits: Floats) -> Floats:
    two = np.partition(logits, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def _shares_above(values: Floats, thresholds: Floats) -> Floats:
    """Share of `values` above each threshold, ties half."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, thresholds, "left") + np.searchsorted(ordered, thresholds, "right")
    return np.asarray(1 - below / (2 * max(len(values), 1)))


def _area(right: Floats, mistaken: Floats) -> tuple[float, float]:
    """Area and its standard error (DeLong et al., 1988), at least that of mistakes spread evenly over right answers."""
    by_mistake, by_right = _shares_above(right, mistaken), 1 - _shares_above(mistaken, right)
    variance = by_mistake.var(ddof=1) / len(mistaken) + by_right.var(ddof=1) / len(right)
    return float(by_mistake.mean()), float(np.sqrt(max(variance, 1 / (12 * len(mistaken)))))
