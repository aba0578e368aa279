"""Replication cards: the smallest experiment that can confirm or refute a paper's claim.

A card is `replications/<slug with underscores>.py` with a function `replicate(seed) -> list[Claim]`. It prints
measured beside claimed and its exit status says whether every claim held.
"""

from __future__ import annotations

from dataclasses import dataclass


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
