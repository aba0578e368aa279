"""One Gaussian a class in an embedding, cleaned of outliers, and the labels that it makes suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import LocalOutlierFactor

from snellen.errors import InvalidInput
from snellen.stats import exceedance_p_value

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Bools = NDArray[np.bool_]

NEIGHBOURS = 20
JITTER = 1e-6
TESTED_DIMENSIONS = 10
MOST_TESTED = 200
"""Rows of a class that `gaussianity` reads: it costs their square, and 200 are enough to refuse two clusters."""
DRAWS = 199
LEVEL = 0.01


class ClassGaussians(NamedTuple):
    """means: `[K, d]`, NaN for a class without kept images. covariances: `[K, d, d]`. given, kept: images `[K]`.

    borrowed: classes with fewer than 2 kept images, whose covariance is the mean of the others', weighted by images.
    """

    means: Floats
    covariances: Floats
    given: Labels
    kept: Labels
    borrowed: tuple[int, ...]


class TailCalibration(NamedTuple):
    """weights: `[K, K]`, row k what class k took of each head class; a row of a tail class sums to 1, others to 0."""

    gaussians: ClassGaussians
    weights: Floats


class Suspects(NamedTuple):
    """Per image. outlier: within its given class. nearest: class by Mahalanobis distance, of Gaussians from the other
    half. suspected: outlier and nearest is not the label. margin: squared distance to its own class minus that to the
    nearest other, high for a suspicious label; a ranking that does not need the outlier."""

    outlier: Bools
    nearest: Labels
    suspected: Bools
    margin: Floats


def class_outliers(features: Floats, labels: Labels, neighbours: int = NEIGHBOURS) -> Bools:
    """Local outliers of each given class `[n]` (Breunig et al., 2000). features: `[n, d]`, finite.

    A class with 2 images or fewer has none. neighbours: at least 1; fewer where the class is smaller.
    """
    _check(features, labels)
    if neighbours < 1:
        raise InvalidInput(f"neighbours must be at least 1, got {neighbours}")
    found = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 2:
            found[rows] = LocalOutlierFactor(min(neighbours, len(rows) - 1)).fit_predict(features[rows]) == -1
    return found


def class_gaussians(
    features: Floats, labels: Labels, classes: int, outliers: Bools | None = None, shrink: bool = True
) -> ClassGaussians:
    """Mean and covariance of each class without its outliers.

    shrink: Ledoit and Wolf's covariance, which is ours and can be inverted with few images; else the plain one
    (ddof 1). Raises InvalidInput when no class keeps 2 images.
    """
    _check(features, labels)
    if labels.max() >= classes:
        raise InvalidInput(f"labels must be below classes = {classes}, got {labels.max()}")
    keep = np.ones(len(labels), dtype=np.bool_) if outliers is None else ~outliers
    given = np.bincount(labels, minlength=classes)
    kept = np.bincount(labels[keep], minlength=classes)
    if kept.max() < 2:
        raise InvalidInput("features must hold a class with at least 2 images that are no outliers, got none")
    size = features.shape[1]
    means, covariances = np.full((classes, size), np.nan), np.zeros((classes, size, size))
    for label in np.flatnonzero(kept):
        own = features[keep & (labels == label)]
        means[label] = own.mean(axis=0)
        if len(own) > 1:
            covariances[label] = LedoitWolf().fit(own).covariance_ if shrink else np.cov(own.T).reshape(size, size)
    borrowed = np.flatnonzero(kept < 2)
    covariances[borrowed] = np.average(covariances, axis=0, weights=np.where(kept < 2, 0, kept))
    return ClassGaussians(means, covariances, given, kept, tuple(borrowed.tolist()))


def calibrate_tail(
    gaussians: ClassGaussians,
    tail: Sequence[int],
    heads: int = 3,
    own_mean: float = 0.8,
    own_covariance: float = 0.5,
    spread: float = 0.0,
) -> TailCalibration:
    """Gaussians of rare classes that borrow from the `heads` nearest frequent ones, weighted by n / (1 + distance^2).

    own_mean, own_covariance: the share that stays the class's own, in [0, 1]. spread: added to every entry of the
    covariance, at least 0. The form of the weights and the defaults are a reconstruction of Zhang et al. (2023).
    """
    means, covariances, _, kept, _ = gaussians
    head = np.setdiff1d(np.flatnonzero(kept >= 2), np.array(tail, dtype=np.int64))
    if not 1 <= heads <= len(head):
        raise InvalidInput(f"heads must be in [1, {len(head)}], the number of head classes, got {heads}")
    if not (0 <= own_mean <= 1 and 0 <= own_covariance <= 1 and spread >= 0):
        raise InvalidInput(
            "own_mean and own_covariance must be in [0, 1] and spread at least 0,"
            f" got {own_mean}, {own_covariance} and {spread}"
        )
    means, covariances, weights = means.copy(), covariances.copy(), np.zeros((len(means), len(means)))
    for label in tail:
        if kept[label] == 0:
            raise InvalidInput(f"tail must name classes with a kept image, got class {label} with none")
        squared = ((gaussians.means[head] - gaussians.means[label]) ** 2).sum(axis=1)
        near = np.argsort(squared, kind="stable")[:heads]
        share = kept[head[near]] / (1 + squared[near])
        weights[label, head[near]] = share / share.sum()
        lent = np.nan_to_num(gaussians.means), gaussians.covariances
        means[label] = own_mean * means[label] + (1 - own_mean) * weights[label] @ lent[0]
        covariances[label] = own_covariance * covariances[label] + spread
        covariances[label] += (1 - own_covariance) * np.tensordot(weights[label], lent[1], axes=1)
    return TailCalibration(gaussians._replace(means=means, covariances=covariances), weights)


def mahalanobis(features: Floats, gaussians: ClassGaussians) -> Floats:
    """Squared distances `[n, K]`; infinite for a class without a mean. No log-determinant: wide classes attract."""
    found = np.full((len(features), len(gaussians.means)), np.inf)
    size = features.shape[1]
    for label in np.flatnonzero(gaussians.kept):
        away = features - gaussians.means[label]
        covariance = gaussians.covariances[label]
        ridge = JITTER * max(float(np.trace(covariance)) / size, JITTER)
        found[:, label] = (away * cho_solve(cho_factor(covariance + ridge * np.eye(size)), away.T).T).sum(axis=1)
    return found


def suspected_labels(
    features: Floats,
    labels: Labels,
    first: Bools,
    classes: int,
    neighbours: int = NEIGHBOURS,
    tail: Sequence[int] = (),
    heads: int = 3,
) -> Suspects:
    """Outliers of their given class that lie nearest to another one; Gaussians of each half judge the other.

    features: `[n, d]` of an encoder that did not see the labels, best. first: bool `[n]`, one of the two halves.
    tail: rare classes that go through `calibrate_tail`.
    """
    outlier = class_outliers(features, labels, neighbours)
    distances = np.empty((len(labels), classes))
    for fit in (first, ~first):
        if not fit.any():
            raise InvalidInput("first must be true for a part of the images only, got one half empty")
        gaussians = class_gaussians(features[fit], labels[fit], classes, outlier[fit])
        if len(tail):
            gaussians = calibrate_tail(gaussians, tail, heads).gaussians
        distances[~fit] = mahalanobis(features[~fit], gaussians)
    rows, nearest = np.arange(len(labels)), distances.argmin(axis=1)
    own = distances[rows, labels]
    distances[rows, labels] = np.inf
    return Suspects(outlier, nearest, outlier & (nearest != labels), own - distances.min(axis=1))


def gaussianity(features: Floats, labels: Labels, classes: int, rng: np.random.Generator) -> Floats:
    """p-values `[K]` of the null that a class is Gaussian, on 10 principal components; NaN below 50 images.

    The statistic of Henze and Zirkler (1990), which no rotation or scale changes, against its values on normal draws
    of the same size, so that the test is exact; two clusters and heavy tails are both seen.
    """
    _check(features, labels)
    found = np.full(classes, np.nan)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        size = min(TESTED_DIMENSIONS, features.shape[1])
        if len(rows) < 5 * TESTED_DIMENSIONS:
            continue
        own = features[rng.permutation(rows)[:MOST_TESTED]]
        centred = own - own.mean(axis=0)
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
        size = min(size, int((scale > 1e-8 * max(scale[0], 1e-300)).sum()))
        if size:
            drawn = [_henze_zirkler(rng.normal(size=(len(own), size))) for _ in range(DRAWS)]
            found[label] = exceedance_p_value(_henze_zirkler(left[:, :size]), np.array(drawn))
    return found


def advises_against(p_values: Floats) -> bool:
    """Whether more than half of the classes that could be tested are not Gaussian at 1 %."""
    tested = p_values[np.isfinite(p_values)]
    return bool(len(tested) and (tested <= LEVEL).mean() > 0.5)


def _henze_zirkler(points: Floats) -> float:
    n, d = points.shape
    white = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[0] * np.sqrt(n)
    square = ((2 * d + 1) * n / 4) ** (2 / (d + 4)) / 2
    pairs = np.exp(-square / 2 * cdist(white, white, "sqeuclidean")).sum() / n
    single = np.exp(-square / (2 * (1 + square)) * (white**2).sum(axis=1)).sum()
    return float(pairs - 2 * (1 + square) ** (-d / 2) * single + n * (1 + 2 * square) ** (-d / 2))


def _check(features: Floats, labels: Labels) -> None:
    if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0 or not np.isfinite(features).all():
        raise InvalidInput(f"features must be finite [n, d] for n labels, got {features.shape} and {len(labels)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InvalidInput(f"labels must be integers of at least 0, got {labels.dtype}")
