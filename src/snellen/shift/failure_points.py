"""At which strength of a shift does each image first fail, and do models keep their order along the way?

Paper: CNS-Bench (2025). An image's failure point is the smallest severity at which it is wrong; images that never
fail within the severities tried are censored there. The distribution of failure points tells models apart that have
one average accuracy, and shows that the better model at low severity need not be the better one at high severity. The
probe reads the rows of `shift/corruptions`, so it costs no query; more severities there make its points finer.

When it misleads: an image may be right again after its failure point, so the share that has not failed yet is at most
the accuracy. A failure point is one of the severities tried, never one between. For generated images, whose class may
get lost on the way, `keep_in_class` drops trajectories first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import kendalltau

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Curve, CurvePoint, Exhibit
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register
from snellen.shift._catalogue import SHIFTS
from snellen.shift._curve import Estimate, ShiftCurve, curves_of, mean_estimate
from snellen.stats import binomial_test, wilson

__all__ = [
    "THRESHOLDS",
    "FailurePoints",
    "FailureShares",
    "RankSwap",
    "failure_shares",
    "keep_in_class",
    "mean_failure_point",
    "rank_agreement",
    "rank_swap",
]

THRESHOLDS: Mapping[str, float] = {
    "class_text": 28.739,
    "class_shift_text": 35.293,
    "clip_reference": 0.80586,
    "dino_reference": 0.78116,
}
"""CNS-Bench's thresholds: CLIP cosine x 100 to the class text and to class and shift, CLIP and DINO cosine to s = 0."""
RUNS = "shift/corruptions"


class FailureShares(NamedTuple):
    """Severities `[S]` from 0 on and the number of samples that first fail at each; `never` those that do not."""

    severities: NDArray[np.float64]
    counts: NDArray[np.int64]
    never: int

    @property
    def survival(self) -> NDArray[np.float64]:
        """`[S]`: share that has not failed up to and including each severity (Kaplan and Meier, 1958)."""
        n = int(self.counts.sum()) + self.never
        return 1 - np.cumsum(self.counts) / n


def failure_shares(curve: ShiftCurve) -> FailureShares:
    """How many samples first fail at each severity."""
    critical = curve.critical_severity()
    counts = np.array([(critical == severity).sum() for severity in curve.severities], dtype=np.int64)
    return FailureShares(curve.severities, counts, int(np.isinf(critical).sum()))


def mean_failure_point(curve: ShiftCurve, rng: np.random.Generator) -> Estimate:
    """Restricted mean failure point, with a BCa interval: samples that never fail count as the largest severity."""
    return mean_estimate(np.minimum(curve.critical_severity(), curve.severities[-1]), rng)


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b between the orders of the same models by two figures: 1 the same order, -1 reversed, NaN tied.

    first, second: one accuracy a model, two or more, in one order of models.
    """
    if len(first) != len(second) or len(first) < 2:
        raise InvalidInput(f"first and second must be two or more models' figures, got {len(first)} and {len(second)}")
    return float(kendalltau(first, second).statistic)


class RankSwap(NamedTuple):
    """Whether two models change places: accuracy of the first minus the second at a low and at a high severity.

    p_value: of the null that the order is the same at both; small only when both differences are sure.
    """

    low_difference: float
    high_difference: float
    p_value: float


def rank_swap(first: ShiftCurve, second: ShiftCurve, low: int, high: int) -> RankSwap:
    """Do two models change places between two severities of one shift (indices into the curves' severities)?

    Both curves must be on the same samples. A swap needs one model better at `low` and the other at `high`: the larger
    of the two one-sided sign-test p-values is that of their intersection, doubled because either order may be first.
    """
    if list(first.ids) != list(second.ids) or not np.array_equal(first.severities, second.severities):
        raise InvalidInput("first and second must be curves on the same samples and severities")
    p_values, differences = [], []
    for index in (low, high):
        a, b = first.correct[index], second.correct[index]
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        differences.append((only_a - only_b) / len(a))
        better = max(only_a, only_b)
        p_values.append(binomial_test(better, only_a + only_b, 0.5, "greater") if only_a + only_b else 1.0)
    swapped = differences[0] * differences[1] < 0
    return RankSwap(differences[0], differences[1], min(1.0, 2 * max(p_values)) if swapped else 1.0)


def keep_in_class(
    similarities: Mapping[str, NDArray[np.float64]],
    thresholds: Mapping[str, float] = THRESHOLDS,
    needed: int = 2,
) -> NDArray[np.bool_]:
    """Which generated trajectories still show their class, bool `[N]`: at every scale `needed` scores must pass.

    similarities: score name -> `[N, S]`, the names of `thresholds`. The published filter takes 2 of its 4 scores.
    """
    if set(similarities) != set(thresholds):
        raise InvalidInput(f"similarities must be {', '.join(thresholds)}, got {', '.join(similarities)}")
    if not 1 <= needed <= len(thresholds):
        raise InvalidInput(f"needed must be 1 to {len(thresholds)}, got {needed}")
    shapes = {scores.shape for scores in similarities.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InvalidInput(f"similarities must all be [N, S] of one shape, got {sorted(shapes)}")
    passed = np.sum([scores >= thresholds[name] for name, scores in similarities.items()], axis=0)
    kept: NDArray[np.bool_] = (passed >= needed).all(axis=1)
    return kept


@register
@dataclass(frozen=True)
class FailurePoints(ProbeBase):
    """The severity at which images first fail, from the rows of `shift/corruptions` (CNS-Bench, 2025)."""

    name: ClassVar[str] = "shift/failure-points"
    paper: ClassVar[str] = "CNS-Bench, 2025"
    card: ClassVar[str | None] = "cns-bench"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = (RUNS,)

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        parts = []
        for curve in (curve for curve in curves_of(tables[RUNS]) if curve.ids):
            shares = failure_shares(curve)
            mean = mean_failure_point(curve, context.random(curve.shift))
            steps = len(shares.severities)
            parts.append(
                pa.table(
                    {
                        "shift": [curve.shift] * steps,
                        "severity": shares.severities,
                        "failed_here": shares.counts,
                        "survival": shares.survival,
                        "accuracy": curve.accuracy,
                        "mean_failure_point": [mean.value] * steps,
                        "low": [mean.low] * steps,
                        "high": [mean.high] * steps,
                        "n": [mean.n] * steps,
                    }
                )
            )
        return pa.concat_tables(parts) if parts else pa.table({})

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        means = _means(table)
        if not means:
            return []
        worst = min(means, key=lambda mean: mean.value)
        last = max(table["severity"].to_pylist())
        return [
            Finding(
                kind="shift",
                title=(
                    f"Images fail earliest under {worst.shift.replace('_', ' ')}: on average at severity"
                    f" {worst.value:.2f} of {last:g}, those that never fail counted as {last:g}"
                ),
                metric="mean failure point",
                value=worst.value,
                effect=0.0,  # information: the harm is counted shift by shift in shift/corruptions
                n=worst.n,
                subject={"corruption": worst.shift},
                ci=worst.bounds,
            )
        ]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        means = _means(table)
        if not means:
            return []
        points: dict[str, list[CurvePoint]] = {}
        for row in table.to_pylist():
            low, high = wilson(round(row["survival"] * row["n"]), row["n"])
            point = CurvePoint(row["severity"], row["survival"], low, high, row["shift"].replace("_", " "))
            points.setdefault(SHIFTS[row["shift"]].group, []).append(point)
        bars = []
        for mean in sorted(means, key=lambda mean: mean.value):
            bounds = mean.bounds or (mean.value, mean.value)
            bars.append(Bar(mean.shift.replace("_", " "), mean.value, *bounds, mean.n))
        return [
            Bars(
                "Mean failure point",
                "Severity at which an image first fails, 95 % bootstrap intervals; never is counted as the last one.",
                "severity",
                bars,
            ),
            *(
                Curve(
                    f"Images that have not failed yet: {group}",
                    "Share that was right at this and all lower severities; bands are 95 % Wilson intervals.",
                    "severity",
                    "share not failed",
                    members,
                )
                for group, members in points.items()
            ),
        ]


class _Mean(NamedTuple):
    shift: str
    value: float
    low: float
    high: float
    n: int

    @property
    def bounds(self) -> tuple[float, float] | None:
        return (self.low, self.high) if math.isfinite(self.low) else None


def _means(table: Rows) -> list[_Mean]:
    if not table.num_rows:
        return []
    first = table.filter(table["severity"].to_numpy() == 0)
    names = ("shift", "mean_failure_point", "low", "high", "n")
    return [_Mean(*row) for row in zip(*(first[name].to_pylist() for name in names), strict=True)]
