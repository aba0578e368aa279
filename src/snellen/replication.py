"""Replication cards: the smallest experiment that can confirm or refute a paper's claim.

A card is `replications/<slug with underscores>.py` with a function `replicate(seed) -> list[Claim]`. It prints
measured beside claimed and its exit status says whether every claim held.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from snellen.errors import InvalidInput


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a paper.

    statement: what is claimed, as a sentence. claimed: the threshold or relation, as text. measured: what this run
    gave, as text with its spread. held: whether the measurement satisfies it.
    """

    statement: str
    claimed: str
    measured: str
    held: bool


@dataclass(frozen=True)
class Outcome:
    """What one run of a card gave."""

    slug: str
    paper: str
    seed: int
    seconds: float
    claims: tuple[Claim, ...]

    @property
    def status(self) -> str:
        """ "replicated", "partly replicated" or "not replicated"."""
        held = sum(claim.held for claim in self.claims)
        if held == len(self.claims):
            return "replicated"
        return "partly replicated" if held else "not replicated"

    def to_json(self) -> dict[str, object]:
        return {"status": self.status, **asdict(self)}


class Card(Protocol):
    """A module of `replications/`."""

    PAPER: str

    def replicate(self, seed: int) -> list[Claim]: ...


def folder() -> Path:
    """Where the cards are: beside the source in a clone, inside the package when installed from a wheel."""
    package = Path(__file__).parent
    beside = package.parent.parent / "replications"
    return beside if beside.is_dir() else package / "_replications"


def available_cards() -> list[str]:
    """Slugs of all cards, sorted."""
    return sorted(path.stem.replace("_", "-") for path in folder().glob("*.py") if not path.stem.startswith("_"))


def load_card(slug: str) -> Card:
    """The module of one card. Raises InvalidInput that names the nearest ones."""
    if slug not in available_cards():
        near = difflib.get_close_matches(slug, available_cards(), n=3, cutoff=0.3) or available_cards()
        raise InvalidInput(f"there is no replication card {slug!r}; did you mean {', '.join(near)}?")
    path = folder() / f"{slug.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location(f"snellen_replication_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"the replication card {path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the card look their module up
    spec.loader.exec_module(module)
    return cast(Card, module)


def recorded_results() -> dict[str, Outcome]:
    """The outcomes that came with this version (`replications/results.json`), by slug."""
    stored = folder() / "results.json"
    if not stored.is_file():
        return {}
    return {item["slug"]: _outcome(item) for item in json.loads(stored.read_text(encoding="utf-8"))}


def write_results(outcomes: list[Outcome], path: Path) -> None:
    """Puts new outcomes into a results file, keeping those of other cards."""
    kept = {}
    if path.is_file():
        kept = {item["slug"]: _outcome(item) for item in json.loads(path.read_text(encoding="utf-8"))}
    kept.update({outcome.slug: outcome for outcome in outcomes})
    text = json.dumps([kept[slug].to_json() for slug in sorted(kept)], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _outcome(item: dict[str, Any]) -> Outcome:
    claims = tuple(Claim(**claim) for claim in item["claims"])
    return Outcome(item["slug"], item["paper"], item["seed"], item["seconds"], claims)
