"""Which pixels does the answer depend on, by derivatives?

Four maps: the gradient (Simonyan et al., 2014), gradient x input (Shrikumar et al., 2017), SmoothGrad, the gradient
averaged under noise (Smilkov et al., 2017), and integrated gradients, averaged on the way from a baseline, which add
up to the difference of the two scores (Sundararajan et al., 2017).

Mislead when read as causes: a gradient says what an infinitesimal change would do, saturated scores have none, and
integrated gradients cannot blame a pixel that has the baseline's colour. Insertion and deletion curves against a
random order say how far each map can be trusted on this model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.explain._curves import curve_passes
from snellen.explain._report import NamedMaps, explanation_exhibits, explanation_findings, explanation_rows
from snellen.models import Access, Model
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register
from snellen.randomness import SampleRandom, normal

Method = Literal["saliency", "gradient_x_input", "smoothgrad", "integrated_gradients"]
COMPLETENESS = 0.01
"""Integrated gradients are refined until their sum is within this share of the difference of the scores."""


class IntegratedGradients(NamedTuple):
    """attributions: `[B, C, H, W]`, signed. gap: |sum - (score - baseline score)|, `[B]`. steps: nodes used, `[B]`."""

    attributions: Tensor
    gap: Tensor
    steps: Tensor


def gradient(model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """Derivative of the target's logit, `[B, C, H, W]`. images: `[B, C, H, W]`; targets: int64 `[B]`."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        # One sum over the batch: each row's derivative is its own, and one backward serves all.
        total = model(images).gather(1, targets.unsqueeze(1)).sum()
        return torch.autograd.grad(total, images)[0]


def smooth_grad(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    generators: Sequence[torch.Generator],
    samples: int = 25,
    noise: float = 0.15,
) -> Tensor:
    """Mean gradient under Gaussian noise of deviation `noise` times each image's range, `[B, C, H, W]`.

    generators: one a sample, so that the map does not depend on the batch.
    """
    spread = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
    total = torch.zeros_like(images)
    for _ in range(samples):
        drawn = normal(generators, images.shape[1:]).to(images.device)
        total += gradient(model, drawn.mul_(noise * spread).add_(images), targets)
    return total.div_(samples)


def integrated_gradients(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    baseline: float | Tensor = 0.0,
    steps: int = 50,
    max_steps: int = 400,
) -> IntegratedGradients:
    """Gradients averaged on the straight line from the baseline, times the difference from it.

    baseline: a grey value in [0, 1] or images. steps: nodes of the midpoint rule; doubled, for the images that need
    it, until the sum of the map is within 1 % of the difference of the scores, at most `max_steps` nodes.
    """
    start = baseline if isinstance(baseline, Tensor) else torch.full_like(images, baseline)
    way = images - start
    with torch.no_grad():
        gained = _target(model(images), targets) - _target(model(start), targets)
    attributions, used = torch.empty_like(images), torch.full_like(targets, steps)
    gap = torch.empty_like(gained)
    open_rows = torch.arange(len(images), device=images.device)
    nodes = steps
    while len(open_rows):
        rows = slice(None) if len(open_rows) == len(images) else open_rows
        mean = _mean_gradient(model, start[rows], way[rows], targets[rows], nodes)
        attributions[rows] = mean.mul_(way[rows])
        gap[rows] = (attributions[rows].sum(dim=(1, 2, 3)) - gained[rows]).abs()
        used[rows] = nodes
        nodes *= 2
        if nodes > max_steps:
            break
        open_rows = torch.nonzero(gap > COMPLETENESS * gained.abs() + 1e-6).squeeze(1)
        open_rows = open_rows[used[open_rows] == nodes // 2]
    return IntegratedGradients(attributions, gap, used)


def _mean_gradient(
    model: Callable[[Tensor], Tensor], start: Tensor, way: Tensor, targets: Tensor, nodes: int
) -> Tensor:
    total = torch.zeros_like(way)
    for node in range(nodes):
        total += gradient(model, torch.add(start, way, alpha=(node + 0.5) / nodes), targets)
    return total.div_(nodes)


def _target(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)


@register
@dataclass(frozen=True)
class Gradients(ProbeBase):
    """Pixel maps by derivatives of the predicted class's logit, each judged by insertion and deletion curves.

    Statements are about the maps, not the model: how much better than a random order of pixels each one is.
    """

    name: ClassVar[str] = "explain/gradients"
    paper: ClassVar[str] = "Simonyan et al., 2014; Smilkov et al., 2017; Sundararajan et al., 2017"
    card: ClassVar[str | None] = "attribution-core"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.SAMPLE

    methods: tuple[Method, ...] = ("saliency", "gradient_x_input", "smoothgrad", "integrated_gradients")
    """Maps to make."""
    samples_smoothgrad: int = 25
    """Noisy copies for SmoothGrad; the paper uses up to 50."""
    noise: float = 0.15
    """SmoothGrad's deviation as a share of the image's range, (0, 1]; the paper finds 0.1 to 0.2 best."""
    steps: int = 50
    """First number of nodes for integrated gradients; the paper uses 20 to 300."""
    baseline: float = 0.0
    """Grey value in [0, 1] that stands for "nothing" in integrated gradients and gradient x input."""
    curve_steps: int = 16
    """Groups of pixels in the insertion and deletion curves."""

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in get_args(Method)]
        if unknown or not self.methods:
            raise InvalidInput(f"methods must be some of {', '.join(get_args(Method))}, got {list(self.methods)}")
        if min(self.samples_smoothgrad, self.steps) < 1 or self.curve_steps < 2:
            raise InvalidInput("samples_smoothgrad and steps must be at least 1 and curve_steps at least 2")
        if not 0 < self.noise <= 1 or not 0 <= self.baseline <= 1:
            raise InvalidInput(f"noise must be in (0, 1] and baseline in [0, 1], got {self.noise} and {self.baseline}")

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        predicted = model.labels(batch.images)
        targets = predicted.clamp_min(0)
        maps = [NamedMaps(method, self._map(method, model, batch, targets, random)) for method in self.methods]
        return explanation_rows(model, batch, predicted, maps, self.curve_steps, random)

    def _map(self, method: Method, model: Model, batch: Batch, targets: Tensor, random: SampleRandom) -> Tensor:
        images = batch.images
        if method == "saliency":
            return gradient(model, images, targets).abs().amax(dim=1)
        if method == "gradient_x_input":
            return (gradient(model, images, targets) * (images - self.baseline)).sum(dim=1)
        if method == "smoothgrad":
            generators = random.generators(batch.ids, "smoothgrad")
            smooth = smooth_grad(model, images, targets, generators, self.samples_smoothgrad, self.noise)
            return smooth.abs().amax(dim=1)
        return integrated_gradients(model, images, targets, self.baseline, self.steps).attributions.sum(dim=1)

    def cost(self, batch_size: int) -> Passes:
        gradients = {
            "saliency": 1,
            "gradient_x_input": 1,
            "smoothgrad": self.samples_smoothgrad,
            "integrated_gradients": self.steps,
        }
        both = sum(gradients[method] for method in self.methods)
        curves = curve_passes(len(self.methods) + 1, self.curve_steps)
        ends = 2 * ("integrated_gradients" in self.methods)
        return Passes(batch_size * (1 + both + ends + curves), batch_size * both)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return explanation_findings(table, context)

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return explanation_exhibits(table, context)
