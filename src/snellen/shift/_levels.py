"""Drops in accuracy at some severities, and what they say about the severities between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.probe import Rows
from snellen.shift._curve import CLEAN
from snellen.stats import paired_difference_counts


class Level(NamedTuple):
    """The drop in accuracy at one severity with its 95 % interval.

    n: images asked, 0 where the bounds come from the neighbours. only_clean, only_shifted: images right only before,
    only after.
    """

    severity: float
    drop: float
    low: float
    high: float
    n: int
    only_clean: int = 0
    only_shifted: int = 0


def drop_curve(known: Iterable[Level], severities: tuple[float, ...], monotone: bool) -> list[Level]:
    """A level for every severity: the measured ones, and bounds from the nearest measured ones for the others."""
    measured = {level.severity: level for level in known if level.n or level.severity == 0}
    measured.setdefault(0.0, Level(0.0, 0.0, 0.0, 0.0, 0))
    curve = []
    for severity in severities:
        if severity in measured:
            curve.append(measured[severity])
            continue
        below = measured[max(s for s in measured if s < severity)]
        above = [measured[s] for s in sorted(measured) if s > severity][:1]
        if not above or not monotone:
            curve.append(Level(severity, below.drop, -1.0, 1.0, 0))
            continue
        share = (severity - below.severity) / (above[0].severity - below.severity)
        drop = (1 - share) * below.drop + share * above[0].drop
        low, high = min(below.low, drop), max(above[0].high, drop)
        curve.append(Level(severity, drop, low, high, 0))
    return curve


def levels_of(table: Rows) -> dict[str, list[Level]]:
    """The measured levels of every shift from rows `id`, `shift`, `severity`, `correct`."""
    if not table.num_rows:
        return {}
    ids, shifts = (np.array(table[name].to_pylist(), dtype=object) for name in ("id", "shift"))
    severity, correct = table["severity"].to_numpy(), table["correct"].to_numpy(zero_copy_only=False)
    clean = dict(zip(ids[shifts == CLEAN], correct[shifts == CLEAN], strict=True))
    found: dict[str, list[Level]] = {}
    for name in dict.fromkeys(shifts[shifts != CLEAN]):
        for value in np.unique(severity[shifts == name]):
            mine = (shifts == name) & (severity == value)
            before = np.array([clean[sample_id] for sample_id in ids[mine]])
            found.setdefault(str(name), []).append(level_of(float(value), before, correct[mine]))
    return found


def level_of(severity: float, clean: NDArray[np.bool_], correct: NDArray[np.bool_]) -> Level:
    b, c, n = discordant(clean, correct)
    low, high = paired_difference_counts(b, c, n)
    return Level(severity, (b - c) / n, low, high, n, b, c)


def discordant(clean: NDArray[np.bool_], correct: NDArray[np.bool_]) -> tuple[int, int, int]:
    return int((clean & ~correct).sum()), int((~clean & correct).sum()), len(correct)
