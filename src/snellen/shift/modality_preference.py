"""Which input does a fused classifier lean on, and how small a change of that input alone flips its answer?

Paper: Yang et al., 2024 (CRMT). A jointly trained model follows the modality that is learned fastest, and an attack on
that one breaks it. For any model: accuracy with each modality missing, and under L2 attacks on one modality at a time.
For the additive form h_k = sum_m a_k^m <W_k^m, phi_m(x_m)> + b_k also each modality's share of the margin, its
vulnerability eta, and an L2 radius from margin and Lipschitz constants tau. Training waits for `training/`.

When it misleads: eps is a length in each modality's own units, so curves compare modalities only where units do; a
saturated model hides its gradient; a radius from tau estimated on samples promises nothing (`estimated_radius`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.shift._additive import AdditiveModel, Lipschitz, margin_loss, normalise_head
from snellen.shift._multimodal import (
    CLEAN,
    TINY,
    Condition,
    Inputs,
    MultiModel,
    Score,
    check_boxes,
    check_inputs,
    check_logits,
    input_gradients,
    l2_attack,
    place,
    with_failed,
)
from snellen.stats import mcnemar_exact, paired_difference, wilson

__all__ = [
    "CLEAN",
    "AdditiveModel",
    "Condition",
    "Lipschitz",
    "ModalityPreference",
    "PreferenceTable",
    "Preferred",
    "Radius",
    "Score",
    "certified_radius",
    "empirical_lipschitz",
    "estimated_radius",
    "evaluate",
    "l2_attack",
    "margin_loss",
    "margin_shares",
    "normalise_head",
    "spectral_lipschitz",
    "vulnerability",
]

CONTRACTIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid)
"""Layers that never lengthen a difference."""


@dataclass(frozen=True)
class ModalityPreference:
    """Which attacks are tried, one modality at a time (Yang et al., 2024)."""

    eps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """L2 radii in input units, above 0, ascending; ours."""
    steps: int = 4
    """Steps of PGD."""
    step: float = 1 / 3
    """Length of a step as a share of eps."""
    boxes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Closed range of a modality's values, [0, 1] for images; a modality that is not named has none."""

    def __post_init__(self) -> None:
        if not self.eps or not all(low < high for low, high in itertools.pairwise((0.0, *self.eps, math.inf))):
            raise InvalidInput(f"eps must be above 0 and ascending, got {list(self.eps)}")
        if self.steps < 1 or not self.step > 0:
            raise InvalidInput(f"steps must be at least 1 and step above 0, got {self.steps} and {self.step}")


class Preferred(NamedTuple):
    """The modality whose loss costs most; p_value: exact McNemar test against the next, times the pairs."""

    name: str
    p_value: float


@dataclass(frozen=True, eq=False)
class PreferenceTable:
    """correct: bool `[conditions, n]`; the conditions are clean and, one modality each, missing, fgm EPS, pgd EPS."""

    modalities: tuple[str, ...]
    conditions: tuple[Condition, ...]
    correct: NDArray[np.bool_]

    def score(self, condition: Condition) -> Score:
        """Accuracy with its Wilson interval."""
        right = self.correct[place(condition, self.conditions)]
        return Score(float(right.mean()), *wilson(int(right.sum()), len(right)), len(right))

    def rows(self) -> list[tuple[Condition, Score]]:
        return [(condition, self.score(condition)) for condition in self.conditions]

    def cost(self, condition: Condition) -> Score:
        """Clean accuracy minus accuracy under `condition`, on the same samples."""
        return self._difference(CLEAN, condition)

    def extra_cost(self, scenario: str, first: str, second: str) -> Score:
        """How much more `scenario` costs on modality `first` than on `second`, on the same samples."""
        return self._difference(Condition(scenario, (second,)), Condition(scenario, (first,)))

    def preferred(self) -> Preferred:
        """The modality whose absence costs most."""
        right = {name: self.correct[place(Condition("missing", (name,)), self.conditions)] for name in self.modalities}
        first, second = sorted(self.modalities, key=lambda name: int(right[name].sum()))[:2]
        p_value = mcnemar_exact(int((right[second] & ~right[first]).sum()), int((right[first] & ~right[second]).sum()))
        return Preferred(first, min(1.0, p_value * math.comb(len(self.modalities), 2)))

    def _difference(self, high: Condition, low: Condition) -> Score:
        a, b = (self.correct[place(condition, self.conditions)] for condition in (high, low))
        return Score(float(a.mean() - b.mean()), *paired_difference(a, b), len(a))


def evaluate(
    model: MultiModel, data: Iterable[tuple[Inputs, Tensor]], settings: ModalityPreference | None = None
) -> PreferenceTable:
    """Accuracy of `model` with one modality missing (zeros) or attacked. Raises InvalidInput.

    model: dict of tensors -> logits `[B, K]`, in eval mode. data: pairs of inputs, name -> float `[B, ...]`, and labels
    int64 `[B]`. Passes an image: 2 + M (1 + eps (steps + 1)) forward, 1 + M eps (steps - 1) backward.
    """
    settings = settings or ModalityPreference()
    names: tuple[str, ...] = ()
    found: list[dict[Condition, Tensor]] = []
    for inputs, labels in data:
        names = names or tuple(inputs)
        check_inputs(inputs, names)
        check_boxes(inputs, settings.boxes)

        def right(given: dict[str, Tensor], labels: Tensor = labels) -> Tensor:
            with torch.no_grad():
                logits = model(given)
                check_logits(logits, labels)
            return (logits.argmax(1) == labels).cpu()

        batch = {CLEAN: right(dict(inputs))}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
        gradients = input_gradients(model, inputs, labels, names)
        for name, gradient in zip(names, gradients, strict=True):
            batch[Condition("missing", (name,))] = right(with_failed(inputs, zeros, (name,)))
            for eps in settings.eps:
                for scenario, steps, step in (("fgm", 1, 1.0), ("pgd", settings.steps, settings.step)):
                    moved = l2_attack(model, inputs, labels, [name], eps, steps, step, settings.boxes, [gradient])
                    batch[Condition(f"{scenario} {eps:g}", (name,))] = right(moved)
        found.append(batch)
    if not found:
        raise InvalidInput("data must hold at least one batch, got none")
    correct = torch.stack([torch.cat([batch[condition] for batch in found]) for condition in found[0]])
    return PreferenceTable(names, tuple(found[0]), correct.numpy())


def margin_shares(model: AdditiveModel, inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
    """Each modality's part `[B]` of the margin to the runner-up; its mean over samples is the preference index.

    Of absolute values, in [0, 1]: the plain quotient has no mean, because the margin passes through zero. The two agree
    where all modalities speak for the label.
    """
    pair = torch.stack([labels, _runner_up(model(inputs), labels)], dim=1)
    parts = {
        name: (model.scales[name] * s).gather(1, pair).diff(dim=1)[:, 0].abs()
        for name, s in model.scores(inputs).items()
    }
    total = torch.stack(list(parts.values())).sum(0).clamp(min=TINY)
    return {name: part / total for name, part in parts.items()}


def empirical_lipschitz(model: AdditiveModel, data: Iterable[Inputs]) -> Lipschitz:
    """The largest gradient norm of s_k^m on samples: a lower estimate of the constant, K backward passes a batch.

    The published code lets gradients of the fused output add up over classes for one modality and clears the other's.
    """
    tau = {name: torch.zeros_like(head[:, 0]) for name, head in model.heads.items()}
    samples = 0
    for inputs in data:
        samples += check_inputs(inputs, tuple(tau))
        leaves = {name: inputs[name].detach().requires_grad_() for name in tau}
        with torch.enable_grad():
            total = torch.stack(list(model.scores(leaves).values())).sum((0, 1))  # x_m moves s^m only
        for k in range(len(total)):
            gradients = torch.autograd.grad(total[k], list(leaves.values()), retain_graph=k + 1 < len(total))
            for known, gradient in zip(tau.values(), gradients, strict=True):
                known[k] = torch.maximum(known[k], torch.linalg.vector_norm(gradient.flatten(1), dim=1).max())
    if not samples:
        raise InvalidInput("data must hold at least one batch, got none")
    return Lipschitz(tau, sound=False)


def spectral_lipschitz(model: AdditiveModel) -> Lipschitz:
    """Proven constants from products of spectral norms, float64; exact for linear encoders.

    Encoders must be nn.Linear or nn.Sequential of it, `CONTRACTIONS`, Flatten and Identity; for others prove tau
    elsewhere.
    """
    return Lipschitz({name: _spectral(model.encoders[name], head) for name, head in model.heads.items()}, sound=True)


def _spectral(encoder: Callable[[Tensor], Tensor], head: Tensor) -> Tensor:
    bound: Tensor | None = None  # of what lies above the linear map at hand
    linear = head.detach().double()
    for layer in reversed(encoder if isinstance(encoder, nn.Sequential) else [encoder]):
        if isinstance(layer, nn.Linear):
            linear = linear @ layer.weight.detach().double()
        elif isinstance(layer, CONTRACTIONS):
            bound, linear = _bounded(bound, linear), torch.eye(linear.shape[1]).to(linear)
        elif not isinstance(layer, nn.Flatten | nn.Identity):
            raise InvalidInput(f"encoders must be linear layers and {CONTRACTIONS} for a spectral bound, got {layer!r}")
    return _bounded(bound, linear)


def _bounded(bound: Tensor | None, linear: Tensor) -> Tensor:
    # Next to the head every class has its own row; below, all classes share the map.
    norm: Tensor = torch.linalg.vector_norm(linear, dim=1) if bound is None else torch.linalg.matrix_norm(linear, 2)
    return norm if bound is None else bound * norm


class Radius(NamedTuple):
    """L2 radii `[B]`, negative where the answer is wrong: of all inputs together, and of each alone.
    infinite: bool `[B]`, by the constants no change at all can flip the answer."""

    joint: Tensor
    unimodal: dict[str, Tensor]
    infinite: Tensor


def certified_radius(model: AdditiveModel, inputs: Inputs, labels: Tensor, lipschitz: Lipschitz) -> Radius:
    """No change of the inputs below the radius flips a right answer (up to rounding). Refuses estimated constants."""
    if not lipschitz.sound:
        raise InvalidInput("lipschitz must be proven for a certificate, got an estimate; use estimated_radius")
    return estimated_radius(model, inputs, labels, lipschitz)


def estimated_radius(model: AdditiveModel, inputs: Inputs, labels: Tensor, lipschitz: Lipschitz) -> Radius:
    """min over k of (h_y - h_k) / sqrt(sum_m (|a_y| tau_y + |a_k| tau_k)_m^2); with estimated tau too large.

    The paper divides by the runner-up's constants only, and by a instead of |a|.
    """
    logits = model(inputs)
    check_logits(logits, labels)
    margins = logits.gather(1, labels[:, None]) - logits
    slopes = {name: _slopes(model, name, labels, lipschitz) for name in model.encoders}

    def smallest(slope: Tensor) -> Tensor:
        unbounded = torch.where(margins == 0, 0.0, margins.sign() * torch.inf)
        ratio = torch.where(slope > 0, margins / slope.clamp(min=TINY), unbounded)
        return ratio.scatter(1, labels[:, None], torch.inf).amin(1)

    joint = smallest(torch.stack(list(slopes.values())).square().sum(0).sqrt())
    return Radius(joint, {name: smallest(slope) for name, slope in slopes.items()}, joint == torch.inf)


def vulnerability(model: AdditiveModel, inputs: Inputs, labels: Tensor, lipschitz: Lipschitz) -> dict[str, Tensor]:
    """eta_m `[B]`: how fast modality m can move the margin to the runner-up; the largest names the one to attack."""
    rival = _runner_up(model(inputs), labels)[:, None]
    return {name: _slopes(model, name, labels, lipschitz).gather(1, rival)[:, 0] for name in model.encoders}


def _slopes(model: AdditiveModel, name: str, labels: Tensor, lipschitz: Lipschitz) -> Tensor:
    """`[B, K]`: |a_y| tau_y + |a_k| tau_k of one modality."""
    speed = model.scales[name].abs() * lipschitz.tau[name]
    return speed[labels][:, None] + speed


def _runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    check_logits(logits, labels)
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


register_functions(
    "shift/modality-preference",
    paper="Yang et al., 2024",
    card="modality-preference-crmt",
    access=Access.GRADIENTS,
    data="several inputs, classes",
    module=__name__,
)
