"""A run against an earlier one: not inferior as a whole, and no group of samples worse."""

from __future__ import annotations

from typing import NamedTuple

from snellen.audit.measures import Measure, MeasuredRun, same
from snellen.audit.outcomes import Outcome
from snellen.audit.pairing import by_class, check_pairing, common_samples, pair
from snellen.audit.policy import MetricCondition
from snellen.audit.ruling import Ruling, rule
from snellen.errors import InvalidInput
from snellen.stats import (
    Interval,
    benjamini_hochberg,
    binomial_test,
    fisher_exact,
    newcombe_difference,
    paired_difference_counts,
)

GROUPS_NAMED = 5


class _Group(NamedTuple):
    """drop: accuracy of the baseline minus that of the run. p_value: of "not worse", one-sided."""

    name: str
    n: int
    drop: float
    p_value: float


def not_inferior(condition: MetricCondition, margin: float, run: MeasuredRun, baseline: MeasuredRun) -> Ruling:
    new = run.find(condition.metric, condition.probe, condition.where)
    old = baseline.find(condition.metric, condition.probe, condition.where)
    if new.count is None or old.count is None:
        raise InvalidInput(f"{new.metric} is no share of samples, and only shares can be compared with a baseline")
    level = 2 * condition.confidence - 1
    if new.right is not None and old.right is not None:
        before, after, samples = _paired(run, baseline, new, old)
        row = pair(new.probe, before, after, samples)
        value, n, interval = row.difference, row.n, Interval(row.low, row.high)
        bounds = paired_difference_counts(row.only_after, row.only_before, n, level)
    else:
        counts = (new.count, new.n, old.count, old.n)
        value, n = new.count / new.n - old.count / old.n, min(new.n, old.n)
        interval, bounds = newcombe_difference(*counts), newcombe_difference(*counts, level)
    what = f"{new.spoken} differs from the baseline by {value:+.4g} ({new.probe}), allowed down to {-margin:.4g}"
    return rule(what, value, -margin, True, interval, bounds, n, condition.confidence)


def no_group_worse(condition: MetricCondition, margin: float, run: MeasuredRun, baseline: MeasuredRun) -> Ruling:
    """One-sided tests of every class (paired) and attribute value (Fisher), adjusted together."""
    new = run.find(condition.metric, condition.probe, condition.where)
    old = baseline.find(condition.metric, condition.probe, condition.where)
    if new.right is None or old.right is None:
        raise InvalidInput(f"{new.spoken} is not stored sample by sample, so it cannot be split by class")
    groups = _class_groups(run, baseline, new, old)
    if new.metric == "accuracy" and not condition.where:
        groups += _attribute_groups(run, baseline)
    level = 1 - condition.confidence
    judged = [group for group in groups if 0.5**group.n <= level]  # fewer could not reach the level in any case
    small = f"; {len(groups) - len(judged)} groups are too small to be judged" if len(judged) < len(groups) else ""
    if not judged:
        return Ruling("undecided", f"not enough data in any of {len(groups)} groups", n=new.n)
    q_values = benjamini_hochberg([group.p_value for group in judged])
    worse = [(group, q) for group, q in zip(judged, q_values, strict=True) if q <= level and group.drop > margin]
    worse.sort(key=lambda item: -item[0].drop)
    largest = max(judged, key=lambda group: group.drop)
    if not worse:
        said = f"none of {len(judged)} groups lost significantly more than {margin:.4g}{small}"
        return Ruling("passed", said, -largest.drop, n=largest.n)
    named = "; ".join(f"{g.name}: -{g.drop:.4g} (n = {g.n}, q = {q:.2g})" for g, q in worse[:GROUPS_NAMED])
    more = f" and {len(worse) - GROUPS_NAMED} more" if len(worse) > GROUPS_NAMED else ""
    said = f"{len(worse)} of {len(judged)} groups lost more than {margin:.4g}: {named}{more}{small}"
    return Ruling("failed", said, -worse[0][0].drop, n=worse[0][0].n)


def _class_groups(run: MeasuredRun, baseline: MeasuredRun, new: Measure, old: Measure) -> list[_Group]:
    before, after, samples = _paired(run, baseline, new, old)
    groups = []
    for name, members in by_class(run.run, samples).items():
        row = pair(new.probe, before, after, members)
        p = binomial_test(row.only_before, row.only_before + row.only_after, 0.5, "greater")
        groups.append(_Group(f"class {name}", row.n, -row.difference, p))
    return groups


def _attribute_groups(run: MeasuredRun, baseline: MeasuredRun) -> list[_Group]:
    """Values of attributes that both runs have; the samples of a value are not stored, so the test is unpaired."""
    known = [m for m in baseline.measures if _is_attribute(m)]
    groups = []
    for new in filter(_is_attribute, run.measures):
        for old in known:
            if (old.probe, old.where) == (new.probe, new.where) and new.count is not None and old.count is not None:
                p = fisher_exact(new.count, new.n, old.count, old.n, "less")
                name = ", ".join(f"{key} = {value}" for key, value in new.where.items())
                groups.append(_Group(name, min(new.n, old.n), old.count / old.n - new.count / new.n, p))
    return groups


def _is_attribute(measure: Measure) -> bool:
    return measure.metric == "accuracy" and measure.right is None and measure.count is not None


def _paired(run: MeasuredRun, baseline: MeasuredRun, new: Measure, old: Measure) -> tuple[Outcome, Outcome, list[str]]:
    if new.probe != old.probe or not all(same(old.where.get(key), value) for key, value in new.where.items()):
        raise InvalidInput(f"the baseline has {old.spoken} of {old.probe}, the run {new.spoken} of {new.probe}")
    check_pairing(baseline.run, run.run, new.probe, new.metric)
    before, after = (Outcome(new.metric, {}, m.right or {}) for m in (old, new))
    samples = common_samples(baseline.run, run.run, before, after)
    if not samples:
        raise InvalidInput("the run and the baseline have no sample of the same name and class in common")
    return before, after, samples
