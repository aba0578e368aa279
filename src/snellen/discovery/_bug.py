"""A bug as found: a sentence with its failure rate, from which the same images can be drawn again for any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.discovery._failure_sentences import Details
from snellen.discovery._trials import Bench, Classifier, Shot, Trial
from snellen.errors import InvalidInput
from snellen.stats import Interval, clopper_pearson


class Replay(NamedTuple):
    """Failures among n images, and the 95 % Clopper-Pearson interval of the rate."""

    failures: int
    n: int
    rate: float
    interval: Interval


class OtherClass(NamedTuple):
    """How often images of another class get the bug's wrong answer with its details, and without them."""

    name: str
    rate: float
    base_rate: float
    p_adjusted: float


@dataclass(frozen=True)
class Bug:
    """A sentence on which the model fails more often than on plain images of the class.

    Rates are shares of images whose answer is not accepted; `interval` (Clopper-Pearson, 95 %) is that of `rate`.
    wrong_class: the commonest wrong answer, given to `wrong_share` of the images. p_value: one-sided
    Fisher; p_adjusted: over every sentence of the search. examples: `[E, 3, H, W]`, failures. shots: what draws all
    test images again.
    """

    sentence: str
    true_class: str
    details: Details
    wrong_class: str
    wrong_share: float
    failures: int
    n: int
    base_failures: int
    base_n: int
    p_value: float
    p_adjusted: float
    shots: tuple[Shot, ...]
    others: tuple[OtherClass, ...] = ()
    examples: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    bench: Bench | None = field(default=None, repr=False, compare=False)
    label: int = 0
    floor: float | None = None

    @property
    def rate(self) -> float:
        return self.failures / self.n

    @property
    def base_rate(self) -> float:
        return self.base_failures / self.base_n

    @property
    def interval(self) -> Interval:
        return clopper_pearson(self.failures, self.n)

    @property
    def lift(self) -> float:
        """rate / base_rate; a class without failures counts as one failure."""
        return self.rate / max(self.base_rate, 1 / self.base_n)

    @property
    def lift_interval(self) -> Interval:
        """95 %, with the base rate taken as known."""
        base = max(self.base_rate, 1 / self.base_n)
        return Interval(self.interval.low / base, self.interval.high / base)

    def spurious(self, alpha: float = 0.05) -> bool:
        """Whether the details draw the wrong answer to another class as well: then they, not the object, drive it."""
        return any(other.p_adjusted <= alpha for other in self.others)

    def __str__(self) -> str:
        return (
            f'The model fails on {self.rate:.1%} of {self.n} images of "{self.sentence}", against {self.base_rate:.1%}'
            f" of {self.base_n} plain ones of {self.true_class}, and most often answers {self.wrong_class}."
        )

    def trial(self, model: Classifier, examples: int = 0) -> Trial:
        """The same images once more for any model, with up to `examples` failures."""
        if self.bench is None:
            raise InvalidInput("a bug can be replayed only where its generator is: take it from find_bugs")
        return self.bench.trial(model, self.label, self.shots, self.floor, examples)

    def replay(self, model: Classifier) -> Replay:
        """Failures of `model` on the same images; of the model that was searched, exactly those found."""
        again = self.trial(model)
        interval = clopper_pearson(again.failures, again.n)
        return Replay(again.failures, again.n, again.failures / again.n, interval)


@dataclass(frozen=True)
class BugReport:
    """bugs: the surest excess first, without sentences that only narrow another one. sentences: how many were tested.

    skipped: class -> why it was not searched. unrealistic: images dropped. speechless: failures whose caption says
    nothing beside the class. undrawn: sentences that the generator refused or drew unrealistically.
    """

    bugs: tuple[Bug, ...]
    sentences: int
    base_rates: Mapping[str, float]
    skipped: Mapping[str, str]
    unrealistic: int
    speechless: int
    undrawn: int


class AdversarialSet(NamedTuple):
    """images: float32 `[N, 3, H, W]` that the model fails on. labels: int64 `[N]`. sentences: N."""

    images: Tensor
    labels: Tensor
    sentences: tuple[str, ...]


def adversarial_set(bugs: Sequence[Bug], model: Classifier) -> AdversarialSet:
    """Every image of the bugs that `model` fails on, drawn again (memory: all of them at once)."""
    found = [bug.trial(model, examples=bug.n) for bug in bugs]
    pictures = [trial.examples for trial in found if len(trial.examples)]
    counts = [trial.failures for trial in found]
    return AdversarialSet(
        torch.cat(pictures) if pictures else torch.empty(0, 3, 0, 0),
        torch.tensor([bug.label for bug, count in zip(bugs, counts, strict=True) for _ in range(count)]).long(),
        tuple(bug.sentence for bug, count in zip(bugs, counts, strict=True) for _ in range(count)),
    )


def transfer_table(bugs: Sequence[Bug], models: Mapping[str, Classifier]) -> dict[str, NDArray[np.float64]]:
    """Name of each model -> its failure rate on the images of every bug, in their order."""
    return {name: np.array([bug.replay(model).rate for bug in bugs]) for name, model in models.items()}
