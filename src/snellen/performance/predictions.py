"""What does the model answer on every image? One forward pass; most analyses read this table and nothing else.

At labels access the scores are unknown: `logits` is null and `confidence` NaN. Where an output is not finite there
is no answer: `predicted` is -1 and the row counts as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from snellen.models import Access, Model, labels_of
from snellen.probe import Batch, Context, Finding, Passes, ProbeBase, Rows, Scope, register, rows
from snellen.randomness import SampleRandom
from snellen.stats import wilson

MOST_EVIDENCE = 12


def confidence_of(logits: Tensor) -> Tensor:
    """The largest softmax probability `[B]` of logits `[B, K]`, NaN where a logit is NaN or +inf."""
    return logits.softmax(dim=1).amax(dim=1)


@register
@dataclass(frozen=True)
class Predictions(ProbeBase):
    """The answer, its confidence and the logits of every sample.

    Columns: id, label, predicted (-1: outputs not finite), correct, confidence (softmax maximum), logits.
    """

    name: ClassVar[str] = "predictions"
    paper: ClassVar[str] = ""
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.SAMPLE

    def run(self, model: Model, batch: Batch, random: SampleRandom) -> Rows:
        labels = batch.labels.cpu()
        if model.access >= Access.SCORES:
            logits = model.scores(batch.images).cpu()
            confidence = confidence_of(logits)
            predicted = labels_of(logits).masked_fill(confidence.isnan(), -1)
            scores = rows(batch.ids, logits=logits)["logits"]
        else:
            predicted = model.labels(batch.images).cpu()
            confidence = torch.full((len(batch),), torch.nan)
            scores = pa.nulls(len(batch), pa.list_(pa.float32()))
        table = rows(batch.ids, label=labels, predicted=predicted, correct=predicted == labels, confidence=confidence)
        return table.append_column("logits", scores)

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size)

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        lost = table.filter(pc.equal(table["predicted"], -1))["id"].to_pylist()
        if not lost:
            return []
        n = table.num_rows
        low, high = wilson(len(lost), n)
        return [
            Finding(
                kind="accuracy",
                title=f"The model's outputs are not finite (NaN or infinite) on {len(lost)} of {n} images.",
                metric="share of images without a finite output",
                value=len(lost) / n,
                baseline=0.0,
                effect=len(lost) / n,
                ci=(low, high),
                n=n,
                subject={"predicted": -1},
                evidence=lost[:MOST_EVIDENCE],
            )
        ]
