"""A flat sign as a camera sees it: geometry from its key points, light from its pixels, and a differentiable renderer.

The canonical plane is the sign looked at straight on; the patch lives there. Places are (x, y) in pixels with pixel
centres at + 0.5 (`_composite.py`). Images and patches may be on any device; planes and key points stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._composite import warp

LEAST_AREA = 1.0
"""Square pixels of a polygon below which no map can be trusted."""


class Light(NamedTuple):
    """How an image renders a canonical colour d: gain * d + offset, clipped; both `[C]` or, for a batch, `[B, C]`."""

    gain: Tensor
    offset: Tensor


SAME_LIGHT = Light(torch.ones(3), torch.zeros(3))


@dataclass(frozen=True)
class Plane:
    """The sign looked at straight on.

    points: `[K, 2]`, its 4 (or 3) key points. sign: bool `[h, w]`, its pixels. patch: bool `[h, w]`, those of them
    that the patch covers; nowhere is the control without a patch.
    """

    points: Tensor
    sign: Tensor
    patch: Tensor

    def __post_init__(self) -> None:
        _check_points("points of the plane", self.points)
        shapes = self.sign.ndim == 2 and self.sign.shape == self.patch.shape
        if not shapes or self.sign.dtype != torch.bool or self.patch.dtype != torch.bool:
            raise InvalidInput(
                f"sign and patch must be bool [h, w] of one shape, got {self.sign.dtype} {list(self.sign.shape)} and"
                f" {self.patch.dtype} {list(self.patch.shape)}"
            )
        outside = int((self.patch & ~self.sign).sum())
        if outside:
            raise InvalidInput(f"patch must lie on the sign, got {outside} of its pixels outside")


@dataclass(frozen=True)
class Sign:
    """One sign in one image.

    image: float `[3, H, W]` in [0, 1]. points: `[K, 2]`, its key points in the order of the plane's. label: its class.
    light: how the image is lit; None measures it (`percentile_light`). id: names it in tables.
    """

    id: str
    image: Tensor
    points: Tensor
    label: int
    light: Light | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3 or not self.image.is_floating_point():
            raise InvalidInput(
                f"image of sign {self.id!r} must be float [3, H, W] in [0, 1],"
                f" got {self.image.dtype} {list(self.image.shape)}"
            )
        _check_points(f"points of sign {self.id!r}", self.points)

    @property
    def box(self) -> Tensor:
        """`[4]` as x1, y1, x2, y2 around the key points."""
        return torch.cat([self.points.amin(dim=0), self.points.amax(dim=0)])


class Rendered(NamedTuple):
    """images: `[B, 3, H, W]` in [0, 1]. alpha: opacity of the patch `[B, 1, H, W]`; where it is 0 nothing changed."""

    images: Tensor
    alpha: Tensor


def polygon_area(points: Tensor) -> float:
    """Square pixels inside `[K, 2]`."""
    x, y = points.double().unbind(dim=1)
    return float((x * y.roll(-1) - y * x.roll(-1)).sum().abs() / 2)


def plane_to_image(source: Tensor, target: Tensor) -> Tensor:
    """The map `[3, 3]`, float64, that takes `source` `[K, 2]` to `target`: a homography for 4 points, affine for 3.

    Raises InvalidInput where either polygon is degenerate: below 1 square pixel, or three of four points in a line.
    """
    _check_points("source", source)
    _check_points("target", target)
    if len(source) != len(target):
        raise InvalidInput(f"source and target need as many points, got {len(source)} and {len(target)}")
    x, y = source.double().unbind(dim=1)
    u, v = target.double().unbind(dim=1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    if len(source) == 3:
        rows = torch.linalg.solve(torch.stack([x, y, one], dim=1), torch.stack([u, v], dim=1)).T
        return torch.cat([rows, rows.new_tensor([[0.0, 0.0, 1.0]])])
    upper = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=1)
    lower = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=1)
    solved = torch.linalg.solve(torch.cat([upper, lower]), torch.cat([u, v]))
    return torch.cat([solved, one[:1]]).view(3, 3)


def percentile_light(pixels: Tensor, share: float = 0.2) -> Light:
    """Light from the real pixels of a sign `[3, N]`, all channels pooled (REAP, 2023; share 0.2 there).

    offset: the `share` quantile, gain: the 1 - share quantile minus it. Takes the sign to have dark and bright parts.
    """
    if pixels.ndim != 2 or not pixels.numel() or not 0 <= share < 0.5:
        raise InvalidInput(f"pixels must be [3, N] with N > 0 and share in [0, 0.5), got {list(pixels.shape)}, {share}")
    low, high = torch.quantile(pixels.detach().flatten(), torch.tensor([share, 1 - share]).to(pixels))
    return Light((high - low).expand(3).clone(), low.expand(3).clone())


def polynomial_light(canonical: Tensor, pixels: Tensor, trim: float = 0.2) -> Light:
    """Light by a line per channel from canonical colours `[3, N]` to real ones `[3, N]` (REAP, 2023, degree 1).

    The `trim` share with the largest difference is left out (stickers, occlusion). Where the canonical colours of a
    channel are all equal, black for example, no line can be told: gain 0 and the real mean.
    """
    if canonical.shape != pixels.shape or canonical.ndim != 2 or canonical.shape[1] < 2 or not 0 <= trim < 1:
        raise InvalidInput(
            f"canonical and pixels must be [3, N] with N > 1 and trim in [0, 1), got {list(canonical.shape)},"
            f" {list(pixels.shape)} and {trim}"
        )
    kept = max(2, round((1 - trim) * canonical.shape[1]))
    nearest = (canonical - pixels).abs().argsort(dim=1, stable=True)[:, :kept]
    x, y = canonical.gather(1, nearest).double(), pixels.gather(1, nearest).double()
    x_mean, y_mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    spread = (x - x_mean).square().sum(dim=1)
    slope = ((x - x_mean) * (y - y_mean)).sum(dim=1) / spread.clamp(min=1e-12)
    gain = torch.where(spread > 1e-12, slope, torch.zeros_like(slope))
    return Light(gain.to(pixels), (y_mean[:, 0] - gain * x_mean[:, 0]).to(pixels))


def sign_pixels(sign: Sign, plane: Plane) -> Tensor:
    """The pixels `[3, N]` of the sign in its image. Raises InvalidInput where it shows none."""
    shown = _shown(plane.sign, plane_to_image(plane.points, sign.points), sign)
    if not bool(shown.any()):
        raise InvalidInput(f"sign {sign.id!r} shows no pixel in its image of {list(sign.image.shape)}")
    return sign.image[:, shown]


def render(
    images: Tensor, patch: Tensor, plane: Plane, matrices: Tensor, light: Light, jitter: Tensor | None = None
) -> Rendered:
    """The patch on the signs as their cameras would show it, differentiable in patch and images (REAP, 2023).

    images: `[B, 3, H, W]`. patch: `[3, h, w]` in [0, 1]. matrices: plane to image, `[B, 3, 3]`. light: `[B, 3]` each.
    jitter: further maps within the plane `[B, 3, 3]`. Relit, premultiplied, warped bilinearly, laid over.
    """
    relit = patch.clamp(1e-6, 1 - 1e-6) * light.gain[:, :, None, None] + light.offset[:, :, None, None]
    alpha = plane.patch.to(relit).expand(len(images), 1, -1, -1)
    layers = torch.cat([relit.clamp(0, 1) * alpha, alpha], dim=1)
    placed = matrices if jitter is None else matrices @ jitter
    warped = warp(layers, placed, (images.shape[-2], images.shape[-1]))
    opacity = warped[:, 3:]
    return Rendered(((1 - opacity) * images + warped[:, :3]).clamp(0, 1), opacity)


def measured_light(sign: Sign, plane: Plane, share: float = 0.2) -> Light:
    """The sign's own light, or the percentile light of its pixels."""
    return percentile_light(sign_pixels(sign, plane), share) if sign.light is None else sign.light


def stacked(signs: Sequence[Sign], plane: Plane) -> tuple[Tensor, Tensor, Light]:
    """Images `[B, 3, H, W]`, maps `[B, 3, 3]` and lights of signs whose images have one size. Raises InvalidInput."""
    sizes = {tuple(sign.image.shape) for sign in signs}
    if len(sizes) != 1:
        raise InvalidInput(f"signs of one batch must be in images of one size, got {sorted(sizes)}")
    images = torch.stack([sign.image for sign in signs])
    maps = [plane_to_image(plane.points, sign.points) for sign in signs]
    for sign, matrix in zip(signs, maps, strict=True):
        if bool(plane.patch.any()) and not bool(_shown(plane.patch, matrix, sign).any()):
            raise InvalidInput(f"the patch shows no pixel on sign {sign.id!r}; drop signs that small")
    lights = [measured_light(sign, plane) for sign in signs]
    gain, offset = (torch.stack([part.to(images) for part in parts]) for parts in zip(*lights, strict=True))
    return images, torch.stack(maps).to(images.device), Light(gain, offset)


def _shown(mask: Tensor, matrix: Tensor, sign: Sign) -> Tensor:
    """Bool `[H, W]`: where a mask of the plane lies in the image, to the nearest pixel."""
    size = (sign.image.shape[-2], sign.image.shape[-1])
    return warp(mask[None, None].to(sign.image), matrix[None].to(sign.image.device), size)[0, 0] > 0.5


def _check_points(name: str, points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) not in (3, 4) or not bool(points.isfinite().all()):
        raise InvalidInput(f"{name} must be finite [4, 2] or [3, 2], got {list(points.shape)}")
    corners = [points] if len(points) == 3 else [points[[i for i in range(4) if i != left]] for left in range(4)]
    smallest = min(polygon_area(corner) for corner in corners)
    if smallest < LEAST_AREA / 2 or polygon_area(points) < LEAST_AREA:
        raise InvalidInput(f"{name} must span an area of 1 px² or more, no three in a line, got {points.tolist()}")
