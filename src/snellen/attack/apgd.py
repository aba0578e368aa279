"""Auto-PGD: how often is a correct answer lost, without a step size to tune?

(Croce and Hein, 2020.) Gradient ascent in the ball with momentum and one step length an image, which starts at twice
eps. At checkpoints that come ever more often, an image whose loss rose too rarely, or whose best loss stood still,
has its step halved and goes back to its best point. The ratio losses (dlr, targeted) ignore the scale of the logits,
so they see through saturated outputs that blind cross-entropy.

Like every attack it bounds robust accuracy from above only. It misleads where the model is random or not
differentiable: repeated answers to one image must agree before its figure means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from snellen.attack._ball import Norm, check_images, check_logits, check_norm, make_ball
from snellen.attack._climb import halve_where_stuck, remember_best, start_climb
from snellen.attack._loss import LossFunction, LossName, input_gradient, loss_function, targeted_dlr
from snellen.attack._report import robustness_exhibits, robustness_findings
from snellen.attack._sweep import AttackResult, check_epsilons, in_turn, sweep, zero_rows
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model, labels_of
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register
from snellen.randomness import SampleRandom

MOMENTUM = 0.75
"""Weight of the new step; the rest goes to repeating the last move."""


def apgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm = "linf",
    *,
    steps: int = 100,
    generators: Sequence[Generator] | None = None,
    loss: LossName | LossFunction = "ce",
    targets: Tensor | None = None,
    stop_early: bool = True,
) -> AttackResult:
    """Raise the loss of every image inside its ball with an adaptive step.

    model, images, labels, eps: as for `pgd`. generators: one an image, for the start on the ball's surface; None
    starts at the image. targets: int64 `[B]`, climb the targeted ratio loss towards these classes instead of `loss`
    (at least 4 classes). stop_early: leave each image at the first point that fools the model; otherwise all take
    every step and the last fooling point is returned, or, where none fools, the one of highest loss. Costs steps + 1
    forward and steps backward images an image that never falls.
    """
    check_images(images, labels)
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, got {steps}")
    named = loss_function(loss)
    ball = whole = make_ball(norm, images, eps)

    found, answer = torch.empty_like(images), labels.clone()
    blind = torch.zeros_like(labels, dtype=torch.bool)
    forwards = backwards = 0

    climb = start_climb(ball.start(generators, boundary=True), labels, labels if targets is None else targets, eps)
    window = since = 0
    for k in range(steps + 1):
        # loss, gradient
        wants_gradient = k < steps
        with torch.set_grad_enabled(wants_gradient):
            leaf = climb.x.detach().requires_grad_(wants_gradient)
            logits = model(leaf)
            if k == 0:
                check_logits(logits, labels)
            if targets is None:
                loss_now = named(logits, climb.labels)
            else:
                loss_now = targeted_dlr(logits, climb.labels, climb.targets)
            if wants_gradient:
                climb.gradient = input_gradient(loss_now, leaf)
        forwards, backwards = forwards + len(leaf), backwards + len(leaf) * wants_gradient

        with torch.no_grad():
            remember_best(climb, loss_now.detach(), first=k == 0)
            if k == 0:
                blind = zero_rows(climb.gradient)

            # harvest the fooled
            predicted = labels_of(logits)
            fooled = predicted != climb.labels
            if fooled.any():
                rows = climb.index[fooled]
                found[rows], answer[rows] = climb.x[fooled], predicted[fooled]
                if stop_early:
                    climb, ball = climb.keep(~fooled), ball.keep(~fooled)
            if k == steps or len(climb.index) == 0:
                break

            # checkpoint
            if k == 0:
                window = max(int(0.22 * steps), 1)
            elif since == window:
                halve_where_stuck(climb, window)
                window, since = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1), 0

            # step with momentum
            weight = 1.0 if k == 0 else MOMENTUM
            ahead = ball.project_(torch.addcmul(climb.x, climb.step, ball.direction(climb.gradient)))
            moved = torch.lerp(climb.x, ahead, weight).add_(climb.x - climb.previous, alpha=1 - weight)
            climb.previous, climb.x = climb.x, ball.project_(moved)
            since += 1

    left = answer[climb.index] == climb.labels
    found[climb.index[left]] = climb.best_x[left]
    return AttackResult(found, answer != labels, answer, whole.distance(found), blind, forwards, backwards)


def apgd_targeted(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm = "linf",
    *,
    steps: int = 100,
    classes: int = 9,
    generators: Sequence[Generator] | None = None,
) -> AttackResult:
    """Auto-PGD on the targeted ratio loss, against the best `classes` wrong classes of the clean image in turn.

    Each target is tried on the images the former ones left standing; with fewer wrong classes all are tried.
    """
    with torch.no_grad():
        wrong = model(images).scatter(1, labels[:, None], float("-inf"))
    order = wrong.argsort(dim=1, descending=True)[:, : min(classes, wrong.shape[1] - 1)]

    def towards(rank: int, rows: Tensor) -> AttackResult:
        chosen = None if generators is None else [generators[i] for i in rows.tolist()]
        return apgd(
            model, images[rows], labels[rows], eps, norm, steps=steps, generators=chosen, targets=order[rows, rank]
        )

    result = in_turn([partial(towards, rank) for rank in range(order.shape[1])], labels)
    return result._replace(forwards=result.forwards + len(images))


ProbeLoss = Literal["ce", "dlr", "both", "targeted"]


@register
@dataclass(frozen=True)
class APGD(ProbeBase):
    """Robust accuracy under Auto-PGD, over a grid of radii.

    Effect of the finding: the part of all images whose correct answer is lost at the middle radius.
    """

    name: ClassVar[str] = "attack/apgd"
    paper: ClassVar[str] = "Croce and Hein, 2020"
    card: ClassVar[str | None] = "adversarial-core"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.SAMPLE

    norm: Norm = "linf"
    """"linf" (largest change of a value) or "l2" (Euclidean length of the change)."""
    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    """Radii in pixel units, > 0. The paper: 8/255 for CIFAR-10, 4/255 for ImageNet, 0.3 for MNIST; l2 0.5."""
    steps: int = 100
    """Gradient steps a radius and loss, >= 1 (paper: 100)."""
    loss: ProbeLoss = "both"
    """"ce", "dlr", "both" (ce, then dlr on the survivors) or "targeted" (ce, then the 9 best wrong classes). The
    ratio losses need 3 and 4 classes; with fewer only ce runs."""

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_epsilons(self.eps)
        if self.steps < 1:
            raise InvalidInput(f"steps must be at least 1, got {self.steps}")
        if self.loss not in get_args(ProbeLoss):
            raise InvalidInput(f"loss must be one of {', '.join(get_args(ProbeLoss))}, got {self.loss!r}")

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        return sweep(model, batch, self.eps, self.norm, partial(self._attack, model), random)

    def _attack(
        self, model: Model, images: Tensor, labels: Tensor, eps: float, generators: Sequence[Generator]
    ) -> AttackResult:
        def stage(loss: ProbeLoss, rows: Tensor) -> AttackResult:
            chosen = [generators[i] for i in rows.tolist()]
            some = (model, images[rows], labels[rows], eps, self.norm)
            if loss == "targeted":
                return apgd_targeted(*some, steps=self.steps, generators=chosen)
            name: LossName = "dlr" if loss == "dlr" else "ce"
            return apgd(*some, steps=self.steps, generators=chosen, loss=name)

        return in_turn([partial(stage, loss) for loss in self._losses(model.spec.num_classes)], labels)

    def _losses(self, classes: int) -> tuple[ProbeLoss, ...]:
        if self.loss == "targeted":
            return ("ce", "targeted") if classes >= 4 else ("ce",)
        if classes < 3:
            return ("ce",)
        return ("ce", "dlr") if self.loss == "both" else (self.loss,)

    def cost(self, batch_size: int) -> Passes:
        """Of a batch that is all correct and never fooled; every image that falls makes it cheaper."""
        runs = {"ce": 1, "dlr": 1, "both": 2, "targeted": 10}[self.loss] * len(self.eps)
        return Passes(batch_size * (1 + runs * (self.steps + 1)), batch_size * runs * self.steps)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        check = "run attack/pgd with loss dlr" if self.loss == "ce" else "try an attack without gradients"
        return robustness_findings(table, self.name, check)

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return robustness_exhibits(table, self.name)
