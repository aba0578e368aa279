"""Small moves of a camera: windows shifted by whole pixels, slight turns and zooms, and what they do to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

Border = Literal["window", "reflect", "cyclic"]
BORDERS = ("window", "reflect", "cyclic")


def translated(images: Tensor, dy: int, dx: int, margin: int, border: Border = "window") -> Tensor:
    """The images after the camera moved by dy pixels down and dx to the right (Lost in Translation, 2024).

    images: `[B, C, H, W]`. margin: pixels kept free on each side, at least |dy| and |dx|. border "window": the window
    `[B, C, H - 2 margin, W - 2 margin]`, so all content is real; "reflect": full size, mirrored at the border;
    "cyclic": full size, what leaves at one side comes back at the other. InvalidInput for a move that does not fit.
    """
    height, width = images.shape[-2:]
    if margin < 0 or max(abs(dy), abs(dx)) > margin:
        raise InvalidInput(f"a move must stay within the margin of {margin} px, got ({dy}, {dx})")
    if border == "cyclic":
        return images.roll((-dy, -dx), (-2, -1))
    if min(height, width) <= 2 * margin:
        raise InvalidInput(f"images must be larger than twice the margin of {margin} px, got {height} x {width}")
    if border == "reflect":
        images = F.pad(images, (margin, margin, margin, margin), mode="reflect")
    elif border != "window":
        raise InvalidInput(f"border must be one of {', '.join(BORDERS)}, got {border!r}")
    top, left = margin + dy, margin + dx
    return images[..., top : images.shape[-2] - margin + dy, left : images.shape[-1] - margin + dx]


def rotated(images: Tensor, degrees: float) -> Tensor:
    """The images turned counter-clockwise about their centre, bilinear, mirrored at the border."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    ratio = images.shape[-2] / images.shape[-1]
    cosine, sine = float(torch.cos(angle)), float(torch.sin(angle))
    return _warped(images, [[cosine, -sine * ratio, 0.0], [sine / ratio, cosine, 0.0]])


def zoomed(images: Tensor, pixels: float) -> Tensor:
    """The images enlarged about their centre by `pixels` of their longer side, bilinear."""
    longer = max(images.shape[-2:])
    factor = longer / (longer + pixels)
    return _warped(images, [[factor, 0.0, 0.0], [0.0, factor, 0.0]])


def _warped(images: Tensor, matrix: list[list[float]]) -> Tensor:
    theta = torch.tensor([matrix], dtype=images.dtype, device=images.device).expand(len(images), -1, -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def neighbour_changed(
    embed: Callable[[Tensor], Tensor], gallery: Tensor, images: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether a move changes which gallery image is nearest, bool `[B]`, and the cosine of both embeddings `[B]`.

    embed: images to `[B, D]`. gallery: embeddings `[N, D]` to search, not of the images themselves. The embedding
    side of the probe: its criterion for a significant change is ours, the paper's is not known to us.
    """
    if gallery.ndim != 2 or len(gallery) < 2:
        raise InvalidInput(f"gallery must be two embeddings [N, D] or more, got {list(gallery.shape)}")
    with torch.no_grad():
        first, second = (F.normalize(embed(batch), dim=1) for batch in (images, moved))
    reference = F.normalize(gallery, dim=1).T
    changed = (first @ reference).argmax(dim=1) != (second @ reference).argmax(dim=1)
    return changed, (first * second).sum(dim=1)
