"""Does the model's answer change with the object when everything else stays, and does training on such pairs help?

After VISION (Egea et al., 2025): every sample gets a twin, a least edit that changes the true class and keeps what
merely goes together with it. Both right (P-C) says that the model follows the object; both answered alike (P-V and P-B
for two classes) that it follows what the twins share; each given the other's class (P-R) that it has it the wrong way
round. Beside it the paper's measures of a cleaner representation: worst-group accuracy over clusters, purity of
neighbourhoods, and how steady attributions are. Training on mixes of originals and twins is the repair.

For images with masks the statement "the background decides" is made by `discovery/block-reliance`, with a control and
a second half; here are pairs from any editor. The paper's editor and graphs are of source code; those are not here.
Misleads where the edit changes more than the class or leaves its own trace: a model then passes by reading the
editor. With more than two classes, chance alone makes fewer pairs alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from snellen.discovery._counterfactual_twins import (
    Editor,
    Pairs,
    Twin,
    check_split,
    cut_paste_pairs,
    demo_pairs,
    make_pairs,
    train_on_mix,
)
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.stats import Interval, clopper_pearson, wilson

__all__ = [
    "AttributionStatistics",
    "Contrast",
    "Editor",
    "Pairs",
    "Purity",
    "Twin",
    "WorstGroup",
    "attribution_statistics",
    "check_split",
    "contrast",
    "contrast_of",
    "cut_paste_pairs",
    "demo_pairs",
    "make_pairs",
    "node_dependency",
    "purity",
    "train_on_mix",
    "worst_group",
]

BATCH = 256

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Counts of pairs by what the model answers to sample and twin; they add up to n.

    correct: both right (P-C). alike: one answer to both, by answer `[K]` (P-V and P-B are its entries for two classes).
    reversed: each got the other's class (P-R). Two kinds need a third class, so the paper has no name for them: half:
    one right, the other neither right nor the same answer. astray: none right, neither alike nor reversed. right:
    samples and twins answered rightly, of 2 n.
    """

    n: int
    correct: int
    alike: tuple[int, ...]
    reversed: int
    half: int
    astray: int
    right: int

    @property
    def accuracy(self) -> float:
        """Over samples and twins together; with two classes P-C + (P-V + P-B) / 2."""
        return self.right / (2 * self.n)

    def share(self, count: int) -> tuple[float, Interval]:
        """A count as a share of the pairs, with its 95 % Wilson interval."""
        return count / self.n, wilson(count, self.n)


def contrast(labels: Labels, twin_labels: Labels, answers: Labels, twin_answers: Labels, classes: int) -> Contrast:
    """Sort pairs by the answers to sample and twin, all int `[n]` with values in [0, classes)."""
    arrays = (labels, twin_labels, answers, twin_answers)
    if len({array.shape for array in arrays}) > 1 or labels.ndim != 1 or len(labels) == 0:
        raise InvalidInput(f"labels and answers must be [n] with n above 0, got {[list(a.shape) for a in arrays]}")
    if min(array.min() for array in arrays) < 0 or max(array.max() for array in arrays) >= classes:
        raise InvalidInput(f"labels and answers must be in [0, classes = {classes})")
    if (labels == twin_labels).any():
        raise InvalidInput("the twins of a pair must have two labels, got a pair with one")
    first, second, alike = answers == labels, twin_answers == twin_labels, answers == twin_answers
    exchanged = (answers == twin_labels) & (twin_answers == labels)
    return Contrast(
        n=len(labels),
        correct=int((first & second).sum()),
        alike=tuple(np.bincount(answers[alike], minlength=classes).tolist()),
        reversed=int(exchanged.sum()),
        half=int(((first ^ second) & ~alike).sum()),
        astray=int((~first & ~second & ~alike & ~exchanged).sum()),
        right=int(first.sum() + second.sum()),
    )


def contrast_of(model: Callable[[Tensor], Tensor], pairs: Pairs) -> Contrast:
    """`contrast` of a model's answers; model: `[B, ...]` to logits `[B, K]`. Two forward passes a pair."""
    with torch.no_grad():
        scores = [torch.cat([model(part).cpu() for part in side.split(BATCH)]) for side in (pairs.samples, pairs.twins)]
    answers, twin_answers = (side.argmax(dim=1).numpy() for side in scores)
    labels = pairs.labels.cpu().numpy(), pairs.twin_labels.cpu().numpy()
    return contrast(*labels, answers, twin_answers, scores[0].shape[1])


class WorstGroup(NamedTuple):
    """interval: Clopper-Pearson at 95 % over all `groups` together (Bonferroni), since the worst was picked."""

    accuracy: float
    n: int
    interval: Interval
    groups: int


def worst_group(
    embeddings: Floats, right: NDArray[np.bool_], clusters: int, seed: int, labels: Labels | None = None
) -> WorstGroup:
    """WGA_k: the least accuracy over k-means clusters of the embeddings `[n, d]`, found without labels.

    right: bool `[n]`. clusters: the paper's k is 2 to 7. labels `[n]`: cross the clusters with the classes. A small
    group is the worst by chance easily, which the interval says and the accuracy does not.
    """
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all() or right.shape != (len(embeddings),):
        raise InvalidInput(f"embeddings must be finite [n, d] with right [n], got {list(embeddings.shape)}")
    if not 1 <= clusters <= len(embeddings):
        raise InvalidInput(f"clusters must be in [1, n = {len(embeddings)}], got {clusters}")
    found = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit_predict(embeddings)
    keys = found if labels is None else np.stack([found, labels], axis=1)
    group, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)[1:]
    hits = np.bincount(group.reshape(-1), weights=right).astype(np.int64)
    worst = int((hits / sizes).argmin())
    count, n = int(hits[worst]), int(sizes[worst])
    return WorstGroup(count / n, n, clopper_pearson(count, n, 1 - 0.05 / len(sizes)), len(sizes))


class Purity(NamedTuple):
    """chance: what features without information have, the share of other samples with the same class."""

    value: float
    chance: float


def purity(embeddings: Floats, labels: Labels, neighbours: int = 10) -> Purity:
    """Mean share of the nearest other samples (Euclidean) with the same label. embeddings: `[n, d]`; labels: `[n]`.

    Misleads as a sign of a repair: it is 1 where classes lie in separate clusters of class and nuisance, though the
    head answers by the nuisance.
    """
    n = len(embeddings)
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all() or labels.shape != (n,):
        raise InvalidInput(f"embeddings must be finite [n, d] with labels [n], got {list(embeddings.shape)}")
    if not 1 <= neighbours < n:
        raise InvalidInput(f"neighbours must be in [1, n - 1 = {n - 1}], got {neighbours}")
    near = NearestNeighbors(n_neighbors=neighbours).fit(embeddings).kneighbors(return_distance=False)
    counts = np.unique(labels, return_counts=True)[1]
    chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
    return Purity(float((labels[near] == labels[:, None]).mean()), chance)


class AttributionStatistics(NamedTuple):
    """within: mean squared distance to the class mean `[K]`, low is steady. between: distance of class means `[K, K]`,
    high is separable. In the order of the sorted labels."""

    within: Floats
    between: Floats


def attribution_statistics(attributions: Floats, labels: Labels) -> AttributionStatistics:
    """How steady attributions `[n, d]` are within a class, and how different between classes.

    Magnitudes are brought to sum 1 a sample. The paper's vector of node scores is a reconstruction; for images use
    regions that mean the same in every image, such as tiles of centred objects. Raises InvalidInput for one class and
    for an attribution of 0 everywhere.
    """
    magnitudes = np.abs(attributions)
    totals = magnitudes.sum(axis=1, keepdims=True)
    classes = np.unique(labels)
    if len(classes) < 2 or len(labels) != len(attributions):
        raise InvalidInput(f"labels must be [n] of at least two classes, got {len(classes)} classes")
    if not np.isfinite(totals).all() or (totals <= 0).any():
        raise InvalidInput("attributions must be finite and not 0 everywhere in a sample")
    shares = magnitudes / totals
    means = np.stack([shares[labels == label].mean(axis=0) for label in classes])
    spread = ((shares - means[np.searchsorted(classes, labels)]) ** 2).sum(axis=1)
    within = [spread[labels == label].mean() for label in classes]
    return AttributionStatistics(np.array(within), np.linalg.norm(means[:, None] - means[None], axis=2))


def node_dependency(score: Callable[[Tensor], Tensor], nodes: Tensor, fill: Tensor | None = None) -> Tensor:
    """D `[N, N]`: mean change of node i's score when node j is replaced, over the samples; N + 1 passes a sample.

    score: nodes `[B, N, F]` to scores `[B, N]`. nodes: `[B, N, F]`, such as nodes of a graph or tiles of an image.
    fill: `[F]`, by default the mean over all nodes. A few dominant columns say that all scores hang on those nodes.
    """
    if nodes.ndim != 3 or len(nodes) == 0:
        raise InvalidInput(f"nodes must be [B, N, F] with B above 0, got {list(nodes.shape)}")
    blank = nodes.mean(dim=(0, 1)) if fill is None else fill
    columns = []
    with torch.no_grad():
        before = score(nodes)
        if before.shape != nodes.shape[:2]:
            raise InvalidInput(f"score must give [B, N] = {list(nodes.shape[:2])}, got {list(before.shape)}")
        for node in range(nodes.shape[1]):
            without = nodes.clone()
            without[:, node] = blank
            columns.append((score(without) - before).abs().mean(dim=0))
    return torch.stack(columns, dim=1)


register_functions(
    "discovery/counterfactual-pairs",
    paper="Egea et al., 2025",
    card="counterfactual-code-vision",
    access=Access.LABELS,
    data="pairs of a sample and its counterfactual twin, or an editor that makes twins",
    module=__name__,
)
