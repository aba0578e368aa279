"""Randomized smoothing: within which L2 distance of an image can no attacker whatever change the answer?

(Cohen et al., 2019.) The smoothed classifier g answers with the class that the model f gives most often when
Gaussian noise of standard deviation sigma is added to the image. If that class has probability p > 1/2, then g keeps
it within the L2 radius sigma * PhiInv(p). A first draw of n0 copies guesses the class, a second, fresh draw of n
bounds p from below (Clopper and Pearson, 1934), so the radius is wrong with probability at most alpha an image.

It needs labels only. It misleads when read as a statement about the model itself: the guarantee is for g, which costs
n passes an image, and a model that never saw noise certifies almost nothing however accurate it is. A small radius
shows that nothing could be proved, not that an attack exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from snellen.certify._radius import (
    average_certified_radius,
    certified_radius,
    lower_bound,
    needed_copies,
    radius_curve,
)
from snellen.certify._report import smoothing_exhibits, smoothing_findings
from snellen.certify._sampling import check_sampling, sample_counts
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import binomial_test

__all__ = [
    "Certificate",
    "Smoothing",
    "average_certified_radius",
    "certified_radius",
    "certify",
    "lower_bound",
    "needed_copies",
    "predict",
    "radius_curve",
    "sample_counts",
]

ABSTAIN = -1


class Certificate(NamedTuple):
    """predicted: int64 `[B]`, the certified class or -1. radius: float64 `[B]`, L2 in pixel units, 0 where it
    abstains. p_lower: float64 `[B]`, lower bound of the class's probability. votes: int64 `[B]`, its count among n.
    """

    predicted: Tensor
    radius: Tensor
    p_lower: Tensor
    votes: Tensor


def certify(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    sigma: float,
    generators: Sequence[Generator],
    num_classes: int,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    chunk: int = 256,
) -> Certificate:
    """Class and L2 radius of the smoothed classifier, right with probability at least 1 - alpha for each image.

    images: `[B, C, H, W]` in [0, 1]. sigma: noise in pixel units, before the model's normalisation. Over a set of N
    images all certificates hold together with probability 1 - N * alpha (Bonferroni). Costs n0 + n forward images.
    """
    check_sampling(sigma, min(n, n0), chunk)
    _check_alpha(alpha)
    if alpha ** (1 / n) <= 0.5:
        warnings.warn(
            f"n = {n} can certify nothing at alpha = {alpha}; at least {needed_copies(0.0, alpha)} are needed",
            stacklevel=2,
        )
    guess = sample_counts(model, images, sigma, n0, generators, num_classes, chunk).argmax(1)
    votes = sample_counts(model, images, sigma, n, generators, num_classes, chunk).gather(1, guess[:, None])[:, 0]

    p_lower = torch.tensor([lower_bound(k, n, alpha) for k in votes.tolist()], dtype=torch.float64)
    radius = torch.from_numpy(certified_radius(p_lower.numpy(), sigma))
    predicted = guess.cpu().where(p_lower >= 0.5, ABSTAIN)
    return Certificate(predicted, radius, p_lower, votes.cpu())


def predict(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    sigma: float,
    generators: Sequence[Generator],
    num_classes: int,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    chunk: int = 256,
) -> Tensor:
    """The smoothed classifier's answer int64 `[B]`, -1 where its two best classes cannot be told apart.

    A class given here is not the most probable one with probability at most alpha. alpha = 0 always abstains.
    """
    if not 0 <= alpha < 1:
        raise InvalidInput(f"alpha must be in [0, 1), got {alpha}")
    top, classes = sample_counts(model, images, sigma, n, generators, num_classes, chunk).topk(2, dim=1)
    p_values = [binomial_test(first, first + second, 0.5) for first, second in top.tolist()]
    sure = torch.tensor([p <= alpha for p in p_values], device=classes.device)
    return classes[:, 0].where(sure, ABSTAIN)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha must be in (0, 1), got {alpha}")


@register
@dataclass(frozen=True)
class Smoothing(ProbeBase):
    """Certified accuracy of the smoothed model against the L2 radius.

    Columns: id, label, base_predicted (the model's own answer), predicted (the certified class, -1 where it
    abstains), radius, p_lower, votes, n. Effect of the finding: 0, since a missing certificate is no harm shown.
    """

    name: ClassVar[str] = "certify/smoothing"
    paper: ClassVar[str] = "Cohen et al., 2019"
    card: ClassVar[str | None] = "smoothing-core"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    sigma: float = 0.25
    """Standard deviation of the noise in pixel units, > 0 (paper: 0.12, 0.25, 0.5, 1)."""
    n0: int = 100
    """Noisy copies that guess the class, >= 1 (paper: 100)."""
    n: int = 1000
    """Noisy copies that bound its probability, >= 1 (paper: 100 000). Caps the radius: 2.46 sigma at 1000."""
    alpha: float = 0.001
    """Allowed probability that a certificate is wrong, for one image, in (0, 1) (paper: 0.001)."""
    chunk: int = 256
    """Most noisy copies in one forward pass, >= 16; changes speed and memory, never the noise."""

    def __post_init__(self) -> None:
        check_sampling(self.sigma, min(self.n, self.n0), self.chunk)
        _check_alpha(self.alpha)

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        base = model.labels(batch.images)
        result = certify(
            model, batch.images, self.sigma, random.generators(batch.ids), model.spec.num_classes,
            n0=self.n0, n=self.n, alpha=self.alpha, chunk=self.chunk,
        )  # fmt: skip
        return rows(
            batch.ids,
            label=batch.labels,
            base_predicted=base,
            predicted=result.predicted,
            radius=result.radius,
            p_lower=result.p_lower,
            votes=result.votes,
            n=[self.n] * len(batch),
        )

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + self.n0 + self.n))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return smoothing_findings(table, self.sigma, self.alpha)

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return smoothing_exhibits(table, self.sigma, self.alpha)
