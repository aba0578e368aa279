"""Which regions carried the answer, by the last feature map?

Grad-CAM (Selvaraju et al., 2017) weights each channel of a late layer by its mean gradient, adds them up and keeps what
speaks for the class. Grad-CAM++ (Chattopadhay et al., 2018), HiRes-CAM (Draelos and Carin, 2020) and Layer-CAM (Jiang
et al., 2021) weight differently. Works on CNNs and on transformers, whose tokens are put back on their grid.

Misleads in detail: the map has the layer's resolution (7 x 7 for many networks at 224 px), is smoothed when enlarged,
and Grad-CAM's averaged weights can light regions that the score does not depend on, which HiRes-CAM avoids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.explain._curves import curve_passes
from snellen.explain._layers import SpatialLayer, activations_of, describe_layer, last_spatial_layer
from snellen.explain._report import NamedMaps, explanation_exhibits, explanation_findings, explanation_rows
from snellen.models import Access, Model
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register
from snellen.randomness import SampleRandom

Variant = Literal["gradcam", "gradcam++", "hirescam", "layercam"]

_found: WeakKeyDictionary[Model | nn.Module, dict[str | None, SpatialLayer]] = WeakKeyDictionary()


def class_activation_map(
    model: Model | nn.Module,
    images: Tensor,
    targets: Tensor | None = None,
    variant: Variant = "gradcam",
    layer: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Maps `[B, H, W]`, not negative, at the resolution of the images, and the logits `[B, K]` of the same pass.

    images: `[B, C, H, W]`. targets: int64 `[B]`, the predicted classes when None. layer: a name from
    `named_modules()`, the last one with a spatial grid when None. One forward and one backward pass an image.
    """
    spatial = _spatial_layer(model, images, layer)
    with torch.enable_grad():
        logits, layers = activations_of(model, images.detach().requires_grad_(), spatial.name)
        chosen = logits.detach().argmax(dim=1) if targets is None else targets
        score = logits.gather(1, chosen.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(score, layers[spatial.name])
    activation, gradient = spatial.as_map(layers[spatial.name].detach()), spatial.as_map(gradient)
    small = _combine(activation, gradient, variant)
    enlarged = F.interpolate(small.unsqueeze(1), size=images.shape[2:], mode="bilinear", align_corners=False)
    return enlarged.squeeze(1), logits.detach()


def _combine(activation: Tensor, gradient: Tensor, variant: Variant) -> Tensor:
    """Activation and gradient `[B, K, h, w]` to a map `[B, h, w]`, not negative."""
    if variant == "hirescam":
        return (gradient * activation).sum(dim=1).relu()
    if variant == "layercam":
        return (gradient.relu() * activation).sum(dim=1).relu()
    if variant == "gradcam":
        weights = gradient.mean(dim=(2, 3), keepdim=True)
    else:
        squared, total = gradient**2, activation.sum(dim=(2, 3), keepdim=True)
        alpha = squared / (2 * squared + total * gradient**3 + 1e-6)
        weights = (alpha.masked_fill(gradient == 0, 0) * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).relu()


def _spatial_layer(model: Model | nn.Module, images: Tensor, name: str | None) -> SpatialLayer:
    known = _found.setdefault(model, {})
    if name not in known:
        known[name] = describe_layer(model, images, name) if name else last_spatial_layer(model, images)
    return known[name]


@register
@dataclass(frozen=True)
class ClassActivationMaps(ProbeBase):
    """Region maps from a late layer's activations and gradients, judged by insertion and deletion curves.

    Statements are about the maps, not the model: how much better than a random order of pixels each one is.
    """

    name: ClassVar[str] = "explain/cam"
    paper: ClassVar[str] = "Selvaraju et al., 2017"
    card: ClassVar[str | None] = "attribution-core"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.SAMPLE

    variants: tuple[Variant, ...] = ("gradcam",)
    """Which maps: gradcam, gradcam++, hirescam, layercam."""
    layer: str | None = None
    """Name of the layer; None takes the last one with a spatial grid."""
    curve_steps: int = 16
    """Groups of pixels in the insertion and deletion curves."""

    def __post_init__(self) -> None:
        unknown = [variant for variant in self.variants if variant not in get_args(Variant)]
        if unknown or not self.variants:
            raise InvalidInput(f"variants must be some of {', '.join(get_args(Variant))}, got {list(self.variants)}")
        if self.curve_steps < 2:
            raise InvalidInput(f"curve_steps must be at least 2, got {self.curve_steps}")

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        maps: list[NamedMaps] = []
        for variant in self.variants:
            heat_maps, logits = class_activation_map(model, batch.images, None, variant, self.layer)
            maps.append(NamedMaps(variant, heat_maps))
        predicted = logits.argmax(dim=1).masked_fill(~logits.isfinite().all(dim=1), -1)
        return explanation_rows(model, batch, predicted, maps, self.curve_steps, random)

    def cost(self, batch_size: int) -> Passes:
        curves = curve_passes(len(self.variants) + 1, self.curve_steps)
        return Passes(batch_size * (len(self.variants) + curves), batch_size * len(self.variants))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return explanation_findings(table, context)

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return explanation_exhibits(table, context)
