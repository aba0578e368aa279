"""Writes docs/methods.md, docs/replications.md and docs/benchmarks.md from docstrings and recorded runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path

from snellen.probe import all_probes, function_methods
from snellen.replication import recorded_results

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks" / "results.json"


def methods_page() -> str:
    """A table of all methods, then a section each from module docstring and settings."""
    recorded = recorded_results()
    lines = [
        "# Methods",
        "",
        "Made from the docstrings by `docs/generate.py`. A method runs when the model grants the access it needs.",
        "",
        "| method | access | scope | paper | replication |",
        "|---|---|---|---|---|",
    ]
    probes, functions = all_probes(), function_methods()
    for name in sorted([*probes, *functions]):
        method = probes.get(name) or functions[name]
        scope = f"functions on {functions[name].data}" if name in functions else probes[name].scope.value
        outcome = recorded.get(method.card) if method.card else None
        status = outcome.status if outcome else "no claim to check"
        anchor = name.replace("/", "-")
        lines.append(f"| [`{name}`](#{anchor}) | {method.access} | {scope} | {method.paper} | {status} |")
    for name, probe in probes.items():
        module = sys.modules[probe.__module__]
        lines += ["", f"## {name} {{#{name.replace('/', '-')}}}", "", inspect.getdoc(module) or "", ""]
        described = field_docs(probe)
        if described:
            lines += ["| setting | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(probe):
            lines.append(f"| `{field.name}` | `{field.default!r}` | {described.get(field.name, '')} |")
        lines += ["", f"    snellen run {name} MODEL DATA"]
    for name, function_method in functions.items():
        module = sys.modules[function_method.module]
        lines += ["", f"## {name} {{#{name.replace('/', '-')}}}", "", inspect.getdoc(module) or "", ""]
        lines += ["| function | what it does |", "|---|---|"]
        for public in module.__all__:
            described_as = (inspect.getdoc(getattr(module, public)) or "").split("\n\n")[0]
            lines.append(f"| `{public}` | {' '.join(described_as.split())} |")
        lines += ["", f"    from {function_method.module} import {', '.join(module.__all__)}"]
    return "\n".join(lines) + "\n"


def field_docs(probe: type) -> dict[str, str]:
    """The docstring under each field of a settings class."""
    import ast
    import textwrap

    (body,) = ast.parse(textwrap.dedent(inspect.getsource(probe))).body
    found: dict[str, str] = {}
    for here, after in zip(body.body, body.body[1:], strict=False):
        is_text = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and is_text:
            found[here.target.id] = " ".join(after.value.value.split()).replace("|", "\\|")
    return found


def replications_page() -> str:
    """Measured beside claimed, from replications/results.json."""
    lines = [
        "# Replications",
        "",
        "Each card repeats a paper's claim in small, on data that comes with packages. A claim that does not hold is"
        " listed as such; its threshold stays. `snellen replicate` runs them again.",
    ]
    for slug, outcome in recorded_results().items():
        lines += [
            "",
            f"## {slug}",
            "",
            f"{outcome.paper}. Seed {outcome.seed}, {outcome.seconds:.0f} s on a shared machine of two cores:"
            f" **{outcome.status}**.",
            "",
            "| claim | claimed | measured | held |",
            "|---|---|---|---|",
        ]
        for claim in outcome.claims:
            cells = (claim.statement, claim.claimed, claim.measured, "yes" if claim.held else "**no**")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def benchmarks_page() -> str:
    """Tables from benchmarks/results.json: name -> {title, how, columns, rows}."""
    lines = [
        "# Benchmarks",
        "",
        "Ratios measured in one run on a shared machine of two cores, medians of alternated repetitions; `make bench`"
        " runs them again. Absolute figures belong to that machine.",
    ]
    stored = json.loads(BENCHMARKS.read_text(encoding="utf-8")) if BENCHMARKS.is_file() else {}
    for table in stored.values():
        lines += ["", f"## {table['title']}", "", table["how"], ""]
        lines += ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table["rows"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, page in (
        ("methods", methods_page()),
        ("replications", replications_page()),
        ("benchmarks", benchmarks_page()),
    ):
        (DOCS / f"{name}.md").write_text(page, encoding="utf-8")
