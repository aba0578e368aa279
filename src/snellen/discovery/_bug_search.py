"""The steps of the search for bugs, each on its own; `bug_discovery.find_bugs` puts them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from snellen.discovery._bug import Bug, OtherClass
from snellen.discovery._failure_sentences import Details, candidates, clusters, sentence
from snellen.discovery._trials import (
    Bench,
    Captioner,
    Classifier,
    Embedder,
    Pool,
    Purpose,
    Shot,
    Trial,
    UndrawnSentence,
    plan_shots,
)
from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom
from snellen.stats import benjamini_hochberg, fisher_exact

FEWEST_IMAGES = 20
NARROWER_TELLS = 1.5
"""A sentence with more details nearly always fails a little more; only this factor makes it another bug."""


@dataclass(frozen=True)
class BugSearch:
    """How a search is made."""

    templates: Sequence[str] = (
        "a photo of a {}", "a picture of a {}", "a photograph showing a {}", "a close-up of a {}", "an image of a {}",
    )  # fmt: skip
    """Neutral prompts with `{}` for the class; every sentence is drawn with all of them, in equal parts."""
    base_images: int = 2000
    """Plain images a class, at least 20."""
    test_images: int = 200
    """New images a sentence, at least 20."""
    min_cluster: int = 5
    """Smallest group of failures that is described, at least 2."""
    max_clusters: int = 30
    """At most so many groups in all, the largest first, at least 1."""
    candidates: int = 5
    """Sentences tried for a group, at least 1."""
    rounds: int = 2
    """1 tries the described sentences only, each further round the edited ones."""
    beam: int = 5
    """So many of the worst sentences of a round are edited, and so many details are added to each; at least 1."""
    other_classes: int = 3
    """Classes on which the details of a bug are tried as well; 0 tries none."""
    alpha: float = 0.05
    """Level of the adjusted p-values, in (0, 1)."""
    min_effect: float = 0.1
    """Sentences whose failure rate is not surely (by its interval) so much above the base rate are not reported."""
    realism_quantile: float = 0.05
    """Images less realistic than this share of the plain ones are dropped, in [0, 0.5]."""
    examples: int = 8
    """Failures kept a bug, 0 or more."""
    batch: int = 64
    """Images drawn at once, at least 1."""

    def __post_init__(self) -> None:
        least = {"base_images": 20, "test_images": 20, "min_cluster": 2, "max_clusters": 1, "candidates": 1,
                 "rounds": 1, "beam": 1, "other_classes": 0, "examples": 0, "batch": 1}  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InvalidInput(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 < self.alpha < 1 or not 0 <= self.min_effect < 1 or not 0 <= self.realism_quantile <= 0.5:
            raise InvalidInput(
                "alpha must be in (0, 1), min_effect in [0, 1) and realism_quantile in [0, 0.5],"
                f" got {self.alpha}, {self.min_effect} and {self.realism_quantile}"
            )
        if not self.templates or any("{}" not in template for template in self.templates):
            raise InvalidInput(f"templates must each hold {{}} for the class, got {list(self.templates)}")


class Key(NamedTuple):
    """What is tried: details with an object of a class."""

    label: int
    details: Details


class Tested(NamedTuple):
    shots: tuple[Shot, ...]
    trial: Trial
    p_value: float


@dataclass(frozen=True)
class Search:
    model: Classifier
    bench: Bench
    settings: BugSearch
    seed: int

    def mine(self, label: int, captioner: Captioner, embedder: Embedder) -> Pool:
        """Steps 1 and 2: plain images, the realistic ones."""
        shots = self._shots(label, (), self.settings.base_images, Purpose.MINING)
        return self.bench.mine(self.model, label, shots, captioner, embedder)

    def describe(self, pools: Mapping[int, Pool], described: Mapping[int, Sequence[Details]]) -> list[Key]:
        """Steps 3 and 4: failures with the same answer that look alike, and sentences for the largest groups."""
        groups = []
        for label, pool in pools.items():
            for answer in pool.trial.wrong:
                rows = (pool.answers == answer).nonzero()[0]
                groups += [(label, rows[of]) for of in clusters(pool.embeddings[rows], self.settings.min_cluster)]
        groups.sort(key=lambda group: -len(group[1]))
        keys = []
        for label, rows in groups[: self.settings.max_clusters]:
            said = [described[label][row] for row in rows.tolist() if described[label][row]]
            keys += [Key(label, details) for details in candidates(said, self.settings.candidates)]
        return keys

    def test(self, key: Key, pool: Pool) -> Tested | None:
        """Steps 5 and 6: new images. None when the generator refuses the sentence or hardly draws it realistically."""
        shots = self._shots(key.label, key.details, self.settings.test_images, Purpose.TESTING)
        try:
            trial = self.bench.trial(self.model, key.label, shots, pool.floor, self.settings.examples)
        except UndrawnSentence:
            return None
        if trial.n < FEWEST_IMAGES:
            return None
        # Fisher and not a binomial test, because the base rate is an estimate too.
        p_value = fisher_exact(trial.failures, trial.n, pool.trial.failures, pool.trial.n, "greater")
        return Tested(shots, trial, p_value)

    def bug(self, key: Key, tested: Tested, p_adjusted: float, pool: Pool) -> Bug:
        names, trial = self.bench.class_names, tested.trial
        answer = min(trial.wrong, key=lambda answer: (-trial.wrong[answer], answer))
        return Bug(
            sentence=sentence(self.settings.templates[0], names[key.label], key.details),
            true_class=names[key.label],
            details=key.details,
            wrong_class=names[answer],
            wrong_share=trial.wrong[answer] / trial.n,
            failures=trial.failures,
            n=trial.n,
            base_failures=pool.trial.failures,
            base_n=pool.trial.n,
            p_value=tested.p_value,
            p_adjusted=p_adjusted,
            shots=tested.shots,
            examples=trial.examples,
            bench=self.bench,
            label=key.label,
            floor=pool.floor,
        )

    def on_other_classes(self, bugs: Sequence[Bug], pools: Mapping[int, Pool]) -> tuple[Bug, ...]:
        """Step 7: the same details with other classes; p-values adjusted over all of these trials."""
        names, found, p_values = self.bench.class_names, [], []
        for place, bug in enumerate(bugs):
            answer = names.index(bug.wrong_class)
            free = [label for label in pools if label != bug.label and answer not in self.bench.accepted[label]]
            drawn = SampleRandom(self.seed, "bug-discovery").numpy("other classes", bug.sentence).permutation(free)
            for label in drawn[: self.settings.other_classes].tolist():
                tested = self.test(Key(label, bug.details), pools[label])
                if tested is not None:
                    trial, base = tested.trial, pools[label].trial
                    here, there = trial.wrong.get(answer, 0), base.wrong.get(answer, 0)
                    p_values.append(fisher_exact(here, trial.n, there, base.n, "greater"))
                    found.append((place, OtherClass(names[label], here / trial.n, there / base.n, 1.0)))
        told = [
            (place, other._replace(p_adjusted=p_value))
            for (place, other), p_value in zip(found, benjamini_hochberg(p_values).tolist(), strict=True)
        ]
        return tuple(
            replace(bug, others=tuple(other for at, other in told if at == place)) for place, bug in enumerate(bugs)
        )

    def _shots(self, label: int, details: Details, n: int, purpose: Purpose) -> tuple[Shot, ...]:
        name = self.bench.class_names[label]
        prompts = [sentence(template, name, details) for template in self.settings.templates]
        return plan_shots(prompts, n, self.settings.batch, self.seed, purpose)


def adjust(tested: Mapping[Key, Tested]) -> dict[Key, float]:
    adjusted = benjamini_hochberg([found.p_value for found in tested.values()])
    return dict(zip(tested, adjusted.tolist(), strict=True))


def telling(bugs: Sequence[Bug]) -> list[Bug]:
    """Without sentences that narrow another one but do not fail surely `NARROWER_TELLS` times as often."""
    return [
        bug
        for bug in bugs
        if not any(
            bug.label == wider.label
            and set(wider.details) < set(bug.details)
            and bug.interval.low < NARROWER_TELLS * wider.rate
            for wider in bugs
        )
    ]
