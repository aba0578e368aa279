"""Which part of the image decides the answer, and is it one that ought not to: a corner, the frame, the background?

After the randomised feature blocks of Shah et al. (2020): one part of an image (a tile, the frame, the background,
coarse or fine structure, colour) is taken from another image, and the model is asked again. The other image is one that
got another answer or, as the control, one that got the same answer, so that seams and other inconsistencies are
subtracted. What brings the other image's *answer* along decides; its label is not used, for a tag that any class may
wear in the data at hand would then show nothing. Parts and classes are picked on one half of the images and confirmed
on the other.

A fault is claimed of parts that hold no object: with masks, a background or a tile free of both objects; without
masks a corner or the frame, and only as suspected. Misleads without masks where objects reach into the corners, and on
masks that miss parts of the object; the context of an object may be legitimate evidence to somebody. Cannot see a
cue spread over all tiles, nor one beside which the object still decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from snellen.discovery._block_pool import Pool, read_pool
from snellen.discovery._block_report import claims, decisive_finding, drop_bars, pull_bars, short_finding
from snellen.discovery._blocks import Block, blocks_of, donors_of, exchange
from snellen.discovery.slices import halves
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import needed_samples

CHUNK = 128
BLOCKS_BESIDE_TILES = 8


@register
@dataclass(frozen=True)
class BlockReliance(ProbeBase):
    """Which parts of an image carry the answer with them into another image.

    Rows: one an image answered rightly and part. brought: the answer of the donor; foreign, control: the answers
    after the exchange with that donor and with one that got the image's own answer. Value of a finding: how often the
    exchange turns a right answer into the donor's, and effect: that beyond the control (without masks also beyond the
    part's share of the area), so accuracy lost on images that carry the part.
    """

    name: ClassVar[str] = "discovery/block-reliance"
    paper: ClassVar[str] = "Shah et al., 2020"
    card: ClassVar[str | None] = "simplicity-bias"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    grid: int = 4
    """Tiles a side, at least 2."""
    most: int = 1200
    """Images used, a random subset of a larger set; at least 20. They are held in memory."""
    min_effect: float = 0.05
    """Pulls below this (0 to 1) are not reported."""

    def __post_init__(self) -> None:
        if self.grid < 2 or self.most < 20:
            raise InvalidInput(f"grid must be at least 2 and most at least 20, got {self.grid} and {self.most}")
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        pool = read_pool(samples, tables["predictions"], random, self.most)
        if pool is None or min(pool.images.shape[-2:]) < 2 * self.grid:
            return pa.table({})
        discovery = torch.from_numpy(halves(pool.ids, pool.labels.numpy(), random))
        foreign, own = torch.full_like(pool.labels, -1), torch.full_like(pool.labels, -1)
        for half in (discovery, ~discovery):  # donors come from the same half, so that the halves share nothing
            members = torch.nonzero(half).flatten()
            ids = [pool.ids[row] for row in members.tolist()]
            for chosen, is_foreign, purpose in ((foreign, True, "foreign"), (own, False, "own")):
                drawn = donors_of(pool.answers[members], random.generators(ids, purpose), is_foreign)
                chosen[members] = torch.where(drawn >= 0, members[drawn], -1)
        kept = torch.nonzero((foreign >= 0) & (own >= 0) & (pool.answers == pool.labels)).flatten()
        if len(kept) == 0:
            return pa.table({})
        channels, height, width = pool.images.shape[1:]
        every = blocks_of(channels, height, width, self.grid, pool.masks is not None)
        parts = [
            self._rows(model, pool, block, at, foreign, own, discovery) for at in kept.split(CHUNK) for block in every
        ]
        return pa.concat_tables(parts)

    def _rows(
        self, model: Model, pool: Pool, block: Block, at: Tensor, foreign: Tensor, own: Tensor, discovery: Tensor
    ) -> Rows:
        images, masks = pool.shown(at, model.device)
        answers, clear, areas = [], torch.ones(len(at), dtype=torch.bool), torch.zeros(len(at))
        for donors in (foreign[at], own[at]):
            donor_images, donor_masks = pool.shown(donors, model.device)
            made = exchange(images, donor_images, block, masks, donor_masks)
            answers.append(model.labels(made.images).cpu())
            clear, areas = clear & made.clear.cpu(), areas + made.area.cpu() / 2
        return rows(
            [pool.ids[row] for row in at.tolist()],
            block=[block.name] * len(at),
            rim=[block.rim] * len(at),
            masked=[pool.masks is not None] * len(at),
            half=["discovery" if first else "confirmation" for first in discovery[at].tolist()],
            label=pool.labels[at],
            brought=pool.answers[foreign[at]],
            foreign=answers[0],
            control=answers[1],
            area=areas.double(),
            clear=clear,
        )

    def cost(self, batch_size: int) -> Passes:
        """Of colour images with masks that are all answered rightly."""
        return Passes(forward=2 * min(batch_size, self.most) * (self.grid**2 + BLOCKS_BESIDE_TILES))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        n, needed = len(pc.unique(table["id"])), 2 * needed_samples(max(self.min_effect, 0.01), 1.0)
        if n < needed:
            return [short_finding(n, needed)]
        return [*claims(table, context, self.min_effect), decisive_finding(table)]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        return [pull_bars(table), drop_bars(table)] if table.num_rows else []
