from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml

from snellen.audit.gate import Verdict, judge
from snellen.audit.measures import Measure, MeasuredRun
from snellen.audit.policy import load_policy
from snellen.audit.ruling import rule
from snellen.audit.stored_run import open_run
from snellen.cli import main
from snellen.errors import InvalidInput
from snellen.report.verdicts import junit_xml, markdown_summary
from snellen.stats import Interval, clopper_pearson, clopper_pearson_lower

MakeRun = Callable[..., str]
MakeFinding = Callable[..., dict[str, object]]


def of(count: int, n: int) -> np.ndarray:
    """count right answers of n, spread evenly over both classes."""
    right = np.zeros(n, bool)
    right[:count] = True
    return right


@pytest.fixture
def decide(tmp_path: Path) -> Callable[..., Verdict]:
    """The verdict on the one condition of a policy in YAML."""

    def decide(condition: str, run: str, baseline: str | None = None) -> Verdict:
        (tmp_path / "policy.yaml").write_text(f"conditions:\n  - {{{condition}}}\n")
        (verdict,) = judge(
            load_policy(tmp_path / "policy.yaml"), open_run(run), None if baseline is None else open_run(baseline)
        )
        return verdict

    return decide


@pytest.mark.parametrize(
    ("count", "n", "limit", "decision"),
    [
        (180, 200, 0.8, "passed"),
        (180, 200, 0.95, "failed"),
        (180, 200, 0.88, "undecided"),
        (180, 200, 0.92, "undecided"),
        (9, 10, 0.5, "passed"),
        (9, 10, 0.8, "undecided"),
    ],
)
def test_a_share_is_held_to_its_exact_bound(
    make_run: MakeRun, decide: Callable[..., Verdict], count: int, n: int, limit: float, decision: str
) -> None:
    verdict = decide(f"metric: accuracy, at_least: {limit}", make_run("run", of(count, n)))
    assert verdict.decision == decision
    assert verdict.accepted == (decision == "passed")
    assert verdict.value == count / n
    assert verdict.interval == clopper_pearson(count, n)
    if decision == "passed":
        assert verdict.bound == pytest.approx(clopper_pearson_lower(count, n, 0.05))
        assert verdict.bound >= limit


def test_more_confidence_asks_for_more(make_run: MakeRun, decide: Callable[..., Verdict]) -> None:
    run = make_run("run", of(180, 200))
    assert decide("metric: accuracy, at_least: 0.86, confidence: 0.9", run).decision == "passed"
    assert decide("metric: accuracy, at_least: 0.86, confidence: 0.99", run).decision == "undecided"


def test_undecided_says_how_many_samples_are_needed_and_they_are_enough(
    make_run: MakeRun, decide: Callable[..., Verdict]
) -> None:
    verdict = decide("metric: accuracy, at_least: 0.8", make_run("few", of(11, 12)))
    needed = int(verdict.detail.rsplit("needs about ", 1)[1])
    assert "not enough data: n = 12" in verdict.detail
    enough = 2 * needed
    more = decide("metric: accuracy, at_least: 0.8", make_run("many", of(round(enough * 11 / 12), enough)))
    assert more.decision == "passed"


def test_a_policy_may_let_the_undecided_pass(make_run: MakeRun, decide: Callable[..., Verdict]) -> None:
    verdict = decide("metric: accuracy, at_least: 0.9, undecided: pass", make_run("run", of(9, 10)))
    assert (verdict.decision, verdict.accepted) == ("undecided", True)


@given(bounds=st.tuples(*[st.floats(0, 1)] * 3).map(sorted), limit=st.floats(0, 1), at_least=st.booleans())
def test_turning_the_scale_round_turns_no_decision(bounds: list[float], limit: float, at_least: bool) -> None:
    low, value, high = bounds
    there = rule("", value, limit, at_least, None, Interval(low, high), 10, 0.95)
    back = rule("", -value, -limit, not at_least, None, Interval(-high, -low), 10, 0.95)
    assert there.decision == back.decision
    assert there.bound is not None
    assert back.bound is not None
    assert there.bound == -back.bound or low == high or value == limit


def test_robust_accuracy_is_found_by_its_radius_as_a_fraction(
    make_run: MakeRun, decide: Callable[..., Verdict]
) -> None:
    robust = {2 / 255: of(150, 200), 8 / 255: of(20, 200)}
    run = make_run("run", of(180, 200), robust=robust)
    assert decide("metric: robust_accuracy, where: {eps: 2/255}, at_least: 0.4", run).value == 0.75
    assert decide("metric: robust accuracy, where: {eps: 0.03137254}, at_least: 0.4", run).decision == "failed"
    with pytest.raises(InvalidInput, match=r"ambiguous.*eps = 0.00784314.*eps = 0.0313725"):
        decide("metric: robust_accuracy, at_least: 0.4", run)


def test_classes_and_attribute_values_are_metrics_too(make_run: MakeRun, decide: Callable[..., Verdict]) -> None:
    labels = np.arange(200) // 100
    groups = [("light", "night", 50, 10), ("flash", "yes", 40, 40), ("overall", "", 200, 120)]
    run = make_run("run", of(120, 200), labels=labels, groups=groups)
    assert decide("metric: accuracy, where: {class: cat}, at_least: 0.9", run).value == 1.0
    assert decide("metric: accuracy, where: {class: dog}, at_least: 0.9", run).value == 0.2
    assert decide("metric: accuracy, where: {light: night}, at_least: 0.9", run).value == 0.2
    assert decide("metric: accuracy, where: {flash: yes}, at_least: 0.9", run).decision == "passed"
    assert decide("metric: accuracy, at_least: 0.5", run).n == 200


def test_what_a_finding_states_is_a_metric_up_to_the_confidence_of_its_interval(
    make_run: MakeRun, make_finding: MakeFinding, decide: Callable[..., Verdict]
) -> None:
    run = make_run("run", of(9, 10), findings=[make_finding(metric="Share of Things", ci=(0.1, 0.2))])
    assert decide("metric: share_of_things, at_most: 0.25", run).decision == "passed"
    assert decide("metric: share of things, at_most: 0.12", run).decision == "undecided"
    assert decide("metric: share of things, where: {class: statement}, at_least: 0.3", run).decision == "failed"
    with pytest.raises(InvalidInput, match="at 95 %"):
        decide("metric: share of things, at_most: 0.25, confidence: 0.99", run)


def test_grave_findings_are_counted_without_the_excepted(
    make_run: MakeRun, make_finding: MakeFinding, decide: Callable[..., Verdict]
) -> None:
    grave, excused = make_finding("grave", "critical"), make_finding("excused", "high", kind="subgroup")
    run = make_run("run", of(9, 10), findings=[grave, excused, make_finding("small", "low")])
    verdict = decide("findings: {severity_at_least: high}", run)
    assert (verdict.decision, verdict.value, verdict.repeat) == ("failed", 2, grave["repeat"])
    assert decide("findings: {severity_at_least: high}, at_most: 2", run).decision == "passed"
    assert decide("findings: {severity_at_least: high}, at_most: 1, except: [subgroup]", run).decision == "passed"
    assert decide(f"findings: {{severity_at_least: high}}, except: [subgroup, {grave['id']}]", run).value == 0


def test_a_run_that_is_not_whole_cannot_promise_that_nothing_grave_is_there(
    make_run: MakeRun, decide: Callable[..., Verdict]
) -> None:
    failed = [{"probe": "attack/pgd", "key": "k", "error": "e", "traceback": ""}]
    run = make_run("run", of(9, 10), failed_jobs=failed)
    assert decide("findings: {severity_at_least: high}", run).decision == "undecided"


@pytest.mark.parametrize(("lost", "decision"), [(0, "passed"), (12, "failed"), (3, "undecided")])
def test_no_worse_than_the_baseline_is_decided_on_pairs(
    make_run: MakeRun, decide: Callable[..., Verdict], lost: int, decision: str
) -> None:
    baseline, run = make_run("base", of(180, 200)), make_run("run", of(180 - lost, 200))
    verdict = decide("metric: accuracy, no_worse_than_baseline: {margin: 0.02}", run, baseline)
    assert verdict.decision == decision
    assert verdict.value == pytest.approx(-lost / 200)


def test_one_class_that_got_worse_is_found_though_the_whole_is_no_worse(
    make_run: MakeRun, decide: Callable[..., Verdict]
) -> None:
    even = np.arange(400) % 2 == 0
    before, after = np.arange(400) % 10 < 8, np.ones(400, bool)
    before[even], after[even] = True, np.arange(200) % 5 > 0
    baseline, run = make_run("base", before), make_run("run", after)
    assert decide("metric: accuracy, no_worse_than_baseline: {margin: 0.05}", run, baseline).decision == "passed"
    verdict = decide("metric: accuracy, no_group_worse_than_baseline: {margin: 0.02}", run, baseline)
    assert verdict.decision == "failed"
    assert "class cat: -0.2" in verdict.detail
    assert "class dog" not in verdict.detail
    assert decide("metric: accuracy, no_group_worse_than_baseline: {margin: 0.3}", run, baseline).decision == "passed"


def test_an_attribute_value_that_got_worse_is_found(make_run: MakeRun, decide: Callable[..., Verdict]) -> None:
    baseline = make_run("base", of(90, 100), groups=[("light", "day", 100, 90), ("light", "night", 80, 70)])
    run = make_run("run", of(90, 100), groups=[("light", "day", 100, 90), ("light", "night", 80, 40)])
    verdict = decide("metric: accuracy, no_group_worse_than_baseline: {margin: 0.02}", run, baseline)
    assert verdict.decision == "failed"
    assert "light = night" in verdict.detail
    assert "light = day" not in verdict.detail


def test_groups_too_small_to_say_anything_are_undecided(make_run: MakeRun, decide: Callable[..., Verdict]) -> None:
    baseline, run = make_run("base", of(6, 6)), make_run("run", of(0, 6))
    verdict = decide("metric: accuracy, no_group_worse_than_baseline: {margin: 0.02}", run, baseline)
    assert verdict.decision == "undecided"


def test_the_policy_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/living-with-it.md").read_text()
    (tmp_path / "policy.yaml").write_text(text.split("```yaml")[1].split("```")[0])
    assert len(load_policy(tmp_path / "policy.yaml").conditions) == 7


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("conditions:\n  - metric: accuracy\n    at_lest: 0.5\n", "line 3: conditions.0.at_lest: there is no such key"),
        ("conditions:\n  - metric: accuracy\n    at_least: much\n", "line 3.*valid number.*got 'much'"),
        ("conditions:\n  - metric: accuracy\n", "line 2.*exactly one of"),
        ("conditions:\n  - metric: accuracy\n    at_least: 0.1\n    at_least: 0.9\n", "line 4: the key 'at_least'"),
        ("conditions:\n  - metric: accuracy\n    at_least: .inf\n", "line 3.*valid number"),
        ("conditions:\n  - findings: {severity_at_least: grave}\n", "line 2.*'critical', got 'grave'"),
        (
            "conditions:\n  - findings: {severity_at_least: high}\n    except: [subgruop]\n",
            "line 2.*neither a finding's id",
        ),
        ("conditions: []\n", "line 1: conditions"),
        ("rules: []\n", "line 1.*"),
        ("", "line 1: the file"),
        ("conditions: [\n", "not readable YAML"),
    ],
)
def test_a_mistake_in_a_policy_is_told_with_its_line(tmp_path: Path, policy: str, message: str) -> None:
    (tmp_path / "policy.yaml").write_text(policy)
    with pytest.raises(InvalidInput, match=message) as told:
        load_policy(tmp_path / "policy.yaml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("metric: acuracy, at_least: 0.5", "no 'acuracy'; it has accuracy \\(by class\\); robust_accuracy"),
        ("metric: robust_accuracy, where: {eps: 1/255}, at_least: 0.5", "where eps = 1/255; it has .*eps = 0.1"),
        ("metric: accuracy, probe: attack/pgd, at_least: 0.5", "of attack/pgd"),
        ("metric: certified_accuracy, where: {radius: far}, at_least: 0.5", "radius must be a number"),
        ("metric: accuracy, no_worse_than_baseline: {margin: 0.1}", "give one with --baseline"),
    ],
)
def test_what_the_run_lacks_is_told_with_what_it_has(
    make_run: MakeRun, decide: Callable[..., Verdict], condition: str, message: str
) -> None:
    run = make_run("run", of(9, 10), robust={0.1: of(3, 10)})
    with pytest.raises(InvalidInput, match=message):
        decide(condition, run)


def test_certified_accuracy_can_be_asked_for_at_any_radius(
    make_run: MakeRun, decide: Callable[..., Verdict], add_rows: Callable[..., None]
) -> None:
    from snellen.probe import rows

    run = make_run("run", of(9, 10))
    radius = np.linspace(0, 0.9, 10)
    table = rows([str(i) for i in range(10)], label=[1] * 10, predicted=[1] * 9 + [-1], radius=radius, p_lower=radius)
    add_rows(run, "certify/smoothing", "a" * 32, table)
    measured = MeasuredRun(open_run(run))
    found = [measured.find("certified accuracy", None, {"radius": r}).value for r in (0.0, 0.45, "1/2", 0.85)]
    assert found == [0.9, 0.4, 0.4, 0.0]


def hostile() -> list[Verdict]:
    name = 'a|b`<script>\x00\x1b[31m</testcase>\nc"&'
    return [
        Verdict(name, "failed", False, name, why=name, value=0.1, interval=Interval(0.0, 0.2), bound=0.15, n=9,
                repeat="run ```` x"),
        Verdict("late", "undecided", False, "too few"),
        Verdict("let", "undecided", True, "too few"),
        Verdict("fine", "passed", True, "good"),
    ]  # fmt: skip


def test_junit_is_read_by_other_tools_whatever_the_names_hold(tmp_path: Path) -> None:
    (tmp_path / "gate.xml").write_bytes(junit_xml(hostile(), "run\x00"))
    (suite,) = JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    assert (suite.tests, suite.failures, suite.skipped) == (4, 2, 1)
    ElementTree.fromstring((tmp_path / "gate.xml").read_bytes())
    assert [len(case.result) for case in suite] == [1, 1, 1, 0]


def test_markdown_keeps_its_table_whatever_the_names_hold() -> None:
    text = markdown_summary(hostile(), "run <b>")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 5
    assert all(line.replace(r"\|", "").count("|") == 7 for line in table)
    assert "<script>" not in text
    assert "<b>" not in text
    assert [line for line in text.splitlines() if line.startswith("`````")] == ["`````", "`````"]


def run_gate(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["snellen", "gate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_exit_status_says_kept_broken_or_bad_input(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", of(180, 200))
    policy = tmp_path / "policy.yaml"
    for limit, status in ((0.5, 0), (0.99, 1), ("x", 2)):
        policy.write_text(f"conditions: [{{metric: accuracy, at_least: {limit}}}]")
        assert run_gate(monkeypatch, run, "--policy", str(policy)) == status
    policy.write_text("conditions: [{metric: accuracy, at_least: 0.89}]")
    capsys.readouterr()
    files = ["--junit", str(tmp_path / "out/gate.xml"), "--summary", str(tmp_path / "out/gate.md"), "--json"]
    assert run_gate(monkeypatch, run, "--policy", str(policy), *files) == 1
    assert json.loads(capsys.readouterr().out)["verdicts"][0]["decision"] == "undecided"
    assert "| ? |" in (tmp_path / "out/gate.md").read_text()


def test_a_measure_without_counts_or_interval_decides_nothing() -> None:
    low, high = Measure("m", "p", {}, 5, 0.5).bounds(0.95)
    assert (low, high) == (-np.inf, np.inf)
