"""What a sweep over eps says: one finding on robust accuracy, the red flags, and the curve."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snellen.exhibits import Curve, CurvePoint, Exhibit
from snellen.probe import Finding, Rows
from snellen.stats import mcnemar_exact, needed_samples, wilson

MANY_BLIND = 0.05
"""From this part of the attacked images on, vanished gradients make the figure untrustworthy."""


class Level(NamedTuple):
    """Counts at one radius."""

    eps: float
    robust: int
    blind: int


class Robustness(NamedTuple):
    """A sweep in counts. levels: by rising eps. easiest: ids of flipped samples, smallest radius first."""

    norm: str
    n: int
    clean: int
    probabilities: int
    levels: list[Level]
    easiest: list[str]


def robustness_findings(table: Rows, probe: str, cross_check: str) -> list[Finding]:
    """Robust accuracy at the middle radius against clean accuracy, and what speaks against trusting it.

    cross_check: what to run when gradients vanish, as an order ("run ...").
    Effect: the part of all images whose correct answer is lost; p-value: exact McNemar, clean against attacked.
    """
    seen = _summary(table)
    if seen is None or seen.clean == 0:
        return []
    flags = _red_flags(seen, probe, cross_check)
    return [_main_finding(seen, probe, doubted=bool(flags)), *flags]


def robustness_exhibits(table: Rows, probe: str) -> list[Exhibit]:
    """Robust accuracy against eps with 95 % intervals, from the clean accuracy at eps 0."""
    seen = _summary(table)
    if seen is None:
        return []
    scale, unit = (255, "in 1/255 of the pixel range, largest change") if seen.norm == "linf" else (1, "L2 length")
    counts = [(0.0, seen.clean)] + [(level.eps, level.robust) for level in seen.levels]
    points = [CurvePoint(eps * scale, k / seen.n, *wilson(k, seen.n), series=probe) for eps, k in counts]
    caption = (
        f"How many of {seen.n} images are still answered correctly when an attacker may change them by eps; at 0 is"
        " the clean accuracy, bands are 95 % intervals. A stronger attack can only lower the curve."
    )
    return [Curve(f"Robust accuracy under {probe}", caption, f"eps ({unit})", "robust accuracy", points)]


def _summary(table: Rows) -> Robustness | None:
    if table.num_rows == 0:
        return None
    ids = np.asarray(table["id"].to_pylist())
    eps, distance = _column(table, "eps"), _column(table, "distance")
    correct, robust, blind, probabilities = (
        _column(table, name).astype(bool) for name in ("clean_correct", "robust", "zero_gradient", "probabilities")
    )
    radii = np.unique(eps)
    levels = [Level(float(r), int(robust[eps == r].sum()), int((blind & robust)[eps == r].sum())) for r in radii]

    flipped = np.flatnonzero(correct & ~robust)
    order = flipped[np.lexsort((ids[flipped], distance[flipped]))]
    easiest = list(dict.fromkeys(ids[order].tolist()))[:12]

    first = eps == radii[0]
    return Robustness(
        norm=table["norm"][0].as_py(),
        n=int(first.sum()),
        clean=int(correct[first].sum()),
        probabilities=int(probabilities[first].sum()),
        levels=levels,
        easiest=easiest,
    )


def _main_finding(seen: Robustness, probe: str, doubted: bool) -> Finding:
    middle = seen.levels[(len(seen.levels) - 1) // 2]
    clean, robust = seen.clean / seen.n, middle.robust / seen.n
    lost = seen.clean - middle.robust
    p_value = mcnemar_exact(0, lost)
    needed = needed_samples(0.1, max(0.1, clean))
    enough = p_value < 0.05 or seen.n >= needed

    radius = _radius(middle.eps, seen.norm)
    if not enough:
        title = f"not enough data: n = {seen.n}, needs about {needed} to judge robust accuracy at eps {radius}"
    elif lost == 0:
        title = f"no correct answer is lost to {probe} at eps {radius}; clean accuracy is {clean:.1%}"
    else:
        title = (
            f"at most {robust:.1%} of the images are answered correctly under attack at eps {radius},"
            f" down from {clean:.1%}; {_half_lost(seen)}"
        )
    if doubted and enough:
        title += " (not to be trusted, see the red flag)"
    return Finding(
        kind="attack",
        title=title,
        metric="robust accuracy",
        value=robust,
        baseline=clean,
        effect=lost / seen.n,
        n=seen.n,
        subject={"attack": probe, "norm": seen.norm, "eps": middle.eps},
        ci=wilson(middle.robust, seen.n),
        p_value=p_value,
        evidence=seen.easiest,
        enough_data=enough,
    )


def _red_flags(seen: Robustness, probe: str, cross_check: str) -> list[Finding]:
    flags: list[Finding] = []
    worst = max(seen.levels, key=lambda level: level.blind)
    if worst.blind > MANY_BLIND * seen.clean:
        title = (
            f"the robust accuracy of {probe} is not to be trusted: at eps {_radius(worst.eps, seen.norm)} the"
            f" gradient vanishes on {worst.blind} of {seen.clean} correct images; {cross_check}"
        )
        # Harm that the attack could not rule out: images that count as robust for want of a gradient.
        flag = _flag(title, "vanished gradients", worst.blind, seen, probe, worst.eps)
        flags.append(replace(flag, effect=worst.blind / seen.n))
    if seen.probabilities > MANY_BLIND * seen.n:
        title = (
            f"the model seems to return probabilities ({seen.probabilities} of {seen.n} rows sum to 1), which flatten"
            " the attack's loss: load it without its softmax and run the attack again"
        )
        flags.append(_flag(title, "probabilities as outputs", seen.probabilities, seen, probe, worst.eps))
    return flags


def _flag(title: str, metric: str, count: int, seen: Robustness, probe: str, eps: float) -> Finding:
    return Finding(
        kind="attack",
        title=title,
        metric=metric,
        value=count / seen.n,
        effect=0.0,
        n=seen.n,
        subject={"attack": probe, "norm": seen.norm, "eps": eps, "red_flag": metric},
        ci=wilson(count, seen.n),
    )


def _half_lost(seen: Robustness) -> str:
    """Where the curve, linear between the radii, passes half of the clean accuracy."""
    before_eps, before = 0.0, float(seen.clean)
    for level in seen.levels:
        if level.robust <= seen.clean / 2:
            part = (before - seen.clean / 2) / (before - level.robust)
            where = before_eps + part * (level.eps - before_eps)
            return f"half of the correct answers are lost at eps about {_radius(where, seen.norm)}"
        before_eps, before = level.eps, float(level.robust)
    return f"fewer than half of the correct answers are lost up to eps {_radius(before_eps, seen.norm)}"


def _radius(eps: float, norm: str) -> str:
    return f"{eps * 255:.2g}/255" if norm == "linf" else f"{eps:.2g}"


def _column(table: Rows, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)
