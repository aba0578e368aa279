"""Which two shifts in a row hurt most?

Ours; the shifts are those of Hendrycks & Dietterich (2019) and the rest of the catalogue. A candidate is a sequence of
shifts, applied in its order: all ordered pairs of the named shifts, or the user's own list. Sequential halving (Karnin
et al., 2013) spends the query budget: every candidate is asked on a few images, the worse half of the field (that hurts
least) is dropped, the others are asked on more. The winner is then judged on images that the search never saw, beside
each of its parts alone.

When it misleads: with many candidates and a small budget the winner is bad, but not surely the worst; its figures on
fresh images are honest either way. A sequence of strong shifts may leave nothing a person could recognise: look at it
with `--show`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
import pyarrow as pa
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, check_name, check_severity, corrupt
from snellen.shift._curve import curves_of
from snellen.shift._trials import first_lost, predict_conditions
from snellen.stats import mcnemar_exact, paired_difference, wilson
from snellen.subset import Subset, random_subset

__all__ = ["Steps", "WorstCombination", "compose"]

Steps = tuple[tuple[str, float], ...]
"""Shifts and severities in the order in which they are applied."""

THEN = " > "
CHUNK = 64


def compose(
    images: Tensor, steps: Sequence[tuple[str, float]], generators: Mapping[str, Sequence[Generator]]
) -> Tensor:
    """Several shifts one after the other, each as `corrupt` does it, cut to 8 bits between.

    images: `[B, C, H, W]` in [0, 1]. steps: (name, severity). generators: for every name one a sample.
    """
    for name, severity in steps:
        images = corrupt(images, name, severity, generators.get(name))
    return images


@register
@dataclass(frozen=True)
class WorstCombination(ProbeBase):
    """The sequence of shifts that costs most accuracy, searched within a query budget."""

    name: ClassVar[str] = "shift/worst-combination"
    paper: ClassVar[str] = "ours; sequential halving of Karnin et al., 2013"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET

    names: tuple[str, ...] = CORRUPTIONS
    """Shifts of the catalogue whose ordered pairs are searched."""
    severity: float = 2.0
    """Of each shift in a pair, in (0, 5]."""
    combinations: tuple[tuple[str, ...], ...] = ()
    """The user's own sequences of any length instead of all pairs, as [[fog, jpeg_compression], [snow, contrast]]."""
    budget: int = 6000
    """Queries of the search; judging the winner comes on top."""
    judged: int = 300
    """Fresh images that the winner is judged on."""

    def __post_init__(self) -> None:
        for name in (*self.names, *(name for steps in self.combinations for name in steps)):
            check_name(name)
        if not check_severity(self.severity) > 0:
            raise InvalidInput(f"severity must be in (0, 5], got {self.severity}")
        if not self._candidates():
            raise InvalidInput("names must be two or more, or combinations one or more sequences")
        if self.budget < 2 * len(self._candidates()):
            raise InvalidInput(f"budget must be at least two queries a candidate, got {self.budget}")
        if self.judged < 20:
            raise InvalidInput(f"judged must be 20 images or more, got {self.judged}")

    def _candidates(self) -> list[Steps]:
        chains = self.combinations or tuple(permutations(self.names, 2))
        return [tuple((name, float(self.severity)) for name in steps) for steps in chains if steps]

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        """For `--show`: every candidate and what leads up to it."""
        for steps in self._candidates():
            for length in range(1, len(steps) + 1):
                yield Condition(_spoken(steps), float(length), self._made(batch, steps[:length], random))

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        candidates = self._candidates()
        rounds = max(1, math.ceil(math.log2(len(candidates))))
        plan, field_size = [], len(candidates)
        for _ in range(rounds):
            plan.append(max(1, self.budget // (rounds * field_size)))
            field_size = math.ceil(field_size / 2)
        subset = random_subset(samples, self.judged + sum(plan), random)
        judged = min(self.judged, len(subset) // 2)
        if not judged:
            return pa.table({})

        # Search, on the images after those the winner is judged on
        wrong, asked, start = np.zeros(len(candidates)), np.zeros(len(candidates)), judged
        field = list(range(len(candidates)))
        for images in plan:
            stop = min(start + images, len(subset))
            for candidate in field if stop > start else []:
                wrong[candidate] += self._wrong(model, subset, range(start, stop), candidates[candidate], random)
                asked[candidate] += stop - start
            rate = wrong / np.maximum(asked, 1)
            field = sorted(field, key=lambda i: -float(rate[i]))[: math.ceil(len(field) / 2)]
            start = stop

        winner = candidates[field[0]]
        parts = []
        for first in range(0, judged, CHUNK):
            batch = subset.batch(range(first, min(first + CHUNK, judged)), model.device)
            parts.append(predict_conditions(model, batch, self._judging(batch, winner, random)))
        verdict = pa.concat_tables(parts).append_column("queries", pa.array(np.zeros(sum(map(len, parts)), np.int64)))
        search = rows(
            [""] * len(candidates), label=np.full(len(candidates), -1), shift=[_spoken(c) for c in candidates],
            severity=np.full(len(candidates), -1.0), predicted=np.full(len(candidates), -1),
            correct=np.zeros(len(candidates), bool), queries=asked.astype(np.int64),
        )  # fmt: skip
        return pa.concat_tables([verdict, search])

    def _judging(self, batch: Batch, winner: Steps, random: SampleRandom) -> Iterator[Condition]:
        yield Condition(_spoken(winner), 1.0, self._made(batch, winner, random))
        for step in dict.fromkeys(winner):
            yield Condition(step[0], 1.0, self._made(batch, (step,), random))

    def _wrong(self, model: Model, subset: Subset, which: range, steps: Steps, random: SampleRandom) -> int:
        wrong = 0
        for first in range(which.start, which.stop, CHUNK):
            batch = subset.batch(range(first, min(first + CHUNK, which.stop)), model.device)
            wrong += int((model.labels(self._made(batch, steps, random)) != batch.labels).sum())
        return wrong

    def _made(self, batch: Batch, steps: Steps, random: SampleRandom) -> Tensor:
        return compose(batch.images, steps, {name: random.generators(batch.ids, name) for name, _ in steps})

    def cost(self, batch_size: int) -> Passes:
        longest = max(len(set(steps)) for steps in self._candidates())
        return Passes(forward=self.budget + min(self.judged, batch_size // 2) * (2 + longest))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if not table.num_rows:
            return []
        searched = int(table["queries"].to_numpy().sum())
        count = int((table["label"].to_numpy() == -1).sum())
        winner, *parts = curves_of(table.filter(table["label"].to_numpy() >= 0))
        clean, hurt = winner.correct[0], winner.correct[1]
        worst = min(parts, key=lambda curve: float(curve.correct[1].mean()))
        interval, alone = paired_difference(clean, hurt), worst.correct[1]
        p_value = mcnemar_exact(int((~hurt & clean).sum()), int((hurt & ~clean).sum()))
        more = paired_difference(alone, hurt)
        return [
            Finding(
                kind="attack",  # a searched worst case exists for every model
                title=(
                    f"The worst of {count} combinations, {_words(winner.shift)} at severity {self.severity:g}, takes"
                    f" accuracy from {clean.mean():.2f} to {hurt.mean():.2f}; {_words(worst.shift)} alone leaves"
                    f" {alone.mean():.2f} (difference {more.low:+.2f} to {more.high:+.2f});"
                    f" the search took {searched:,} queries"
                ),
                metric="accuracy drop",
                value=float(clean.mean() - hurt.mean()),
                baseline=float(clean.mean()),
                effect=max(float(clean.mean() - hurt.mean()), 0.0),
                n=len(clean),
                subject={"corruption": winner.shift, "severity": self.severity, "worst_part": worst.shift},
                measured=("corruption", "worst_part"),
                ci=(interval.low, interval.high),
                p_value=p_value,
                evidence=first_lost(winner),
            )
        ]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if not table.num_rows:
            return []
        winner, *parts = curves_of(table.filter(table["label"].to_numpy() >= 0))
        lines = [("untouched", winner.correct[0])]
        lines += [(_words(curve.shift), curve.correct[1]) for curve in [*parts, winner]]
        bars = [
            Bar(name, float(correct.mean()), *wilson(int(correct.sum()), len(correct)), len(correct))
            for name, correct in lines
        ]
        caption = "Accuracy on images that the search did not see, with 95 % Wilson intervals."
        return [Bars("The worst combination beside its parts", caption, "accuracy", bars)]


def _spoken(steps: Steps) -> str:
    return THEN.join(name for name, _ in steps)


def _words(chain: str) -> str:
    return " then ".join(name.replace("_", " ") for name in chain.split(THEN))
