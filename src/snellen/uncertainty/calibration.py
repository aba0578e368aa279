"""When the model says 90 %, is it right nine times in ten?

Expected calibration error over equal-mass bins (Guo et al., 2017; Nixon et al., 2019), Brier score and negative
log-likelihood. A binned error is never 0, not even for a perfect model, so the error is tested against labels drawn
from the model's own probabilities (consistency resampling; Bröcker and Smith, 2007), and only its excess over those
counts as harm. The temperature that would mend it is fitted on one half and judged on the other, both ways.
Misleads where the images of the examination are not those of service: calibration does not survive a shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from snellen.errors import InvalidInput
from snellen.exhibits import Curve, CurvePoint, Exhibit, Grid
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register
from snellen.scores import Scores, read_scores
from snellen.stats import bootstrap_bca, needed_samples, wilson
from snellen.uncertainty._calibration import (
    Bools,
    Floats,
    binned_error,
    brier_score,
    classwise_calibration_error,
    consistency_test,
    equal_mass_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    tempered_confidence,
)

LEVEL = 0.05
MOST_EVIDENCE = 12
TELLING_GAP = 0.1


@register
@dataclass(frozen=True)
class Calibration(ProbeBase):
    """Calibration of the top answer, with the temperature that would mend it.

    Effect: calibration error above the mean error of a perfectly calibrated model (never below 0). Both are average
    gaps between a stated and a true accuracy, so they are accuracy points. `ci` is the interval of the error.
    """

    name: ClassVar[str] = "calibration"
    paper: ClassVar[str] = "Guo et al., 2017"
    access: ClassVar[Access] = Access.SCORES
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    bins: int = 15
    """Equal-mass bins, at least 1; the paper's 15."""
    draws: int = 999
    """Simulated perfectly calibrated models, at least 99."""

    def __post_init__(self) -> None:
        if self.bins < 1 or self.draws < 99:
            raise InvalidInput(f"bins must be at least 1 and draws at least 99, got {self.bins} and {self.draws}")

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        scores = read_scores(tables["predictions"], self.name)
        if len(scores) < 2:
            return pa.Table.from_pylist([], schema=SCHEMA)
        rng = context.random(self.name)
        probabilities, labels = scores.probabilities, scores.labels
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        codes = equal_mass_bins(confidence, self.bins)
        gap = confidence - correct
        p_value, by_chance = consistency_test(confidence, correct, self.bins, rng, self.draws)
        interval = bootstrap_bca(
            np.stack([codes, gap], axis=1),
            lambda v: binned_error(v[:, 0].astype(np.int64), v[:, 1].astype(np.float64)),
            rng,
            resamples=1000,
        )
        after = tempered_confidence(scores.logits, labels, rng)
        measures = {
            "calibration error": binned_error(codes, gap),
            "low": interval.low,
            "high": interval.high,
            "calibration error by chance": by_chance,
            "p value": p_value,
            "confidence": float(confidence.mean()),
            "accuracy": float(correct.mean()),
            "class-wise calibration error": classwise_calibration_error(probabilities, labels, self.bins),
            "Brier score": brier_score(probabilities, labels),
            "negative log-likelihood": negative_log_likelihood(scores.logits, labels),
            "temperature": fit_temperature(scores.logits, labels),
            "calibration error after temperature": expected_calibration_error(after, correct, self.bins),
        }
        records: list[dict[str, object]] = [
            {"part": "measure", "name": name, "value": value, "n": len(scores)} for name, value in measures.items()
        ]
        records[0]["evidence"] = _evidence(scores, confidence, correct)
        for series, x in (("as delivered", confidence), ("after temperature", after)):
            records += _reliability(series, x, correct, self.bins)
        return pa.Table.from_pylist(records, schema=SCHEMA)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        rows = [row for row in table.to_pylist() if row["part"] == "measure"]
        if not rows:
            return []
        m, n = {row["name"]: row["value"] for row in rows}, rows[0]["n"]
        error, by_chance = m["calibration error"], m["calibration error by chance"]
        needed = needed_samples(min(TELLING_GAP, m["confidence"]), m["confidence"])
        if m["p value"] > LEVEL and n >= needed:
            return []
        title = (
            f"Not enough data to judge calibration: n = {n}, needs about {needed} to see a gap of {TELLING_GAP:.0%}."
        )
        enough = m["p value"] <= LEVEL
        if enough:
            title = (
                f"The model is {_direction(m)}: it claims {m['confidence']:.1%} on average and is right on"
                f" {m['accuracy']:.1%} of {n} images (calibration error {error:.3f}, {by_chance:.3f} would be chance);"
                f" dividing the logits by a temperature of {m['temperature']:.2f} brings the error to"
                f" {m['calibration error after temperature']:.3f} on held-out images."
            )
        return [
            Finding(
                kind="calibration",
                title=title,
                metric="expected calibration error",
                value=error if enough else None,
                baseline=by_chance,
                effect=max(error - by_chance, 0.0) if enough else 0.0,
                ci=(m["low"], m["high"]) if enough else None,
                n=n,
                subject={"temperature": round(m["temperature"], 4)},
                measured=("temperature",),
                p_value=m["p value"] if enough else None,
                evidence=rows[0]["evidence"] if enough else (),
                enough_data=enough,
            )
        ]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        rows = table.to_pylist()
        if not rows:
            return []
        points = [
            CurvePoint(row["confidence"], row["accuracy"], row["low"], row["high"], row["name"])
            for row in rows
            if row["part"] == "bin"
        ]
        reliability = Curve(
            title="Reliability",
            caption=f"Accuracy against confidence in {self.bins} bins of equal size, with 95 % Wilson intervals;"
            " points below the diagonal are over-confident. After temperature: fitted on the other half.",
            x_label="confidence",
            y_label="accuracy",
            points=points,
            diagonal=True,
        )
        measures = Grid(
            title="Calibration measures",
            caption="low and high bound the calibration error (95 %, bootstrap); p is of perfect calibration.",
            columns=["measure", "value"],
            rows=[[row["name"], row["value"]] for row in rows if row["part"] == "measure"],
        )
        return [reliability, measures]


SCHEMA = pa.schema(
    {
        "part": pa.string(),
        "name": pa.string(),
        "value": pa.float64(),
        "n": pa.int64(),
        "confidence": pa.float64(),
        "accuracy": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "evidence": pa.list_(pa.string()),
    }
)


def _reliability(series: str, confidence: Floats, correct: Bools, bins: int) -> list[dict[str, object]]:
    codes = equal_mass_bins(confidence, bins)
    records: list[dict[str, object]] = []
    for code in range(codes.max() + 1):
        here = codes == code
        low, high = wilson(int(correct[here].sum()), int(here.sum()))
        mean, accuracy = float(confidence[here].mean()), float(correct[here].mean())
        records.append(
            {"part": "bin", "name": series, "n": int(here.sum()), "confidence": mean, "accuracy": accuracy}
            | {"low": low, "high": high}
        )
    return records


def _direction(measures: Mapping[str, float]) -> str:
    """Over- or under-confident when the mean gap makes up at least a third of the error, else neither."""
    gap = measures["confidence"] - measures["accuracy"]
    if abs(gap) < measures["calibration error"] / 3:
        return "badly calibrated, too sure for some images and too unsure for others"
    return "over-confident" if gap > 0 else "under-confident"


def _evidence(scores: Scores, confidence: Floats, correct: Bools) -> list[str]:
    """The most confident mistakes, or where there is too little confidence the least confident right answers."""
    telling = -confidence if confidence.mean() >= correct.mean() else confidence
    rows = np.flatnonzero(correct != (confidence.mean() >= correct.mean()))
    return [scores.ids[row] for row in rows[np.argsort(telling[rows], kind="stable")][:MOST_EVIDENCE].tolist()]
