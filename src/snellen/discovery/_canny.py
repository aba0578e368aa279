"""Edge maps after Canny (1986), as scikit-image computes them, without needing it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, sobel
from torch import Tensor

from snellen.errors import InvalidInput

LUMA = (0.2125, 0.7154, 0.0721)


def canny_edges(images: Tensor, sigma: float = 0.4, low: float = 0.35, high: float = 0.9) -> Tensor:
    """Edges bool `[B, H, W]` of images `[B, C, H, W]` in [0, 1]; the defaults are those of Chen et al. (2020).

    sigma: of the Gaussian in pixels. low, high: slopes (Sobel's sums, up to 5.7) between which a pixel is an edge only
    when it hangs on a stronger one. On the CPU, as scipy works there.
    """
    if not (sigma > 0 and 0 <= low <= high):
        raise InvalidInput(f"sigma must be above 0 and 0 <= low <= high, got {sigma}, {low} and {high}")
    if images.shape[1] == 3:
        grey = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1)
    else:
        grey = images.mean(dim=1)
    values = grey.double().cpu().numpy()
    inside = np.ones(values.shape)
    spread = (0.0, sigma, sigma)
    # What the zeros outside of the image take from the mean is given back.
    smooth = gaussian_filter(values, spread, mode="constant") / gaussian_filter(inside, spread, mode="constant")
    # Image by image: Sobel's filter smooths along every other axis, the batch's too.
    down, right = (np.stack([sobel(image, axis=axis) for image in smooth]) for axis in (0, 1))
    slope = np.hypot(down, right)
    crest = _crest(torch.from_numpy(down), torch.from_numpy(right), torch.from_numpy(slope)).numpy() & (slope >= low)
    crest[:, [0, -1], :] = crest[:, :, [0, -1]] = False
    return torch.from_numpy(_hysteresis(crest, crest & (slope >= high))).to(images.device)


def _crest(down: Tensor, right: Tensor, slope: Tensor) -> Tensor:
    """Where the slope is not below what is interpolated one step along its own direction either way, `[B, H, W]`."""
    around = F.pad(slope, (1, 1, 1, 1))
    height, width = slope.shape[-2:]

    def at(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep = down.abs() > right.abs()
    falling = (down < 0) ^ (right < 0)
    nearer = torch.minimum(down.abs(), right.abs()) / torch.maximum(down.abs(), right.abs()).clamp_min(1e-300)
    crest = slope > 0
    for sign in (1, -1):
        straight = torch.where(steep, at(sign, 0), at(0, sign))
        # The diagonal that the direction leans to; falling: down and right have opposite signs.
        leaning = torch.where(falling, torch.where(steep, at(sign, -sign), at(-sign, sign)), at(sign, sign))
        crest &= torch.lerp(straight, leaning, nearer) <= slope
    return crest


def _hysteresis(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Weak pixels that hang on a strong one, over 8 neighbours, `[B, H, W]`."""
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # never from one image to the next
    pieces, count = label(weak, structure=neighbours)
    holds = np.zeros(count + 1, dtype=bool)
    holds[pieces[strong]] = True
    holds[0] = False
    return np.asarray(holds[pieces])
