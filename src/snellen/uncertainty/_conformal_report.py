"""What the conformal probe says and shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.exhibits import Bar, Bars, Curve, CurvePoint, Grid
from snellen.probe import Finding, Rows
from snellen.stats import Interval, clopper_pearson, newcombe_difference, split_coverage_test, wilson
from snellen.uncertainty._conformal import Method, conformal_rank

LEVEL = 0.05
MOST_EVIDENCE = 12
MOST_SIZES = 8
NAMES = {"lac": "LAC", "aps": "APS", "raps": "RAPS"}


@dataclass(frozen=True)
class Summary:
    """One method on the held-out half."""

    method: Method
    n: int
    calibration_n: int
    threshold: float
    covered: int
    mean_size: float
    singletons: int
    empty: int
    abstention_threshold: float
    auc: float
    answered: int
    answered_right: int
    declined_right: int
    threshold_if_answered: float
    covered_if_answered: int
    missed: tuple[str, ...]
    """Ids outside their set, the least doubtful first."""
    wrongly_answered: tuple[str, ...]
    """Ids answered wrongly, the least doubtful first."""

    @property
    def coverage(self) -> Interval:
        return clopper_pearson(self.covered, self.n)


def summarise(table: Rows, method: Method) -> Summary:
    part = table.filter(pc.equal(table["method"], method)).sort_by("doubt")
    covered, correct, abstain = (_bools(part, name) for name in ("covered", "correct", "abstain"))
    size = part["set_size"].to_numpy()
    ids = np.array(part["id"].to_pylist(), dtype=object)
    first = part.slice(0, 1).to_pylist()[0]
    return Summary(
        method=method,
        n=part.num_rows,
        calibration_n=first["calibration_n"],
        threshold=first["threshold"],
        covered=int(covered.sum()),
        mean_size=float(size.mean()),
        singletons=int((size == 1).sum()),
        empty=int((size == 0).sum()),
        abstention_threshold=first["abstention_threshold"],
        auc=first["abstention_auc"],
        answered=int((~abstain).sum()),
        answered_right=int((correct & ~abstain).sum()),
        declined_right=int((correct & abstain).sum()),
        threshold_if_answered=first["threshold_if_answered"],
        covered_if_answered=int((_bools(part, "covered_if_answered") & ~abstain).sum()),
        missed=tuple(ids[~covered][:MOST_EVIDENCE]),
        wrongly_answered=tuple(ids[~correct & ~abstain][:MOST_EVIDENCE]),
    )


def coverage_finding(summary: Summary, alpha: float) -> Finding:
    """Info, unless the sets cover significantly less than promised, given the luck of the calibration half."""
    coverage = summary.covered / summary.n
    rank = conformal_rank(summary.calibration_n, alpha)
    p_value = split_coverage_test(summary.covered, summary.n, rank, summary.calibration_n)
    short = p_value <= LEVEL and coverage < 1 - alpha
    low, high = summary.coverage
    return Finding(
        kind="threshold",
        title=f"{NAMES[summary.method]} sets with threshold {summary.threshold:.4g} hold the true class for"
        f" {coverage:.1%} of {summary.n} held-out images ({low:.1%} to {high:.1%}; target {1 - alpha:.0%}),"
        f" with {summary.mean_size:.2f} classes on average.",
        metric="coverage",
        value=coverage,
        baseline=1 - alpha,
        effect=1 - alpha - coverage if short else 0.0,
        ci=(low, high),
        n=summary.n,
        subject={"method": summary.method, "alpha": alpha, "threshold": summary.threshold},
        measured=("threshold",),
        p_value=p_value if short else None,
        evidence=summary.missed,
    )


def abstention_finding(summary: Summary, doubt: str) -> Finding:
    if math.isnan(summary.auc):
        return Finding(
            kind="threshold",
            title="No abstention threshold: the images it would be fitted on hold only right or only wrong answers.",
            metric="accuracy when it answers",
            value=None,
            effect=0.0,
            n=summary.n,
            subject={"doubt": doubt},
            enough_data=False,
        )
    declined = summary.n - summary.answered
    right = summary.answered_right / max(summary.answered, 1)
    gain = ""
    if declined and summary.answered:
        low, high = newcombe_difference(summary.answered_right, summary.answered, summary.declined_right, declined)
        gain = f", {low:.1%} to {high:.1%} more than of the {declined} others"
    title = (
        f"Answering only where the doubt ({_formula(doubt)}) is at most {summary.abstention_threshold:.3g}, the model"
        f" answers {summary.answered / summary.n:.1%} of {summary.n} held-out images and is right on"
        f" {right:.1%} of them{gain}."
    )
    return Finding(
        kind="threshold",
        title=title,
        metric="accuracy when it answers",
        value=right if summary.answered else None,
        baseline=(summary.answered_right + summary.declined_right) / summary.n,
        effect=0.0,
        ci=wilson(summary.answered_right, summary.answered),
        n=summary.n,
        subject={"doubt": doubt, "threshold": summary.abstention_threshold},
        measured=("threshold",),
        evidence=summary.wrongly_answered,
    )


def coverage_table(summaries: Sequence[Summary], alpha: float) -> Grid:
    return Grid(
        title="Prediction sets on held-out images",
        caption=f"Target {1 - alpha:.0%}; intervals are Clopper-Pearson, 95 %. The last two columns: a threshold fitted"
        " on answered images only, and its coverage among the answered held-out images. No guarantee under a shift.",
        columns=[
            "method", "threshold", "coverage", "low", "high", "mean size", "one class", "empty",
            "threshold if answered", "coverage if answered",
        ],
        rows=[
            [
                NAMES[s.method], s.threshold, s.covered / s.n, *s.coverage, s.mean_size, s.singletons / s.n,
                s.empty / s.n, s.threshold_if_answered, s.covered_if_answered / s.answered if s.answered else None,
            ]
            for s in summaries
        ],
    )  # fmt: skip


def abstention_table(summaries: Sequence[Summary]) -> Grid:
    return Grid(
        title="Abstention on held-out images",
        caption="AUC: how well doubt tells wrong answers from right ones, on the images the threshold was fitted on.",
        columns=["sets", "threshold", "AUC", "answered", "right when answered", "right when declined"],
        rows=[
            [
                NAMES[s.method],
                s.abstention_threshold,
                None if math.isnan(s.auc) else s.auc,
                s.answered / s.n,
                s.answered_right / s.answered if s.answered else None,
                s.declined_right / (s.n - s.answered) if s.answered < s.n else None,
            ]
            for s in summaries
        ],
    )


def set_size_bars(table: Rows, methods: Sequence[Method]) -> Bars:
    bars = []
    for method in methods:
        sizes = table.filter(pc.equal(table["method"], method))["set_size"].to_numpy()
        counts = np.bincount(np.minimum(sizes, MOST_SIZES), minlength=2)
        for size in np.flatnonzero(counts).tolist():
            name = f"{NAMES[method]}: {size}{' or more' if size == MOST_SIZES else ''}"
            interval = wilson(int(counts[size]), len(sizes))
            bars.append(Bar(name, counts[size] / len(sizes), *interval, int(counts[size])))
    return Bars("Set sizes", "Share of held-out images by number of classes in the set.", "share", bars)


def risk_coverage(table: Rows, methods: Sequence[Method], doubt: str) -> Curve:
    """Accuracy on the least doubtful images, for growing shares answered; equal doubt is answered together."""
    points = []
    for method in methods:
        part = table.filter(pc.equal(table["method"], method)).sort_by("doubt")
        values, right = part["doubt"].to_numpy(), np.cumsum(_bools(part, "correct"))
        ends = np.flatnonzero(np.append(np.diff(values) > 0, True))
        ends = np.unique(ends[np.linspace(0, len(ends) - 1, 40).astype(int)])
        series = NAMES[method] if len(methods) > 1 else ""
        points += [
            CurvePoint((k + 1) / len(values), right[k] / (k + 1), *wilson(int(right[k]), k + 1), series)
            for k in ends.tolist()
        ]
    return Curve(
        "Accuracy when it answers",
        f"Accuracy on the images answered, if only the least doubtful ({_formula(doubt)}) are answered; 95 % Wilson.",
        "share answered",
        "accuracy",
        points,
    )


def _formula(doubt: str) -> str:
    known = {
        "confidence": "1 - confidence",
        "margin": "1 - margin of the first class over the second",
        "entropy": "entropy over its maximum",
        "surprise": "-ln confidence",
        "set size": "number of classes in the set",
    }
    return known[doubt]


def _bools(table: Rows, name: str) -> NDArray[np.bool_]:
    return np.asarray(table[name].to_numpy(), dtype=bool)
