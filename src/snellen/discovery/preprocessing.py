"""Does the model see its images as it did in training, or does it do better on changed ones?

A wrong channel order, scale or orientation costs accuracy silently: nothing fails, every answer is a little worse. Here
each image is also shown in some forty other ways (normalised otherwise, channels reversed, scaled, gamma, inverted,
mirrored, turned, cropped, blurred), and a way that makes the model *more* accurate than the images as given is a
suspicion. The way is chosen on one half of the images and judged on the other. No paper: it is what one tries by hand.

Misleads: a change may help without any error in the preprocessing, as when small objects are enlarged; the statement
is then still true, and the cure is in the images. A wrong scale is met only up to the grid's steps; a wrong way of
resizing is hardly seen. Other than everywhere else, images here may leave [0, 1]: a wrong normalisation does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom, derive_seed
from snellen.stats import mcnemar_exact, needed_samples, paired_difference, wilson

FACTORS = (0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.45, 1.7, 2.0, 2.8, 4.0)
GAMMAS = (0.45, 0.7, 1.4, 2.2)
CONTRASTS = (0.5, 0.75, 1.4, 2.0)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The usual normalisation of ImageNet's networks."""
MOST_EVIDENCE = 12


def ways(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Other ways to show `images` (float `[B, C, H, W]` in [0, 1]), each with what was done in plain words."""
    for factor in FACTORS:
        yield f"{'brighter' if factor > 1 else 'darker'} (pixels times {factor:g})", images * factor
    yield "on a scale of 0 to 255", images * 255
    yield "on a scale of -1 to 1", images * 2 - 1
    for gamma in GAMMAS:
        yield (
            f"{'darker' if gamma > 1 else 'brighter'} in the mid-tones (gamma {gamma:g})",
            images.clamp_min(0) ** gamma,
        )
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    for factor in CONTRASTS:
        changed = ((images - middle) * factor + middle).clamp(0, 1)
        yield f"with {'more' if factor > 1 else 'less'} contrast (times {factor:g})", changed
    yield "inverted (black for white)", 1 - images
    if images.shape[1] == 3:
        yield "with red and blue exchanged (BGR for RGB)", images.flip(1)
        mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        yield "normalised by ImageNet's mean and deviation", (images - mean) / deviation
        yield "without the normalisation by ImageNet's mean and deviation", images * deviation + mean
        yield "in grey", images.mean(dim=1, keepdim=True).expand_as(images)
    yield "mirrored left to right", images.flip(3)
    yield "upside down", images.flip(2)
    yield "turned by 180 degrees", images.flip((2, 3))
    if images.shape[2] == images.shape[3]:
        yield "turned by 90 degrees to the left", images.rot90(1, (2, 3))
        yield "turned by 90 degrees to the right", images.rot90(-1, (2, 3))
        yield "with rows and columns exchanged", images.transpose(2, 3)
    for share in (0.875, 0.75):
        yield f"enlarged (the middle {share:.0%} of each side)", _middle(images, share)
        yield f"smaller, with a border (at {share:.0%} of the size)", _smaller(images, share)
    yield "softened (half the resolution)", _resized(_resized(images, 0.5), images.shape[-2:])


def _middle(images: Tensor, share: float) -> Tensor:
    height, width = images.shape[-2:]
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    return _resized(images[:, :, top : height - top, left : width - left], (height, width))


def _smaller(images: Tensor, share: float) -> Tensor:
    height, width = images.shape[-2:]
    small = _resized(images, (max(round(height * share), 1), max(round(width * share), 1)))
    down, right = height - small.shape[-2], width - small.shape[-1]
    return F.pad(small, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def _resized(images: Tensor, to: float | tuple[int, int] | torch.Size) -> Tensor:
    size = [max(round(side * to), 1) for side in images.shape[-2:]] if isinstance(to, float) else list(to)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


@register
@dataclass(frozen=True)
class PreprocessingCheck(ProbeBase):
    """Changes of the input that make the model more accurate than the images as given.

    Rows: one a sample and way, `way` "as given" among them, with `correct`. Value: accuracy with the best way; baseline
    and effect: accuracy as given, and what is gained, both on the half of the images that did not choose the way.
    """

    name: ClassVar[str] = "discovery/preprocessing"
    paper: ClassVar[str] = "snellen"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    min_effect: float = 0.02
    """Gains below this many accuracy points (0 to 1) are not reported."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        for way, images in ways(batch.images):
            yield Condition(way, 1.0, images)

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        labels = batch.labels
        right = {"as given": model.labels(batch.images) == labels}
        for way, images in ways(batch.images):
            right[way] = model.labels(images) == labels
        return rows(
            list(batch.ids) * len(right),
            way=pa.array(np.repeat(list(right), len(batch))).dictionary_encode(),
            correct=torch.cat(list(right.values())),
        )

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + sum(1 for _ in ways(torch.zeros(1, 3, 8, 8)))))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        ids, right = _right(table)
        given = right["as given"]
        choosing = np.array([derive_seed(context.seed, self.name, sample_id) % 2 == 0 for sample_id in ids])
        best = max(right, key=lambda way: int(right[way][choosing].sum()))
        suspected = float(right[best][choosing].mean() - given[choosing].mean()) if choosing.any() else 0.0
        if best == "as given" or suspected < max(self.min_effect, 1e-9):
            return []
        gained, lost = (int((a & ~b)[~choosing].sum()) for a, b in ((right[best], given), (given, right[best])))
        n = int((~choosing).sum())
        p_value = mcnemar_exact(gained, lost)
        value, baseline = (float(which[~choosing].mean()) if n else 0.0 for which in (right[best], given))
        enough = p_value <= 0.05 and gained > lost
        needed = 2 * needed_samples(suspected, float(right[best][choosing].mean()))
        title = (
            f"The model is right on {value:.1%} of images that are shown {best}, against {baseline:.1%} as given:"
            " they are probably not prepared as in its training"
        )
        if not enough:
            title = (
                f"Whether the images should be shown {best} cannot be told, not enough data: n = {len(ids)},"
                f" needs about {needed}"
            )
        freed = np.flatnonzero(right[best] & ~given & ~choosing)[:MOST_EVIDENCE]
        return [
            Finding(
                kind="accuracy",
                title=title,
                metric="accuracy with images shown another way",
                value=value,
                baseline=baseline,
                effect=value - baseline,
                ci=wilson(int(right[best][~choosing].sum()), n) if n else None,
                n=n,
                subject={"images": best},
                measured=("images",),
                p_value=p_value,
                evidence=[ids[row] for row in freed.tolist()],
                enough_data=enough,
            )
        ]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        ids, right = _right(table)
        given = right["as given"]
        bars = []
        for way in sorted(right, key=lambda way: -int(right[way].sum()))[:12]:
            if way != "as given":
                gain = paired_difference(right[way], given)
                bars.append(Bar(way, float(right[way].mean() - given.mean()), *gain, len(ids)))
        caption = (
            f"Accuracy on all {len(ids)} images shown another way minus accuracy as given ({given.mean():.1%}); the"
            " twelve best, with 95 % intervals of the paired difference. Right of the line the change helps."
        )
        return [Bars("Would the model rather see other images?", caption, "gain in accuracy", bars, reference=0.0)]


def _right(table: Rows) -> tuple[list[str], dict[str, NDArray[np.bool_]]]:
    """Ids, sorted, and for each way which of them were right."""
    ways_tried = table["way"].combine_chunks().cast(pa.string()).to_numpy(zero_copy_only=False)
    correct = table["correct"].to_numpy(zero_copy_only=False)
    ids = table["id"].to_numpy(zero_copy_only=False)
    right, names = {}, np.array([], dtype=object)
    for way in dict.fromkeys(ways_tried):
        rows_of = np.flatnonzero(ways_tried == way)
        order = rows_of[np.argsort(ids[rows_of])]
        right[str(way)], names = correct[order].astype(bool), ids[order]
    return names.tolist(), right
