"""Does the answer change when the camera moves by one pixel?

Paper: Lost in Translation (2024). A window is cut out of the image and moved by a pixel in each of 8 directions, as a
camera would: new content enters at one side and leaves at the other. The window turned by one degree and zoomed by one
pixel keep it company. An image is fooled when any of these changes the answer. `shift/crop-selection` is the remedy.

When it misleads: the window is two pixels smaller than the image and the model's own resizing stretches it, so the
base is the window and not the whole image. With `border = "reflect"` or `"cyclic"` the image keeps its size and new
content is made up; the cyclic rate flatters networks that are built to be invariant to rolls. The harm of a finding
is twice the share of images that the worst move fools, since nobody would notice it, tested against the 5 % that we
tolerate; it is not the accuracy lost on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Condition, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._moves import BORDERS, Border, neighbour_changed, rotated, translated, zoomed
from snellen.stats import binomial_test, needed_samples, wilson

DIRECTIONS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
TOLERATED = 0.05
"""Share of images that may be fooled before it is called a harm."""
UNNOTICED = 2.0
"""What nobody would notice weighs twice as much as the visible degradations that the thresholds for shifts are for."""

__all__ = ["DIRECTIONS", "Translations", "neighbour_changed", "rotated", "translated", "zoomed"]


@register
@dataclass(frozen=True)
class Translations(ProbeBase):
    """Answers that change when the camera moves by a pixel or turns by a degree (Lost in Translation, 2024)."""

    name: ClassVar[str] = "shift/translations"
    paper: ClassVar[str] = "Lost in Translation, 2024"
    card: ClassVar[str | None] = "small-translations-rics"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    pixels: tuple[int, ...] = (1,)
    """How far the camera moves, ascending; the paper's case is one pixel."""
    border: Border = "window"
    """"window" moves a smaller window over real content; "reflect" and "cyclic" make content up."""
    companions: bool = True
    """Also turn by one degree either way and zoom in by as many pixels."""

    def __post_init__(self) -> None:
        if not self.pixels or not all(0 < a < b for a, b in zip(self.pixels, (*self.pixels[1:], 1 << 30), strict=True)):
            raise InvalidInput(f"pixels must be whole numbers above 0, ascending, got {list(self.pixels)}")
        if self.border not in BORDERS:
            raise InvalidInput(f"border must be one of {', '.join(BORDERS)}, got {self.border!r}")

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        """Every move of the set; the base window has severity 0."""
        margin = max(self.pixels)
        base = translated(batch.images, 0, 0, margin, self.border)
        yield Condition("base", 0.0, base)
        for step in self.pixels:
            for dy, dx in DIRECTIONS:
                yield Condition(
                    "translation", step, translated(batch.images, dy * step, dx * step, margin, self.border)
                )
        if self.companions:
            yield Condition("rotation", 1.0, rotated(base, 1.0))
            yield Condition("rotation", 1.0, rotated(base, -1.0))
            for step in self.pixels:
                yield Condition("zoom", step, zoomed(base, 2 * step))

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        tried: dict[tuple[str, float], list[Tensor]] = {}
        for name, severity, images, _ in self.conditions(batch, random):
            tried.setdefault((name, float(severity)), []).append(model.labels(images).cpu())
        (base,) = tried.pop(("base", 0.0))
        labels = batch.labels.cpu()
        moves = {key: torch.stack(predicted) for key, predicted in tried.items()}
        size, kinds = len(batch), list(moves)
        return rows(
            list(batch.ids) * len(kinds),
            label=labels.repeat(len(kinds)),
            shift=[name for name, _ in kinds for _ in range(size)],
            pixels=np.repeat([severity for _, severity in kinds], size),
            predicted=base.repeat(len(kinds)),
            correct=(base == labels).repeat(len(kinds)),
            moves=np.repeat([len(predicted) for predicted in moves.values()], size),
            changed=torch.cat([(predicted != base).sum(dim=0) for predicted in moves.values()]),
            wrong=torch.cat([(predicted != labels).sum(dim=0) for predicted in moves.values()]),
        )

    def cost(self, batch_size: int) -> Passes:
        steps = len(self.pixels)
        return Passes(forward=batch_size * (1 + 8 * steps + (2 + steps if self.companions else 0)))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        return [self._fooled(kind, step, part) for kind, step, part in _parts(table)]

    def _fooled(self, kind: str, step: float, part: Rows) -> Finding:
        correct, wrong, changed, moves = _columns(part, "correct", "wrong", "changed", "moves")
        correct = correct.astype(bool)
        right = int(correct.sum())
        fooled = correct & (wrong > 0)
        count = int(fooled.sum())
        spoken = _spoken(kind, step)
        needed = needed_samples(TOLERATED, 1 - TOLERATED)
        flicker = float((changed / moves).mean())
        p_value = binomial_test(count, right, TOLERATED, "greater") if right else 1.0
        enough = p_value < 0.05 or right >= needed
        if not enough:
            title = (
                f"Whether {spoken} fools the model cannot be told, not enough data: n = {right}, needs about {needed}"
            )
        else:
            title = (
                f"{count / max(right, 1):.1%} of the images that the model gets right are lost by {spoken};"
                f" the answer changes in {flicker:.1%} of the moves"
            )
        order = np.argsort(-wrong, kind="stable")
        low, high = wilson(count, right) if right else (0.0, 1.0)
        ids = part.column("id").to_pylist()
        return Finding(
            kind="shift",
            title=title,
            metric="fooled share of correct images",
            value=count / right if right else None,
            baseline=TOLERATED,
            effect=min(UNNOTICED * count / right, 1.0) if right else 0.0,
            n=right,
            subject={"corruption": kind, "severity": step, "border": self.border},
            ci=(low, high) if right else None,
            p_value=p_value,
            evidence=[ids[i] for i in order.tolist() if fooled[i]][:12],
            enough_data=enough,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        bars = []
        for kind, step, part in _parts(table):
            correct, wrong = _columns(part, "correct", "wrong")
            fooled, right = int((correct.astype(bool) & (wrong > 0)).sum()), int(correct.sum())
            if right:
                low, high = wilson(fooled, right)
                bars.append(Bar(_spoken(kind, step), fooled / right, low, high, right))
        if not bars:
            return []
        return [
            Bars(
                title="Images lost by moves that a person would not notice",
                caption=(
                    "Share of the images right before the move that are wrong after one move of the set;"
                    " 95 % Wilson intervals."
                ),
                value_label="fooled share",
                bars=bars,
            )
        ]


def _parts(table: Rows) -> list[tuple[str, float, Rows]]:
    kinds = dict.fromkeys(zip(table["shift"].to_pylist(), table["pixels"].to_pylist(), strict=True))
    shift, pixels = np.array(table["shift"].to_pylist(), dtype=object), table["pixels"].to_numpy()
    return [(kind, step, table.filter((shift == kind) & (pixels == step))) for kind, step in kinds]


def _columns(part: Rows, *names: str) -> list[np.ndarray]:
    return [part.column(name).to_numpy(zero_copy_only=False) for name in names]


def _spoken(kind: str, step: float) -> str:
    return {
        "translation": f"a move of {step:g} px",
        "rotation": f"a turn of {step:g} degree",
        "zoom": f"a zoom by {step:g} px",
    }[kind]
