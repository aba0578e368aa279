"""Statements of a run: q-values over all of them, severity by one rule, and the public JSON format."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from snellen.probe import Finding
from snellen.stats import benjamini_hochberg

SCHEMA_VERSION = 1
SIGNIFICANT = 0.05
"""Level for q-values; the interval of a statement without a test is judged at the same level."""

Severity = Literal["info", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")

_USUAL = (0.02, 0.05, 0.15, 0.30)
# Every undefended model loses accuracy under noise or attack, so the same loss weighs less there, and an attack is
# grave only where there is an adversary, which the examination cannot know: attacks stop at medium.
_THRESHOLDS: dict[str, tuple[float, float, float, float]] = {
    "shift": (0.05, 0.15, 0.40, 0.70),
    "attack": (0.05, 0.30, math.inf, math.inf),
    "certificate": (0.30, math.inf, math.inf, math.inf),
    "explanation": (0.10, 0.25, math.inf, math.inf),
}


@dataclass(frozen=True)
class Statement:
    """A finding with what the run knows about it."""

    finding: Finding
    probe: str
    id: str
    severity: Severity
    q_value: float | None
    repeat: str

    @property
    def title(self) -> str:
        """The finding's title as a sentence."""
        text = self.finding.title.strip()
        return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")

    def to_json(self) -> dict[str, object]:
        """The object of `findings.json`."""
        finding = self.finding
        return {
            "id": self.id,
            "probe": self.probe,
            "kind": finding.kind,
            "severity": self.severity,
            "title": self.title,
            "subject": dict(finding.subject),
            "metric": finding.metric,
            "value": _number(finding.value),
            "baseline": _number(finding.baseline),
            "effect": _number(finding.effect),
            "ci": None if finding.ci is None else [_number(bound) for bound in finding.ci],
            "n": finding.n,
            "p_value": _number(finding.p_value),
            "q_value": _number(self.q_value),
            "evidence": list(finding.evidence),
            "repeat": self.repeat,
        }


def severity(finding: Finding, q_value: float | None) -> Severity:
    """The rule: a statement that is not significant is info; otherwise the size of the effect decides.

    Significant means q <= 0.05, or, where no test was made, an interval that excludes the baseline. The effect is harm
    in points of accuracy: low from 0.02, medium from 0.05, high from 0.15, critical from 0.30. Shifts need 0.05, 0.15,
    0.40 and 0.70; attacks 0.05 and 0.30 and are never graver than medium; certificates at most low. For low the
    estimate counts, for more only what is proven, `proven_effect`: few samples, and the luck of being the worst of
    many, make estimates large.
    """
    if not finding.enough_data or finding.effect <= 0:
        return "info"
    if q_value is not None:
        if not q_value <= SIGNIFICANT:
            return "info"
    elif finding.ci is not None and finding.baseline is not None:
        low, high = finding.ci
        if low <= finding.baseline <= high:
            return "info"
    low_from, *graver = _THRESHOLDS.get(finding.kind, _USUAL)
    if finding.effect < low_from:
        return "info"
    proven = proven_effect(finding)
    return SEVERITIES[1 + sum(proven >= threshold for threshold in graver)]


def proven_effect(finding: Finding) -> float:
    """The part of the effect that remains when the value lies at the end of its interval nearer to the baseline.

    All of it where value, baseline or interval are not given; none where the interval holds the baseline.
    """
    if finding.ci is None or finding.baseline is None or finding.value is None or finding.value == finding.baseline:
        return finding.effect
    near = finding.ci[0] if finding.value > finding.baseline else finding.ci[1]
    return finding.effect * min(max((near - finding.baseline) / (finding.value - finding.baseline), 0.0), 1.0)


def statements(found: Sequence[tuple[str, str, Finding]]) -> list[Statement]:
    """Gravest first. found: (probe label, repeat command, finding); q-values are Benjamini-Hochberg over all."""
    tested = [index for index, (_, _, finding) in enumerate(found) if _tested(finding)]
    q_values: dict[int, float] = {}
    if tested:
        adjusted = benjamini_hochberg([found[index][2].p_value or 0.0 for index in tested])
        q_values = {index: float(q) for index, q in zip(tested, adjusted, strict=True)}
    made = []
    for index, (probe, repeat, finding) in enumerate(found):
        q = q_values.get(index)
        made.append(Statement(finding, probe, _identity(probe, finding), severity(finding, q), q, repeat))
    return sorted(made, key=lambda s: (-SEVERITIES.index(s.severity), -s.finding.effect, s.probe, s.id))


_FLAGS = ("classes", "input_size", "mean", "std", "architecture", "access", "template", "remote")
_USUAL_FLAGS = {"label_column": "label", "device": "cpu", "dtype": "float32"}


def repeat_command(
    probe: str,
    model: str,
    data: str,
    settings: dict[str, object],
    samples: int | None,
    seed: int,
    inputs: Mapping[str, object] | None = None,
) -> str:
    """The command line that makes the statement's rows again. inputs: the flags that opened model and data."""
    inputs = inputs or {}
    words = ["snellen", "run", probe, model, data]
    words += [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    words += ["--seed", str(seed)] + (["--samples", str(samples)] if samples else [])
    usual = {**dict.fromkeys(_FLAGS), **_USUAL_FLAGS}
    for flag, value in usual.items():
        if (given := inputs.get(flag, value)) != value:
            words += [f"--{flag.replace('_', '-')}", str(given)]
    words += ["--compile"] if inputs.get("compile") else []
    return shlex.join(words)


def to_json(made: Sequence[Statement]) -> bytes:
    return json.dumps([{"schema_version": SCHEMA_VERSION, **s.to_json()} for s in made], indent=1).encode()


def _tested(finding: Finding) -> bool:
    return finding.p_value is not None and not math.isnan(finding.p_value)


def _identity(probe: str, finding: Finding) -> str:
    about = {key: value for key, value in finding.subject.items() if key not in finding.measured}
    parts = [probe, finding.kind, finding.metric, json.dumps(about, sort_keys=True, default=str)]
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=6).hexdigest()


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
