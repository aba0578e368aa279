"""`snellen methods`."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table

from snellen.errors import InvalidInput
from snellen.probe import FunctionMethod, Probe, all_probes, function_methods
from snellen.replication import recorded_results


def list_methods(family: str | None, as_json: bool) -> int:
    """The whole command; returns the exit status."""
    listed = [_listed(probe, probe.__module__, probe.scope.value) for probe in all_probes().values()]
    listed += [_listed(method, method.module, f"functions: {method.data}") for method in function_methods().values()]
    listed.sort(key=lambda row: row["name"] or "")
    families = sorted({row["family"] or "" for row in listed})
    if family is not None:
        if family not in families:
            raise InvalidInput(f"there is no family {family!r}; the families are {', '.join(families)}")
        listed = [row for row in listed if row["family"] == family]
    if as_json:
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
        return 0
    table = Table(
        "method", "needs", "scope", "replication", "paper", title=f"{len(listed)} methods", title_justify="left"
    )
    table.columns[0].no_wrap = True
    for row in listed:
        table.add_row(row["name"], row["access"], row["scope"], row["replication"], row["paper"])
    Console().print(table)
    return 0


def _listed(method: type[Probe] | FunctionMethod, module: str, scope: str) -> dict[str, str | None]:
    outcome = recorded_results().get(method.card) if method.card else None
    return {
        "name": method.name,
        "family": module.split(".")[1] if module.startswith("snellen.") else module,
        "access": str(method.access),
        "scope": scope,
        "paper": method.paper,
        "card": method.card,
        "replication": outcome.status if outcome else ("not run" if method.card else "no claim"),
    }
