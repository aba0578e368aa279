"""How many samples a statement needs, and what the samples at hand could have shown.

One proportion against a known baseline, two-sided, with the arcsine transform (Cohen, 1988), which unlike the plain
normal formula keeps its power for accuracies near 1. Against a comparison group that is not much larger than the
group itself, up to twice as many are needed.
"""

from __future__ import annotations

import math

from scipy import stats

from snellen.errors import InvalidInput
from snellen.stats.intervals import check_level


def minimal_detectable_effect(n: int, baseline: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest drop below `baseline` (in the units of a proportion) that n samples detect with `power`.

    `baseline` itself when not even a drop to 0 would be detected.
    """
    if n < 1:
        raise InvalidInput(f"n must be at least 1, got {n}")
    reach = _arcsine(baseline) - _distance(alpha, power) / math.sqrt(n) / 2
    return baseline - math.sin(reach) ** 2 if reach > 0 else baseline


def needed_samples(effect: float, baseline: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many samples detect a drop of `effect` below `baseline` with `power`; effect in (0, baseline]."""
    if not 0 < effect <= baseline:
        raise InvalidInput(f"effect must be in (0, baseline = {baseline}], got {effect}")
    gap = 2 * (_arcsine(baseline) - _arcsine(baseline - effect))
    return max(1, math.ceil((_distance(alpha, power) / gap) ** 2 - 1e-9))


def _distance(alpha: float, power: float) -> float:
    check_level(alpha, "alpha")
    check_level(power, "power")
    return float(stats.norm.isf(alpha / 2) + stats.norm.ppf(power))


def _arcsine(p: float) -> float:
    if not 0 <= p <= 1:
        raise InvalidInput(f"baseline must be in [0, 1], got {p}")
    return math.asin(math.sqrt(p))
