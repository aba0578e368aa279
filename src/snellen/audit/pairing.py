"""Two runs on the same samples: which of them may be paired, and what the pairs say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from snellen.audit.outcomes import Outcome
from snellen.audit.stored_run import StoredRun
from snellen.errors import InvalidInput
from snellen.stats import mcnemar_exact, paired_difference_counts


@dataclass(frozen=True)
class PairedRow:
    """One metric under one condition on n common samples; difference, low and high are after minus before.

    group: "" for all samples, else "class NAME". only_before, only_after: samples right in that run only.
    """

    probe: str
    metric: str
    condition: Mapping[str, str | float]
    group: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    only_before: int
    only_after: int
    p_value: float
    q_value: float = 1.0


def pair(probe: str, old: Outcome, new: Outcome, samples: Iterable[str], group: str = "") -> PairedRow:
    """The paired comparison on `samples`, which both outcomes must have; without q-value."""
    both = [(old.right[sample], new.right[sample]) for sample in samples]
    n = len(both)
    only_before = sum(a and not b for a, b in both)
    only_after = sum(b and not a for a, b in both)
    low, high = paired_difference_counts(only_after, only_before, n)
    return PairedRow(
        probe=probe,
        metric=new.metric,
        condition=new.condition,
        group=group,
        n=n,
        before=sum(a for a, _ in both) / n,
        after=sum(b for _, b in both) / n,
        difference=(only_after - only_before) / n,
        low=low,
        high=high,
        only_before=only_before,
        only_after=only_after,
        p_value=mcnemar_exact(only_after, only_before),
    )


def common_samples(before: StoredRun, after: StoredRun, old: Outcome, new: Outcome) -> list[str]:
    """Samples that both have, with the same class in both."""
    return [
        sample
        for sample in new.right
        if sample in old.right and before.classes.get(sample) == after.classes.get(sample)
    ]


def check_pairing(before: StoredRun, after: StoredRun, probe: str, metric: str) -> None:
    """`InvalidInput` with the reason when rows of the probe must not be paired."""
    old, new = before.settings(probe), after.settings(probe)
    if [line for line in old if line not in new] or [line for line in new if line not in old]:
        raise InvalidInput(f"its settings differ: {_difference(old, new)}")
    seeds = before.manifest.plan.seed, after.manifest.plan.seed
    if seeds[0] != seeds[1] and metric != "accuracy":  # nothing is drawn for the answer to an untouched image
        raise InvalidInput(f"the seeds differ: {seeds[0]} and {seeds[1]}")


def by_class(run: StoredRun, samples: Iterable[str]) -> dict[str, list[str]]:
    """The samples of each class, classes in the model's order."""
    members: dict[str, list[str]] = {name: [] for name in run.manifest.model.classes}
    for sample in samples:
        if sample in run.classes:
            members[run.classes[sample]].append(sample)
    return {name: found for name, found in members.items() if found}


def _difference(old: list[dict[str, object]], new: list[dict[str, object]]) -> str:
    if len(old) == len(new) == 1:
        names = [name for name in old[0] if old[0][name] != new[0].get(name)]
        return ", ".join(f"{name} = {old[0][name]} and {new[0].get(name)}" for name in names)
    return f"{len(old)} and {len(new)} lines of the plans that are not the same"
