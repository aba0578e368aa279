"""The seven patterns of ImageNet-C-bar (Mintun et al., 2021): waves, coloured noises, cut-outs, plasma.

C-bar asks whether robustness to ImageNet-C is more than likeness to it. Levels are the published ones, in pixels and
grey levels of a 224 px image; S is the shorter side. A pattern's random shape is drawn once a sample and keeps its form
at every severity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from snellen.shift._noise import draw
from snellen.shift._severity import SeverityTable
from snellen.shift._transform import Shift

OCTAVES = (1, 2, 4, 8, 16)


def levels(imagenet: tuple[float, ...], cifar: tuple[float, ...] | None = None, identity: float = 0.0) -> SeverityTable:
    """A table of one level a severity; without CIFAR-C-bar levels ImageNet's hold for every size."""
    rows = [((a,), (b,), (c,), (d,), (e,)) for a, b, c, d, e in (imagenet, cifar or imagenet)]
    return SeverityTable(identity=(identity,), imagenet=rows[0], cifar=rows[1], growth=(0,))


SINGLE_FREQUENCY = levels((1, 1.5, 2, 4.5, 5))
COCENTRIC_SINE = levels((3, 5, 8, 9, 10))
BROWNISH_NOISE = levels((1, 2, 3, 4, 5), (2.5, 4, 5.5, 6.5, 7))
BLUE_NOISE_SAMPLE = levels((0.8, 1.6, 2.4, 4, 5.6), (0.7, 1.4, 2.1, 3.5, 4.2), identity=-6.0)
CHECKERBOARD_CUTOUT = levels((2, 3, 4, 5, 6), (1, 2, 3, 4, 5))
PERLIN_NOISE = levels((4.6, 5.2, 5.8, 7.6, 8.8))
PLASMA_NOISE = levels((4.75, 7, 8.5, 9.25, 10))


def pixel_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row `[H, 1]` and column `[1, W]` of every pixel."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32, device=images.device)[:, None]
    return rows, torch.arange(width, dtype=torch.float32, device=images.device)[None]


def chances(generators: Sequence[Generator], count: int, like: Tensor) -> list[Tensor]:
    """`count` uniform numbers in [0, 1) a sample, each `[B, 1, 1]`."""
    drawn = draw(generators, lambda g: torch.rand(count, generator=g), like)
    return [drawn[:, i].view(-1, 1, 1) for i in range(count)]


def single_frequency(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds one plane wave of a random direction and wave length to all channels."""
    (level,) = SINGLE_FREQUENCY.at(severity, images)
    high, low, phase, order = chances(generators, 4, images)
    high = math.pi * (2 * high - 1)
    low = high * (2 * low - 1)
    vertical, horizontal = torch.where(order < 0.5, high, low), torch.where(order < 0.5, low, high)
    rows, columns = pixel_grid(images)
    wave = torch.sin(vertical * rows + horizontal * columns + 2 * math.pi * phase)
    return images + (19.6 * level / 255) * wave.unsqueeze(1)


def cocentric_sine(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds a saw-tooth of rings about a random centre, whose radius swings with the angle."""
    (level,) = COCENTRIC_SINE.at(severity, images)
    top, left, frequency, amplitude, width = chances(generators, 5, images)
    side = min(images.shape[-2:])
    rows, columns = pixel_grid(images)
    down, right = rows - top * images.shape[-2], columns - left * images.shape[-1]
    distance, angle = torch.hypot(down, right), torch.atan2(down, right)
    width = (width * side / 10).clamp_min(1.0)  # thinner rings than a pixel cannot be drawn
    swing = (side / 10) * amplitude * torch.sin(10 * frequency * angle)
    return images + (12.8 * level / 255) * (((distance + swing).remainder(width) / width - 0.5).unsqueeze(1))


def brownish_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Adds noise whose spectrum falls with the squared distance from its centre, each channel by itself."""
    (level,) = BROWNISH_NOISE.at(severity, images)
    return images + (6.4 * level / 255) * coloured_noise(images, generators, images.shape[1], power=-2)


def blue_noise_sample(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Blackens the pixels where one field of blue noise, whose spectrum rises with distance, is low."""
    (level,) = BLUE_NOISE_SAMPLE.at(severity, images)
    kept = coloured_noise(images, generators, 1, power=1) > 0.3 * level - 2.5
    return images * kept


def coloured_noise(images: Tensor, generators: Sequence[Generator], channels: int, power: int) -> Tensor:
    """Noise `[B, channels, H, W]` of variance 1 with random phases and amplitude d (power 1) or 1 / (d^2 + 1) (-2)."""
    height, width = images.shape[-2:]
    white = draw(generators, lambda g: torch.randn(channels, height, width, generator=g), images)
    spectrum = torch.fft.rfft2(white)
    vertical = torch.fft.fftfreq(height, d=1 / height, device=images.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, d=1 / width, device=images.device)[None]
    squared = vertical**2 + horizontal**2
    amplitude = squared.sqrt() if power == 1 else 1 / (squared + 1)
    # White noise of a real field has point-symmetric phases; its own amplitude is divided out.
    shaped = torch.fft.irfft2(spectrum * (amplitude / spectrum.abs().clamp_min(1e-12)), s=(height, width))
    normed: Tensor = shaped / shaped.std(dim=(-2, -1), keepdim=True)
    return normed


def checkerboard_cutout(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Greys out random fields of one colour of a turned checkerboard."""
    (level,) = CHECKERBOARD_CUTOUT.at(severity, images)
    angle, size = chances(generators, 2, images)
    rows, columns = pixel_grid(images)
    size, angle = (0.1 + 0.15 * size) * min(images.shape[-2:]), 2 * math.pi * angle
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across = ((rows * cosine + columns * sine) / size).floor().long()
    along = ((columns * cosine - rows * sine) / size).floor().long()

    reach = math.ceil(math.hypot(*images.shape[-2:]) / (0.1 * min(images.shape[-2:]))) + 1
    fields = 2 * reach + 1
    chance = draw(generators, lambda g: torch.rand(fields * fields, generator=g), images)
    cell = ((across + reach) * fields + along + reach).flatten(1)
    struck = (chance.gather(1, cell) < level / 10).view_as(across) & ((across + along) % 2 == 0)
    return images.masked_fill(struck.unsqueeze(1), 128 / 255)


def perlin_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Mixes in five octaves of the magnitude of gradient noise."""
    (level,) = PERLIN_NOISE.at(severity, images)
    share = 0.05 * level
    rows, columns = pixel_grid(images)
    scale = 32 * min(images.shape[-2:]) / 224
    total = torch.zeros(len(images), *images.shape[-2:], device=images.device)
    for octave in OCTAVES:
        total += gradient_noise(rows * (octave / scale), columns * (octave / scale), generators, images).abs() / octave
    cloud = (0.5 * total + 0.5).clamp_(0, 1)
    return torch.lerp(images, cloud.unsqueeze(1), share)


def gradient_noise(rows: Tensor, columns: Tensor, generators: Sequence[Generator], like: Tensor) -> Tensor:
    """Classic gradient noise times 1.5 at rows `[H, 1]`, columns `[1, W]` (in cells): `[B, H, W]`."""
    high, wide = int(rows.max()) + 2, int(columns.max()) + 2
    angles = draw(generators, lambda g: torch.rand(high, wide, generator=g), like) * (2 * math.pi)
    gradients = torch.cos(angles), torch.sin(angles)
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    at_top, at_left = top[:, 0].long(), left[0].long()

    def corner(dy: int, dx: int) -> Tensor:
        vertical, horizontal = (
            gradient.index_select(1, at_top + dy).index_select(2, at_left + dx) for gradient in gradients
        )
        return vertical * (down - dy) + horizontal * (right - dx)

    fade_down, fade_right = (part * part * (3 - 2 * part) for part in (down, right))
    upper = torch.lerp(corner(0, 0), corner(0, 1), fade_right.expand(down.shape[0], -1))
    lower = torch.lerp(corner(1, 0), corner(1, 1), fade_right.expand(down.shape[0], -1))
    return torch.lerp(upper, lower, fade_down.expand(-1, right.shape[1])) * 1.5


def plasma_noise(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Mixes in swirling colours; single-channel images get their mean."""
    (level,) = PLASMA_NOISE.at(severity, images)
    share = 6.4 * level / 255
    size, turn, steps, growth = chances(generators, 4, images)
    size = (0.075 + 0.125 * size) * min(images.shape[-2:])
    rows, columns = pixel_grid(images)
    shape = (len(images), *images.shape[-2:])
    x, y = (columns / size).expand(shape), (rows / size).expand(shape)
    turn, rounds = 6 * math.pi * turn, 4 + (3 * steps).floor()
    fast = slow = torch.ones_like(turn)
    fall = torch.ones_like(turn)
    for step in range(6):
        going = step < rounds
        right, down = torch.cos(y * fast + turn / slow) / fall, torch.sin(x * fast + turn / slow) / fall
        x = torch.where(going, x + right - 0.3 * down, x)
        y = torch.where(going, y + down + 0.3 * right, y)
        fast, slow, fall = fast * 1.93, slow * 1.15, fall * (2.25 - (0.5 + 0.5 * growth))
    colours = torch.stack((torch.sin(x - turn), torch.sin((x + y + torch.sin(turn)) / 2), torch.sin(y + turn)), dim=1)
    if images.shape[1] == 1:
        colours = colours.mean(dim=1, keepdim=True)
    return (1 - share) * images + share * colours


BAR_PATTERNS: Mapping[str, Shift] = {
    "single_frequency": Shift("c-bar patterns", random=single_frequency),
    "cocentric_sine": Shift("c-bar patterns", random=cocentric_sine),
    "brownish_noise": Shift("c-bar noise", random=brownish_noise),
    "blue_noise_sample": Shift("c-bar noise", random=blue_noise_sample),
    "checkerboard_cutout": Shift("c-bar patterns", random=checkerboard_cutout),
    "perlin_noise": Shift("c-bar noise", random=perlin_noise),
    "plasma_noise": Shift("c-bar patterns", random=plasma_noise),
}
