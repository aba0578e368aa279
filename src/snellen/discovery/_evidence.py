"""The evidence of an answer: which features spoke for it, where they lie, and the patterns in which it comes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.explain._layers import SpatialLayer, activations_of
from snellen.models import Model

MOST_PATTERNS = 10
COMPONENTS = 50
MOST_COMPARED = 1000
"""Samples of which the silhouette, quadratic in them, is taken."""

Codes = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Evidence(NamedTuple):
    """vectors: `[B, D]` of length 1, or 0 where nothing speaks for the class. heat: `[B, h, w]`, not negative."""

    vectors: Tensor
    heat: Tensor
    logits: Tensor


def gradcam_evidence(
    model: Model | nn.Module, images: Tensor, layer: SpatialLayer, targets: Tensor | None = None
) -> Evidence:
    """Features of a layer, summed over positions with Grad-CAM's map (Selvaraju et al., 2017) as the weight.

    images: `[B, C, H, W]`. layer: from `explain._layers.last_spatial_layer`. targets: int64 `[B]`, the answers when
    None. One forward and one backward pass an image.
    """
    with torch.enable_grad():
        logits, layers = activations_of(model, images.detach().requires_grad_(), layer.name)
        chosen = logits.detach().argmax(dim=1) if targets is None else targets
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen.unsqueeze(1)).sum(), layers[layer.name])
    features, gradient = layer.as_map(layers[layer.name].detach()), layer.as_map(gradient)
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()
    vectors = (heat.unsqueeze(1) * features).sum(dim=(2, 3))
    return Evidence(F.normalize(vectors.float(), dim=1), heat.float(), logits.detach())


class Patterns(NamedTuple):
    """Patterns of one answer's evidence. codes: int64 `[n]`; nearness: cosine `[n]` to the centres `[k, D]`."""

    codes: Codes
    nearness: NDArray[np.float64]
    centres: Vectors


def find_patterns(vectors: Vectors, fitted: NDArray[np.bool_], least: int, rng: np.random.Generator) -> Patterns | None:
    """k-means in principal components, k of 2 to 10 by the silhouette, of `vectors[fitted]`; all are then assigned.

    vectors: `[n, D]` of length 1. fitted: bool `[n]`. Patterns of fewer than `least` fitted samples are merged into
    their neighbours. None where there are too few samples for two patterns, or they are all alike.
    """
    if least < 2:
        raise InvalidInput(f"least must be at least 2, got {least}")
    seen = vectors[fitted].astype(np.float64)
    most = min(MOST_PATTERNS, len(seen) // least)
    if most < 2 or np.ptp(seen, axis=0).max() < 1e-6:
        return None
    reduced = PCA(min(COMPONENTS, *seen.shape), svd_solver="full").fit(seen)
    points, seed = reduced.transform(seen), int(rng.integers(2**31))
    best: tuple[float, Codes] | None = None
    for k in range(2, most + 1):
        codes: Codes = KMeans(k, n_init=3, random_state=seed).fit_predict(points).astype(np.int64)
        if len(np.unique(codes)) < 2:
            continue
        score = float(silhouette_score(points, codes, sample_size=min(len(points), MOST_COMPARED), random_state=seed))
        if best is None or score > best[0]:
            best = (score, codes)
    if best is None:
        return None
    centres = _centres(seen, best[1], least)
    cosines = vectors.astype(np.float64) @ centres.T
    return Patterns(cosines.argmax(axis=1), cosines.max(axis=1), centres.astype(np.float32))


def _centres(vectors: NDArray[np.float64], codes: Codes, least: int) -> NDArray[np.float64]:
    """Unit centres of the groups that keep `least` members when those of smaller groups go to the nearest centre."""
    while True:
        groups, counts = np.unique(codes, return_counts=True)
        centres = np.stack([vectors[codes == group].mean(axis=0) for group in groups])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        if counts.min() >= least or len(groups) == 1:
            return np.asarray(centres)
        centres = np.delete(centres, counts.argmin(), axis=0)
        codes = (vectors @ centres.T).argmax(axis=1)


def match_patterns(centres: Vectors, classes: Codes, least_cosine: float = 0.9) -> Codes:
    """Groups `[k]` of patterns that are alike over classes: linked where centres of two classes agree.

    centres: `[k, D]` of length 1. classes: int64 `[k]`, whose pattern each is. Links of one class with itself do not
    count, chains do.
    """
    near = (centres @ centres.T >= least_cosine) & (classes[:, None] != classes[None])
    group = np.arange(len(centres))
    for _ in range(len(centres)):
        lowest = np.where(near, group[None], len(centres)).min(axis=1, initial=len(centres))
        group = np.minimum(group, lowest)
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def suspicion(groups: Codes, labels: Codes, on_object: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """How suspect each group of evidence is, `[groups]`: log ratio of its commonest class's share to the prior, times
    the group's share of the samples, times the heat off the object (the card's score).

    groups, labels: int64 `[n]`; group -1 is none. on_object: `[n]`, share of the heat on the object. Without it the
    score cannot tell a confounder from a class's own shape, which is as tied to its class: only compare then.
    """
    scores = np.zeros(int(groups.max(initial=-1)) + 1)
    prior = np.bincount(labels) / len(labels)
    for group in range(len(scores)):
        inside = groups == group
        if not inside.any():
            continue
        share = np.bincount(labels[inside], minlength=len(prior)) / inside.sum()
        off = 1.0 if on_object is None else 1 - float(on_object[inside].mean())
        top = int(share.argmax())
        scores[group] = abs(np.log(share[top] / prior[top])) * inside.mean() * off
    return scores
