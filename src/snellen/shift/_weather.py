"""The weather corruptions of ImageNet-C (Hendrycks & Dietterich, 2019): snow, frost, fog and brightness.

Images `[B, C, H, W]` in [0, 1], a severity in [0, 5] and, where chance plays a part, one generator a sample; the
result has the same shape, device and range and is not yet cut to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.shift._blur import draw_angles, enlarge, streak, zoom_centre
from snellen.shift._noise import draw
from snellen.shift._severity import SeverityTable

SNOW = SeverityTable(  # mean and std of the layer, zoom, threshold, streak radius and sigma, share of the image
    identity=(None, 0.0, None, None, None, None, 1.0),
    imagenet=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    cifar=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    growth=(0, 0, 1, 0, 1, 1, 0),
)
FROST = SeverityTable(  # weight of the image, weight of the frost, size of the crystals
    identity=(1.0, 0.0, None),
    imagenet=((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    cifar=((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    growth=(0, 0, 1),
)
FOG = SeverityTable(  # weight of the fog, decay of the roughness a level
    identity=(0.0, None),
    imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    growth=(0, 0),
)
BRIGHTNESS = SeverityTable(  # added to the HSV value
    identity=(0.0,),
    imagenet=((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    cifar=((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    growth=(0,),
)

CRYSTALS = ((64, 0.55), (32, 0.35), (16, 0.3), (8, 0.35), (4, 0.45), (2, 0.5))
"""Size in pixels at 224 px and amplitude of the octaves; the amplitudes follow the photos' autocorrelation."""
FROST_TINT = (-0.06, 0.0, 0.05)


def snow(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Whitens the image and adds falling flakes, streaked along U(-135, -45) degrees, with their mirror image."""
    mean, std, factor, threshold, radius, sigma, share = SNOW.at(severity, images)
    height, width = images.shape[-2:]

    # Flakes. Only the noise that the zoom shows is drawn.
    shape = (1, *zoom_centre(height, width, factor))
    noise = draw(generators, lambda g: torch.randn(shape, generator=g, device=g.device), images)
    layer = enlarge(noise.mul_(std).add_(mean), factor, height, width).contiguous()
    layer.masked_fill_(layer < threshold, 0).clamp_(0, 1).mul_(255).floor_().div_(255)

    # Fall
    layer = streak(layer, radius, sigma, draw_angles(generators, -135.0, -45.0))
    layer = layer.mul_(255).round_().div_(255)

    # Whiter ground
    whitened = torch.maximum(images, grey(images).mul(1.5).add_(0.5))
    ground = torch.lerp(whitened, images, share)
    return ground.add_(layer).add_(layer.rot90(2, (-2, -1))).clamp_(0, 1)


def grey(images: Tensor) -> Tensor:
    """Luma of RGB `[B, 3, H, W]` (ITU-R 601) as `[B, 1, H, W]`; grey images are returned as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    luma: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma


def frost(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Lays ice over the image. The texture is procedural, NOT the five photos of the published benchmark.

    Scores under frost therefore stand near those on the published files and are not the same. Brightness, contrast
    and autocorrelation of the texture follow those photos; their needles and feathers are only hinted at.
    """
    weight, frost_weight, size = FROST.at(severity, images)
    texture = frost_texture(images, size, generators)
    return (images * weight).add_(texture, alpha=frost_weight).clamp_(0, 1)


def frost_texture(images: Tensor, size: float, generators: Sequence[Generator]) -> Tensor:
    """Ridged noise over six octaves, bluish, `[B, C, H, W]` in [0, 1] for the shape of `images`.

    size: 1 gives crystals of 2 to 64 pixels; octaves finer than a pixel are left out.
    """
    height, width = images.shape[-2:]
    octaves = [(crystal * size, amplitude) for crystal, amplitude in CRYSTALS if crystal * size >= 1]
    total = torch.zeros(len(images), 1, height, width, device=images.device)
    for pixels, amplitude in octaves:
        noise = _cells(images, int(height / pixels) + 2, int(width / pixels) + 2, generators)
        whole = tuple(int(cells * pixels) for cells in noise.shape[-2:])
        smooth = F.interpolate(noise, size=whole, mode="bilinear", align_corners=False)
        ridge = smooth[..., :height, :width].mul(2).sub_(1).abs_()
        total.sub_(ridge, alpha=amplitude)

    # Every photo has its own brightness and contrast.
    look = draw(generators, lambda g: torch.rand(2, 1, 1, 1, generator=g, device=g.device), images)
    level, contrast = 0.45 + 0.35 * look[:, 0], 0.07 + 0.08 * look[:, 1]
    spread = total.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    relief = (total - total.mean(dim=(1, 2, 3), keepdim=True)) * (contrast / spread) + level
    tint = torch.tensor(FROST_TINT if images.shape[1] == 3 else (0.0,), device=images.device)
    return (relief + tint.view(1, -1, 1, 1)).clamp_(0, 1)


def _cells(images: Tensor, rows: int, columns: int, generators: Sequence[Generator]) -> Tensor:
    return draw(generators, lambda g: torch.rand(1, rows, columns, generator=g, device=g.device), images)


def fog(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds a plasma cloud and scales back so that the brightest value stays the brightest possible."""
    weight, decay = FOG.at(severity, images)
    height, width = images.shape[-2:]
    side = 1 << (max(height, width) - 1).bit_length()
    steps = draw(generators, lambda g: torch.rand(side * side - 1, generator=g, device=g.device), images)
    cloud = plasma(steps, side, decay)[:, None, :height, :width]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + weight * cloud).mul_(brightest / (brightest + weight)).clamp_(0, 1)


def plasma(uniform: Tensor, side: int, decay: float) -> Tensor:
    """Diamond-square height maps `[B, side, side]`, normalised to [0, 1], cyclic.

    uniform: `[B, side² - 1]` from U(0, 1), read in the order in which the algorithm moves points. side: a power of 2.
    """
    heights = uniform.new_zeros(len(uniform), side, side)
    step, wobble, used = side, 100.0, 0

    def moved(total: Tensor) -> Tensor:
        nonlocal used
        count = total[0].numel()
        shift = uniform[:, used : used + count].view_as(total)
        used += count
        return total / 4 + (2 * shift - 1) * wobble**2

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]

        # Square step: centres from the four corners
        pairs = corners + corners.roll(-1, dims=1)
        heights[:, half::step, half::step] = moved(pairs + pairs.roll(-1, dims=2))
        centres = heights[:, half::step, half::step]

        # Diamond step: edge points from two centres and two corners
        across = centres + centres.roll(1, dims=1) + corners + corners.roll(-1, dims=2)
        heights[:, ::step, half::step] = moved(across)
        down = centres + centres.roll(1, dims=2) + corners + corners.roll(-1, dims=1)
        heights[:, half::step, ::step] = moved(down)

        step, wobble = half, wobble / decay

    lowest, highest = heights.amin(dim=(1, 2), keepdim=True), heights.amax(dim=(1, 2), keepdim=True)
    return heights.sub_(lowest).div_(highest - lowest)


def brightness(images: Tensor, severity: float) -> Tensor:
    """Raises the HSV value. With hue and saturation kept, all channels grow by one factor (black turns grey)."""
    (amount,) = BRIGHTNESS.at(severity, images)
    value = images.amax(dim=1, keepdim=True)
    raised = (value + amount).clamp_(max=1)
    factor = raised / value.clamp_min(1e-12)
    return torch.where(value > 0, images * factor, raised).clamp_(0, 1)
