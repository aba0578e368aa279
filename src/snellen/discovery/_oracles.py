"""Who says that a changed image still shows its class: votes of models that stand in for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models import labels_of

Answering: TypeAlias = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` to scores `[B, K]` or labels int64 `[B]`."""
Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` to features `[B, D]`."""
Vote = Literal["majority", "all"]

CHUNK = 256


def answers(model: Answering, images: Tensor) -> Tensor:
    """Labels int64 `[B]` of a model that gives scores or labels; -1 where its scores are not finite."""
    with torch.no_grad():
        given = [model(part) for part in images.split(CHUNK)]
    found = torch.cat(given) if given else torch.empty(0, dtype=torch.long)
    if len(found) != len(images) or found.ndim not in (1, 2) or (found.ndim == 1 and found.is_floating_point()):
        raise InvalidInput(
            f"a model must give scores [{len(images)}, K] or whole labels [{len(images)}], got {found.dtype}"
            f" {list(found.shape)}"
        )
    return labels_of(found) if found.ndim == 2 else found.long()


@dataclass(frozen=True)
class OraclePanel:
    """A panel of oracles, which keeps a label when a majority (strictly more than half) or all of them give it."""

    oracles: Sequence[Answering]
    vote: Vote = "majority"

    def __post_init__(self) -> None:
        if not self.oracles:
            raise InvalidInput("oracles must hold at least one model, got none")
        if self.vote not in ("majority", "all"):
            raise InvalidInput(f"vote must be 'majority' or 'all', got {self.vote!r}")

    def share(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which share of the oracles gives the label, float32 `[B]`."""
        right = [answers(oracle, images) == labels for oracle in self.oracles]
        return torch.stack(right).float().mean(dim=0)

    def keeps(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether the vote is for the label, bool `[B]`."""
        share = self.share(images, labels)
        return share == 1 if self.vote == "all" else share > 0.5


def nearest_oracle(embedder: Embedding, images: Tensor, labels: Tensor, neighbours: int = 5) -> Answering:
    """An oracle from any embedder: the commonest class among the most similar (cosine) of the given images.

    Use an embedder that has nothing in common with the model under test, and images that are not examined. Of classes
    with as many neighbours the one whose neighbours are more similar wins.
    """
    bank, count = _bank(embedder, images, labels)
    if not 1 <= neighbours <= len(bank):
        raise InvalidInput(f"neighbours must be 1 to the number of images ({len(bank)}), got {neighbours}")
    member = F.one_hot(labels.to(bank.device), count).to(bank.dtype)

    def scores(queries: Tensor) -> Tensor:
        similar = _features(embedder, queries) @ bank.T
        top = similar.topk(neighbours, dim=1)
        # Similarities are at most 1, so below one vote in sum: they only break ties.
        weight = 1 + (top.values + 1) / (4 * neighbours)
        return torch.einsum("bk,bkc->bc", weight, member[top.indices])

    return scores


def centroid_oracle(embedder: Embedding, images: Tensor, labels: Tensor) -> Answering:
    """An oracle from any embedder: the class whose mean direction is the most similar (cosine)."""
    bank, count = _bank(embedder, images, labels)
    member = F.one_hot(labels.to(bank.device), count).to(bank.dtype)
    centres = F.normalize(member.T @ bank, dim=1)

    def scores(queries: Tensor) -> Tensor:
        return _features(embedder, queries) @ centres.T

    return scores


def _bank(embedder: Embedding, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    if len(images) == 0 or labels.shape != (len(images),) or bool((labels < 0).any()):
        raise InvalidInput(f"an oracle needs images with a label each, got {len(images)} and {list(labels.shape)}")
    with torch.no_grad():
        features = torch.cat([_features(embedder, part) for part in images.split(CHUNK)])
    return features, int(labels.max()) + 1


def _features(embedder: Embedding, images: Tensor) -> Tensor:
    features = embedder(images).flatten(1)
    if len(features) != len(images) or not bool(features.isfinite().all()):
        raise InvalidInput(f"embedder must give finite features [{len(images)}, D], got {list(features.shape)}")
    return F.normalize(features.float(), dim=1)
