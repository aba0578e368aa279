"""Projected gradient descent: how often is a correct answer lost under a perturbation of size eps?

(Madry et al., 2018.) Start at a random point of the ball around the image, climb the model's loss by steps of fixed
length in the norm's steepest direction, and after every step go back to the nearest point of the ball and of [0, 1].
A step of length eps from the image itself is FGSM (Goodfellow et al., 2015).

The result is an upper bound on robust accuracy: an image that survives was not fooled by *this* attack. It misleads
where gradients say nothing, because logits saturate, the model is random, or it rounds its input; `zero_gradient`
in the rows shows the first case, and `attack/apgd`, whose ratio loss does not saturate, is the cross-check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from snellen.attack._ball import Norm, check_images, check_logits, check_norm, make_ball
from snellen.attack._loss import LossFunction, LossName, input_gradient, loss_function
from snellen.attack._report import robustness_exhibits, robustness_findings
from snellen.attack._sweep import AttackResult, check_epsilons, sweep, zero_rows
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model, labels_of
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register
from snellen.randomness import SampleRandom


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm = "linf",
    *,
    steps: int = 20,
    step_size: float | None = None,
    generators: Sequence[Generator] | None = None,
    loss: LossName | LossFunction = "ce",
    stop_early: bool = True,
) -> AttackResult:
    """Raise the loss of every image inside its ball.

    model: images `[B, C, H, W]` in [0, 1] to logits `[B, K]`, differentiable; a module should be in eval mode, and
    its parameters are left as they are. labels: int64 `[B]`. eps: radius in pixel units. step_size: in the same
    units, 2.5 * eps / steps when None, which can cross the ball and come back. generators: one an image, for the
    random start; None starts at the image. stop_early: leave each image at the first point that fools the model and
    spend nothing more on it; otherwise every image takes all steps and the last point counts. Raises InvalidInput
    for images outside [0, 1], labels without an output, and models that give no gradients.
    """
    check_images(images, labels)
    _check_steps(steps, step_size)
    climb = loss_function(loss)
    length = 2.5 * eps / steps if step_size is None else step_size
    whole = ball = make_ball(norm, images, eps)

    # start
    x = ball.start(generators)
    found = torch.empty_like(images) if stop_early else x
    answer = torch.full_like(labels, -1)
    blind = torch.zeros_like(labels, dtype=torch.bool)
    active = torch.arange(len(images), device=labels.device)
    forwards = backwards = 0

    for step in range(steps):
        # gradient
        with torch.enable_grad():
            logits = model(x.requires_grad_())
            if step == 0:
                check_logits(logits, labels)
            gradient = input_gradient(climb(logits, labels[active]), x)
        forwards, backwards = forwards + len(active), backwards + len(active)

        with torch.no_grad():
            if step == 0:
                blind = zero_rows(gradient)

            # leave the fooled
            if stop_early:
                predicted = labels_of(logits)
                standing = predicted == labels[active]
                if not standing.all():
                    fell = active[~standing]
                    found[fell], answer[fell] = x[~standing], predicted[~standing]
                    active, x, gradient, ball = active[standing], x[standing], gradient[standing], ball.keep(standing)
                    if len(active) == 0:
                        break

            # ascend, project
            x.add_(ball.direction(gradient), alpha=length)
            ball.project_(x)

    # verdict
    with torch.no_grad():
        if len(active) > 0:
            answer[active] = labels_of(model(x.detach()))
            forwards += len(active)
            if stop_early:
                found[active] = x
        found = found.detach()
        distance = whole.distance(found)
    return AttackResult(found, answer != labels, answer, distance, blind, forwards, backwards)


def _check_steps(steps: int, step_size: float | None) -> None:
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, got {steps}")
    if step_size is not None and not step_size > 0:
        raise InvalidInput(f"step_size must be positive, in pixel units, got {step_size}")


@register
@dataclass(frozen=True)
class PGD(ProbeBase):
    """Robust accuracy under projected gradient descent, over a grid of radii.

    Effect of the finding: the part of all images whose correct answer is lost at the middle radius.
    """

    name: ClassVar[str] = "attack/pgd"
    paper: ClassVar[str] = "Madry et al., 2018"
    card: ClassVar[str | None] = "adversarial-core"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.SAMPLE

    norm: Norm = "linf"
    """"linf" (largest change of a value) or "l2" (Euclidean length of the change)."""
    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    """Radii in pixel units, > 0. The paper: 0.3 for MNIST, 8/255 for CIFAR-10; for l2 0.5 is usual at 32 px."""
    steps: int = 20
    """Gradient steps a radius, >= 1. The paper: 40 for MNIST, 7 to 20 for CIFAR-10."""
    relative_step: float = 0.125
    """Length of a step as a part of eps, > 0; 2.5 / steps lets an image cross the ball."""
    loss: LossName = "ce"
    """"ce" (cross-entropy, the paper's) or "dlr" (difference-of-logits ratio, at least 3 classes)."""

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_epsilons(self.eps)
        _check_steps(self.steps, self.relative_step)
        loss_function(self.loss)

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        def attack(images: Tensor, labels: Tensor, eps: float, generators: Sequence[Generator]) -> AttackResult:
            length = self.relative_step * eps
            return pgd(
                model, images, labels, eps, self.norm,
                steps=self.steps, step_size=length, generators=generators, loss=self.loss,
            )  # fmt: skip

        return sweep(model, batch, self.eps, self.norm, attack, random)

    def cost(self, batch_size: int) -> Passes:
        """Of a batch that is all correct and never fooled; every image that falls makes it cheaper."""
        attacks = len(self.eps)
        return Passes(batch_size * (1 + attacks * (self.steps + 1)), batch_size * attacks * self.steps)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return robustness_findings(table, self.name, "run attack/apgd with loss dlr")

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return robustness_exhibits(table, self.name)
