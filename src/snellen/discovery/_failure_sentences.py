"""From failures to sentences: groups of failures that look alike, and what their captions have in common.

A sentence is a template with the class name in it, followed by details ("on stripes", "with a red tag") with commas
between. This is the form of our scene grammar and, with one detail, of a free caption ("sitting on a flower").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score

Details: TypeAlias = tuple[str, ...]

MOST_CLUSTERS = 8
MOST_CLUSTERED = 1000
"""Pairs of more failures than that cost more than they tell; the first are as random as any."""
LEAST_SILHOUETTE = 0.25
"""Below it clusters are no better than none (Kaufman and Rousseeuw, 1990), and the failures stay together."""
_PLACES = (
    "on in at with without near under above behind beside between inside against among next from through over sitting"
    " standing lying flying hanging held surrounded"
)
_DETAIL = re.compile(rf"\b(?:{_PLACES.replace(' ', '|')})\b.*")


def sentence(template: str, class_name: str, details: Details) -> str:
    """`template` holds `{}` for the class name."""
    return " ".join([template.format(class_name), ", ".join(details)]).strip()


def details_of(caption: str, class_name: str) -> Details:
    """What a caption says besides its class, as lower-case phrases; () when nothing is left.

    All that follows the class name; when the caption names another thing, all from the first word of place on, for "a
    bug on a flower" tells of a fly that the captioner did not know.
    """
    text = re.sub(r"\s+", " ", caption.lower()).strip(" .,")
    after = re.search(rf"\b{re.escape(class_name.lower())}\b(.*)", text)
    found = after[1] if after else place[0] if (place := _DETAIL.search(text)) else ""
    return tuple(dict.fromkeys(part.strip() for part in found.split(",") if part.strip()))


def clusters(embeddings: NDArray[np.float64], least: int) -> list[NDArray[np.int64]]:
    """Rows of `embeddings` `[n, D]` that lie together by angle, in groups of at least `least`, the largest first.

    Average linkage; the number of groups by silhouette, which is our choice. One group when none stands out.
    """
    points = embeddings[:MOST_CLUSTERED]
    if len(points) < least:
        return []
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    best, codes = LEAST_SILHOUETTE, np.ones(len(points), dtype=np.int64)
    if len(points) >= 2 * least:
        distances = pdist(points)
        tree, square = linkage(distances, "average"), squareform(distances)
        for count in range(2, min(MOST_CLUSTERS, len(points) // least) + 1):
            tried = fcluster(tree, count, "maxclust")
            if len(np.unique(tried)) > 1:
                score = float(silhouette_score(square, tried, metric="precomputed"))
                best, codes = (score, tried) if score > best else (best, codes)
    groups = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    return sorted((group for group in groups if len(group) >= least), key=len, reverse=True)


def candidates(described: Sequence[Details], keep: int) -> list[Details]:
    """At most `keep` descriptions of a cluster: its most typical caption and its commonest details, then more captions.

    Typical is the largest mean overlap of words with the other captions (Jaccard). A caption that lists everything
    seen is too narrow a sentence; a detail that most members share, alone, is the wider one.
    """
    if not described:
        return []
    words = [frozenset(" ".join(details).split()) for details in described]
    vocabulary = {word: column for column, word in enumerate(sorted(frozenset.union(*words)))}
    has = np.zeros((len(words), len(vocabulary)))
    for row, of in enumerate(words):
        has[row, [vocabulary[word] for word in of]] = 1
    shared, sizes = has @ has.T, has.sum(axis=1)
    typical = (shared / (sizes[:, None] + sizes - shared)).mean(axis=1)
    captions = [described[row] for row in np.argsort(-typical.round(12), kind="stable").tolist()]
    single = [(detail,) for detail in commonest(described)]
    return list(dict.fromkeys([captions[0], *single[: keep - 1], *captions, *single]))[:keep]


def commonest(described: Sequence[Details]) -> list[str]:
    """Details by how many captions have them, the commonest first."""
    counts = Counter(detail for details in described for detail in details)
    return sorted(counts, key=lambda detail: (-counts[detail], detail))


def edits(details: Details, others: Sequence[str]) -> list[Details]:
    """Descriptions that differ by one detail: each left out, and each of `others` added."""
    shorter = [details[:place] + details[place + 1 :] for place in range(len(details))] if len(details) > 1 else []
    return [*shorter, *((*details, other) for other in others if other not in details)]
