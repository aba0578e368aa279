"""Insertion and deletion: does the score follow when pixels are shown or hidden in the order of the map?

Deletion (Petsiuk et al., 2018) replaces the most relevant pixels first and should lose the score fast; insertion starts
from a blurred image and should win it back fast. Both depend on what stands in for a hidden pixel, so they are reported
against the same curves under a random order of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import uniform

BLUR_SIGMA_AT_224 = 5.0
"""The paper's blur for insertion at 224 px; scaled with the image's side."""


class FaithfulnessCurves(NamedTuple):
    """Softmax scores of the target, `[B, steps + 1]`, from nothing changed to everything changed."""

    deletion: Tensor
    insertion: Tensor


def faithfulness_curves(
    model: Callable[[Tensor], Tensor], images: Tensor, heat_maps: Sequence[Tensor], targets: Tensor, steps: int
) -> list[FaithfulnessCurves]:
    """Deletion and insertion curves of several maps `[B, H, W]` (larger is more relevant) on images `[B, C, H, W]`.

    Pixels change in `steps` equal groups. Deleted pixels take the image's mean colour. The images that do not depend on
    the map are scored once. Cost: 3 + 2 * (steps - 1) * maps forward passes an image.
    """
    expected = (images.shape[0], *images.shape[2:])
    for heat_map in heat_maps:
        if heat_map.shape != expected:
            raise InvalidInput(f"heat_maps must be {list(expected)} for these images, got {list(heat_map.shape)}")
    if steps < 2:
        raise InvalidInput(f"steps must be at least 2, got {steps}")
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    blurred = blur(images)
    with torch.no_grad():
        whole, hidden, vague = (_score(model, shown, targets) for shown in (images, mean, blurred))
        curves = []
        for heat_map in heat_maps:
            ranks = _ranks(heat_map)
            deletion, insertion = [whole], [vague]
            for step in range(1, steps):
                changed = (ranks < step / steps).unsqueeze(1)
                deletion.append(_score(model, torch.where(changed, mean, images), targets))
                insertion.append(_score(model, torch.where(changed, images, blurred), targets))
            both = torch.stack([*deletion, hidden], dim=1), torch.stack([*insertion, whole], dim=1)
            curves.append(FaithfulnessCurves(*both))
    return curves


def curve_passes(maps: int, steps: int) -> int:
    """Forward passes an image that the curves of so many maps cannot do without."""
    return 3 + 2 * (steps - 1) * maps


def random_maps(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """One random order of pixels an image: uniform `[B, H, W]`."""
    return uniform(generators, like.shape[2:]).to(like.device)


def area(curves: Tensor) -> Tensor:
    """Area under curves `[B, steps + 1]` by the trapezium rule over the fraction in [0, 1]."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def blur(images: Tensor) -> Tensor:
    """Gaussian blur of a fixed share of the image's side, borders reflected."""
    sigma = BLUR_SIGMA_AT_224 * min(images.shape[2:]) / 224 * 2
    radius = max(1, min(int(3 * sigma + 0.5), min(images.shape[2:]) - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.unsqueeze(2), groups=images.shape[1])
    return F.conv2d(rows, kernel.unsqueeze(3), groups=images.shape[1])


def _ranks(heat_maps: Tensor) -> Tensor:
    """Place of each pixel in descending order of relevance, as a fraction in [0, 1)."""
    flat = heat_maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float32).expand_as(flat) / flat.shape[1]
    return torch.empty_like(places).scatter_(1, order, places).view_as(heat_maps)


def _score(model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    return model(images).softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
