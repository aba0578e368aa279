"""Does the model give an answer for something beside the object, and can it be taught not to?

After Yan et al. (2023). Discovery: Grad-CAM's evidence for each answer (`_evidence.py`) is clustered within the answer
on one half of the images. A pattern is a confounder when on the other half its heat lies off the object (less of it
is on the object than of an even map) and its answers are less often right than the model's other answers of that
class. Where `discovery/slices` starts from true classes and needs an attribute to name a cause, this starts from the
answer and says where its reason lies. Correction, as functions: concepts are directions in feature space
(`_concept_bank.py`), a small head answers by them alone, linear or by logic (`_concept_logic.py`), and is trained anew
with the influence of forbidden concepts as a penalty, or with them projected out (`_rewriting.py`).

Misleads where masks miss parts of the object, and on objects much smaller than a cell of the map. Cannot see a
confounder on the object, one that every answer of a class rests on, nor one that never misled the model on these
images. Without masks it says nothing: a class's own shape goes together with its class as a confounder does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from snellen.discovery._concept_bank import ConceptBank, drop_concept, erasing_matrix, fit_concept_bank
from snellen.discovery._concept_logic import EntropyLinear, LinearHead, LogicHead, Rule, read_rule, simplify
from snellen.discovery._confounders_report import confirmed, short_finding, suspect_finding, suspect_gallery
from snellen.discovery._evidence import find_patterns, gradcam_evidence, match_patterns, suspicion
from snellen.discovery._rewriting import Rewritten, forbidden, influence, residual_leak, rewrite, train_head
from snellen.discovery.slices import halves
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.explain._layers import SpatialLayer, last_spatial_layer
from snellen.models import Access, Model
from snellen.probe import (
    Context,
    Finding,
    Passes,
    ProbeBase,
    Rows,
    Samples,
    Scope,
    register,
    register_functions,
    rows,
)
from snellen.randomness import SampleRandom, derive_seed

__all__ = [
    "ConceptBank", "ConfounderDiscovery", "EntropyLinear", "LinearHead", "LogicHead", "Rewritten", "Rule",
    "drop_concept", "erasing_matrix", "find_patterns", "fit_concept_bank", "forbidden", "gradcam_evidence", "influence",
    "match_patterns", "read_rule", "residual_leak", "rewrite", "simplify", "suspicion", "train_head",
]  # fmt: skip

MOST_SAMPLES = 20_000
MOST_HEAT = 16
"""Cells a side of the stored heat map."""


@register
@dataclass(frozen=True)
class ConfounderDiscovery(ProbeBase):
    """Answers whose evidence lies beside the object and which are less often right for it.

    Effect: share of right answers among the other images with this answer minus that among these, `ci` the interval of
    the latter, on the confirmation half. p: the larger of Fisher's for rightness and a permutation of the heat on the
    object, adjusted over the patterns tried. Rows, one an image with a mask: id, half, label, predicted, pattern (of
    its answer; -1 none), nearness (cosine to the pattern), on_object and even (share of the heat, and of the area, on
    the object grown by half a cell of the map), heat, height.
    """

    name: ClassVar[str] = "discovery/confounders"
    paper: ClassVar[str] = "Yan et al., 2023"
    card: ClassVar[str | None] = "confounder-rewriting"
    access: ClassVar[Access] = Access.GRADIENTS
    scope: ClassVar[Scope] = Scope.DATASET

    min_count: int = 10
    """Smallest pattern that is judged, in each half; at least 5."""
    min_effect: float = 0.05
    """Differences below this many accuracy points (0 to 1) are not reported."""

    def __post_init__(self) -> None:
        if self.min_count < 5:
            raise InvalidInput(f"min_count must be at least 5, got {self.min_count}")
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    @property
    def needs_masks(self) -> bool:
        return True

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        layer: SpatialLayer | None = None
        parts, vectors = [], []
        share = MOST_SAMPLES / max(len(samples), 1)
        for batch in samples.batches():
            if batch.masks is None:
                continue
            kept = _kept(batch.ids, batch.masks, share, random)
            if not kept:
                continue
            images = batch.images[kept]
            layer = layer or last_spatial_layer(model, images)
            seen = gradcam_evidence(model, images, layer)
            part = _measured(
                [batch.ids[i] for i in kept], batch.labels[kept], batch.masks[kept], seen.heat, seen.logits
            )
            speaks = (seen.vectors.norm(dim=1) > 0.5) & seen.logits.isfinite().all(dim=1)
            parts.append(part.filter(pa.array(speaks.cpu().numpy())))
            vectors.append(seen.vectors[speaks].cpu().numpy())
        if sum(part.num_rows for part in parts) == 0:
            return pa.table({})
        table, evidence = pa.concat_tables(parts), np.concatenate(vectors)
        order = np.argsort(np.array(table["id"].to_pylist()))
        return self._patterns(table.take(pa.array(order)), evidence[order], random)

    def _patterns(self, table: Rows, evidence: np.ndarray, random: SampleRandom) -> Rows:
        predicted = table["predicted"].to_numpy()
        discovery = halves(table["id"].to_pylist(), predicted, random)
        pattern, nearness = np.full(len(predicted), -1), np.zeros(len(predicted))
        for answer in np.unique(predicted).tolist():
            mine = predicted == answer
            found = find_patterns(evidence[mine], discovery[mine], self.min_count, random.numpy("starts", answer))
            if found is not None:
                pattern[mine], nearness[mine] = found.codes, found.nearness
        named = np.where(discovery, "discovery", "confirmation").tolist()
        for name, column in (("half", named), ("pattern", pattern), ("nearness", nearness)):
            table = table.append_column(name, pa.array(column))
        return table

    def cost(self, batch_size: int) -> Passes:
        """And one image more each way, by which the layer is found."""
        return Passes(forward=min(batch_size, MOST_SAMPLES), backward=min(batch_size, MOST_SAMPLES))

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        most, needed = int(np.bincount(table["predicted"].to_numpy()).max()), 4 * self.min_count
        if most < needed:
            return [short_finding(most, needed)]
        told = confirmed(table, context, self.min_count, self.min_effect, context.random(self.name))
        return [suspect_finding(one, table) for one in told]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        told = confirmed(table, context, self.min_count, self.min_effect, context.random(self.name))
        return [suspect_gallery(told, table, context)] if told else []


def _kept(ids: Sequence[str], masks: Tensor, share: float, random: SampleRandom) -> list[int]:
    """Those with a mask; of a set that is too large a random part, by the hash of the id."""
    limit = share * 2**63
    return [
        i
        for i, masked in enumerate(masks.flatten(1).any(dim=1).tolist())
        if masked and (share >= 1 or derive_seed(random.seed, random.method, "subset", ids[i]) < limit)
    ]


def _measured(ids: list[str], labels: Tensor, masks: Tensor, heat: Tensor, logits: Tensor) -> Rows:
    height, width = masks.shape[1:]
    reach = [max(round(side / cells / 2), 1) for side, cells in zip((height, width), heat.shape[1:], strict=True)]
    window = [2 * r + 1 for r in reach]
    grown = F.max_pool2d(masks.float().unsqueeze(1), window, stride=1, padding=reach)
    enlarged = F.interpolate(heat.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False)
    on_object = (enlarged * grown).sum(dim=(1, 2, 3)) / enlarged.sum(dim=(1, 2, 3)).clamp_min(1e-12)
    cells = (min(heat.shape[1], MOST_HEAT), min(heat.shape[2], MOST_HEAT))
    return rows(
        ids,
        label=labels,
        predicted=logits.argmax(dim=1),
        on_object=on_object.double(),
        even=grown.mean(dim=(1, 2, 3)).double(),
        heat=F.adaptive_avg_pool2d(heat, cells).flatten(1),
        height=[cells[0]] * len(ids),
    )


register_functions(
    "discovery/confounder-rewriting",
    paper="Yan et al., 2023",
    card="confounder-rewriting",
    access=Access.FEATURES,
    data="features of concept exemplars, and rules",
    module=__name__,
)
