"""Some images of the data set held in memory, with their answers, so that images can borrow from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow.compute as pc
import torch
from torch import Tensor

from snellen.discovery._blocks import grown
from snellen.probe import Rows, Samples
from snellen.randomness import SampleRandom
from snellen.subset import drawn


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
    """The samples that have an answer, at most `most` of them, by the hash of the id; None for fewer than two.

    Where at least half of them have a mask, those without are left out: they cannot be judged alike. Otherwise masks
    are ignored.
    """
    table = predictions.select(["id", "predicted"])
    table = table.filter(pc.not_equal(table["predicted"], -1))
    answers = dict(zip(table["id"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    met = sorted(drawn(_met(samples, answers), most, random), key=lambda one: one[0])
    with_mask = [one for one in met if one[1].mask.any()]
    masked = 0 < len(met) <= 2 * len(with_mask)
    met = with_mask if masked else met
    if len(met) < 2:
        return None
    return Pool(
        [name for name, _ in met],
        torch.stack([seen.image for _, seen in met]),
        torch.stack([seen.mask for _, seen in met]) if masked else None,
        torch.tensor([seen.label for _, seen in met]),
        torch.tensor([answers[name] for name, _ in met]),
    )


class _Seen(NamedTuple):
    """mask: empty where there is none."""

    image: Tensor
    mask: Tensor
    label: int


def _met(samples: Samples, answers: Mapping[str, int]) -> Iterator[tuple[str, _Seen]]:
    for batch in samples.batches():
        kept = [index for index, sample_id in enumerate(batch.ids) if sample_id in answers]
        if not kept:
            continue
        images = (batch.images[kept] * 255).round().to(torch.uint8).cpu()
        none = torch.zeros(len(kept), *images.shape[-2:], dtype=torch.bool)
        masks = none if batch.masks is None else batch.masks[kept].cpu()
        labels = batch.labels[kept].tolist()
        for index, image, mask, label in zip(kept, images, masks, labels, strict=True):
            yield batch.ids[index], _Seen(image.clone(), mask.clone(), label)  # views would hold the whole batch
