"""What CIFAR-10-C-bar has instead of some of ImageNet-C-bar's (Mintun et al., 2021): warps, lines, colour fringes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.shift._bar_patterns import chances, levels, pixel_grid
from snellen.shift._digital import displace
from snellen.shift._noise import draw
from snellen.shift._transform import Shift

PINCH_AND_TWIRL = levels((5.5, 6, 6.5, 8.5, 10))
RIPPLE = levels((5.5, 6, 6.5, 7.5, 8))
CIRCULAR_MOTION_BLUR = levels((2.8, 3.6, 4.4, 5.2, 6))
LINES = levels((0.5, 1, 1.5, 2, 2.5))
CHROMATIC_ABERRATION = levels((1, 2, 5, 9, 10))
COPIES = 21


def pinch_and_twirl(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Pinches and turns the image within a 3 x 3 grid of discs, 5 x 5 from 128 px on."""
    (level,) = PINCH_AND_TWIRL.at(severity, images)
    height, width = images.shape[-2:]
    cells = 3 if min(height, width) < 128 else 5
    sign = draw(generators, lambda g: torch.rand(cells, cells, generator=g), images).ge(0.5).float() * 2 - 1
    rows, columns = pixel_grid(images)
    high, wide = height / cells, width / cells
    cell_row, cell_column = (rows / high).long().clamp(max=cells - 1), (columns / wide).long().clamp(max=cells - 1)
    down, right = rows - (cell_row + 0.5) * high, columns - (cell_column + 0.5) * wide
    distance = torch.sqrt((2 * down / high) ** 2 + (2 * right / wide) ** 2)
    inside = (distance < 1) & (distance > 1e-3)
    distance = distance.clamp(1e-3, 1.0)

    # The published pinch is not 0 at level 0, so it fades in up to the first severity.
    pinch = (0.04 * level + 0.1) * min(severity, 1.0)
    scale = torch.sin(math.pi * distance / 2) ** -pinch
    angle = sign[:, cell_row[:, 0]][:, :, cell_column[0]] * (0.05 * math.pi * level) * (1 - distance) ** 2
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    moved_right, moved_down = cosine * right - sine * down, sine * right + cosine * down
    still = torch.zeros_like(angle)
    displacement = torch.stack(
        (torch.where(inside, moved_right - right, still), torch.where(inside, moved_down - down, still)), dim=1
    )
    return displace(images, displacement)


def ripple(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Moves rows and columns along sine waves of random length and phase."""
    (level,) = RIPPLE.at(severity, images)
    length_x, phase_x, length_y, phase_y = chances(generators, 4, images)
    side = min(images.shape[-2:])
    rows, columns = pixel_grid(images)
    waves = [
        torch.sin(2 * math.pi * (axis / ((0.1 + 0.2 * length) * side) + phase))
        for axis, length, phase in ((columns, length_x, phase_x), (rows, length_y, phase_y))
    ]
    shape = (len(images), *images.shape[-2:])
    return displace(images, 0.0025 * level * side * torch.stack([wave.expand(shape) for wave in waves], dim=1))


def circular_motion_blur(images: Tensor, severity: float) -> Tensor:
    """The weighted mean of 21 turns about the centre."""
    (level,) = CIRCULAR_MOTION_BLUR.at(severity, images)
    places = torch.linspace(-1, 1, COPIES)
    weights = torch.exp(-2 * places**2)
    aspect = images.shape[-2] / images.shape[-1]
    total = torch.zeros_like(images)
    for place, weight in zip(places.tolist(), (weights / weights.sum()).tolist(), strict=True):
        angle = math.radians(1.5 * level * place)
        cosine, sine = math.cos(angle), math.sin(angle)
        matrix = images.new_tensor([[cosine, -sine * aspect, 0.0], [sine / aspect, cosine, 0.0]])
        grid = F.affine_grid(matrix[None], [1, *images.shape[1:]], align_corners=False).expand(len(images), -1, -1, -1)
        total.add_(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False), alpha=weight)
    return total


def lines(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Draws grey lines of one pixel, their directions scattered about a common one; the last one fades in."""
    (level,) = LINES.at(severity, images)
    side = min(images.shape[-2:])
    wanted = 0.1 * level * side
    most = math.ceil(0.1 * LINES.constants(5.0, side)[0] * side)
    base, scatter = chances(generators, 2, images)
    drawn = draw(generators, lambda g: torch.rand(most, 3, generator=g), images)
    rows, columns = pixel_grid(images)
    cover = torch.zeros(len(images), *images.shape[-2:], device=images.device)
    for number in range(math.ceil(wanted)):
        top, left, turn = (drawn[:, number, i].view(-1, 1, 1) for i in range(3))
        angle = 2 * math.pi * (base + (0.1 + 0.9 * scatter) * (turn - 0.5))
        down, right = rows - top * images.shape[-2], columns - left * images.shape[-1]
        along = (down * torch.sin(angle) + right * torch.cos(angle)).abs()
        across = (down * torch.cos(angle) - right * torch.sin(angle)).abs()
        distance = torch.hypot((along - side / 2).clamp_min(0), across)
        opacity = min(wanted - number, 1.0)
        cover = torch.maximum(cover, (1 - distance).clamp(0, 1) * opacity)
    return torch.lerp(images, torch.full_like(images, 128 / 255), cover.unsqueeze(1))


def chromatic_aberration(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
    """Enlarges the three channels differently; single-channel images get the mean of all three."""
    (level,) = CHROMATIC_ABERRATION.at(severity, images)
    order = torch.stack([torch.randperm(3, generator=generator) for generator in generators])
    factors = (1 + 0.025 * level * order).to(images)
    channels = images.expand(-1, 3, -1, -1)
    flat = channels.reshape(-1, 1, *images.shape[-2:])
    matrix = torch.zeros(len(flat), 2, 3, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / factors.flatten()
    grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
    zoomed = F.grid_sample(flat, grid, padding_mode="reflection", align_corners=False).view_as(channels)
    return zoomed if images.shape[1] == 3 else zoomed.mean(dim=1, keepdim=True)


BAR_CIFAR: Mapping[str, Shift] = {
    "pinch_and_twirl": Shift("c-bar warps", random=pinch_and_twirl),
    "ripple": Shift("c-bar warps", random=ripple),
    "circular_motion_blur": Shift("c-bar warps", circular_motion_blur),
    "lines": Shift("c-bar patterns", random=lines),
    "chromatic_aberration": Shift("c-bar warps", random=chromatic_aberration),
}
