"""How reliable is a point-cloud model when weather, motion or the sensor spoils its LiDAR scans?

Paper: Kong et al., 2023 (Robo3D). Eight corruptions at three levels change scans: beams go missing, another sensor is
mounted, sensors disturb each other, the car shakes, vehicles swallow the light, fog, wet ground and snow. A model that
labels every point is judged by mean IoU on the points that are left, relative to a baseline model's losses (mCE) and to
its own clean score (mRR). Severity is continuous; light, moderate and heavy are 1, 3 and 5.

When it misleads: mRR is high for a model that is poor on clean scans, snow is a simplified Poisson model, wet ground
is our reading of the film of water, and scores compare with the published files by trend only.
Detection boxes and the density-insensitive training of the paper are not part of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import SampleRandom
from snellen.shift import _points
from snellen.shift._catalogue import check_severity
from snellen.shift._point_scores import (
    Resilience,
    iou_drop,
    mean_iou,
    mean_resilience_rate,
    overlap,
    overlap_iou,
    point_corruption_error,
)
from snellen.shift._points import LEVELS, Change, Scanner
from snellen.shift._wet_ground import wet_ground
from snellen.stats import bootstrap_bca

__all__ = [
    "POINT_CORRUPTIONS",
    "CorruptedPoints",
    "Resilience",
    "Scanner",
    "corrupt_points",
    "evaluate_points",
    "mean_iou",
    "mean_resilience_rate",
    "point_corruption_error",
]

NAME = "shift/point-clouds"
CHANGES: Mapping[str, Callable[[Tensor, float, Scanner, Generator], Change]] = {
    "fog": _points.fog,
    "wet_ground": wet_ground,
    "snow": _points.snow,
    "motion_blur": _points.motion_blur,
    "beam_missing": _points.beam_missing,
    "crosstalk": _points.crosstalk,
    "cross_sensor": _points.cross_sensor,
}
POINT_CORRUPTIONS: tuple[str, ...] = (*CHANGES, "incomplete_echo")
ENOUGH_SCANS = 20
"""Below it the bootstrap interval covers less than it says."""


class CorruptedPoints(NamedTuple):
    """points: `[M, C]`, M <= N. rows: int64 `[M]`, where each stood in the scan. moved: bool `[M]`, True where the echo
    is no longer the labelled surface's (crosstalk, fog, snow). labels: int64 `[M]`, or None where none came."""

    points: Tensor
    rows: Tensor
    moved: Tensor
    labels: Tensor | None


@torch.no_grad()
def corrupt_points(
    points: Tensor,
    name: str,
    severity: float,
    generator: Generator,
    *,
    labels: Tensor | None = None,
    scanner: Scanner | None = None,
) -> CorruptedPoints:
    """One of the eight LiDAR corruptions on one scan (Kong et al., 2023).

    points: float `[N, 4]` (x, y, z in metres, intensity) or `[N, 5]` with the ring index, on any device. name: one of
    `POINT_CORRUPTIONS`. severity: 0 (the scan itself) to 5. generator: on the CPU, read by this scan alone. labels:
    int64 `[N]`, needed for incomplete_echo. scanner: 64 beams if left out.

    Raises InvalidInput. Misleads where `scanner` does not describe the sensor: intensities in 0 to 255 need
    `full_intensity=255`, and a wrong number of beams drops the wrong share of them.
    """
    severity = check_severity(severity)
    scanner = scanner or Scanner()
    _check(points, name, labels)
    exact = points.float()
    if severity == 0:
        everything = torch.ones(len(points), dtype=torch.bool, device=points.device)
        change = Change(exact.clone(), everything, ~everything)
    elif name == "incomplete_echo":
        if labels is None or not scanner.vehicles:
            raise InvalidInput("incomplete_echo needs labels [N] and the vehicle classes in scanner.vehicles")
        change = _points.incomplete_echo(exact, labels, severity, scanner, generator)
    else:
        change = CHANGES[name](exact, severity, scanner, generator)

    index = change.kept.nonzero()[:, 0]
    left = None if labels is None else labels[index]
    return CorruptedPoints(change.points[index].to(points.dtype), index, change.moved[index], left)


def _check(points: Tensor, name: str, labels: Tensor | None) -> None:
    if name not in POINT_CORRUPTIONS:
        near = get_close_matches(name, POINT_CORRUPTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"name must be one of {', '.join(POINT_CORRUPTIONS)}, got {name!r}{hint}")
    if points.ndim != 2 or points.shape[1] not in (4, 5) or not len(points) or not points.is_floating_point():
        raise InvalidInput(
            f"points must be a float tensor [N, 4] or [N, 5] with N > 0, got {points.dtype} {list(points.shape)}"
        )
    if not bool(points.isfinite().all()):
        raise InvalidInput(f"points must be finite, got {int((~points.isfinite()).any(1).sum())} rows that are not")
    if labels is not None and (labels.shape != points.shape[:1] or labels.dtype != torch.int64):
        raise InvalidInput(f"labels must be int64 [{len(points)}], got {labels.dtype} {list(labels.shape)}")


def evaluate_points(
    model: Callable[[Tensor], Tensor],
    scans: Sequence[tuple[Tensor, Tensor]],
    ids: Sequence[str],
    classes: int,
    *,
    seed: int = 0,
    names: Sequence[str] = POINT_CORRUPTIONS,
    severities: Sequence[float] = LEVELS,
    scanner: Scanner | None = None,
) -> pa.Table:
    """Mean IoU clean and under every corruption and level, with 95 % intervals from resampled scans.

    model: points `[M, C]` to a class a point, int64 `[M]`. scans: (points `[N, C]`, labels int64 `[N]`). ids: one a
    scan, which seeds its noise. Points that a corruption moved off their surface have no true class and are not scored.

    Returns an Arrow table: corruption ("clean" first), severity, miou, low, high, drop, drop_low, drop_high (paired
    against clean), n (scans), enough_data (n >= 20: below that the intervals are too narrow). Raises InvalidInput.
    """
    if len(scans) < 2 or len(ids) != len(scans):
        raise InvalidInput(f"scans must be at least 2, with one id each, got {len(scans)} and {len(ids)} ids")
    random = SampleRandom(seed, NAME)
    conditions = [("clean", 0.0), *((name, float(severity)) for name in names for severity in severities)]
    columns: list[dict[str, str | float | int | bool]] = []
    clean: NDArray[np.int64] | None = None
    for name, severity in conditions:
        counts = []
        for scan_id, (points, labels) in zip(ids, scans, strict=True):
            # One stream for all levels: a scan's curve is the same fog growing denser.
            kind = name if name != "clean" else POINT_CORRUPTIONS[0]
            scan = corrupt_points(
                points, kind, severity, random.generator(scan_id, name), labels=labels, scanner=scanner
            )
            counts.append(_score(model, scan, classes))
        overlaps = np.stack(counts)
        clean = overlaps if clean is None else clean
        rng = random.numpy(name, severity)
        pairs = np.concatenate((clean, overlaps), axis=1)
        low, high = bootstrap_bca(overlaps, overlap_iou, rng)
        drop_low, drop_high = (0.0, 0.0) if name == "clean" else bootstrap_bca(pairs, iou_drop, rng)
        columns.append(
            {
                "corruption": name, "severity": severity, "miou": overlap_iou(overlaps), "low": low, "high": high,
                "drop": iou_drop(pairs), "drop_low": drop_low, "drop_high": drop_high,
                "n": len(scans), "enough_data": len(scans) >= ENOUGH_SCANS,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(columns)


def _score(model: Callable[[Tensor], Tensor], scan: CorruptedPoints, classes: int) -> NDArray[np.int64]:
    if scan.labels is None or not len(scan.points):
        return np.zeros(2 * classes, dtype=np.int64)
    with torch.no_grad():
        predicted = model(scan.points)
    if predicted.shape != scan.labels.shape or predicted.is_floating_point():
        raise InvalidInput(
            f"model must give one class a point, int64 [{len(scan.points)}],"
            f" got {predicted.dtype} {list(predicted.shape)}"
        )
    judged = ~scan.moved
    return overlap(scan.labels[judged], predicted[judged], classes)


register_functions(
    NAME, paper="Kong et al., 2023", card="robo3d", access=Access.LABELS, data="point clouds", module=__name__
)
