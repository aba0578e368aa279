"""A random part of the data kept in memory, for methods that come back to the same images in any order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from snellen.probe import Batch, Samples
from snellen.randomness import SampleRandom, derive_seed

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Subset:
    """Images in random order. images: uint8 `[n, C, H, W]` on the CPU. labels: int64 `[n]` there."""

    ids: Sequence[str]
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: range, device: torch.device) -> Batch:
        """The given rows as a probe sees them."""
        part = slice(rows.start, rows.stop)
        images = self.images[part].to(device).float().div_(255)
        return Batch(list(self.ids[part]), images, self.labels[part].to(device))


def random_subset(samples: Samples, count: int, random: SampleRandom) -> Subset:
    """At most `count` samples, the same whatever the batch size; a larger subset starts with a smaller one."""
    kept = drawn(_seen(samples), count, random)
    images = torch.stack([image for _, (image, _) in kept]) if kept else torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    return Subset([sample_id for sample_id, _ in kept], images, torch.tensor([label for _, (_, label) in kept]).long())


def drawn(entries: Iterable[tuple[str, Entry]], count: int, random: SampleRandom) -> list[tuple[str, Entry]]:
    """At most `count` of the entries (id, anything), those whose ids hash lowest, in that order; no more are held."""
    kept: list[tuple[int, str, Entry]] = []
    for sample_id, entry in entries:
        rank = -derive_seed(random.seed, random.method, "subset", sample_id)
        if len(kept) < count:
            heapq.heappush(kept, (rank, sample_id, entry))
        elif rank > kept[0][0]:
            heapq.heapreplace(kept, (rank, sample_id, entry))
    kept.sort(key=lambda one: -one[0])
    return [(sample_id, entry) for _, sample_id, entry in kept]


def _seen(samples: Samples) -> Iterator[tuple[str, tuple[Tensor, int]]]:
    for batch in samples.batches():
        pixels = (batch.images * 255).round().to(torch.uint8).cpu()
        for sample_id, image, label in zip(batch.ids, pixels, batch.labels.tolist(), strict=True):
            yield sample_id, (image.clone(), label)  # a view would hold the whole batch
