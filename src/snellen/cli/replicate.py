"""`snellen replicate`."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from snellen.errors import SnellenError
from snellen.replication import Outcome, available_cards, load_card, write_results


def run_replications(slugs: list[str], seed: int, as_json: bool, record: Path | None) -> int:
    """The whole command; returns the exit status: 0 all held, 1 a claim did not hold, 2 an error."""
    console = Console(stderr=as_json)
    cards = {slug: load_card(slug) for slug in slugs or available_cards()}
    outcomes: list[Outcome] = []
    broken = False
    for slug, card in cards.items():
        with console.status(f"{slug} (seed {seed})"):
            begun = time.perf_counter()
            try:
                claims = card.replicate(seed)
            except Exception as error:  # one card's fault must not hide the others' results
                broken = True
                console.print(f"[red]{slug}: {escape(str(error) or type(error).__name__)}[/red]")
                if not isinstance(error, SnellenError):
                    traceback.print_exc(file=sys.stderr)
                continue
        outcome = Outcome(slug, card.PAPER, seed, round(time.perf_counter() - begun, 1), tuple(claims))
        outcomes.append(outcome)
        if not as_json:
            console.print(_table(outcome))
    if as_json:
        sys.stdout.write(json.dumps([outcome.to_json() for outcome in outcomes], indent=1) + "\n")
    if record is not None:
        write_results(outcomes, record)
    if broken:
        return 2
    return 0 if all(claim.held for outcome in outcomes for claim in outcome.claims) else 1


def _table(outcome: Outcome) -> Table:
    title = f"{outcome.slug}: {outcome.paper} (seed {outcome.seed}, {outcome.seconds:.0f} s)"
    table = Table("claim", "claimed", "measured", "held", title=title, title_justify="left")
    for claim in outcome.claims:
        held = "[green]yes[/green]" if claim.held else "[red]no[/red]"
        table.add_row(escape(claim.statement), escape(claim.claimed), escape(claim.measured), held)
    return table
