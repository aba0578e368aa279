"""One condition's ruling: a figure between two confidence bounds, against a limit."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from snellen.stats import Interval

Decision = Literal["passed", "failed", "undecided"]


class Ruling(NamedTuple):
    """value, interval (95 %), n: the figure it is about. bound: the one that decides, at the condition's confidence.
    repeat: the command of the worst finding concerned.
    """

    decision: Decision
    detail: str
    value: float | None = None
    interval: Interval | None = None
    bound: float | None = None
    n: int | None = None
    repeat: str | None = None


def rule(
    what: str,
    value: float,
    limit: float,
    at_least: bool,
    interval: Interval | None,
    bounds: Interval,
    n: int,
    confidence: float,
) -> Ruling:
    """Passed when the bound towards the limit keeps it, failed when the other one breaks it, else undecided.

    what: begins the sentence that explains it. bounds: one-sided, each at `confidence`.
    """
    if at_least:
        holds, breaks = bounds.low >= limit, bounds.high < limit
    else:
        holds, breaks = bounds.high <= limit, bounds.low > limit
    decision: Decision = "passed" if holds else "failed" if breaks else "undecided"
    # An undecided figure waits for the bound between it and the limit.
    lower = decision == "passed" if at_least else decision == "failed"
    if decision == "undecided":
        lower = value >= limit
    bound = bounds.low if lower else bounds.high
    side = "above" if lower else "below"
    said = f"{what}; it is {side} {bound:.4g} with confidence {confidence:.4g} (n = {n})"
    if decision == "undecided":
        said += f"; {_lacking(value, bound, limit, n)}"
    return Ruling(decision, said, value, interval, bound, n)


def _lacking(value: float, bound: float, limit: float, n: int) -> str:
    if math.isclose(value, limit, abs_tol=1e-9):
        return "the value is at the limit itself, which no number of samples decides"
    # An interval shrinks with the root of n: how many until this bound reaches the limit, if the value stays.
    needed = math.ceil(n * ((value - bound) / (value - limit)) ** 2)
    return f"not enough data: n = {n}, needs about {needed}"
