from __future__ import annotations

import json
import shlex

import pytest

from snellen.audit.findings import proven_effect, repeat_command, severity, statements, to_json
from snellen.probe import Finding, Kind


def finding(kind: Kind = "accuracy", effect: float = 0.2, **changes: object) -> Finding:
    return Finding(
        **{"kind": kind, "title": "it fails", "metric": "m", "value": 0.5, "effect": effect, "n": 100, **changes}
    )


@pytest.mark.parametrize(
    ("kind", "effect", "expected"),
    [
        ("accuracy", 0.019, "info"),
        ("accuracy", 0.02, "low"),
        ("subgroup", 0.05, "medium"),
        ("calibration", 0.15, "high"),
        ("accuracy", 0.30, "critical"),
        ("shift", 0.39, "medium"),
        ("shift", 0.70, "critical"),
        ("attack", 1.0, "medium"),
        ("certificate", 1.0, "low"),
    ],
)
def test_the_effect_decides_what_is_significant(kind: Kind, effect: float, expected: str) -> None:
    assert severity(finding(kind, effect), q_value=0.01) == expected


def test_what_is_not_significant_is_info_whatever_its_size() -> None:
    assert severity(finding(effect=0.9), q_value=0.051) == "info"
    assert severity(finding(effect=0.9), q_value=float("nan")) == "info"
    assert severity(finding(effect=0.9, ci=(0.4, 0.6), baseline=0.55), q_value=None) == "info"
    assert severity(finding(effect=0.9, ci=(0.4, 0.6), baseline=0.95), q_value=None) == "critical"
    assert severity(finding(effect=0.9, enough_data=False), q_value=0.001) == "info"


@pytest.mark.parametrize(
    ("value", "ci", "baseline", "expected"),
    [
        (0.80, (0.70, 0.97), 1.0, "low"),  # three points are proven
        (0.80, (0.70, 0.95), 1.0, "medium"),
        (0.80, (0.70, 0.85), 1.0, "high"),
        (0.30, (0.06, 0.60), 0.1, "low"),  # significant by a paired test, though the interval holds the baseline
        (0.30, (0.26, 0.60), 0.1, "high"),
        (0.30, None, 0.1, "high"),
    ],
)
def test_above_low_only_what_the_interval_proves_counts(
    value: float, ci: tuple[float, float] | None, baseline: float, expected: str
) -> None:
    harm = finding(effect=abs(value - baseline), value=value, ci=ci, baseline=baseline)
    assert severity(harm, q_value=0.01) == expected


def test_a_weighed_effect_is_proven_in_proportion() -> None:
    weighed = finding(effect=0.4, value=0.8, ci=(0.7, 0.9), baseline=1.0)
    assert proven_effect(weighed) == pytest.approx(0.2)


def test_q_values_are_adjusted_over_the_whole_run() -> None:
    alone = statements([("a", "r", finding(p_value=0.04))])
    among = statements([("a", "r", finding(p_value=0.04))] + [("b", "r", finding(p_value=0.9, n=k)) for k in range(9)])
    assert alone[0].severity == "high"
    assert {statement.severity for statement in among} == {"info"}


def test_statements_are_sentences_in_order_with_stable_ids() -> None:
    first, second = (
        statements([("a", "r", finding(effect=e, p_value=0.001)), ("b", "r", finding(p_value=1e-9))])
        for e in (0.4, 0.4)
    )
    assert [s.probe for s in first] == ["a", "b"]
    assert [s.id for s in first] == [s.id for s in second]
    assert first[0].title == "It fails."


def test_json_has_no_number_that_json_does_not_know() -> None:
    made = statements([("a", "r", finding(value=float("nan"), ci=(float("-inf"), 1.0), p_value=float("nan")))])
    (stored,) = json.loads(to_json(made))
    assert (stored["value"], stored["ci"], stored["p_value"], stored["q_value"]) == (None, [None, 1.0], None, None)


def test_the_repeat_command_quotes_hostile_names() -> None:
    command = repeat_command("attack/pgd", "demo", "photos; rm -rf /", {"eps": [0.1]}, 5, 0)
    assert "'photos; rm -rf /'" in command


def test_figures_that_a_run_measured_are_no_part_of_the_id() -> None:
    def made(temperature: float, measured: tuple[str, ...]) -> str:
        finding = Finding(
            *("calibration", "Over-confident.", "calibration error", 0.1, 0.1, 100),
            subject={"temperature": temperature, "part": "all"},
            measured=measured,
        )
        return statements([("calibration", "", finding)])[0].id

    assert made(1.2, ("temperature",)) == made(1.7, ("temperature",))
    assert made(1.2, ()) != made(1.7, ())


def test_the_repeating_command_names_the_flags_that_opened_model_and_data() -> None:
    usual = {
        "classes": None,
        "device": "cpu",
        "dtype": "float32",
        "label_column": "label",
        "budget": "9",
        "compile": False,
    }
    assert "--" not in repeat_command("p", "m", "d", {}, None, 0, usual).replace("--seed", "")
    given = {**usual, "classes": "my names.txt", "label_column": "kind", "dtype": "bf16", "compile": True}
    words = shlex.split(repeat_command("p", "m", "d", {}, None, 0, given))
    assert words[words.index("--classes") + 1] == "my names.txt"
    assert words[words.index("--label-column") + 1] == "kind"
    assert words[words.index("--dtype") + 1] == "bf16"
    assert words[-1] == "--compile"
