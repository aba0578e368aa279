"""Are a detector's gains on its own test set real, or gone when the same things are drawn, carved or snowed on?

Paper: Mao et al., 2023 (COCO-O). AP on natural domains (sketch, cartoon, painting, weather, handmake, tattoo),
averaged without weights, and set against what clean AP explains: effective robustness is AP on the domains minus
beta(clean AP), where beta is a line through plain detectors, in the paper 0.45 * clean AP.

When it misleads: the paper's slope was read from detectors on COCO; on other data fit your own line on five or more
plain detectors. Domains differ in more than style (fewer and larger objects, other classes), so AP on one is not
comparable with clean AP class by class. `rendered_domain` makes stand-ins without the data set: they are image
filters, not COCO-O, and their figures compare with themselves only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, register_functions
from snellen.randomness import SampleRandom
from snellen.shift._baseline import Baseline, fit_baseline
from snellen.shift._boxes import Detector, Scene
from snellen.shift._coco import CocoScenes
from snellen.shift._detection_run import (
    ConditionResult,
    DetectionSettings,
    Estimate,
    Run,
    condition_table,
    estimate,
    judge,
    unchanged,
)
from snellen.shift._domain_kit import DOMAINS, rendered_domain
from snellen.stats import bootstrap_bca

__all__ = [
    "DOMAINS",
    "PAPER_LINE",
    "Baseline",
    "CocoScenes",
    "DetectionSettings",
    "Detector",
    "DomainResult",
    "JudgedDetector",
    "Scene",
    "component_study",
    "domain_shift",
    "fit_detection_line",
    "rendered_domain",
]

PAPER_LINE = Baseline(slope=0.45, intercept=0.0, axis="linear")
"""The paper's line for detectors on COCO and COCO-O (Mao et al., 2023)."""
CLEAN = "clean"
SAME_CLEAN_AP = 0.01
"""Detectors whose clean AP differs by at most this are compared as equals: one point of AP, as in the paper."""
ENOUGH_DETECTORS = 5


@dataclass(frozen=True)
class DomainResult:
    """One detector on its clean set and on the domains; bootstrap draws of different sets are independent."""

    clean: ConditionResult
    domains: Mapping[str, ConditionResult]
    sizes: Mapping[str, int]

    @property
    def ood(self) -> Estimate:
        """AP_OOD: mean AP over the domains, unweighted."""
        return estimate(*self._ood())

    @property
    def drop(self) -> Estimate:
        """(clean AP - AP_OOD) / clean AP. Raises InvalidInput when clean AP is 0."""
        clean, (value, drawn) = self.clean.summary.ap, self._ood()
        if clean == 0:
            raise InvalidInput("clean AP must be above 0 for a relative drop, got 0")
        with np.errstate(divide="ignore", invalid="ignore"):
            return estimate(1 - value / clean, 1 - drawn / self.clean.drawn)

    def effective(self, line: Baseline = PAPER_LINE) -> Estimate:
        """AP_OOD minus what `line` expects at this clean AP; positive is better than plain detectors of equal AP."""
        value, drawn = self._ood()
        height = line.effective_robustness([self.clean.summary.ap], [value])[0]
        return estimate(float(height), drawn - line.expected(self.clean.drawn))

    @property
    def table(self) -> Rows:
        """A row a set, clean first: AP with interval, AP50, AP75, sizes, and the counts of each kind of error."""
        results = {CLEAN: self.clean, **self.domains}
        return condition_table({"set": list(results)}, list(results.values()), [self.sizes[name] for name in results])

    def _ood(self) -> tuple[float, NDArray[np.float64]]:
        return (
            float(np.mean([result.summary.ap for result in self.domains.values()])),
            np.mean([result.drawn for result in self.domains.values()], axis=0),
        )


def domain_shift(
    detector: Detector,
    clean: Sequence[Scene],
    domains: Mapping[str, Sequence[Scene]],
    settings: DetectionSettings | None = None,
) -> DomainResult:
    """AP of `detector` on clean scenes and on each domain (Mao et al., 2023); one pass an image.

    Only categories that occur in a domain enter its mean. Raises InvalidInput for a domain without objects.
    """
    if not domains or CLEAN in domains:
        raise InvalidInput(f"domains must be one or more, none of them called {CLEAN!r}, got {sorted(domains)}")
    used = settings or DetectionSettings()
    runs: dict[str, Run[str]] = {CLEAN: judge(detector, clean, {CLEAN: unchanged}, used)}
    for name, scenes in domains.items():
        if not any(bool((~scene.truth.crowds).any()) for scene in scenes):
            raise InvalidInput(f"domain {name!r} must hold objects, got none in {len(scenes)} scenes")
        runs[name] = judge(detector, scenes, {name: unchanged}, used)

    results: dict[str, ConditionResult] = {}
    for name, run in runs.items():
        result = run.results[name]
        # The sets are independent samples: draw k of one must not go with draw k of the other.
        order = SampleRandom(used.seed, "shift/effective-detection").numpy("draws", name).permutation(used.resamples)
        results[name] = ConditionResult(result.summary, result.errors, result.drawn[order])
    return DomainResult(results.pop(CLEAN), results, {name: len(run.ids) for name, run in runs.items()})


def fit_detection_line(pool: Sequence[DomainResult], *, intercept: bool = True) -> Baseline:
    """The line AP_OOD = slope * clean AP (+ intercept) through plain detectors, by least squares.

    pool: 3 or more results on the same sets; five or more are advised. With an intercept the mean effective robustness
    of the pool is 0.
    """
    clean = [result.clean.summary.ap for result in pool]
    return fit_baseline(clean, [result.ood.value for result in pool], "linear", intercept=intercept)


class JudgedDetector(NamedTuple):
    """clean, effective: AP and effective robustness. components: for example {"backbone": "swin", "neck": "fpn"}."""

    clean: float
    effective: float
    components: Mapping[str, str]


def component_study(detectors: Sequence[JudgedDetector], seed: int = 0) -> Rows:
    """Which parts go with effective robustness: a row a component and value (Mao et al., 2023).

    n detectors with it, their mean effective robustness with its interval over detectors, and `paired`: the mean
    difference to detectors without it whose clean AP is within a point, NaN where there is no such pair. Detectors
    share more than one part, so this describes and does not prove.
    """
    rows: list[dict[str, str | int | float | bool]] = []
    for component in sorted({name for detector in detectors for name in detector.components}):
        known = [detector for detector in detectors if component in detector.components]
        for value in sorted({detector.components[component] for detector in known}):
            own = [detector for detector in known if detector.components[component] == value]
            others = [detector for detector in known if detector.components[component] != value]
            gaps = [a.effective - b.effective for a in own for b in others if abs(a.clean - b.clean) <= SAME_CLEAN_AP]
            effective = np.array([detector.effective for detector in own])
            low, high = math.nan, math.nan
            if len(own) >= 2:
                rng = SampleRandom(seed, "shift/effective-detection").numpy("components", component, value)
                low, high = bootstrap_bca(effective, lambda drawn: float(drawn.astype(float).mean()), rng)
            row: dict[str, str | int | float | bool] = {"component": component, "value": value, "n": len(own)}
            row |= {"effective": float(effective.mean()), "low": low, "high": high}
            row |= {"pairs": len(gaps), "paired": float(np.mean(gaps)) if gaps else math.nan}
            rows.append(row | {"enough_data": len(own) >= ENOUGH_DETECTORS})
    return pa.Table.from_pylist(rows)


register_functions(
    "shift/effective-detection",
    paper="Mao et al., 2023",
    card="coco-o",
    access=Access.LABELS,
    data="detections on clean and shifted sets",
    module=__name__,
)
