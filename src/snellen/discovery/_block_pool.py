"""Some images of the data set held in memory, with their answers, so that images can borrow from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from snellen.discovery._blocks import grown
from snellen.probe import Rows, Samples
from snellen.randomness import SampleRandom, derive_seed


class Pool(NamedTuple):
    """Sorted by id, on the CPU. images: uint8 `[n, C, H, W]`. masks: bool `[n, H, W]`, True on the object, or None.
    labels, answers: int64 `[n]`."""

    ids: list[str]
    images: Tensor
    masks: Tensor | None
    labels: Tensor
    answers: Tensor

    def shown(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Images float32 `[B, C, H, W]` in [0, 1] and their grown masks on `device`."""
        masks = None if self.masks is None else grown(self.masks[rows].to(device))
        return self.images[rows].to(device).float() / 255, masks


def read_pool(samples: Samples, predictions: Rows, random: SampleRandom, most: int) -> Pool | None:
    """The images that have an answer, at most `most` of them, by the hash of the id; None for fewer than two.

    Where at least half of them have a mask, those without are left out: they cannot be judged alike. Otherwise masks
    are ignored.
    """
    table = predictions.select(["id", "predicted"])
    table = table.filter(pc.not_equal(table["predicted"], -1))
    if table.num_rows > most:
        ids = table["id"].to_pylist()
        rank = np.array([derive_seed(random.seed, random.method, "subset", name) for name in ids])
        table = table.take(pa.array(np.argpartition(rank, most)[:most]))
    answers = dict(zip(table["id"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    met = sorted(_met(samples, answers), key=lambda one: one[0])
    with_mask = [one for one in met if one[2].any()]
    masked = 0 < len(met) <= 2 * len(with_mask)
    met = with_mask if masked else met
    if len(met) < 2:
        return None
    return Pool(
        [one[0] for one in met],
        torch.stack([one[1] for one in met]),
        torch.stack([one[2] for one in met]) if masked else None,
        torch.tensor([one[3] for one in met]),
        torch.tensor([answers[one[0]] for one in met]),
    )


def _met(samples: Samples, answers: Mapping[str, int]) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Id, image, mask (empty where there is none) and label of the samples in `answers`."""
    for batch in samples.batches():
        kept = [index for index, sample_id in enumerate(batch.ids) if sample_id in answers]
        if not kept:
            continue
        images = (batch.images[kept] * 255).round().to(torch.uint8).cpu()
        none = torch.zeros(len(kept), *images.shape[-2:], dtype=torch.bool)
        masks = none if batch.masks is None else batch.masks[kept].cpu()
        labels = batch.labels[kept].tolist()
        yield from zip([batch.ids[index] for index in kept], images, masks, labels, strict=True)
