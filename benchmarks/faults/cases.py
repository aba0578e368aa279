"""The cases of the bench: which fault, how strong, on which family and seed, and which sentence would name it.

A finding names a fault when its title does, in words fixed with the fault before its first audit (but "px", which a
first run of the digits showed to be how the report writes pixels); where the metadata withhold the attribute and no
word can be asked, it must be a slice, and most of its evidence images such as were struck.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from benchmarks.faults.families import Family, FaultType, families

from snellen.demo.digits import DemoImages

Strength = Literal["clear", "moderate", "faint"]
STRENGTHS: dict[Strength, float] = {"clear": 1.0, "moderate": 0.6, "faint": 0.3}
SEEDS = {"digits": (3, 4, 5), "shapes": (1,)}
"""Digits of seeds 0 to 2 and shapes of seed 0 were looked at while the methods were written."""
LOOKED_AT = {"digits": 3, "shapes": 1}
"""Seeds whose first results led to changes of three methods; of the other
seeds' cases some ran before the last change (each result notes its commit)."""
HEALTHY = {"digits": range(20, 40), "shapes": range(20, 26)}
OF_EVIDENCE = 0.6
"""Share of a finding's evidence that must be struck images, where no word can be asked."""

FAMILIES = families()


@dataclass(frozen=True)
class Case:
    """fault None is a healthy network on faultless data."""

    family_name: str
    fault: str | None
    strength: Strength
    seed: int

    @property
    def key(self) -> str:
        what = f"{self.fault}-{self.strength}" if self.fault else "healthy"
        return f"{self.family_name}-{what}-{self.seed}"

    @property
    def family(self) -> Family:
        return FAMILIES[self.family_name]

    @property
    def type(self) -> FaultType | None:
        return self.family.types[self.fault] if self.fault else None

    @property
    def target(self) -> int:
        targets = self.family.targets
        return targets[self.seed % len(targets)]


def all_cases() -> list[Case]:
    """The first seed of every fault and the healthy networks, then the other seeds, each shuffled but in a fixed order,
    so that a bench that was stopped early has some of everything."""
    rounds: list[list[Case]] = [[] for _ in range(max(map(len, SEEDS.values())))]
    for name, family in FAMILIES.items():
        for place, seed in enumerate(SEEDS[name]):
            rounds[place] += [Case(name, fault, strength, seed) for fault in family.types for strength in STRENGTHS]
        rounds[0] += [Case(name, None, "clear", seed) for seed in HEALTHY[name]]
    rng = np.random.default_rng(0)
    return [cases[place] for cases in rounds for place in rng.permutation(len(cases))]


def names_the_fault(case: Case, title: str, evidence: Sequence[str], data: DemoImages) -> bool:
    """Whether a finding with this title and these evidence ids (file names without suffix) tells the planted fault."""
    kind, names = case.type, case.family.class_names
    if kind is None:
        return False
    for words in kind.words:
        pattern = words.replace("TARGET", names[case.target]).replace("OTHER", names[case.family.other])
        if not re.search(pattern, title, re.IGNORECASE):
            return False
    if not kind.evidence:
        return True
    struck = set(np.array(data.ids)[case.family.struck(case.fault or "", data, case.target)[0]].tolist())
    return bool(evidence) and sum(name in struck for name in evidence) / len(evidence) >= OF_EVIDENCE
