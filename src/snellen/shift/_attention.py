"""What a vision transformer looks at, and its attention flattened by a temperature.

For timm's ViTs (global self-attention: `qkv`, `scale`, `attn_drop`). Their fused kernel hides the attention and fixes
the scale, so both contexts here switch it off and on again. Not safe when two threads share the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.layers import LayerTap

PARTS = ("qkv", "scale", "attn_drop", "fused_attn")
BIASES = ("relative_position_bias_table", "rel_pos")
"""A bias added to the logits would not be divided by the temperature, and windows have no common rollout."""


def attention_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> self-attention of a timm ViT, in the order of definition. Raises InvalidInput where there is none."""
    layers = {name: layer for name, layer in module.named_modules() if all(hasattr(layer, part) for part in PARTS)}
    if not layers:
        raise InvalidInput(f"the module {type(module).__name__} has no self-attention of timm's kind to read")
    for name, layer in layers.items():
        if any(getattr(layer, bias, None) is not None for bias in BIASES):
            raise InvalidInput(f"the attention {name!r} has a position bias; only plain global attention is accepted")
    return layers


@contextmanager
def softened(module: nn.Module, temperature: float) -> Iterator[nn.Module]:
    """Within the block every attention of `module` is softmax(QK^T / (T sqrt(d))); T = 1 is the model itself.

    temperature: above 0; above 1 flattens. Weights stay as they are, and a `Model` whose `module` this is answers with
    the flattened attention too. Raises InvalidInput.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise InvalidInput(f"temperature must be a finite number above 0, got {temperature}")
    before = [(layer, _scale(layer), layer.fused_attn) for layer in attention_layers(module).values()]
    try:
        for layer, scale, _ in before:
            setattr(layer, "scale", scale / temperature)
            setattr(layer, "fused_attn", False)
        yield module
    finally:
        for layer, scale, fused in before:
            setattr(layer, "scale", scale)
            setattr(layer, "fused_attn", fused)


def _scale(layer: nn.Module) -> float:
    scale = layer.scale
    assert isinstance(scale, float)  # a parameter, as of cosine attention, has no `fused_attn` beside it
    return scale


def attention_maps(
    module: nn.Module, images: Tensor, temperature: float = 1.0, run: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Attention of every layer, first to last, `[B, heads, N, N]`, rows summing to 1, without a graph.

    run: what is called with the images and calls `module` (`model.scores` of a `Model`, which normalises); the module
    itself when None.
    """
    layers = [f"{name}.attn_drop" for name in attention_layers(module)]
    with torch.no_grad(), softened(module, temperature), LayerTap(module, layers, side="input") as tap:
        (run or module)(images)
    return [tap.outputs[layer] for layer in layers]


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Attention from the output tokens to the input tokens, `[B, N, N]`, rows summing to 1 (Abnar and Zuidema, 2020).

    Heads are averaged, half of every token stays with itself (the skip connection), and layers are multiplied.
    maps: one `[B, heads, N, N]` a layer, first to last.
    """
    if not maps:
        raise InvalidInput("maps must hold the attention of one layer or more, got none")
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    rolled = identity.expand(len(maps[0]), -1, -1)
    for attention in maps:
        mixed = 0.5 * attention.mean(dim=1) + 0.5 * identity
        rolled = mixed / mixed.sum(dim=-1, keepdim=True) @ rolled
    return rolled


def patch_attention(maps: Sequence[Tensor], height: int, width: int, prefix: int = 1) -> Tensor:
    """Rollout onto the patches, `[B, h, w]`: the row of the class token, or the mean of all rows without one.

    height, width: of the images, for the shape of the grid. prefix: tokens before the patches (class, registers);
    `num_prefix_tokens` of a timm ViT.
    """
    rolled = rollout(maps)
    patches = rolled.shape[-1] - prefix
    rows = round(math.sqrt(patches * height / width)) if patches > 0 else 0
    if rows < 1 or patches % rows:
        raise InvalidInput(
            f"prefix must leave a grid of patches for {height} x {width} px, got {prefix} of {len(rolled[0])}"
        )
    seen = rolled[:, 0] if prefix else rolled.mean(dim=1)
    return seen[:, prefix:].reshape(-1, rows, patches // rows)


def feature_attention(features: Tensor) -> Tensor:
    """A CNN's counterpart, `[B, h, w]`: mean of the absolute activations `[B, C, h, w]` of its last stage."""
    return features.abs().mean(dim=1)


def attention_ratio(attention: Tensor, pixels: Tensor) -> Tensor:
    """Mean attention on the patch over the mean elsewhere, `[B]`; 1 when the patch is looked at like any other.

    attention: `[B, h, w]`. pixels: bool `[B, H, W]`, the patch; cells that it covers in part count by their share and
    not as elsewhere. NaN where the patch covers nothing or everything.
    """
    cover = F.adaptive_avg_pool2d(pixels.to(attention), (attention.shape[-2], attention.shape[-1]))
    elsewhere = (cover == 0).to(attention)
    inside = (attention * cover).sum(dim=(1, 2)) / cover.sum(dim=(1, 2))
    return inside / ((attention * elsewhere).sum(dim=(1, 2)) / elsewhere.sum(dim=(1, 2)))


def column_attention(maps: Sequence[Tensor], token: Tensor) -> Tensor:
    """The most any token looks at one token, `[B, layers, heads]`: from which layer on a patch takes over.

    token: int64 `[B]`, the attacked one's place among all tokens, those before the patches included.
    """
    rows = torch.arange(len(token), device=token.device)
    return torch.stack([attention[rows, :, :, token].amax(dim=-1) for attention in maps], dim=1)


class Judged(NamedTuple):
    """clean: accuracy in [0, 1]. fooled: fooling rate under the attack in [0, 1]."""

    clean: float
    fooled: float


def temperature_sweep(
    module: nn.Module, temperatures: Sequence[float], judge: Callable[[nn.Module], Judged]
) -> dict[float, Judged]:
    """Temperature -> what `judge` says of the softened module, at inference only.

    judge: must run the attack anew against the module it is given; an attack made for T = 1 flatters the repair.
    """
    judged = {}
    for temperature in temperatures:
        with softened(module, temperature):
            judged[temperature] = judge(module)
    return judged


def best_temperature(judged: dict[float, Judged], allowed_drop: float = 0.01) -> float:
    """The temperature fooled least among those that lose at most `allowed_drop` of the clean accuracy at T = 1.

    Choose on a validation set and report on another. Ties go to the smaller temperature. Raises InvalidInput without 1.
    """
    if 1.0 not in judged:
        raise InvalidInput(f"the sweep must hold temperature 1 to compare with, got {list(judged)}")
    floor = judged[1.0].clean - allowed_drop - 1e-9
    return min((t for t, found in judged.items() if found.clean >= floor), key=lambda t: (judged[t].fooled, t))
