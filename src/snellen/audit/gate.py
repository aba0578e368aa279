"""Does a run keep a policy? Each condition passes, fails, or cannot be decided with the data there are.

A limit holds when the confidence bound on its side keeps it, is broken when the other bound breaks it, and is
undecided while it lies between the two: too few samples are no proof of anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snellen.audit.against_baseline import no_group_worse, not_inferior
from snellen.audit.findings import SEVERITIES
from snellen.audit.measures import Measure, MeasuredRun
from snellen.audit.policy import FindingsCondition, MetricCondition, Policy
from snellen.audit.ruling import Decision, Ruling, rule
from snellen.audit.stored_run import StoredRun
from snellen.errors import InvalidInput
from snellen.stats import Interval


@dataclass(frozen=True)
class Verdict:
    """What came of one condition. accepted: whether the gate stays open.

    value, interval (95 %), n: the figure it is about. bound: the one that decides, at the condition's confidence.
    repeat: the command of the worst finding concerned.
    """

    name: str
    decision: Decision
    accepted: bool
    detail: str
    why: str | None = None
    value: float | None = None
    interval: Interval | None = None
    bound: float | None = None
    n: int | None = None
    repeat: str | None = None

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "interval": None if self.interval is None else list(self.interval)}


def judge(policy: Policy, run: StoredRun, baseline: StoredRun | None = None) -> list[Verdict]:
    """One verdict a condition, in the order of the policy. `InvalidInput` for what the runs cannot be asked."""
    measured = MeasuredRun(run)
    reference = None if baseline is None else MeasuredRun(baseline)
    verdicts = []
    for index, condition in enumerate(policy.conditions):
        name = condition.name or _usual_name(condition)
        try:
            ruling = _rule(condition, measured, reference)
        except InvalidInput as error:
            raise InvalidInput(f"condition {index + 1} ({name}): {error}") from error
        accepted = ruling.decision == "passed" or (ruling.decision == "undecided" and condition.undecided == "pass")
        verdicts.append(Verdict(name, accepted=accepted, why=condition.why, **ruling._asdict()))
    return verdicts


def _rule(condition: MetricCondition | FindingsCondition, run: MeasuredRun, baseline: MeasuredRun | None) -> Ruling:
    if isinstance(condition, FindingsCondition):
        return _count_findings(condition, run.run)
    if not condition.needs_baseline:
        return _against_limit(condition, run.find(condition.metric, condition.probe, condition.where))
    if baseline is None:
        raise InvalidInput("it compares with a baseline; give one with --baseline RUN")
    if condition.no_worse_than_baseline is not None:
        return not_inferior(condition, condition.no_worse_than_baseline.margin, run, baseline)
    assert condition.no_group_worse_than_baseline is not None
    return no_group_worse(condition, condition.no_group_worse_than_baseline.margin, run, baseline)


def _count_findings(condition: FindingsCondition, run: StoredRun) -> Ruling:
    least = SEVERITIES.index(condition.findings.severity_at_least)
    counted = [
        finding
        for finding in run.findings
        if SEVERITIES.index(finding.severity) >= least and not {finding.id, finding.kind} & set(condition.excepted)
    ]
    said = f"{len(counted)} findings of severity {condition.findings.severity_at_least} or above"
    said += f", at most {condition.at_most} allowed"
    n = len(counted)
    if n > condition.at_most:
        worst = counted[0]
        return Ruling("failed", f"{said}; the worst ({worst.id}): {worst.title.rstrip('.')}", n, repeat=worst.repeat)
    if not run.complete:
        why = f"the run is incomplete ({run.manifest.status}, {len(run.manifest.failed_jobs)} failed jobs)"
        return Ruling("undecided", f"{said}, but {why}, so more may have stayed unseen", n)
    return Ruling("passed", said, n)


def _against_limit(condition: MetricCondition, measure: Measure) -> Ruling:
    at_least = condition.at_least is not None
    limit = condition.at_least if condition.at_least is not None else condition.at_most
    assert limit is not None
    if measure.value is None:
        return Ruling("undecided", f"not enough data for {measure.spoken}: n = {measure.n}", n=measure.n)
    wanted = f"wanted at {'least' if at_least else 'most'} {limit:.4g}"
    what = f"{measure.spoken} is {measure.value:.4g} ({measure.probe}), {wanted}"
    bounds = measure.bounds(condition.confidence)
    return rule(what, measure.value, limit, at_least, measure.interval, bounds, measure.n, condition.confidence)


def _usual_name(condition: MetricCondition | FindingsCondition) -> str:
    if isinstance(condition, FindingsCondition):
        return f"at most {condition.at_most} findings of severity {condition.findings.severity_at_least} or above"
    where = f" at {_spoken(condition.where)}" if condition.where else ""
    if condition.at_least is not None:
        return f"{condition.metric}{where} at least {condition.at_least:g}"
    if condition.at_most is not None:
        return f"{condition.metric}{where} at most {condition.at_most:g}"
    whole = condition.no_worse_than_baseline is not None
    return f"{condition.metric}{where}: {'no' if whole else 'no group'} worse than the baseline"


def _spoken(where: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in where.items())
