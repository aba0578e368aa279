"""Does the model still recognise content that somebody has disguised, while a person still sees it?

Paper: Stimberg et al., 2023 (Benchmarking Robustness to Adversarial Image Obfuscations). Every image is shown under 22
disguises, from overlays and collages over turned blocks to colour waves; 19 may be trained on, 3 are held out. Besides
the mean accuracy the worst case counts: an image is safe only if it is recognised under all of them, for whoever
evades a filter may try them all.

When it misleads: the authors keep their generators to themselves, so these are reconstructions from names and pictures,
and scores compare with each other but not with the published ones. `adversarial_patches` are loud squares aimed at no
network (the function of that name makes real ones against a surrogate), `style_transfer` swaps statistics and draws no
strokes, and the default donors are two photographs. The worst case falls with every obfuscation that is added, also
for a model that errs at random. On images of 32 px and less some disguises hide the content from people, too.

Disguises can be used to get past filters. What is here is meant to examine one's own model: it renders for evaluation
and hardening, is optimised against nothing that is deployed, and draws at random instead of searching for what passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import apply_shift, check_severity
from snellen.shift._donors import PHOTOGRAPHS, Donors
from snellen.shift._obfuscate import COMPOSITIONS, HELD_OUT, OBFUSCATIONS, TRAINING, with_donors
from snellen.shift._obfuscate_patches import adversarial_patches
from snellen.shift._obfuscation_report import (
    hard_easy_split,
    hardest_finding,
    split_finding,
    trial_exhibits,
    trial_of,
    worst_case_finding,
)
from snellen.shift._obfuscation_scores import (
    ObfuscationScores,
    Ranking,
    Score,
    grouped_probabilities,
    obfuscation_scores,
    ranked_classes,
    top_correct,
)
from snellen.shift._trials import ShiftProbe

__all__ = [
    "HELD_OUT",
    "OBFUSCATIONS",
    "PHOTOGRAPHS",
    "TRAINING",
    "Donors",
    "ObfuscationScores",
    "Obfuscations",
    "Ranking",
    "Score",
    "adversarial_patches",
    "grouped_probabilities",
    "hard_easy_split",
    "obfuscate",
    "obfuscated_for_training",
    "obfuscation_scores",
    "ranked_classes",
    "top_correct",
]


def obfuscate(
    images: Tensor, name: str, severity: float, generators: Sequence[Generator], donors: Donors = PHOTOGRAPHS
) -> Tensor:
    """One obfuscation of the images, cut to 8 bits (after Stimberg et al., 2023).

    images: float `[B, C, H, W]` in [0, 1], C = 1 or 3, sides of at least 16 px. name: one of `OBFUSCATIONS`. severity:
    0 (the images themselves) to 5; 3 is the middle of the ranges that we set and 5 their upper end. generators: one a
    sample. donors: where foreign content comes from; it must not show the samples' own classes. Raises InvalidInput.
    """
    _check_names((name,))
    return apply_shift(with_donors(donors)[name], images, severity, generators, name=name)


def obfuscated_for_training(
    images: Tensor, generators: Sequence[Generator], severity: float = 3.0, names: Sequence[str] = TRAINING
) -> Tensor:
    """The paper's training recipe: each image untouched or under one of `names`, all equally likely.

    Train on the result with plain cross-entropy and test on `HELD_OUT`. Arguments as in `obfuscate`.
    """
    _check_names(names)
    picks = [int(torch.rand((), generator=generator) * (1 + len(names))) for generator in generators]
    result = images.clone()
    for pick in sorted(set(picks) - {0}):
        rows = [i for i, picked in enumerate(picks) if picked == pick]
        result[rows] = obfuscate(images[rows], names[pick - 1], severity, [generators[i] for i in rows])
    return result


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in OBFUSCATIONS]
    if unknown or not names or len(set(names)) != len(names):
        raise InvalidInput(
            f"names must be different ones of {', '.join(OBFUSCATIONS)}, got {unknown[0] if unknown else list(names)!r}"
        )


@register
@dataclass(frozen=True)
class Obfuscations(ShiftProbe):
    """Accuracy under 22 disguises of the image and under the worst of them (Stimberg et al., 2023).

    Effect of the worst-case finding: the part of all images lost by it.
    """

    name: ClassVar[str] = "shift/obfuscations"
    paper: ClassVar[str] = "Stimberg et al., 2023"
    card: ClassVar[str | None] = "obfuscation-benchmark"

    names: tuple[str, ...] = tuple(OBFUSCATIONS)
    """Which obfuscations; 19 to train on and 3 held out."""
    severity: float = 3.0
    """In (0, 5]; 3 is the middle of the ranges of strength and 5 their upper end."""
    donors: tuple[str, ...] = ()
    """Image files that give foreign content; none = scikit-learn's two photographs."""
    donor_classes: tuple[int, ...] = ()
    """Class indices that the donors show; samples of these classes get no foreign content."""

    def __post_init__(self) -> None:
        _check_names(self.names)
        if check_severity(self.severity) == 0:
            raise InvalidInput("severity must be above 0 and at most 5, got 0")
        if any(index < 0 for index in self.donor_classes):
            raise InvalidInput(f"donor_classes must be class indices of 0 or more, got {list(self.donor_classes)}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        shown = torch.tensor(self.donor_classes, dtype=torch.int64, device=batch.labels.device)
        foreign = ~torch.isin(batch.labels, shown)
        for name in self.names:
            generators = random.generators(batch.ids, name)
            images = obfuscate(batch.images, name, self.severity, generators, Donors(self.donors))
            yield Condition(name, self.severity, images, foreign if name in COMPOSITIONS else None)

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(self.names)))

    def group(self, shift: str) -> str:
        return OBFUSCATIONS[shift].group

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        trial = trial_of(table)
        own: list[Finding] = []
        if trial is not None:
            own = [worst_case_finding(trial), hardest_finding(trial)]
            own += split_finding(trial, context.random(self.name))
        # The harm of single disguises is information: their worst case has been counted.
        return [*own, *(replace(finding, effect=0.0) for finding in super().findings(table, context))]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        trial = trial_of(table)
        return [] if trial is None else trial_exhibits(trial, self.severity)
