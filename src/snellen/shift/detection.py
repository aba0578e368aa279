"""How much of a detector's or an instance segmenter's precision survives corruption, another size, another data set?

Paper: Benchmarking the Robustness of Instance Segmentation Models (Altindis et al., 2021), with the figures of
Michaelis et al. (2019). Every image is corrupted at full resolution, before the model's own resizing, by the 15
corruptions at five severities; AP is averaged over the grid (mPC) and divided by clean AP (rPC). Two more axes: the
same scenes at other scales, and another data set restricted to the classes both know. The truth stays as it is, by
convention also under elastic transform and zoom blur, which do move things a little.

When it misleads: rPC flatters a detector that is poor to begin with; look at mPC beside it. Intervals resample images
and hold for this detector, not for its training being repeated; with rare categories they are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, register_functions
from snellen.randomness import SampleRandom
from snellen.shift._boxes import Detections, Detector, Objects, Overlap, Scene
from snellen.shift._catalogue import CORRUPTIONS, GROUPS, check_name, check_severity, corrupt
from snellen.shift._detection_run import (
    Change,
    ConditionResult,
    DetectionSettings,
    Estimate,
    Run,
    condition_table,
    estimate,
    judge,
    unchanged,
)
from snellen.shift._norm_shift import normalisation_shift
from snellen.shift._transfer import Transfer, resized, resolution_curve, transfer
from snellen.stats import benjamini_hochberg, exceedance_p_value

__all__ = [
    "CORRUPTIONS",
    "GROUPS",
    "CorruptionGrid",
    "DetectionSettings",
    "Detections",
    "Detector",
    "Estimate",
    "Objects",
    "Overlap",
    "Scene",
    "Transfer",
    "compare_factors",
    "corruption_grid",
    "normalisation_shift",
    "resized",
    "resolution_curve",
    "transfer",
]

MIN_SIDE = 32
CLEAN = ("clean", 0.0)
SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class CorruptionGrid:
    """AP of one detector over corruptions and severities, with the bootstrap values that intervals come from."""

    run: Run[tuple[str, float]]
    names: tuple[str, ...]
    severities: tuple[float, ...]

    @property
    def clean(self) -> ConditionResult:
        return self.run.results[CLEAN]

    @property
    def ap(self) -> NDArray[np.float64]:
        """AP `[corruptions, severities]`."""
        return np.array([[self._at(name, s).summary.ap for s in self.severities] for name in self.names])

    @property
    def drawn(self) -> NDArray[np.float64]:
        """AP on resampled images `[corruptions, severities, resamples]`."""
        return np.array([[self._at(name, s).drawn for s in self.severities] for name in self.names])

    def mpc(self, names: Sequence[str] | None = None) -> Estimate:
        """Mean AP over corruptions and severities; `names` restricts it, for example to `GROUPS["noise"]`."""
        chosen = [self.names.index(name) for name in (names or self.names)]
        return estimate(float(self.ap[chosen].mean()), self.drawn[chosen].mean(axis=(0, 1)))

    def rpc(self, names: Sequence[str] | None = None) -> Estimate:
        """mPC / clean AP. Raises InvalidInput when clean AP is 0."""
        return estimate(*self._rpc(names))

    def degradation(self, name: str) -> Estimate:
        """Mean over severities of (1 - AP) / (1 - clean AP): how many times the clean error; NaN when that is 0."""
        row = self.names.index(check_name(name))
        clean_error = 1 - self.clean.summary.ap
        value = float((1 - self.ap[row]).mean() / clean_error) if clean_error > 0 else math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            return estimate(value, (1 - self.drawn[row]).mean(axis=0) / (1 - self.clean.drawn))

    @property
    def table(self) -> Rows:
        """A row a condition: AP with interval, AP50, AP75, sizes, and the counts of each kind of error."""
        return condition_table(
            {"corruption": [name for name, _ in self.run.results], "severity": [s for _, s in self.run.results]},
            list(self.run.results.values()),
            len(self.run.ids),
        )

    def _at(self, name: str, severity: float) -> ConditionResult:
        return self.run.results[name, severity]

    def _rpc(self, names: Sequence[str] | None = None) -> tuple[float, NDArray[np.float64]]:
        chosen = [self.names.index(name) for name in (names or self.names)]
        clean = self.clean.summary.ap
        if clean == 0:
            raise InvalidInput("clean AP must be above 0 for a relative figure, got 0")
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.ap[chosen].mean() / clean), self.drawn[chosen].mean(axis=(0, 1)) / self.clean.drawn


def corruption_grid(
    detector: Detector,
    scenes: Sequence[Scene],
    settings: DetectionSettings | None = None,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[float] = SEVERITIES,
) -> CorruptionGrid:
    """AP under corruption (Michaelis et al., 2019), clean images included; 1 + |names| |severities| passes an image.

    scenes: images of any size, sides of at least 32 px; they may decode on access. Raises InvalidInput. The grain of
    a corruption follows the image's short side, so images of different sizes suffer alike only in looks.
    """
    if not names or not severities:
        raise InvalidInput(f"names and severities must not be empty, got {list(names)} and {list(severities)}")
    conditions: dict[tuple[str, float], Change] = {CLEAN: unchanged}
    used = settings or DetectionSettings()
    for name in names:
        for severity in severities:
            key = (check_name(name), check_severity(severity))
            conditions[key] = _corruption(*key, used.seed)
    run = judge(detector, scenes, conditions, used)
    return CorruptionGrid(run, tuple(names), tuple(float(s) for s in severities))


def _corruption(name: str, severity: float, seed: int) -> Change:
    random = SampleRandom(seed, "shift/detection")

    def change(scene: Scene) -> Scene:
        if min(scene.image.shape[-2:]) < MIN_SIDE:
            size = list(scene.image.shape[-2:])
            raise InvalidInput(f"images to corrupt need sides of {MIN_SIDE} px or more, got {size} in {scene.id!r}")
        # One stream for all severities: an image's curve is the same rain falling harder.
        image = corrupt(scene.image[None], name, severity, random.generators([scene.id], name))[0]
        return replace(scene, image=image)

    return change


def compare_factors(pairs: Mapping[str, tuple[CorruptionGrid, CorruptionGrid]]) -> Rows:
    """rPC of the first minus rPC of the second, for pairs of detectors that differ in one factor.

    Both grids of a pair must be over the same scenes, conditions and settings: images are resampled together. A row a
    pair: difference, 95 % interval, p of "no difference" from the centred bootstrap, q (Benjamini and Hochberg, 1995).
    """
    rows: list[tuple[str, int, float, float, float, float]] = []
    for factor, (first, second) in pairs.items():
        same = first.run.ids == second.run.ids and list(first.run.results) == list(second.run.results)
        if not same or first.drawn.shape != second.drawn.shape:
            raise InvalidInput(f"pair {factor!r} must be two grids over the same scenes, conditions and settings")
        (value_a, drawn_a), (value_b, drawn_b) = first._rpc(), second._rpc()
        value, drawn = value_a - value_b, drawn_a - drawn_b
        null = np.abs(drawn[np.isfinite(drawn)] - value)
        rows.append((factor, len(first.run.ids), *estimate(value, drawn), exceedance_p_value(abs(value), null)))
    columns = ("factor", "n", "difference", "low", "high", "p_value")
    table = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    return pa.table({**table, "q_value": benjamini_hochberg([row[-1] for row in rows])})


register_functions(
    "shift/detection",
    paper="Altindis et al., 2021",
    card="instance-segmentation-robustness",
    access=Access.LABELS,
    data="detections and instance masks",
    module=__name__,
)
