"""How does this model suffer under corruption beside a reference model, in percent?

Paper: Hendrycks & Dietterich, 2019. mCE is the mean over corruptions of the model's error divided by the reference's;
relative mCE divides what corruption adds to the clean error. Reads the rows of `shift/corruptions` of this run and of
a reference run, so it costs no query. The published reference is AlexNet on ImageNet.

When it misleads: against AlexNet it means something for ImageNet's classes only; relative mCE flatters a model that has
little to lose; both are ratios, so a reference that a corruption hardly hurts makes them jump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit, Grid
from snellen.models import Access
from snellen.probe import Context, Finding, ProbeBase, Rows, Scope, register
from snellen.shift._curve import CLEAN, curves_of, mean_estimate, on_common_samples
from snellen.shift._mce import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    CorruptionError,
    mean_corruption_error,
    relative_mean_corruption_error,
)

__all__ = ["MeanCorruptionError", "errors_of"]

RUNS = "shift/corruptions"


def errors_of(table: pa.Table) -> dict[str, list[float]]:
    """Top-1 errors a severity by corruption, and under "clean" the error on untouched images.

    table: rows of `shift/corruptions` (`id`, `shift`, `severity`, `correct`).
    """
    curves = [curve for curve in curves_of(table) if curve.ids]
    errors = {curve.shift: [1 - float(value) for value in curve.accuracy[1:]] for curve in curves}
    return {**errors, CLEAN: [1 - float(curves[0].accuracy[0])]} if curves else {}


@register
@dataclass(frozen=True)
class MeanCorruptionError(ProbeBase):
    """mCE and relative mCE against a reference run, or against AlexNet (Hendrycks & Dietterich, 2019)."""

    name: ClassVar[str] = "shift/mce"
    paper: ClassVar[str] = "Hendrycks and Dietterich, 2019"
    card: ClassVar[str | None] = "imagenet-c-core"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = (RUNS,)

    reference: str = ""
    """Run directory of the reference model with rows of `shift/corruptions`; empty takes AlexNet's published errors."""

    def __post_init__(self) -> None:
        if self.reference and not self._folder().is_dir():
            raise InvalidInput(
                f"reference must be a run directory with results/{RUNS}, got {self.reference!r}, which has none"
            )

    def _folder(self) -> Path:
        return Path(self.reference) / "results" / RUNS

    def run(self, tables: Mapping[str, Rows], context: Context) -> Rows:
        curves = [curve for curve in curves_of(tables[RUNS]) if curve.ids]
        mine, reference = errors_of(tables[RUNS]), self._reference()
        shared = [name for name in mine if name in reference and name != CLEAN]
        if not shared:
            return pa.table({})
        # mCE is a weighted mean over samples, so a bootstrap over them gives its interval; the reference stands still.
        common = on_common_samples(curves)
        ratios = [
            (1 - curve.correct[1:].mean(axis=0)) / np.mean(reference[curve.shift])
            for curve in common
            if curve.shift in shared and np.mean(reference[curve.shift]) > 0
        ]
        spread = mean_estimate(100 * np.mean(ratios, axis=0), context.random(self.name)) if ratios else None
        bounds = (spread.low, spread.high) if spread else (math.nan, math.nan)
        return pa.table(
            {
                "corruption": [*shared, CLEAN],
                "low": [math.nan] * len(shared) + [bounds[0]],
                "high": [math.nan] * len(shared) + [bounds[1]],
                "n": [len(common[0].ids) if common else 0] * (len(shared) + 1),
                "error": [*(float(np.mean(mine[name])) for name in shared), mine[CLEAN][0]],
                "reference_error": [*(float(np.mean(reference[name])) for name in shared), reference[CLEAN][0]],
            }
        )

    def _reference(self) -> dict[str, list[float]]:
        if not self.reference:
            return {**{name: [error] for name, error in ALEXNET_ERRORS.items()}, CLEAN: [ALEXNET_CLEAN_ERROR]}
        return errors_of(pads.dataset(self._folder(), format="parquet").to_table())

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if not table.num_rows:
            return []
        plain, relative = _both(table)
        beside = (
            f"the reference run {self.reference}"
            if self.reference
            else "AlexNet on ImageNet, which says little for other classes,"
        )
        corruptions = table.num_rows - 1
        bounds = table["low"][corruptions].as_py(), table["high"][corruptions].as_py()
        found = []
        for name, error in (("mCE", plain), ("relative mCE", relative)):
            what = f"{error.value:.1f}" if not error.reason else f"undefined: {error.reason}"
            found.append(
                Finding(
                    kind="shift",
                    title=f"Over {corruptions} corruptions the {name} is {what}; {beside} is 100",
                    metric=name,
                    value=None if error.reason else error.value,
                    baseline=100.0,
                    effect=0.0,  # a comparison: the harm is counted corruption by corruption
                    n=table["n"][0].as_py(),
                    subject={"corruption": "all"},
                    ci=bounds if name == "mCE" and not error.reason and math.isfinite(bounds[0]) else None,
                )
            )
        return found

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if not table.num_rows:
            return []
        plain, relative = _both(table)
        lines = [
            [row["corruption"], row["error"], row["reference_error"], plain.by_corruption.get(row["corruption"])]
            for row in table.to_pylist()
        ]
        caption = f"Top-1 errors, mean over severities. mCE {plain.value:.1f}, relative mCE {relative.value:.1f}."
        return [Grid("Error beside the reference", caption, ("corruption", "error", "reference", "CE in %"), lines)]


def _both(table: Rows) -> tuple[CorruptionError, CorruptionError]:
    error = dict(zip(table["corruption"].to_pylist(), table["error"].to_pylist(), strict=True))
    reference = dict(zip(table["corruption"].to_pylist(), table["reference_error"].to_pylist(), strict=True))
    clean, reference_clean = error.pop(CLEAN), reference.pop(CLEAN)
    return (
        mean_corruption_error(error, reference),
        relative_mean_corruption_error(error, clean, reference, reference_clean),
    )
