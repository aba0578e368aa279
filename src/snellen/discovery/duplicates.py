"""Which images occur twice, with contradicting labels or on both sides of a split?

Barz and Denzler (2020) found that every tenth test image of CIFAR-100 lies in the training set too. Copies are sought
on small thumbnails, without the model: exact ones by a digest of the pixels, near ones (saved again as JPEG, resized,
brighter, moved by a pixel or two, mirrored if asked) where two pictures correlate far better than the data's ordinary
nearest neighbours do (see `_copies.py`). Three things are then said: labels that contradict each other, how far copies
flatter the accuracy, and, where an attribute split, subset, fold or partition says train and test, how much better the
model is on test images that also lie in the training set. For two separate sets use `leakage(train, test)`.

Misleads by silence: a crop by a tenth, a turn, a changed background make another picture; among images that all look
alike (X-rays, products on white) only very faithful copies are told from ordinary neighbours; among fewer than 50
images only exact ones. Frames of one film are copies here and may rightly be so. Images are compared as the model gets
them: where the model's input is tiny, different pictures may become equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from snellen.discovery._copies import correlations, find_copies, read_pictures
from snellen.discovery._duplicates_report import (
    Read,
    accuracy_finding,
    gallery,
    label_finding,
    leakage_finding,
    measure_grid,
    sides,
)
from snellen.discovery._neighbours import drawn_ids
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom

__all__ = ["Copy", "Duplicates", "Leakage", "leakage"]


class Copy(NamedTuple):
    """A test image that also lies in the training set. correlation: of the thumbnails, 1 for an exact copy."""

    test_id: str
    train_id: str
    correlation: float
    exact: bool


class Leakage(NamedTuple):
    """copies: the most alike first. near_searched: False when the sets are too small for near copies."""

    copies: list[Copy]
    near_searched: bool


def leakage(
    train: Iterable[tuple[Sequence[str], Tensor]], test: Iterable[tuple[Sequence[str], Tensor]], flips: bool = False
) -> Leakage:
    """Images of `test` that also lie in `train` (Barz and Denzler, 2020).

    train, test: batches (B ids, images `[B, C, H, W]` in [0, 1]); ids are unique within each set. flips: mirror images
    count as copies. Exact copies are sought among all images, near ones among at most 20,000 of both sets together,
    drawn by the hash of the id, so that in larger sets near copies are missed. Raises `InvalidInput` for images that
    are not finite or out of range. Misleads as the module says.
    """
    # Ids of the two sets may be equal, hence the side in front; "1" sorts before "2", which keeps the order.
    both = read_pictures(
        [
            ([f"{side}{name}" for name in ids], images)
            for side, part in (("1", train), ("2", test))
            for ids, images in part
        ]
    )
    drawn = set(drawn_ids(both.ids, "leakage"))
    found = find_copies(both, np.array([name in drawn for name in both.ids], dtype=np.bool_), flips)
    in_test = np.array([name.startswith("2") for name in both.ids], dtype=np.bool_)
    pairs = []
    for rows_in in found.clusters():
        inside = rows_in[~in_test[rows_in]]
        pairs += [(row, inside[0]) for row in rows_in[in_test[rows_in]] if len(inside)]
    scores = correlations(both.thumbnails, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    copies = [
        Copy(both.ids[second][1:], both.ids[first][1:], score, both.digests[first] == both.digests[second])
        for (second, first), score in zip(pairs, scores.tolist(), strict=True)
    ]
    return Leakage(sorted(copies, key=lambda copy: (-copy.correlation, copy.test_id)), found.limit > 0)


@register
@dataclass(frozen=True)
class Duplicates(ProbeBase):
    """Copies within the data set: labels that contradict, accuracy that is flattered, test images seen in training.

    Columns: id, label, correct, cluster (-1: no copy), copy (id of the nearest one, null without), correlation (of the
    thumbnails; NaN without), exact, searched (False: exact copies only), near (whether near copies were sought at all).
    Effect of contradicting labels: the share of labels that cannot be right, whichever of them are. Effect of copies on
    the accuracy: how far its lower 95 % bound falls when each picture counts once. Effect of leakage: the share of test
    images that were seen in training and so test nothing.
    """

    name: ClassVar[str] = "discovery/duplicates"
    paper: ClassVar[str] = "Barz and Denzler, 2020"
    access: ClassVar[Access] = Access.LABELS
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    flips: bool = False
    """Whether a mirror image is a copy; not where left and right matter (text, X-rays)."""

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        predictions = tables["predictions"].select(["id", "label", "predicted"])
        pictures = read_pictures((batch.ids, batch.images) for batch in samples.batches())
        place = pc.index_in(pa.array(pictures.ids, pa.string()), value_set=predictions["id"].combine_chunks())
        answers = predictions.take(place)
        drawn = set(drawn_ids(pictures.ids, self.name))
        searched = np.array([name in drawn for name in pictures.ids], dtype=np.bool_)
        found = find_copies(pictures, searched, self.flips)
        return rows(
            pictures.ids,
            label=answers["label"].combine_chunks(),
            correct=pc.equal(answers["label"], answers["predicted"]).combine_chunks(),
            cluster=found.cluster,
            copy=[pictures.ids[row] if row >= 0 else None for row in found.partner.tolist()],
            correlation=found.correlation,
            exact=found.exact,
            searched=searched,
            near=np.full(len(searched), found.limit > 0),
        )

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        whole = Read.of(table)
        found = [label_finding(whole, context.spec.class_names), accuracy_finding(whole)]
        found += [leakage_finding(whole, split, name) for name, split in sides(whole.ids, context).items()]
        return [finding for finding in found if finding is not None]

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows == 0:
            return []
        whole = Read.of(table)
        pictures = gallery(whole, context.spec.class_names)
        return [measure_grid(whole), pictures] if pictures.items else [measure_grid(whole)]
