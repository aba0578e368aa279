"""Gaussian random fields: smooth noise of a chosen spectrum, and local warps and colour drifts made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.shift._noise import draw
from snellen.shift._transform import Shift

FOLDED, ROUNDS, WEAKER = 0.01, 15, 0.8
"""Share of pixels that a warp may fold over; beyond it all its amounts are weakened by 0.8 as often as it takes."""
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
COARSE = 32


def random_field(
    generators: Sequence[Generator],
    count: int,
    height: int,
    width: int,
    gamma: float = 4.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Stationary Gaussian fields `[B, count, height, width]` of mean 0 and variance 1.

    gamma: smoothness; the power at frequency k (cycles an image) is (k^2 + 1)^(-gamma / 2), so 2 is rough and 6 very
    smooth. Drawn on a grid of twice the size and cropped, so that opposite borders differ.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise InvalidInput(f"gamma must be 0 or more, got {gamma}")
    high, wide = 2 * height, 2 * width
    like = torch.zeros(1, device=device)
    white = draw(generators, lambda g: torch.randn(count, high, wide, generator=g), like)
    # Frequencies in cycles an image: the padded grid holds two images.
    vertical = torch.fft.fftfreq(high, d=1 / high, device=device)[:, None] / 2
    horizontal = torch.fft.rfftfreq(wide, d=1 / wide, device=device)[None] / 2
    power = (vertical**2 + horizontal**2 + 1) ** (-gamma / 2)
    power[0, 0] = 0
    field = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=(high, wide))
    full = torch.fft.fftfreq(wide, d=1 / wide, device=device)[None] / 2
    whole = (vertical**2 + full**2 + 1) ** (-gamma / 2)
    whole[0, 0] = 0
    normed: Tensor = field[..., :height, :width] / whole.mean().sqrt()
    return normed


def smooth_fields(images: Tensor, generators: Sequence[Generator], count: int, gamma: float) -> Tensor:
    """`count` fields for a batch of images. Smooth ones are drawn at 32 px and enlarged: they have nothing finer."""
    height, width = images.shape[-2:]
    factor = min(1.0, COARSE / min(height, width)) if gamma >= 3 else 1.0
    small = random_field(generators, count, round(height * factor), round(width * factor), gamma, images.device)
    if factor == 1:
        return small
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)


def warp_places(move: Tensor, turn: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Sampling places `[B, H, W, 2]` (x, y in [-1, 1]) of a local affine map about the image's centre.

    move: shares of the side, x and y, `[B, 2, H, W]`; scale: logarithms, `[B, 2, H, W]`; turn, shear: radians,
    `[B, H, W]`. Constant fields give the usual affine map.
    """
    height, width = turn.shape[-2:]
    rows = ((torch.arange(height, device=turn.device) + 0.5) * 2 / height - 1)[:, None]
    columns = ((torch.arange(width, device=turn.device) + 0.5) * 2 / width - 1)[None]
    ratio = height / width
    # In units of half the width, so that a turn keeps angles on oblong images.
    x, y = columns, rows * ratio
    sheared = x + torch.tan(shear) * y
    stretched_x, stretched_y = torch.exp(scale[:, 0]) * sheared, torch.exp(scale[:, 1]) * y
    cosine, sine = torch.cos(turn), torch.sin(turn)
    place_x = cosine * stretched_x - sine * stretched_y + 2 * move[:, 0]
    place_y = (sine * stretched_x + cosine * stretched_y) / ratio + 2 * move[:, 1]
    return torch.stack((place_x, place_y), dim=-1)


def folded_share(places: Tensor) -> Tensor:
    """Share of pixels `[B]` where the map folds the image: the determinant of its Jacobian is not positive."""
    right = places[:, :-1, 1:] - places[:, :-1, :-1]
    down = places[:, 1:, :-1] - places[:, :-1, :-1]
    determinant = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    return (determinant <= 0).float().mean(dim=(1, 2))


def sample(images: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Images at `places`, mirrored about the border; `mode` "nearest" for masks."""
    return F.grid_sample(images, places, mode=mode, padding_mode="reflection", align_corners=False)


def local_colour(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue that vary over the image; each `[B, H, W]`, not clipped.

    brightness: added. contrast, saturation: logarithms of factors about the mean grey and the pixel's grey. hue: turns
    of the chroma plane (YIQ). Single-channel images have no saturation and no hue.
    """
    images = images + brightness.unsqueeze(1)
    coloured = images.shape[1] == 3
    luma = YIQ[0].to(images.device).view(3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True) if coloured else images
    mean = grey.mean(dim=(2, 3), keepdim=True)
    images = mean + torch.exp(contrast).unsqueeze(1) * (images - mean)
    if not coloured:
        return images
    yiq = torch.einsum("dc,bchw->dbhw", YIQ.to(images.device), images)
    strength, angle = torch.exp(saturation), 2 * math.pi * hue
    cosine, sine = strength * torch.cos(angle), strength * torch.sin(angle)
    turned = torch.stack((yiq[0], cosine * yiq[1] - sine * yiq[2], sine * yiq[1] + cosine * yiq[2]))
    rgb: Tensor = torch.einsum("cd,dbhw->bchw", torch.linalg.inv(YIQ).to(images.device), turned)
    return rgb


@dataclass(frozen=True)
class FieldAmounts:
    """Standard deviations of the fields at strength 1; ours, the paper's were not known to us."""

    move: float = 0.03
    """Share of the side."""
    turn: float = 10.0
    """Degrees."""
    scale: float = 0.1
    """Logarithm of the stretch."""
    shear: float = 5.0
    """Degrees."""
    brightness: float = 0.1
    contrast: float = 0.2
    """Logarithm of the factor, as for saturation."""
    saturation: float = 0.2
    hue: float = 0.05
    """Turns of the chroma plane."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be 0 or more, got {value}")


MILD = FieldAmounts()


def field_warp(
    images: Tensor, strength: float, generators: Sequence[Generator], gamma: float = 4.0, amounts: FieldAmounts = MILD
) -> Tensor:
    """Local moves, turns, stretches and shears of images `[B, C, H, W]`; `strength` multiplies all amounts."""
    places = field_places(images, strength, generators, gamma, amounts)
    return sample(images, places)


def field_places(
    images: Tensor, strength: float, generators: Sequence[Generator], gamma: float = 4.0, amounts: FieldAmounts = MILD
) -> Tensor:
    """Where `field_warp` samples, `[B, H, W, 2]`: the same places warp masks, and box corners through them."""
    fields = smooth_fields(images, generators, 6, gamma)
    weight = torch.full((len(images), 1, 1, 1), float(strength), device=images.device)
    turn, shear = math.radians(amounts.turn), math.radians(amounts.shear)
    for round_ in range(ROUNDS + 1):
        scaled = fields * weight
        places = warp_places(
            amounts.move * scaled[:, 0:2], turn * scaled[:, 2], amounts.scale * scaled[:, 3:5], shear * scaled[:, 5]
        )
        folded = folded_share(places) > FOLDED
        if round_ == ROUNDS or not folded.any():
            break
        weight = torch.where(folded.view(-1, 1, 1, 1), weight * WEAKER, weight)
    return places


def field_colour(
    images: Tensor, strength: float, generators: Sequence[Generator], gamma: float = 4.0, amounts: FieldAmounts = MILD
) -> Tensor:
    """Local brightness, contrast, saturation and hue of images `[B, C, H, W]` in [0, 1]."""
    fields = smooth_fields(images, generators, 4, gamma) * strength
    sizes = (amounts.brightness, amounts.contrast, amounts.saturation, amounts.hue)
    return local_colour(images, *(size * field for size, field in zip(sizes, fields.unbind(1), strict=True))).clamp(
        0, 1
    )


def strength_of(severity: float) -> float:
    """1/4, 1/2, 1, 2 and 4 at severities 1 to 5, doubling between; a straight line below 1."""
    return 0.25 * (severity if severity < 1 else 2 ** (severity - 1))


def fields_at(gamma: float, amounts: FieldAmounts = MILD) -> dict[str, Shift]:
    """The two shifts at a smoothness."""

    def warp(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
        return field_warp(images, strength_of(severity), generators, gamma, amounts)

    def colour(images: Tensor, severity: float, generators: Sequence[Generator]) -> Tensor:
        return field_colour(images, strength_of(severity), generators, gamma, amounts)

    return {"field_warp": Shift("random fields", random=warp), "field_colour": Shift("random fields", random=colour)}


RANDOM_FIELDS: Mapping[str, Shift] = fields_at(4.0)
