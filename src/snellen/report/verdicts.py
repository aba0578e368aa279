"""Verdicts of a gate for the machines and people of a code review: JUnit XML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from snellen.audit.gate import Verdict
from snellen.report.page import interval, number

MARKS = {"passed": "✓", "failed": "✗", "undecided": "?"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def junit_xml(verdicts: Sequence[Verdict], run: str) -> bytes:
    """One test case a condition; undecided is a failure or, where the policy lets it pass, skipped."""
    failed = sum(not verdict.accepted for verdict in verdicts)
    skipped = sum(verdict.accepted and verdict.decision != "passed" for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(f"snellen gate {run}"), **counts})
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "snellen.gate", "name": _clean(verdict.name)})
        said = _clean(verdict.detail)
        if not verdict.accepted:
            failure = ElementTree.SubElement(case, "failure", {"type": verdict.decision, "message": said})
            failure.text = _clean("\n".join(filter(None, (verdict.detail, verdict.why, verdict.repeat))))
        elif verdict.decision != "passed":
            ElementTree.SubElement(case, "skipped", {"message": said})
        else:
            ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def markdown_summary(verdicts: Sequence[Verdict], run: str) -> str:
    """A table for a pull request, the reasons of what did not pass, and the command of the worst finding."""
    passed = sum(verdict.decision == "passed" for verdict in verdicts)
    lines = [
        f"### snellen gate: {passed} of {len(verdicts)} conditions passed",
        "",
        escape_markdown(run),
        "",
        "| | condition | value | 95 % interval | bound | n |",
        "|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        cells = [
            MARKS[verdict.decision],
            escape_markdown(verdict.name),
            number(verdict.value),
            interval(verdict.interval),
            number(verdict.bound),
            number(verdict.n),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for verdict in verdicts:
        if verdict.decision != "passed":
            let = " (the policy lets it pass)" if verdict.accepted else ""
            why = f" Why it matters: {escape_markdown(verdict.why)}" if verdict.why else ""
            name = escape_markdown(verdict.name)
            lines += ["", f"**{MARKS[verdict.decision]} {name}**{let}: {escape_markdown(verdict.detail)}.{why}"]
    repeat = next((verdict.repeat for verdict in verdicts if verdict.repeat), None)
    if repeat:
        lines += ["", "Repeat the worst finding:", "", fenced(repeat)]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace(r"\<", "&lt;").replace(r"\&", "&amp;")


def fenced(text: str) -> str:
    """A code block that no run of back ticks in the text can end."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
