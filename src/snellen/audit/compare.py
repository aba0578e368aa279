"""Two runs side by side: which statements changed, and paired tests on the samples that both examined.

A paired test is stronger than two intervals that do or do not overlap, because both models saw the same samples: only
those count on which they disagree (McNemar, 1947). It is made only where the pairing is honest, that is for the same
samples with the same labels under the same settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from snellen.audit.findings import SEVERITIES
from snellen.audit.outcomes import Outcome, outcomes
from snellen.audit.pairing import PairedRow, by_class, check_pairing, common_samples, pair
from snellen.audit.stored_run import StoredFinding, StoredRun
from snellen.errors import InvalidInput
from snellen.stats import benjamini_hochberg

ChangeKind = Literal["appeared", "graver", "moved", "milder", "gone"]
CHANGE_KINDS: tuple[ChangeKind, ...] = ("appeared", "graver", "moved", "milder", "gone")
_VERSIONS_THAT_MATTER = ("snellen", "torch")


@dataclass(frozen=True)
class Change:
    """A statement that is not the same in both runs. moved: as grave as before, but the intervals do not overlap."""

    kind: ChangeKind
    before: StoredFinding | None
    after: StoredFinding | None

    @property
    def finding(self) -> StoredFinding:
        """The newer side, or the older one of a statement that is gone."""
        found = self.after or self.before
        assert found is not None
        return found


class Refused(NamedTuple):
    """A probe that was not paired, and why."""

    probe: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    before: StoredRun
    after: StoredRun
    warnings: list[str]
    changes: list[Change]
    pairs: list[PairedRow]
    refused: list[Refused]


def compare(before: StoredRun, after: StoredRun) -> Comparison:
    """Everything that differs between two runs, gravest changes first, pairs in the order of the second run."""
    old, new = list(before.tables), list(after.tables)
    shared = [probe for probe in new if probe in old]
    pairs: list[PairedRow] = []
    refused = [Refused(probe, "only the first run has it") for probe in old if probe not in new]
    refused += [Refused(probe, "only the second run has it") for probe in new if probe not in old]
    for probe in shared:
        try:
            pairs += _paired_probe(before, after, probe)
        except InvalidInput as error:
            refused.append(Refused(probe, str(error)))
    adjusted = benjamini_hochberg([row.p_value for row in pairs])
    pairs = [replace(row, q_value=float(q)) for row, q in zip(pairs, adjusted, strict=True)]
    return Comparison(before, after, _warnings(before, after), _changes(before, after, set(shared)), pairs, refused)


def _paired_probe(before: StoredRun, after: StoredRun, probe: str) -> list[PairedRow]:
    old = {_key(outcome): outcome for outcome in outcomes(before.tables[probe])}
    rows = []
    for new in outcomes(after.tables[probe]):
        if _key(new) not in old:
            continue
        check_pairing(before, after, probe, new.metric)
        base = old[_key(new)]
        samples = common_samples(before, after, base, new)
        if not samples:
            raise InvalidInput("the runs have no sample of the same name and class in common")
        rows.append(pair(probe, base, new, samples))
        if new.metric == "accuracy":
            rows += [
                pair(probe, base, new, members, f"class {name}") for name, members in by_class(after, samples).items()
            ]
    return rows


def _key(outcome: Outcome) -> tuple[object, ...]:
    return outcome.metric, *sorted(outcome.condition.items())


def _changes(before: StoredRun, after: StoredRun, shared: set[str]) -> list[Change]:
    """Only of probes that both runs have: what was not examined is neither gone nor new."""
    old, new = (
        {finding.id: finding for finding in run.findings if finding.probe.partition("#")[0] in shared}
        for run in (before, after)
    )
    same = [(old[key], new[key]) for key in old if key in new]
    gone = [finding for key, finding in old.items() if key not in new]
    appeared = [finding for key, finding in new.items() if key not in old]
    for first, second in _renamed(before, after, gone, appeared):
        same.append((first, second))
        gone.remove(first)
        appeared.remove(second)
    changes = [Change("appeared", None, finding) for finding in appeared]
    changes += [Change("gone", finding, None) for finding in gone]
    changes += [Change(kind, *sides) for sides in same if (kind := _kind(*sides)) is not None]
    return sorted(changes, key=_gravity)


def _renamed(
    before: StoredRun, after: StoredRun, gone: Sequence[StoredFinding], appeared: Sequence[StoredFinding]
) -> list[tuple[StoredFinding, StoredFinding]]:
    """Statements with two ids because their subject holds a measured number, such as where a fall begins.

    Under the same settings they are the same when all the rest of the subject agrees, and nothing else could be meant.
    """

    def key(finding: StoredFinding) -> tuple[object, ...]:
        texts = sorted((name, value) for name, value in finding.subject.items() if isinstance(value, str))
        return finding.probe, finding.kind, finding.metric, *texts

    firsts, seconds = Counter(map(key, gone)), Counter(map(key, appeared))
    by_key = {key(finding): finding for finding in appeared}
    return [
        (finding, by_key[key(finding)])
        for finding in gone
        if firsts[key(finding)] == seconds[key(finding)] == 1
        and before.settings(probe := finding.probe.partition("#")[0]) == after.settings(probe)
    ]


def _kind(before: StoredFinding, after: StoredFinding) -> ChangeKind | None:
    step = SEVERITIES.index(after.severity) - SEVERITIES.index(before.severity)
    if step:
        return "graver" if step > 0 else "milder"
    old, new = before.interval, after.interval
    return "moved" if old and new and (old[1] < new[0] or new[1] < old[0]) else None


def _gravity(change: Change) -> tuple[object, ...]:
    finding = change.finding
    return (
        CHANGE_KINDS.index(change.kind) if finding.severity != "info" or change.kind == "milder" else len(CHANGE_KINDS),
        -SEVERITIES.index(finding.severity),
        -(finding.effect or 0.0),
        finding.id,
    )


def _warnings(before: StoredRun, after: StoredRun) -> list[str]:
    old, new = before.manifest, after.manifest
    found = []
    if old.model.fingerprint == new.model.fingerprint:
        found.append("Both runs examined the same model (equal fingerprints): what differs is due to data or settings.")
    if old.data.fingerprint != new.data.fingerprint:
        found.append("The data differ (fingerprints): only samples of the same name and class are paired.")
    relabelled = sum(
        after.classes[sample] != name for sample, name in before.classes.items() if sample in after.classes
    )
    if relabelled:
        found.append(f"{relabelled} samples have another class in the second run and are left out of the pairs.")
    for run, place in ((old, "first"), (new, "second")):
        if run.status != "finished" or run.failed_jobs:
            failed = f", {len(run.failed_jobs)} jobs failed" if run.failed_jobs else ""
            found.append(f"The {place} run is incomplete ({run.status}{failed}): what it lacks may not be absent.")
    for name in _VERSIONS_THAT_MATTER:
        versions = old.versions.get(name, "unknown"), new.versions.get(name, "unknown")
        if versions[0] != versions[1]:
            found.append(f"The runs were made with different versions of {name}: {versions[0]} and {versions[1]}.")
    return found
