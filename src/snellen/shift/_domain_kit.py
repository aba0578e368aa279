"""Six rendered stand-ins for the domains of COCO-O, made from an annotated clean set. They are not COCO-O.

Images `[1, 3, H, W]` in [0, 1]; boxes and masks stay. Lengths are in pixels of the image, meant for sides up to about
600 px. What real sketches or tattoos change beyond texture (proportion, pose, context) is not rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom
from snellen.shift._boxes import Objects, Scene
from snellen.shift._catalogue import corrupt

LUMA = (0.299, 0.587, 0.114)
CARTOON_LEVELS = 6
PAINTING_RADIUS = 3
WEATHER = ("fog", "snow", "frost")
WEATHER_SEVERITY = 3.0
SKIN = ((0.96, 0.82, 0.71), (0.82, 0.62, 0.47), (0.45, 0.30, 0.21))


class Style(Protocol):
    def __call__(self, image: Tensor, truth: Objects, generator: Generator) -> Tensor: ...


def rendered_domain(scene: Scene, domain: str, seed: int) -> Scene:
    """The scene in the manner of `domain`, one of `DOMAINS`; the same for the same seed and scene id."""
    if domain not in DOMAINS:
        raise InvalidInput(f"domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
    generator = SampleRandom(seed, "shift/effective-detection").generator(scene.id, domain)
    colour = scene.image[None].expand(1, 3, -1, -1)
    image = DOMAINS[domain](colour, scene.truth, generator)[0].clamp(0, 1)
    return replace(scene, image=image if scene.image.shape[0] == 3 else image.mean(dim=0, keepdim=True))


def sketch(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """Dark edges on white paper."""
    return (1 - _edges(image)).clamp(0, 1).expand_as(image)


def cartoon(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """Smoothed within regions, few levels a channel, dark outlines."""
    flat = (_bilateral(image) * (CARTOON_LEVELS - 1)).round() / (CARTOON_LEVELS - 1)
    return flat * (_edges(image) < 0.5)


def painting(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """Kuwahara's filter: each pixel takes the mean of the calmest of the four squares it is a corner of."""
    side = PAINTING_RADIUS + 1
    padded = F.pad(image, (PAINTING_RADIUS,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, side, stride=1)
    spread = (F.avg_pool2d(padded**2, side, stride=1) - mean**2).sum(dim=1, keepdim=True)
    height, width = image.shape[-2:]
    corners = [(y, x) for y in (0, PAINTING_RADIUS) for x in (0, PAINTING_RADIUS)]
    means = torch.stack([mean[..., y : y + height, x : x + width] for y, x in corners])
    spreads = torch.stack([spread[..., y : y + height, x : x + width] for y, x in corners])
    calmest = spreads.argmin(dim=0, keepdim=True).expand(-1, -1, 3, -1, -1)
    return means.gather(0, calmest)[0]


def weather(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """Fog, snow or frost of ImageNet-C at severity 3, one drawn for the image."""
    name = WEATHER[int(torch.randint(len(WEATHER), (), generator=generator))]
    return corrupt(image, name, WEATHER_SEVERITY, [generator])


def handmake(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """Other materials: channels mixed anew and the weave of a coarse cloth."""
    turn = torch.rand(3, 3, generator=generator)
    mixed = torch.einsum("ij,bjhw->bihw", (turn / turn.sum(dim=1, keepdim=True)).to(image), image)
    mixed = 0.5 + 1.5 * (mixed - 0.5)  # mixing channels greys them
    height, width = image.shape[-2:]
    thread = torch.sin(torch.arange(height)[:, None] * 1.6) * torch.sin(torch.arange(width) * 1.6)
    return mixed + 0.12 * thread.to(image)


def tattoo(image: Tensor, truth: Objects, generator: Generator) -> Tensor:
    """The objects as dark ink on skin; without masks the boxes are inked."""
    height, width = image.shape[-2:]
    tone = torch.tensor(SKIN)[int(torch.randint(len(SKIN), (), generator=generator))]
    grain = F.interpolate(torch.rand(1, 1, 6, 6, generator=generator), (height, width), mode="bicubic")
    skin = (tone.view(1, 3, 1, 1) * (0.85 + 0.3 * grain)).to(image)
    inside = _covered(truth, height, width).to(image)
    ink = _grey(image) * 0.5
    return skin * (1 - inside) + skin * (0.35 + 0.65 * ink) * inside


DOMAINS: Mapping[str, Style] = {
    "sketch": sketch,
    "cartoon": cartoon,
    "painting": painting,
    "weather": weather,
    "handmake": handmake,
    "tattoo": tattoo,
}


def _grey(image: Tensor) -> Tensor:
    return (image * torch.tensor(LUMA).to(image).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _edges(image: Tensor) -> Tensor:
    """Sobel magnitude of the luma, 1 for a step of half the range."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(image)
    padded = F.pad(_grey(image), (1, 1, 1, 1), mode="replicate")
    across, down = (F.conv2d(padded, k[None, None]) for k in (kernel, kernel.T))
    return (torch.hypot(across, down) / 2).clamp(max=1)


def _bilateral(image: Tensor, radius: int = 3, space: float = 2.0, tone: float = 0.1) -> Tensor:
    """Mean of the neighbours near in place and in colour (Tomasi and Manduchi, 1998)."""
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    height, width = image.shape[-2:]
    total, weights = torch.zeros_like(image), torch.zeros_like(image[:, :1])
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            shifted = padded[..., radius + y : radius + y + height, radius + x : radius + x + width]
            far = (x * x + y * y) / (2 * space**2) + (shifted - image).square().sum(1, keepdim=True) / (2 * tone**2)
            weight = torch.exp(-far)
            total, weights = total + weight * shifted, weights + weight
    return total / weights


def _covered(truth: Objects, height: int, width: int) -> Tensor:
    if truth.masks is not None:
        return truth.masks.any(dim=0)[None, None] if len(truth.masks) else torch.zeros(1, 1, height, width)
    covered = torch.zeros(1, 1, height, width)
    for left, top, right, bottom in truth.boxes.round().long().tolist():
        covered[..., max(top, 0) : bottom, max(left, 0) : right] = 1
    return covered
