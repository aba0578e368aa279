"""How simple are a network's filters: smooth or rough, what do its channels detect, what breaks without them?

Chen et al. (2020) compared standard and adversarially trained networks. (1) Total variation of the filters, and of the
responses with and without noise on the input: robust units are smoother and pass less noise on. (2) Network Dissection
(Bau et al., 2017): a channel is thresholded so that half a percent of its values lie above, and is named after the
concept whose masks it overlaps most; robust channels move from objects to colours and textures, and detect fewer kinds.
(3) Ablation: a group of channels is set to zero, or only it is kept, and the accuracy is taken again.

Misleads across layers and architectures: total variation depends on the size of filters and maps and, without the
scaling to unit norm used here, on weight decay; compare twins layer by layer. A concept can be named only where there
are masks of it, and a threshold over few images is a threshold over their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import normal, torch_generator

__all__ = [
    "Dissection",
    "ablated",
    "class_entropy",
    "dissect",
    "filter_variation",
    "gradient_variation",
    "noise_ratio",
    "total_variation",
]


def total_variation(maps: Tensor) -> Tensor:
    """Sum of absolute differences of neighbours, down and right, `[...]` of maps `[..., H, W]` of 2 x 2 or more."""
    if maps.ndim < 2 or min(maps.shape[-2:]) < 2:
        raise InvalidInput(f"total variation needs maps of 2 x 2 or more, got {list(maps.shape)}")
    return maps.diff(dim=-2).abs().sum(dim=(-2, -1)) + maps.diff(dim=-1).abs().sum(dim=(-2, -1))


def filter_variation(weight: Tensor, unit_norm: bool = True) -> Tensor:
    """Total variation of every filter, mean over its input channels, `[out]`. weight: `[out, in, h, w]`, 2 x 2 or more.

    unit_norm: scale every filter to L2 norm 1 first, since training with attacks changes the norms; a filter of zeros
    has variation 0. The paper's figures are without.
    """
    if weight.ndim != 4:
        raise InvalidInput(f"weight must be [out, in, h, w], got {list(weight.shape)}")
    if unit_norm:
        weight = F.normalize(weight.flatten(1), dim=1).view_as(weight)
    return total_variation(weight).mean(dim=1)


def noise_ratio(
    maps: Callable[[Tensor], Tensor], images: Tensor, ids: Sequence[str], sigma: float = 0.1, seed: int = 0
) -> Tensor:
    """By which factor Gaussian noise on the input raises the variation of each channel's response, `[C]`.

    maps: images `[B, 3, H, W]` in [0, 1] to responses `[B, C, h, w]`. sigma: of the noise, in pixel units. ids: of the
    images; each has noise of its own. NaN for a channel that does not vary on the clean images.
    """
    if not sigma > 0:
        raise InvalidInput(f"sigma must be above 0, got {sigma}")
    noise = normal([torch_generator(seed, "filter-simplicity", name) for name in ids], images.shape[1:], sigma)
    with torch.no_grad():
        clean, noisy = (_responses(maps, x) for x in (images, (images + noise.to(images.device)).clamp(0, 1)))
    before, after = (total_variation(response).mean(dim=0) for response in (clean, noisy))
    return torch.where(before > 0, after / before, torch.nan)


def gradient_variation(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Total variation `[B]` of the loss gradient at the input, mean over colours, divided by its largest value."""
    inputs = images.detach().clone().requires_grad_()
    loss = F.cross_entropy(model(inputs), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    gradient = gradient.mean(dim=1)
    return total_variation(gradient / gradient.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30))


@dataclass(frozen=True)
class Dissection:
    """iou: of each channel and concept `[C, K]`. threshold: `[C]`. concept: the best one of each channel where its IoU
    reaches the level, else -1, `[C]`. detected: how many concepts each channel reaches the level for, `[C]`."""

    iou: Tensor
    threshold: Tensor
    concept: Tensor
    detected: Tensor


def dissect(responses: Tensor, concepts: Tensor, share: float = 0.005, level: float = 0.04) -> Dissection:
    """Which concept each channel detects (Network Dissection, Bau et al., 2017).

    responses: `[n, C, h, w]`. concepts: masks bool `[n, K, H, W]` at the input's size, to which responses are enlarged.
    share: of all pixels above a channel's threshold. level: the least IoU at which a channel is named after a concept.
    """
    if responses.ndim != 4 or concepts.ndim != 4 or concepts.dtype != torch.bool or len(responses) != len(concepts):
        raise InvalidInput(
            "responses must be [n, C, h, w] and concepts bool [n, K, H, W] of the same images,"
            f" got {list(responses.shape)} and {concepts.dtype} {list(concepts.shape)}"
        )
    if not (0 < share < 1 and 0 < level <= 1):
        raise InvalidInput(f"share must be in (0, 1) and level in (0, 1], got {share} and {level}")
    masks = concepts.transpose(0, 1).flatten(1).float()
    rows, thresholds = [], []
    for channel in range(responses.shape[1]):  # one at a time: enlarged, all together would not fit
        large = F.interpolate(responses[:, channel : channel + 1].float(), concepts.shape[-2:], mode="bilinear")
        values = large.flatten()
        threshold = values.kthvalue(values.numel() - round(share * values.numel())).values
        active = (values > threshold).float()
        both = masks @ active
        either = masks.sum(dim=1) + active.sum() - both
        rows.append(both / either.clamp_min(1))
        thresholds.append(threshold)
    iou = torch.stack(rows)
    best = iou.max(dim=1)
    concept = torch.where(best.values >= level, best.indices, -1)
    return Dissection(iou, torch.stack(thresholds), concept, (iou >= level).sum(dim=1))


def class_entropy(responses: Tensor, labels: Tensor, top: int = 49) -> Tensor:
    """Entropy in bits of the true classes among the `top` images that excite each channel most, `[C]`.

    responses: `[n, C, h, w]`; an image counts with its largest value. labels: int64 `[n]`.
    """
    if not 1 <= top <= len(responses):
        raise InvalidInput(f"top must be 1 to the number of images ({len(responses)}), got {top}")
    strongest = responses.amax(dim=(2, 3)).topk(top, dim=0).indices
    shares = F.one_hot(labels[strongest], int(labels.max()) + 1).double().mean(dim=0)
    bits: Tensor = torch.special.entr(shares).sum(dim=1) / math.log(2)
    return bits


@contextmanager
def ablated(layer: nn.Module, channels: Sequence[int], keep_only: bool = False) -> Iterator[None]:
    """While it lasts, the given output channels of `layer` are zero, or with `keep_only` all others.

    Raises InvalidInput in the forward pass for a layer whose output is not `[B, C, h, w]` or has no such channel.
    """

    def zero(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise InvalidInput(f"the layer {type(module).__name__} must give [B, C, h, w]")
        named = torch.zeros(output.shape[1], dtype=torch.bool, device=output.device)
        if not all(0 <= channel < len(named) for channel in channels):
            raise InvalidInput(f"channels must be 0 to {len(named) - 1}, got {list(channels)}")
        named[list(channels)] = True
        return output * (named if keep_only else ~named).view(1, -1, 1, 1)

    handle = layer.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def _responses(maps: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    responses = maps(images)
    if responses.ndim != 4:
        raise InvalidInput(f"the responses must be [B, C, h, w], got {list(responses.shape)}")
    return responses


register_functions(
    "discovery/filter-simplicity",
    paper="Chen et al., 2020",
    card="shape-simplicity-robust-cnn",
    access=Access.WEIGHTS,
    data="filters and responses of a convolutional network, and concept masks",
    module=__name__,
)
