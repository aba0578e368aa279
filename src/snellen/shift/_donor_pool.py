"""A few images of every class kept in memory, to lend patches to images of other classes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.probe import Samples
from snellen.randomness import SampleRandom, derive_seed

MOST_CLASSES = 128
"""Classes that lend; beyond it, the ones whose numbers hash lowest, so that memory stays bounded."""


@dataclass(frozen=True)
class DonorPool:
    """images: uint8 `[n, C, H, W]` on the CPU, by class. labels: int64 `[n]`. ids: whose they are."""

    images: Tensor
    labels: Tensor
    ids: Sequence[str]

    def foreign(self, labels: Tensor, generators: Sequence[Generator]) -> Tensor:
        """For every label `[B]` the row of a donor of another class, all of them equally likely, int64 `[B]`."""
        rows = []
        for label, generator in zip(labels.tolist(), generators, strict=True):
            others = torch.nonzero(self.labels != label).flatten()
            if not len(others):
                raise InvalidInput("the data must hold two classes or more for foreign patches, got one")
            rows.append(others[torch.randint(len(others), (), generator=generator)])
        return torch.stack(rows)

    def show(self, rows: Tensor, like: Tensor) -> Tensor:
        """The given donors as float `[B, C, H, W]` in [0, 1] on the device of `like`."""
        return self.images[rows].to(like.device).to(like.dtype).div_(255)


def donor_pool(samples: Samples, a_class: int, random: SampleRandom) -> DonorPool:
    """At most `a_class` images of each class, the same whatever the batch size and order."""
    pool: dict[int, list[tuple[int, str, Tensor]]] = {}
    order: dict[int, int] = {}
    for batch in samples.batches():
        for i, (sample_id, label) in enumerate(zip(batch.ids, batch.labels.tolist(), strict=True)):
            if label not in order:
                order[label] = derive_seed(random.seed, random.method, "donor class", label)
                pool[label] = []
                lenders = sorted(pool, key=order.__getitem__)
                for beyond in lenders[MOST_CLASSES:]:
                    del pool[beyond]
            if label not in pool:
                continue
            mine = pool[label]
            rank = -derive_seed(random.seed, random.method, "donor", sample_id)
            if len(mine) < a_class or rank > mine[0][0]:
                push = heapq.heappush if len(mine) < a_class else heapq.heapreplace
                push(mine, (rank, sample_id, (batch.images[i] * 255).round().to(torch.uint8).cpu()))
    kept = [(label, *entry) for label in sorted(pool) for entry in sorted(pool[label], key=lambda entry: -entry[0])]
    images = torch.stack([entry[3] for entry in kept]) if kept else torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    return DonorPool(images, torch.tensor([entry[0] for entry in kept], dtype=torch.int64), [e[2] for e in kept])
