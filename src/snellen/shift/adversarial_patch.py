"""How often does one patch that an attacker may write freely change the answer?

Paper: Are Vision Transformers Robust to Patch Perturbations? (2022). The pixels of one cell start at random and climb
the cross-entropy of the true class by signs of a gradient with momentum; an image is left alone at its first wrong
answer, and images that stand get another start. The same cell with natural corruptions is the comparison: a model that
overlooks natural damage may be governed by an adversarial patch. What a transformer looks at meanwhile, and attention
flattened by a temperature as a repair, are functions here (`softened`, `temperature_sweep`, `attention_ratio`).

The paper takes up to 10,000 steps, here 200 and three starts. When it misleads: a patch that survives was not fooled
by *this* attack at *this* place; models whose gradients vanish look robust. The fooling rate is of images that were
answered right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.models import Access, Model
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.shift._attention import (
    Judged,
    attention_maps,
    attention_ratio,
    best_temperature,
    column_attention,
    feature_attention,
    patch_attention,
    rollout,
    softened,
    temperature_sweep,
)
from snellen.shift._catalogue import CORRUPTIONS, check_name, corrupt
from snellen.shift._curve import mean_estimate
from snellen.shift._patch_attack import PatchAttack, adversarial_patch
from snellen.shift._patches import patch_side, random_patches, replaced
from snellen.stats import mcnemar_exact, needed_samples, wilson

__all__ = [
    "AdversarialPatch",
    "Judged",
    "PatchAttack",
    "adversarial_patch",
    "attention_maps",
    "attention_ratio",
    "best_temperature",
    "column_attention",
    "feature_attention",
    "patch_attention",
    "rollout",
    "softened",
    "temperature_sweep",
]


@register
@dataclass(frozen=True)
class AdversarialPatch(ProbeBase):
    """Fooling rate of one patch written by an attacker, beside natural damage in the same place (2022).

    Effect: the part of all images whose right answer the attacked patch costs.
    """

    name: ClassVar[str] = "shift/adversarial-patch"
    paper: ClassVar[str] = "Are Vision Transformers Robust to Patch Perturbations?, 2022"
    card: ClassVar[str | None] = "vit-patch-perturbation"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.SAMPLE

    steps: int = 200
    """Gradient steps a start, 1 or more; the paper up to 10,000."""
    restarts: int = 3
    """Random starts, 1 or more; a later one is for the images that still stand."""
    step_size: float = 8 / 255
    """Of a pixel in one step, in (0, 1]."""
    eps: float | None = None
    """Largest change of a pixel of the patch; None lets it go anywhere, 8/255 is the paper's imperceptible patch."""
    count: int = 1
    """How many patches are written at once, 1 or more."""
    patch: int | None = None
    """Side in pixels, dividing the image's sides; None: a fourteenth of the shorter side, 4 px where that is more."""
    aligned: bool = True
    """On the transformer's grid; otherwise half a patch off in both axes."""
    names: tuple[str, ...] = CORRUPTIONS
    """The corruptions at severity 5 that the attack is compared with; each is a pass."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.count < 1:
            raise InvalidInput(
                f"steps, restarts and count must be 1 or more, got {self.steps}, {self.restarts} and {self.count}"
            )
        if not 0 < self.step_size <= 1 or (self.eps is not None and not 0 < self.eps <= 1):
            raise InvalidInput(f"step_size and eps must be in (0, 1], got {self.step_size} and {self.eps}")
        if self.patch is not None and self.patch < 2:
            raise InvalidInput(f"patch must be 2 px or more, or None, got {self.patch}")
        for name in self.names:
            check_name(name)
        if not self.names:
            raise InvalidInput("names must be one or more shifts to compare with, got none")

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        images, labels = batch.images, batch.labels
        height, width = images.shape[-2:]
        side = patch_side(height, width, self.patch)
        cells = random.generators(batch.ids, "cells")
        (pixels,) = random_patches(cells, height, width, side, (self.count,), self.aligned)

        # only right answers can be lost
        predicted = model.labels(images)
        right = torch.nonzero(predicted == labels).flatten().tolist()
        natural, fooled = torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
        gradients, answer = torch.zeros_like(labels), predicted.clone()
        if right:
            ids, x, y, where = [batch.ids[i] for i in right], images[right], labels[right], pixels[right]
            for name in self.names:
                corrupted = replaced(x, corrupt(x, name, 5.0, random.generators(ids, name)), where)
                natural[right] += model.labels(corrupted) != y
            attack = adversarial_patch(
                model, x, y, where, random.generators(ids, "start"),
                steps=self.steps, step_size=self.step_size, restarts=self.restarts, eps=self.eps,
            )  # fmt: skip
            fooled[right], gradients[right], answer[right] = attack.fooled, attack.gradients, attack.predicted
        return rows(
            batch.ids,
            label=labels,
            predicted=answer,
            clean_correct=predicted == labels,
            robust=(predicted == labels) & ~fooled,
            fooled=fooled,
            natural=natural / len(self.names),
            gradients=gradients,
        )

    def cost(self, batch_size: int) -> Passes:
        """Of a batch that is all correct and never fooled; every image that falls makes it cheaper."""
        forward = 1 + len(self.names) + self.restarts * (self.steps + 1)
        return Passes(batch_size * forward, batch_size * self.restarts * self.steps)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        right, fooled, natural = _columns(table)
        n, count = int(right.sum()), int((right & fooled).sum())
        if not n:
            return []
        needed = needed_samples(0.1, 0.9)
        p_value = mcnemar_exact(0, count)
        enough = p_value < 0.05 or n >= needed
        rate, worn = count / n, float(natural[right].mean())
        one = self.count == 1
        patch = "One adversarial patch" if one else f"{self.count} adversarial patches"
        if enough:
            title = (
                f"{patch} at a random place {'costs' if one else 'cost'} the model {rate:.1%} of its right"
                f" answers; natural damage in the same place costs {worn:.1%}"
            )
        else:
            title = f"Whether a patch fools the model cannot be told, not enough data: n = {n}, needs about {needed}"
        ids, gradients = np.array(table["id"].to_pylist()), table["gradients"].to_numpy()
        easiest = sorted(np.flatnonzero(right & fooled).tolist(), key=lambda i: int(gradients[i]))
        subject: dict[str, str | int | float] = {"attack": self.name, "patches": self.count}
        main = Finding(
            kind="attack",
            title=title,
            metric="fooling rate",
            value=rate,
            baseline=worn,
            effect=count / table.num_rows,
            n=n,
            subject=subject,
            ci=wilson(count, n),
            p_value=p_value,
            evidence=[str(ids[i]) for i in easiest[:12]],
            enough_data=enough,
        )
        return [main, self._beyond_nature(fooled[right] - natural[right], subject, context)]

    def _beyond_nature(
        self, beyond: NDArray[np.float64], subject: dict[str, str | int | float], context: Context
    ) -> Finding:
        gap = mean_estimate(beyond, context.random(self.name))
        return Finding(
            kind="attack",
            title=(
                f"Writing a patch on purpose costs {gap.value:+.1%} of the right answers beyond the mean of"
                f" {len(self.names)} natural corruption{'' if len(self.names) == 1 else 's'} in the same place"
            ),
            metric="fooling rate beyond natural damage",
            value=gap.value,
            effect=0.0,  # information: the first finding counts the harm
            n=gap.n,
            subject={**subject, "against": "natural patches"},
            ci=(gap.low, gap.high) if gap.n >= 2 else None,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        right, fooled, natural = _columns(table)
        n, count = int(right.sum()), int((right & fooled).sum())
        if not n:
            return []
        worn = mean_estimate(natural[right], context.random(self.name))
        low, high = (worn.low, worn.high) if n >= 2 else (None, None)
        bars = [Bar("adversarial", count / n, *wilson(count, n), n), Bar("natural", worn.value, low, high, n)]
        caption = (
            "Share of the images answered right before that a damaged patch turns wrong: written by the attack, and on"
            f" average over {len(self.names)} corruptions of the same cell; 95 % intervals (Wilson, bootstrap)."
        )
        return [Bars("Fooling rate of one damaged place", caption, "fooling rate", bars)]


def _columns(table: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Right untouched, fooled, share of natural corruptions that fool."""
    if not table.num_rows:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), np.zeros(0)
    right, fooled = (table[name].to_numpy(zero_copy_only=False).astype(bool) for name in ("clean_correct", "fooled"))
    return right, fooled, table["natural"].to_numpy().astype(np.float64)
