"""Which part of the image made the model answer wrongly, beside the object: a tag, a frame, a background?

Wrong answers are taken apart. In each image answered c wrongly one part at a time (a tile, the frame, coarse or fine
structure, colour; with masks the background) is exchanged for that of an image of a third class answered rightly. If
the answer turns right, that part had decided against the object. The control is the same exchange with another image
answered c wrongly: where a shortcut is at work it mostly brings the same mark again, while seams and answers on the
brink turn alike in both. The counterfactual of Ribeiro et al. (2016) with a control. Each half of the images picks a
part, which the other half confirms; where both pick the same one, its figures are those of all.

Sees a shortcut only by the mistakes it causes in the data at hand: where the mark goes with its class in these data as
it did in training, it causes none (then see `discovery/block-reliance` and `discovery/triggers`). Misleads where one
object lies in the same tile as another that is rightly seen there. A mark spread over many tiles is found as a whole
(frame, background, colour) or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Generator, Tensor

from snellen.discovery._block_pool import Pool, read_pool
from snellen.discovery._blocks import Block, blocks_of, exchange
from snellen.discovery.slices import halves
from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.sequences import Texts
from snellen.stats import benjamini_hochberg, mcnemar_exact, wilson

LEVEL = 0.05
MOST_IMAGES = 4000
"""A random subset of a larger set; held in memory as 8-bit pixels."""
CHUNK = 128
MOST_PARTS = 24
MOST_EVIDENCE = 12


@register
@dataclass(frozen=True)
class Shortcuts(ProbeBase):
    """Parts whose exchange turns wrong answers right.

    Rows: one a wrong answer and part. answered: how many images got that answer. turned, control: whether the exchange
    with an image of a third class, and with another image wrongly answered so, turned the answer right. Value: share
    turned right, baseline: share in the control, effect: their difference times the share of the answers c that are
    wrong, so how many of these answers the part gets wrong. p: McNemar, one-sided, twice the smaller of the two halves
    that confirm each other's pick, adjusted over the answers.
    """

    name: ClassVar[str] = "discovery/shortcuts"
    paper: ClassVar[str] = "Ribeiro et al., 2016"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    grid: int = 4
    """Tiles a side, at least 2."""
    most: int = 400
    """Wrong answers examined, at least 20."""
    fewest: int = 5
    """Wrong answers c in each half, below which nothing is said about c; at least 3."""
    min_effect: float = 0.05
    """Harm below this (0 to 1) is not reported."""

    def __post_init__(self) -> None:
        for name, least in {"grid": 2, "most": 20, "fewest": 3}.items():
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        pool = read_pool(samples, tables["predictions"], random, MOST_IMAGES)
        if pool is None or min(pool.images.shape[-2:]) < 2 * self.grid:
            return pa.table({})
        discovery = torch.from_numpy(halves(pool.ids, pool.labels.numpy(), random))
        at, third, fellow = self._donors(pool, discovery, random)
        if len(at) == 0:
            return pa.table({})
        channels, height, width = pool.images.shape[1:]
        answered = torch.bincount(pool.answers, minlength=len(model.spec.class_names))
        parts = []
        for block in blocks_of(channels, height, width, self.grid, pool.masks is not None):
            if block.part != "object":
                turned, control = (
                    torch.cat([_turned_right(model, pool, block, *some) for some in _chunks(at, donors)])
                    for donors in (third, fellow)
                )
                parts.append(
                    rows(
                        [pool.ids[row] for row in at.tolist()],
                        part=[block.name] * len(at),
                        area=np.full(len(at), 1.0 if block.region is None else block.region.float().mean().item()),
                        half=["discovery" if first else "confirmation" for first in discovery[at].tolist()],
                        label=pool.labels[at],
                        answer=pool.answers[at],
                        answered=answered[pool.answers[at]],
                        turned=turned,
                        control=control,
                    )
                )
        return pa.concat_tables(parts)

    def _donors(self, pool: Pool, discovery: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        """The wrong answers examined, and for each an image of a third class and a fellow of the same half."""
        right = pool.answers == pool.labels
        wrong = torch.nonzero(~right).flatten()
        if len(wrong) > self.most:
            drawn = random.numpy("wrong").permutation(len(wrong))[: self.most]
            wrong = wrong[torch.from_numpy(np.sort(drawn))]
        examined = torch.zeros_like(right)
        examined[wrong] = True
        generators = random.generators([pool.ids[row] for row in wrong.tolist()], "donors")
        kept = []
        for row, generator in zip(wrong.tolist(), generators, strict=True):
            same_half, answer = discovery == discovery[row], pool.answers[row]
            third = right & same_half & (pool.labels != answer) & (pool.labels != pool.labels[row])
            if not third.any():  # of two classes there is no third: its own answer's class supports the mistake
                third = right & same_half & (pool.labels == answer)
            fellow = examined & same_half & (pool.answers == answer)
            fellow[row] = False
            if third.any() and fellow.any():
                kept.append((row, _drawn(third, generator), _drawn(fellow, generator)))
        at, thirds, fellows = torch.tensor(kept, dtype=torch.int64).reshape(-1, 3).T
        return at, thirds, fellows

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=2 * min(batch_size, self.most) * MOST_PARTS)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        found: list[tuple[_Turn, float]] = []
        for answer in pc.unique(table["answer"]).to_pylist():
            of = table.filter(pc.equal(table["answer"], answer))
            halves_of = [_turns(of.filter(pc.equal(of["half"], half)), 0.5) for half in ("discovery", "confirmation")]
            picked = [self._picked(one) for one in halves_of]
            confirmed = [
                turn
                for part, other in zip(picked, reversed(halves_of), strict=True)
                for turn in other
                if turn.part == part and turn.n >= self.fewest
            ]
            if not confirmed:
                continue
            best = min(confirmed, key=lambda turn: turn.p_value)
            p_value = min(2 * best.p_value, 1.0)
            if picked[0] == picked[1]:
                best = next(turn for turn in _turns(of, 1.0) if turn.part == best.part)
            found.append((best, p_value))
        adjusted = benjamini_hochberg([p_value for _, p_value in found]).tolist()
        told = [(turn, p_value) for (turn, _), p_value in zip(found, adjusted, strict=True)]
        return [
            _finding(turn, p_value, context)
            for turn, p_value in sorted(told, key=lambda pair: -pair[0].effect)
            if p_value <= LEVEL and turn.effect >= self.min_effect
        ]

    def _picked(self, turns: Sequence[_Turn]) -> str | None:
        """The part that one half suspects, if any."""
        tried = [turn for turn in turns if turn.n >= self.fewest and turn.effect >= self.min_effect]
        if not tried:
            return None
        # A corner lies in the frame and in the background: the smallest that does half of the most is told.
        most = max(turn.effect for turn in tried)
        return min((turn for turn in tried if turn.effect >= most / 2), key=lambda turn: (turn.area, -turn.effect)).part

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        turns = sorted(_turns(table, 1.0), key=lambda t: t.control - t.rate)[:12]
        caption = (
            "Share of all wrong answers examined that turn right when a part is exchanged for that of an image of a"
            " third class, with 95 % Wilson intervals; behind the name the share when it is exchanged for that of"
            " another image wrongly answered so. The difference is what the part decides. The twelve largest."
        )
        bars = [Bar(f"{t.part} (control {t.control:.0%})", t.rate, *wilson(t.turned, t.n), t.n) for t in turns]
        return [Bars("Which part made the answers wrong", caption, "share turned right", bars)]


class _Turn(NamedTuple):
    """What the exchange of one part did to the wrong answers of a table. wrong: share of the answers that are wrong.
    ids: those turned by it alone."""

    part: str
    answer: int
    area: float
    n: int
    turned: int
    control: float
    wrong: float
    p_value: float
    ids: tuple[str, ...]

    @property
    def rate(self) -> float:
        return self.turned / self.n

    @property
    def effect(self) -> float:
        return max(self.rate - self.control, 0.0) * self.wrong


def _turns(table: Rows, share: float) -> list[_Turn]:
    """One for each part of a table of one answer. share: of the images that the table is about, 0.5 for one half."""
    if table.num_rows == 0:
        return []
    found = []
    for part in pc.unique(table["part"]).to_pylist():
        of = table.filter(pc.equal(table["part"], part))
        turned, control = (of[name].to_numpy().astype(bool) for name in ("turned", "control"))
        only, other = turned & ~control, control & ~turned
        ids = Texts(of["id"])
        found.append(
            _Turn(
                part,
                of["answer"][0].as_py(),
                of["area"][0].as_py(),
                len(turned),
                int(turned.sum()),
                float(control.mean()),
                min(of.num_rows / max(share * of["answered"][0].as_py(), 1.0), 1.0),
                mcnemar_exact(int(only.sum()), int(other.sum()), "greater"),
                tuple(ids[row] for row in np.flatnonzero(only)[:MOST_EVIDENCE].tolist()),
            )
        )
    return found


def _finding(turn: _Turn, p_value: float, context: Context) -> Finding:
    name, ci = context.spec.class_names[turn.answer], wilson(turn.turned, turn.n)
    return Finding(
        kind="shortcut",
        title=f"The {turn.part} makes the model answer {name}: with the {turn.part} of an image of a third class,"
        f" {turn.rate:.0%} ({ci.low:.2f} to {ci.high:.2f}) of {turn.n} wrong answers {name} turn right, against"
        f" {turn.control:.0%} with that of another image wrongly answered {name}.",
        metric="share of wrong answers turned right",
        value=turn.rate,
        baseline=turn.control,
        effect=turn.effect,
        n=turn.n,
        subject={"part": turn.part, "answer": name},
        ci=(ci.low, ci.high),
        p_value=p_value,
        evidence=turn.ids,
    )


def _turned_right(model: Model, pool: Pool, block: Block, at: Tensor, donors: Tensor) -> Tensor:
    """Whether each image `at` is answered rightly with the part of its donor, bool `[B]` on the CPU."""

    (images, masks), (donor_images, donor_masks) = pool.shown(at, model.device), pool.shown(donors, model.device)
    made = exchange(images, donor_images, block, masks, donor_masks)
    return model.labels(made.images).cpu() == pool.labels[at]


def _drawn(candidates: Tensor, generator: Generator) -> int:
    rows_of = torch.nonzero(candidates).flatten()
    return int(rows_of[torch.randint(len(rows_of), (), generator=generator)])


def _chunks(at: Tensor, donors: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(at.split(CHUNK), donors.split(CHUNK), strict=True))
