"""ImageNet-C's four validation corruptions (Hendrycks & Dietterich, 2019): speckle, Gaussian blur, spatter, saturate.

They are kept apart from the 15 so that a method can be tuned on them and judged on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Generator, Tensor

from snellen.shift import _blur
from snellen.shift._noise import add_speckle, draw
from snellen.shift._severity import SeverityTable
from snellen.shift._transform import Shift

SPECKLE_NOISE = SeverityTable(  # standard deviation at white
    identity=(0.0,),
    imagenet=((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    cifar=((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
    growth=(0,),
)
GAUSSIAN_BLUR = SeverityTable(  # sigma in pixels
    identity=(0.0,),
    imagenet=((1,), (2,), (3,), (4,), (6,)),
    cifar=((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
    growth=(1,),
)
SATURATE = SeverityTable(  # factor of the saturation and what is added to it
    identity=(1.0, 0.0),
    imagenet=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    cifar=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    growth=(0, 0),
)
SPATTER = SeverityTable(  # mean and std of the liquid, sigma, threshold, strength or softness, share of mud
    identity=(None, None, None, None, 0.0, None),
    imagenet=(
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    cifar=(
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    growth=(0, 0, 1, 0, 0, 0),
)
TAN_22, CANNY = 0.4142135623730951, 150.0
WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)


def speckle_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds x N(0, std) to every channel value."""
    return add_speckle(images, generators, *SPECKLE_NOISE.at(severity, images))


def gaussian_blur(images: Tensor, severity: float) -> Tensor:
    """Gaussian filter of every channel, edge pixels repeated."""
    (sigma,) = GAUSSIAN_BLUR.at(severity, images)
    return _blur.gaussian_blur(images, sigma, "nearest")


def saturate(images: Tensor, severity: float) -> Tensor:
    """Scales and raises the HSV saturation; hue and value stay. Single-channel images have none and stay.

    The published severities 1 and 2 wash colours out and 3 to 5 boost them, so halfway between 2 and 3 lies the image.
    """
    return scaled_saturation(images, *SATURATE.at(severity, images))


def scaled_saturation(images: Tensor, factor: float, added: float) -> Tensor:
    """`saturate` by its constants."""
    if images.shape[1] == 1:
        return images.clone()
    value = images.amax(dim=1, keepdim=True)
    spread = value - images
    saturation = spread.amax(dim=1, keepdim=True) / value.clamp_min(1e-12)
    wanted = (saturation * factor + added).clamp_(0, 1)
    coloured = value - spread * (wanted / saturation.clamp_min(1e-12))
    # Grey has hue 0, so what is added to its saturation makes it red.
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device).view(3, 1, 1)
    return torch.where(saturation > 0, coloured, value - value * wanted * red).clamp_(0, 1)


def spatter(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Drops of water up to severity 3, of mud from 4 on, a mixture between."""
    mean, std, sigma, threshold, strength, mud = SPATTER.at(severity, images)
    shape = (1, *images.shape[-2:])
    noise = draw(generators, lambda g: torch.randn(shape, generator=g), images)
    liquid = _blur.gaussian_blur(noise.mul_(std).add_(mean), sigma, "nearest")
    wet = liquid > threshold
    result = images
    if mud < 1:
        drops = liquid.masked_fill(~wet, 0)
        drops = drops * _relief(drops)
        drops = drops * (strength / drops.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-6))
        result = (result + (1 - mud) * drops * colour(WATER, images)).clamp(0, 1)
    if mud > 0:
        cover = _blur.gaussian_blur(wet.float(), max(strength, 0.1), "nearest")
        cover = mud * cover.masked_fill(cover < 0.8, 0)
        result = torch.lerp(result, colour(MUD, images), cover)
    return result.clamp(0, 1)


def _relief(drops: Tensor) -> Tensor:
    """How light falls on drops `[B, 1, H, W]`: the slope of the equalised distance to their edges, 0 to 255."""
    edges = _edges((drops * 255).floor_().clamp_(0, 255))
    distance = np.stack([distance_transform_edt(~edge[0].cpu().numpy()) for edge in edges])
    truncated = torch.from_numpy(distance).float().clamp_(max=20).unsqueeze(1).to(drops.device)
    level = _box(truncated).floor_().long().flatten(1)

    # Equalised histogram
    counts = torch.zeros(len(level), 21, device=drops.device).scatter_add_(1, level, torch.ones_like(level).float())
    total = counts.cumsum(dim=1)
    lowest = counts.gather(1, (counts > 0).long().argmax(dim=1, keepdim=True))
    table = ((total - lowest) / (level.shape[1] - lowest).clamp_min(1) * 255).round_().clamp_(min=0)
    equalised = table.gather(1, level).view_as(truncated)

    kernel = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], device=drops.device)
    slope = F.conv2d(F.pad(equalised, (1, 1, 1, 1), mode="reflect"), kernel[None, None])
    return _box(slope.clamp_(0, 255))


def _edges(layer: Tensor) -> Tensor:
    """Canny's edges, bool `[B, 1, H, W]`: where the slope is steepest along its own direction.

    Its two thresholds fall together here, because the rim of a drop is far above both and nothing else reaches them.
    """
    padded = F.pad(layer, (1, 1, 1, 1), mode="replicate")
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack((smooth[:, None] * step, step[:, None] * smooth)).unsqueeze(1).to(layer.device)
    right, down = F.conv2d(padded, kernels).split(1, dim=1)
    slope = right.abs() + down.abs()
    around = F.pad(slope, (1, 1, 1, 1))
    height, width = layer.shape[-2:]

    def at(dy: int, dx: int) -> Tensor:
        return around[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    level, steep = down.abs() < TAN_22 * right.abs(), down.abs() > (TAN_22 + 2) * right.abs()
    falling = (right < 0) ^ (down < 0)
    diagonal = torch.where(
        falling, (slope > at(-1, 1)) & (slope > at(1, -1)), (slope > at(-1, -1)) & (slope > at(1, 1))
    )
    crest = torch.where(steep, (slope > at(-1, 0)) & (slope >= at(1, 0)), diagonal)
    crest = torch.where(level, (slope > at(0, -1)) & (slope >= at(0, 1)), crest)
    edges: Tensor = crest & (slope > CANNY)
    return edges


def _box(layer: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels, mirrored at the border."""
    return F.avg_pool2d(F.pad(layer, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


def colour(rgb: tuple[float, float, float], like: Tensor) -> Tensor:
    """A colour as `[C, 1, 1]`, its luma for single-channel images."""
    if like.shape[1] == 1:
        rgb_grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
        return torch.tensor([rgb_grey], device=like.device).view(1, 1, 1)
    return torch.tensor(rgb, device=like.device).view(3, 1, 1)


EXTRA: Mapping[str, Shift] = {
    "speckle_noise": Shift("validation", random=speckle_noise),
    "gaussian_blur": Shift("validation", gaussian_blur),
    "spatter": Shift("validation", random=spatter),
    "saturate": Shift("validation", saturate),
}
