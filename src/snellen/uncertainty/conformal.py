"""Among which classes is the truth, and when should the model rather decline to answer?

Two thresholds (Dual-Threshold Conformal Prediction, 2025): the first makes a set of classes that holds the true one
with a guaranteed probability (LAC, APS or RAPS scores), the second turns answers away, at the doubt that best
separates wrong answers from right ones (Youden, 1950). The paper's doubt reads the true class and cannot be deployed;
here doubt is label-free and the event is a wrong answer. The guarantee holds over all images like those examined, not
over the answered ones, for which a threshold of their own is fitted; under a shift there is no guarantee at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register, rows
from snellen.scores import read_scores
from snellen.stats import separate
from snellen.uncertainty._conformal import (
    AbstentionScore,
    Floats,
    Method,
    abstention_score,
    aps_scores,
    conformal_rank,
    conformal_threshold,
    entropy_penalty,
    lac_scores,
    prediction_sets,
    raps_scores,
    true_class,
)
from snellen.uncertainty._conformal_report import (
    abstention_finding,
    abstention_table,
    coverage_finding,
    coverage_table,
    risk_coverage,
    set_size_bars,
    summarise,
)


class Folds(NamedTuple):
    """Rows that fit the abstention, rows that fit the sets, rows that judge both."""

    tune: NDArray[np.int64]
    calibrate: NDArray[np.int64]
    test: NDArray[np.int64]


def stratified_folds(labels: NDArray[np.int64], rng: np.random.Generator) -> Folds:
    """About 20 %, 30 % and 50 % of the rows, each with about the same share of every class."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    turn = np.arange(len(labels)) % 10
    return Folds(by_class[np.isin(turn, (0, 6))], by_class[np.isin(turn, (2, 4, 8))], by_class[turn % 2 == 1])


@register
@dataclass(frozen=True)
class Conformal(ProbeBase):
    """Prediction sets and abstention, fitted on one half of the images and judged on the other.

    Effect: how far the coverage falls below 1 - alpha when it does significantly, else 0; `ci` is the coverage's.
    """

    name: ClassVar[str] = "uncertainty/conformal"
    paper: ClassVar[str] = "Romano et al., 2020; Angelopoulos et al., 2021; Dual-Threshold Conformal, 2025"
    card: ClassVar[str | None] = "dual-threshold-conformal"
    access: ClassVar[Access] = Access.SCORES
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    methods: tuple[Method, ...] = ("lac", "aps", "raps")
    """Scores of the sets."""
    alpha: float = 0.1
    """Share of sets that may miss the true class, in (0, 1); the paper's 0.1, later 0.08."""
    k_reg: int = 5
    """RAPS: ranks above it are penalised, at least 1; the paper's 5."""
    penalty: float = 0.01
    """RAPS: added to a penalised class's probability, at least 0; the paper's 0.01 or 0.02."""
    shrink_penalty: bool = False
    """RAPS: a smaller penalty where the model is unsure, as the paper's later version (but in calibration too)."""
    allow_empty: bool = False
    """Sets without any class; False adds the likeliest class."""
    abstain_by: AbstentionScore = "confidence"
    """The doubt: confidence, margin, entropy, surprise or set size (no guarantee then among answered images)."""

    def __post_init__(self) -> None:
        known = get_args(Method)
        if not self.methods or any(method not in known for method in self.methods):
            raise InvalidInput(f"methods must be some of {', '.join(known)}, got {self.methods}")
        if not 0 < self.alpha < 1:
            raise InvalidInput(f"alpha must be in (0, 1), got {self.alpha}")
        if self.k_reg < 1 or self.penalty < 0:
            raise InvalidInput(f"k_reg must be at least 1 and penalty at least 0, got {self.k_reg} and {self.penalty}")
        if self.abstain_by not in get_args(AbstentionScore):
            raise InvalidInput(
                f"abstain_by must be one of {', '.join(get_args(AbstentionScore))}, got {self.abstain_by!r}"
            )

    def scores(self, method: Method, probabilities: Floats, u: Floats) -> Floats:
        """Scores `[n, K]` of every class under these settings."""
        if method == "lac":
            return lac_scores(probabilities)
        if method == "aps":
            return aps_scores(probabilities, u)
        shrunk = entropy_penalty(probabilities, self.penalty) if self.shrink_penalty else self.penalty
        # A penalty beyond the last rank is none; raps_scores would warn on every run of a model with few classes.
        return raps_scores(probabilities, u, self.k_reg, shrunk if self.k_reg < probabilities.shape[1] else 0.0)

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        scores = read_scores(tables["predictions"], self.name)
        if len(scores) < 10:  # fewer do not fill the folds
            return pa.Table.from_pylist([])
        rng = context.random(self.name)
        folds = stratified_folds(scores.labels, rng)
        u = rng.random(len(scores))
        probabilities = scores.probabilities
        right = probabilities.argmax(axis=1) == scores.labels
        ids = [scores.ids[row] for row in folds.test.tolist()]
        parts = []
        for method in self.methods:
            table = self.scores(method, probabilities, u)
            own = true_class(table, scores.labels).astype(float)

            # First threshold: the sets.
            threshold = conformal_threshold(own[folds.calibrate], self.alpha)
            sets = prediction_sets(table, threshold, self.allow_empty)

            # Second threshold: abstention, fitted where the first was not.
            doubt = abstention_score(self.abstain_by, probabilities, sets)
            second = separate(doubt[folds.tune], ~right[folds.tune])
            abstain = doubt > second.threshold

            # Sets for answered images only: among these calibration and test images are exchangeable again.
            answered = folds.calibrate[~abstain[folds.calibrate]]
            threshold_answered = conformal_threshold(own[answered], self.alpha)
            sets_answered = prediction_sets(table, threshold_answered, self.allow_empty)

            m = len(ids)
            test = folds.test
            parts.append(
                rows(
                    ids,
                    method=[method] * m,
                    set_size=sets[test].sum(axis=1),
                    covered=true_class(sets, scores.labels)[test].astype(bool),
                    abstain=abstain[test],
                    correct=right[test],
                    doubt=doubt[test],
                    covered_if_answered=true_class(sets_answered, scores.labels)[test].astype(bool),
                    threshold=np.full(m, threshold),
                    threshold_if_answered=np.full(m, threshold_answered),
                    abstention_threshold=np.full(m, second.threshold),
                    abstention_auc=np.full(m, second.auc),
                    calibration_n=np.full(m, len(folds.calibrate)),
                )
            )
        return pa.concat_tables(parts)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        needed = 10 * math.ceil(1 / self.alpha)  # test images for ten expected misses, and a finite threshold
        summaries = [summarise(table, method) for method in self.methods] if table.num_rows else []
        if not summaries or conformal_rank(summaries[0].calibration_n, self.alpha) > summaries[0].calibration_n:
            n = 2 * summaries[0].n if summaries else context.samples.num_rows
            return [self._too_few(n, needed)]
        findings = [coverage_finding(summary, self.alpha) for summary in summaries]
        of = summaries if self.abstain_by == "set size" else summaries[:1]  # else the same for all methods
        return findings + [abstention_finding(summary, self.abstain_by) for summary in of]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if not table.num_rows:
            return []
        summaries = [summarise(table, method) for method in self.methods]
        of: Sequence[Method] = self.methods if self.abstain_by == "set size" else self.methods[:1]
        return [
            coverage_table(summaries, self.alpha),
            set_size_bars(table, self.methods),
            risk_coverage(table, of, self.abstain_by),
            abstention_table([s for s in summaries if s.method in of]),
        ]

    def _too_few(self, n: int, needed: int) -> Finding:
        return Finding(
            kind="threshold",
            title=f"Not enough data for thresholds at alpha = {self.alpha:g}: n = {n}, needs about {needed}.",
            metric="coverage",
            value=None,
            baseline=1 - self.alpha,
            effect=0.0,
            n=n,
            subject={"alpha": self.alpha},
            enough_data=False,
        )
