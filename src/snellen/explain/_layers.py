"""The last layer of a network that still has a spatial grid, found by watching one forward pass."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Activations, Model
from snellen.models.layers import LayerTap, layer_types


class SpatialLayer(NamedTuple):
    """name: as in `named_modules()`. prefix: tokens before the grid (CLS and registers), None for a feature map."""

    name: str
    prefix: int | None
    channels_last: bool

    def as_map(self, activation: Tensor) -> Tensor:
        """Activation or its gradient as `[B, K, h, w]`."""
        if self.prefix is not None:
            tokens = activation[:, self.prefix :]
            side = math.isqrt(tokens.shape[1])
            return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        return activation.permute(0, 3, 1, 2) if self.channels_last else activation


def activations_of(model: Model | nn.Module, images: Tensor, layer: str | None) -> Activations:
    """Logits and one layer's output (None: all layers') of one pass through a snellen model or a plain module."""
    layers = None if layer is None else [layer]
    if isinstance(model, Model):
        return model.activations(images, layers)
    with LayerTap(model, layers) as tap:
        logits = model(images)
    return Activations(logits, tap.outputs)


def describe_layer(model: Model | nn.Module, images: Tensor, name: str) -> SpatialLayer:
    """How the named layer's output is laid out, seen on one image `[1, C, H, W]`."""
    with torch.no_grad():
        output = activations_of(model, images[:1], name).layers[name]
    layer = _layout(name, _types(model)[name], output)
    if layer is None:
        raise InvalidInput(
            f"layer {name!r} gives {list(output.shape)}, which has no spatial grid; choose another layer"
        )
    return layer


def last_spatial_layer(model: Model | nn.Module, images: Tensor) -> SpatialLayer:
    """The last layer in the order of execution whose grid gets a gradient from the top class.

    In a CNN this is the last feature map before pooling. In a ViT that reads its class token the patch tokens of the
    last block's output get no gradient, so this is the normalisation before the last attention. Runs one image.
    """
    with torch.enable_grad():
        logits, outputs = activations_of(model, images[:1].detach().requires_grad_(), None)
    grids = _candidates(_types(model), {name: output for name, output in outputs.items() if output.requires_grad})
    if grids:
        found = torch.autograd.grad(logits.max(), [outputs[layer.name] for layer in grids], allow_unused=True)
        for layer, gradient in zip(reversed(grids), reversed(found), strict=True):
            if gradient is not None and bool(layer.as_map(gradient).abs().sum() > 0):
                return layer
    raise InvalidInput("no layer with a spatial grid gets a gradient in this model; name one with layer=NAME")


def _candidates(types: dict[str, str], outputs: dict[str, Tensor]) -> list[SpatialLayer]:
    """Token normalisations in a transformer, feature maps in a CNN; attention's inner tensors only look like maps."""
    laid_out = {name: layer for name, output in outputs.items() if (layer := _layout(name, types[name], output))}
    tokens = [layer for layer in laid_out.values() if layer.prefix is not None]
    if tokens:
        return tokens
    rows_of_tokens = [layer for layer in laid_out.values() if layer.channels_last]
    if rows_of_tokens and sum(kind == "Conv2d" for kind in types.values()) < 2:
        return rows_of_tokens
    passing = ("Identity", "Dropout", "DropPath", "LayerNorm")
    return [layer for name, layer in laid_out.items() if types[name] not in passing]


def _layout(name: str, kind: str, output: Tensor) -> SpatialLayer | None:
    if output.ndim == 4 and min(output.shape[1:]) > 1:
        return SpatialLayer(name, None, channels_last=kind == "LayerNorm")
    if output.ndim == 3 and kind == "LayerNorm" and output.shape[1] >= 4:
        # Class and register tokens stand first; the rest is a square grid.
        count = output.shape[1]
        prefix = next((first for first in range(9) if math.isqrt(count - first) ** 2 == count - first), None)
        return None if prefix is None else SpatialLayer(name, prefix, False)
    return None


def _types(model: Model | nn.Module) -> dict[str, str]:
    return model.layer_types() if isinstance(model, Model) else layer_types(model)
