"""How far corruption moves what the normalisation layers see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.shift._boxes import Detector

TINY = 1e-5
"""Added to variances, as batch norm does, so that a dead channel stays finite."""


class Moments(NamedTuple):
    """Per channel, float64 `[C]`."""

    mean: Tensor
    variance: Tensor


Seen: TypeAlias = dict[str, Moments]


@torch.no_grad()
def normalisation_shift(
    network: nn.Module, clean: Sequence[Tensor], corrupted: Sequence[Tensor], detector: Detector | None = None
) -> Rows:
    """Per normalisation layer, how far its inputs move: symmetric KL of Gaussians per channel, averaged (nats).

    clean, corrupted: images `[3, H, W]` in [0, 1], best the same ones. network: holds the layers; `detector` feeds it,
    by default the network itself called with the list. Batch norm is compared with its stored statistics (`stored` is
    true), other layers with those of the clean images. A row a layer, in order of use. Large values mark where stored
    statistics stop fitting; whether that costs AP is for `corruption_grid` to say.
    """
    if not clean or not corrupted:
        raise InvalidInput(f"clean and corrupted must hold images, got {len(clean)} and {len(corrupted)}")
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _normalisations())}
    if not layers:
        raise InvalidInput("network must have batch, group or instance normalisation layers, got none")
    feed = detector or network
    before, after = (_moments(layers, feed, list(images)) for images in (clean, corrupted))

    rows: list[tuple[str, str, float, bool]] = []
    for name, moved in after.items():
        stored = _stored(layers[name])
        divergence = _symmetric_kl(stored or before[name], moved)
        rows.append((name, type(layers[name]).__name__, divergence, stored is not None))
    return pa.table({key: [row[i] for row in rows] for i, key in enumerate(("layer", "kind", "divergence", "stored"))})


def _normalisations() -> tuple[type[nn.Module], ...]:
    from torchvision.ops import FrozenBatchNorm2d  # here, since torchvision takes seconds that every start would pay

    return nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d


def _stored(layer: nn.Module) -> Moments | None:
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    return Moments(mean.double().cpu(), variance.double().cpu())


def _moments(layers: dict[str, nn.Module], feed: Callable[[list[Tensor]], object], images: list[Tensor]) -> Seen:
    """Mean and variance per channel of what each layer is fed, over all images and places."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].double().transpose(0, 1).flatten(1)
            count = torch.full_like(values[:, 0], values.shape[1])
            total = torch.stack([count, values.sum(dim=1), values.square().sum(dim=1)]).cpu()
            sums[name] = sums[name] + total if name in sums else total

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for image in images:
            feed([image])
    finally:
        for handle in handles:
            handle.remove()
    means = {name: (total[1] / total[0], total[2] / total[0]) for name, total in sums.items()}
    return {name: Moments(mean, (square - mean**2).clamp(min=0)) for name, (mean, square) in means.items()}


def _symmetric_kl(first: Moments, second: Moments) -> float:
    a, b = first.variance + TINY, second.variance + TINY
    squared = (first.mean - second.mean) ** 2
    # The logarithms of the two directions cancel.
    return float((((a + squared) / b + (b + squared) / a) / 2 - 1).mean())
