"""Which pictures show the same thing pixel for pixel, or nearly so? The machinery of `duplicates.py`.

A picture is a thumbnail of 32 x 32. Two are compared by the correlation of their inner parts, the best over moves of up
to 2 thumbnail pixels; brightness and contrast drop out, colour does not. How near is too near for two different
pictures is read from the data. A picture's distance to its nearest is divided by the distance to its twelfth nearest,
so that dense regions (chest X-rays, products on white) and sparse ones are comparable. If points lie locally in m
dimensions, the chance of a ratio below x falls as x^m (Levina and Bickel, 2004); m is estimated from the ordinary
ratios, and the limit is where all pictures together would give 0.01 by chance. Look-alike data thus get a strict limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from snellen.discovery._neighbours import nearest, unit_rows
from snellen.errors import InvalidInput

SIDE, COARSE, REACH, CANDIDATES = 32, 8, 2, 12
EXPECTED_FALSE = 0.01
"""Ordinary pictures that a whole data set is expected to put below the limit."""
LEAST_CORRELATION = 0.9
"""No data make less than this a copy."""
FLATTEST = 0.01
"""Standard deviation (pixels in [0, 1]) below which a picture has no content that could be compared."""
FEWEST = 50
"""Pictures without which the ordinary distances are unknown and only exact copies are searched."""
CENSORED = 3
"""Nearest ranks that may be copies and take no part where m comes from the others."""
LEAST_TAIL = 15
"""Ordinary ratios, the lowest, that the tail is fitted to; of a larger set a tenth."""
PAIRS_AT_ONCE = 500


class Pictures(NamedTuple):
    """ids: n. digests: of the pixels rounded to 8 bits. thumbnails: float16 `[n, C, 32, 32]`."""

    ids: list[str]
    digests: list[bytes]
    thumbnails: Tensor


class Copies(NamedTuple):
    """cluster: int64 `[n]`, -1 without a copy. partner: int64 `[n]`, the nearest copy or -1. correlation: with it,
    float64 `[n]`, 1 for exact ones, NaN without. limit: largest ratio that counts; 0 when only exact copies were
    searched."""

    cluster: NDArray[np.int64]
    partner: NDArray[np.int64]
    correlation: NDArray[np.float64]
    exact: NDArray[np.bool_]
    limit: float

    def clusters(self) -> list[NDArray[np.int64]]:
        """The rows of each cluster, ascending."""
        order = np.argsort(self.cluster, kind="stable")
        order = order[self.cluster[order] >= 0]
        return np.split(order, np.flatnonzero(np.diff(self.cluster[order])) + 1) if len(order) else []


def read_pictures(batches: Iterable[tuple[Sequence[str], Tensor]]) -> Pictures:
    """One pass over images `[B, C, H, W]` in [0, 1]; what is kept of each is a digest and 6 KB, sorted by id."""
    ids: list[str] = []
    digests: list[bytes] = []
    parts: list[Tensor] = []
    for names, images in batches:
        if images.ndim != 4 or len(names) != len(images) or images.shape[1] not in (1, 3):
            raise InvalidInput(
                f"images must be [B, 1 or 3, H, W] with one id each, got {list(images.shape)} and {len(names)} ids"
            )
        if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise InvalidInput("images must be finite and in [0, 1]")
        images = images.detach().float().cpu()
        ids += [str(name) for name in names]
        pixels = (images * 255).round().to(torch.uint8).numpy()
        digests += [blake2b(f"{p.shape}".encode() + p.tobytes(), digest_size=16).digest() for p in pixels]
        small = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        parts.append(small.expand(-1, 3, -1, -1).half())
    if len(set(ids)) < len(ids):
        raise InvalidInput(f"ids must be unique, but {len(ids) - len(set(ids))} come again")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    thumbnails = torch.cat(parts)[order] if parts else torch.zeros(0, 3, SIDE, SIDE).half()
    return Pictures([ids[row] for row in order], [digests[row] for row in order], thumbnails)


def find_copies(pictures: Pictures, drawn: NDArray[np.bool_], flips: bool = False) -> Copies:
    """Exact copies among all pictures and near ones among those `drawn` (bool `[n]`). flips: mirror images count."""
    n = len(pictures.ids)
    first: dict[bytes, int] = {}
    original = np.array([first.setdefault(digest, row) for row, digest in enumerate(pictures.digests)], dtype=np.int64)
    again = np.flatnonzero(original != np.arange(n))
    pairs = [np.stack([again, original[again]], axis=1)]
    scores = [np.ones(len(again))]

    contrast = pictures.thumbnails.float().std(dim=(1, 2, 3)).numpy() if n else np.zeros(0)
    rows = np.flatnonzero(drawn & (original == np.arange(n)) & (contrast >= FLATTEST))
    limit = 0.0
    if len(rows) >= FEWEST:
        thumbnails = pictures.thumbnails[torch.from_numpy(rows)].float()
        for turned in (False, True) if flips else (False,):
            near, correlation, reached = _near_pairs(thumbnails, turned)
            pairs.append(rows[near])
            scores.append(correlation)
            limit = max(limit, reached)
    return _clusters(np.concatenate(pairs), np.concatenate(scores), original, limit)


def tail_limit(ratios: NDArray[np.float64], ranked: NDArray[np.float64]) -> float:
    """The ratio that `EXPECTED_FALSE` of n ordinary pictures fall below.

    ratios: `[n]`, distance to the nearest over distance to the farthest candidate. ranked: `[n, k]`, the distances to
    all candidates, ascending. Ranks that copies do not reach give a first m and limit, however many copies there are;
    that m is low, so the limit is strict. It rises where the data show a gap: every cut through the sorted ratios is
    tried, and one stands when the tail of those above it puts the limit above all those below it and above none of the
    others. The cut with most copies counts.
    """
    n, k = ranked.shape
    logs = np.log(ranked[:, -1:] / ranked[:, CENSORED:-1])
    m = logs.size / max(float(logs.sum() + CENSORED * logs[:, 0].sum()), 1e-9)
    strict = np.log(EXPECTED_FALSE / (n * (k - 1))) / m  # the smallest of k - 1 uniform ratios to the power m

    ordered = np.log(np.maximum(np.sort(ratios), 1e-6))
    for copies in range(n // 2, -1, -1):
        ordinary = ordered[copies:]
        used = max(LEAST_TAIL, len(ordinary) // 10)
        m = used / max(float((ordinary[used] - ordinary[:used]).sum()), 1e-9)
        sure = m * (1 - 1.645 / np.sqrt(used))  # a lower 95 % bound: few ratios tell m badly
        limit = ordinary[used] + np.log(EXPECTED_FALSE / used) / sure
        if (copies == 0 or ordered[copies - 1] < limit) and limit <= ordered[copies]:
            return float(np.exp(max(limit, strict)))
    return float(np.exp(strict))


def correlations(thumbnails: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation at the best move, not mirrored, of pairs of rows `[p, 2]`; equal thumbnails have exactly 1."""
    one, other = (thumbnails[torch.from_numpy(rows)].float() for rows in pairs.T)
    distance = _distances(_smooth(one), _smooth(other), np.arange(len(pairs)))
    equal = (one == other).flatten(1).all(dim=1).numpy()
    return np.asarray(np.where(equal, 1.0, 1 - distance**2 / 2))


def _near_pairs(thumbnails: Tensor, flipped: bool) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Pairs of rows `[p, 2]` that are copies, their correlation `[p]`, and the limit."""
    coarse = _centred(F.avg_pool2d(thumbnails, SIDE // COARSE).flatten(1)).numpy()
    smooth = _smooth(thumbnails)
    queries, turned = None, smooth
    if flipped:
        mirrored = F.avg_pool2d(thumbnails.flip(-1), SIDE // COARSE).flatten(1)
        queries, turned = unit_rows(_centred(mirrored).numpy() + 1e-9), smooth.flip(-1)
    candidates = nearest(unit_rows(coarse + 1e-9), CANDIDATES, queries=queries).rows
    distance = np.stack([_distances(turned, smooth, column) for column in candidates.T], axis=1)
    ranked = np.sort(distance, axis=1)
    scale = np.maximum(ranked[:, -1], 1e-6)
    limit = tail_limit(ranked[:, 0] / scale, np.maximum(ranked, 1e-6))

    row, rank = np.nonzero(distance <= np.sqrt(2 - 2 * LEAST_CORRELATION))
    other = candidates[row, rank]
    near = distance[row, rank] <= limit * np.minimum(scale[row], scale[other])
    pairs = np.stack([row[near], other[near]], axis=1)
    return pairs, 1 - distance[row, rank][near] ** 2 / 2, limit


def _distances(queries: Tensor, smooth: Tensor, partner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance `[n]` of each query to the thumbnail of its partner at the best move: sqrt(2 - 2 correlation)."""
    inner, parts = SIDE - 2 * REACH, [torch.zeros(0)]
    norms = _window_norms(smooth, inner)
    for start in range(0, len(queries), PAIRS_AT_ONCE):
        rows = torch.from_numpy(partner[start : start + PAIRS_AT_ONCE])
        middle = queries[start : start + PAIRS_AT_ONCE, :, REACH:-REACH, REACH:-REACH]
        kernels = _centred(middle.flatten(1)).view_as(middle)
        # One group a pair; a centred kernel does not see the mean of the window it lies on.
        dots = F.conv2d(smooth[rows].flatten(0, 1)[None], kernels, groups=len(rows))[0]
        best = (dots / norms[rows]).flatten(1).amax(dim=1)
        parts.append((2 - 2 * best).clamp_min(0).sqrt())
    return torch.cat(parts).double().numpy()


def _window_norms(images: Tensor, side: int) -> Tensor:
    """Length of the centred content of every square window: `[n, moves, moves]`."""
    apart = images - images.mean(dim=(1, 2, 3), keepdim=True)
    mean, square = (F.avg_pool2d(v, side, 1).mean(dim=1) for v in (apart, apart**2))
    return ((square - mean**2).clamp_min(1e-10) * (images.shape[1] * side**2)).sqrt()


def _smooth(images: Tensor) -> Tensor:
    """A little blur, or a move by half a thumbnail pixel would look like another picture."""
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (weights[:, None] * weights).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def _centred(rows: Tensor) -> Tensor:
    return F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)


def _clusters(
    pairs: NDArray[np.int64], scores: NDArray[np.float64], original: NDArray[np.int64], limit: float
) -> Copies:
    n = len(original)
    if n == 0:
        none = np.zeros(0, dtype=np.int64)
        return Copies(none, none, np.zeros(0), np.zeros(0, dtype=np.bool_), limit)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    graph = coo_array((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(n, n))
    found = connected_components(graph, directed=False)[1].astype(np.int64)
    alone = np.bincount(found, minlength=1)[found] == 1
    partner, correlation = np.full(n, -1), np.full(n, np.nan)
    twice = np.concatenate([scores, scores])
    order = np.lexsort((both[:, 1], -twice))[::-1]  # the best is written last and stays
    partner[both[order, 0]] = both[order, 1]
    correlation[both[order, 0]] = twice[order]
    exact = np.bincount(original, minlength=n)[original] > 1
    return Copies(np.where(alone, -1, found), partner, correlation, exact, limit)
