"""`snellen methods`."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table

from snellen.errors import InvalidInput
from snellen.probe import all_probes
from snellen.replication import recorded_results


def list_methods(family: str | None, as_json: bool) -> int:
    """The whole command; returns the exit status."""
    recorded = recorded_results()
    listed = []
    for name, probe in all_probes().items():
        home = probe.__module__.split(".")[1] if probe.__module__.startswith("snellen.") else probe.__module__
        outcome = recorded.get(probe.card) if probe.card else None
        listed.append(
            {
                "name": name,
                "family": home,
                "access": str(probe.access),
                "scope": probe.scope.value,
                "paper": probe.paper,
                "card": probe.card,
                "replication": outcome.status if outcome else ("not run" if probe.card else "no claim"),
            }
        )
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
    for row in listed:
        table.add_row(row["name"], row["access"], row["scope"], row["replication"], row["paper"])
    Console().print(table)
    return 0
