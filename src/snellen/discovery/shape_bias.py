"""By which cues does the model decide: by the shape of the object, by its texture, by the layout of the whole?

After Chen et al. (2020), who compared standard and adversarially trained networks. The images that the model answers
rightly are shown without texture (silhouette, contour, Canny's edges), without layout (tiles exchanged by one fixed
permutation), and in cue conflict: the shape of one image filled with the texture of another class. Shape bias is the
share of answers for the shape among the answers for either (Geirhos et al., 2019). Accuracy on the untouched images is
1 by construction, so that every accuracy is a share kept.

This is information and no fault. Misleads (1) where altered images are unlike anything seen: a fall then shows
novelty as much as the missing cue, which is why cue conflict counts most; (2) in the conflict here, which cuts along
the masks and repeats the texture of the box in the middle of the other object, where the published sets transfer
style; (3) where few answers are for either cue: a shape bias of 0.5 on 12 answers says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from snellen.discovery._block_pool import Pool, read_pool
from snellen.discovery._blocks import donors_of
from snellen.discovery._canny import canny_edges
from snellen.discovery._stimuli import (
    ShapeBias,
    coarse_answers,
    contour,
    cue_conflict,
    scramble,
    shape_bias,
    silhouette,
    tile_order,
)
from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import needed_samples, wilson

__all__ = [
    "ShapeBias",
    "ShapeBiasProbe",
    "canny_edges",
    "coarse_answers",
    "contour",
    "cue_conflict",
    "scramble",
    "shape_bias",
    "silhouette",
    "tile_order",
]

CHUNK = 128
CONFLICT = "cue conflict"
SMALLEST = 8
"""Pixels a side of an image below which there is nothing to scramble."""
MARGIN = 0.15
"""Half the width of the interval that a share has to have before it is told."""


@register
@dataclass(frozen=True)
class ShapeBiasProbe(ProbeBase):
    """What is left of the right answers without texture or layout, and which cue wins (Chen et al., 2020).

    Rows: one an image answered rightly and version; predicted, texture (in cue conflict the class of the texture, else
    -1). Silhouettes, contours and cue conflict need masks. All findings are information: effect 0.
    """

    name: ClassVar[str] = "discovery/shape-bias"
    paper: ClassVar[str] = "Chen et al., 2020"
    card: ClassVar[str | None] = "shape-simplicity-robust-cnn"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    grids: tuple[int, ...] = (2, 4)
    """Tiles a side, at least 2, ascending; those that do not divide the image are left out. The paper's is 2."""
    most: int = 1000
    """Images used, a random subset of a larger set; at least 20."""

    def __post_init__(self) -> None:
        if not self.grids or not all(a < b for a, b in zip((1, *self.grids), self.grids, strict=False)):
            raise InvalidInput(f"grids must be whole numbers above 1, ascending, got {list(self.grids)}")
        if self.most < 20:
            raise InvalidInput(f"most must be at least 20, got {self.most}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        pool = read_pool(samples, tables["predictions"], random, self.most)
        if pool is None or min(pool.images.shape[-2:]) < SMALLEST:
            return pa.table({})
        right = torch.nonzero(pool.answers == pool.labels).flatten()
        if len(right) == 0:
            return pa.table({})
        parts = [
            self._version(model, pool, at, name, images, texture)
            for at in right.split(CHUNK)
            for name, images, texture in self._versions(pool, at, random, model.device)
        ]
        return pa.concat_tables(parts)

    def _versions(
        self, pool: Pool, at: Tensor, random: SampleRandom, device: torch.device
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, images and texture class (-1 none) of every version of the images `at`."""
        images, none = pool.images[at].to(device).float() / 255, torch.full((len(at),), -1)
        height, width = images.shape[-2:]
        for grid in self.grids:
            if height % grid == 0 and width % grid == 0:
                yield f"scrambled {grid} x {grid}", scramble(images, tile_order(grid)), none
        drawn = canny_edges(images).unsqueeze(1).to(images.dtype)
        yield "edges", drawn.expand_as(images), none
        if pool.masks is None:
            return
        masks = pool.masks[at].to(device)
        yield "silhouette", silhouette(images, masks), none
        yield "contour", contour(images, masks), none
        ids = [pool.ids[row] for row in at.tolist()]
        donors = donors_of(pool.labels, random.generators(ids, "texture"), foreign=True, rows=at)
        if (donors >= 0).all():
            textures = pool.images[donors].to(device).float() / 255
            mixed = cue_conflict(images, masks, textures, pool.masks[donors].to(device))
            yield CONFLICT, mixed, pool.labels[donors]

    def _version(self, model: Model, pool: Pool, at: Tensor, name: str, images: Tensor, texture: Tensor) -> Rows:
        return rows(
            [pool.ids[row] for row in at.tolist()],
            version=[name] * len(at),
            label=pool.labels[at],
            texture=texture,
            predicted=model.labels(images).cpu(),
        )

    def cost(self, batch_size: int) -> Passes:
        """Of images with masks that are all answered rightly."""
        return Passes(forward=min(batch_size, self.most) * (len(self.grids) + 4))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        kept = [self._kept(table, name) for name in _versions_in(table) if name != CONFLICT]
        return [*self._conflict(table), *kept]

    def _kept(self, table: Rows, name: str) -> Finding:
        part = table.filter(pc.equal(table["version"], name))
        correct = part["predicted"].to_numpy() == part["label"].to_numpy()
        n, needed = len(correct), needed_samples(MARGIN, 0.5)
        share, ci = float(correct.mean()), wilson(int(correct.sum()), n)
        title = f"Shown as {name}, {share:.0%} ({ci.low:.2f} to {ci.high:.2f}) of {n} right answers stay right."
        if n < needed:
            title = f"Not enough data to tell what stays right as {name}: n = {n}, needs about {needed}."
        return Finding(
            kind="explanation",
            title=title,
            metric="share of right answers kept",
            value=share,
            effect=0.0,
            n=n,
            subject={"version": name},
            ci=(ci.low, ci.high),
            evidence=[part["id"][row].as_py() for row in np.flatnonzero(~correct)[:12].tolist()],
            enough_data=n >= needed,
        )

    def _conflict(self, table: Rows) -> list[Finding]:
        part = table.filter(pc.equal(table["version"], CONFLICT))
        if part.num_rows == 0:
            return []
        found = shape_bias(*(torch.tensor(part[name].to_numpy()) for name in ("predicted", "label", "texture")))
        decided, needed = found.shape + found.texture, needed_samples(MARGIN, 0.5)
        enough = decided >= needed
        cue = "the shape" if found.shape >= found.texture else "the texture"
        title = (
            f"With the shape of one class and the texture of another, the model goes by {cue}: shape bias"
            f" {found.bias:.2f} ({found.low:.2f} to {found.high:.2f}) over {decided} answers for either,"
            f" of {part.num_rows}."
        )
        if enough and found.low <= 0.5 <= found.high:
            title = (
                f"With the shape of one class and the texture of another, neither surely wins: shape bias"
                f" {found.bias:.2f} ({found.low:.2f} to {found.high:.2f}) over {decided} answers of {part.num_rows}."
            )
        if not enough:
            title = (
                "Not enough data to tell whether shape or texture wins: n = "
                f"{decided} answers for either, needs about {needed}."
            )
        return [
            Finding(
                kind="explanation",
                title=title,
                metric="shape bias",
                value=found.bias if decided else None,
                effect=0.0,
                n=decided,
                subject={"version": CONFLICT},
                ci=(found.low, found.high) if decided else None,
                enough_data=enough,
            )
        ]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        bars = []
        for name in _versions_in(table):
            part = table.filter(pc.equal(table["version"], name))
            correct = int((part["predicted"].to_numpy() == part["label"].to_numpy()).sum())
            label = f"{name} (answers for the shape)" if name == CONFLICT else name
            bars.append(Bar(label, correct / part.num_rows, *wilson(correct, part.num_rows), part.num_rows))
        return [
            Bars(
                title="Which cues the answers rest on",
                caption="Share of the images answered rightly that are still answered so without texture (edges,"
                " silhouette, contour), without layout (scrambled) or with a foreign texture, with 95 % Wilson"
                " intervals. Untouched it is 1.",
                value_label="share of right answers kept",
                bars=bars,
                reference=1.0,
            )
        ]


def _versions_in(table: Rows) -> list[str]:
    return sorted(pc.unique(table["version"]).to_pylist())
