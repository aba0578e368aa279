"""A random part of the data kept in memory, for methods that come back to the same images in any order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snellen.probe import Batch, Samples
from snellen.randomness import SampleRandom, derive_seed


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
    kept: list[tuple[int, str, Tensor, int]] = []
    for batch in samples.batches():
        pixels = (batch.images * 255).round().to(torch.uint8).cpu()
        for sample_id, image, label in zip(batch.ids, pixels, batch.labels.tolist(), strict=True):
            rank = -derive_seed(random.seed, random.method, "subset", sample_id)
            if len(kept) < count:
                heapq.heappush(kept, (rank, sample_id, image.clone(), label))
            elif rank > kept[0][0]:
                heapq.heapreplace(kept, (rank, sample_id, image.clone(), label))
    kept.sort(key=lambda entry: -entry[0])
    images = torch.stack([entry[2] for entry in kept]) if kept else torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    return Subset([entry[1] for entry in kept], images, torch.tensor([entry[3] for entry in kept], dtype=torch.int64))
