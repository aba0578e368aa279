"""Which images that look alike to the model does it get wrong, though no attribute names them?

Domino (Eyuboglu et al., 2022): an error-aware mixture model groups samples that are alike in the model's features,
their class and their answer (`_mixture.py`), so that mistakes of one kind come to lie in one slice. Such a search finds
something in any model. Here it therefore sees one half of the samples only, and a slice counts when it is worse on the
other half as well. There a sample is put in a slice by its features and true class alone: the answer would bring the
mistakes into the slices and make the test circular. Whatever words describe a slice are attached after the test.

Misleads as an explanation: the last features nearly decide the answer, so a confirmed slice says that mistakes lie
together for the model, not what in the images made them; the attribute named is a companion. Cannot see faults on which
mistakes are scattered, nor slices of a few samples. A setting with more slices finds smaller ones, less surely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from snellen.discovery._mixture import fit_mixture, principal
from snellen.discovery._slice_report import (
    Described,
    describe,
    short_finding,
    slice_bars,
    slice_finding,
    unconfirmed_finding,
)
from snellen.discovery._slices import LEVEL, judged
from snellen.errors import InvalidInput
from snellen.exhibits import Exhibit
from snellen.models import Access, Model
from snellen.probe import Context, Finding, Passes, ProbeBase, Rows, Samples, Scope, register, rows
from snellen.randomness import SampleRandom, derive_seed
from snellen.sequences import Texts

MOST_SAMPLES = 20_000
"""Of a larger set a random subset is read: with 25 slices more samples would only cost passes and memory."""


@register
@dataclass(frozen=True)
class SliceDiscovery(ProbeBase):
    """Slices of mistakes in feature space, found on one half of the samples and confirmed on the other.

    Effect: accuracy on other images of the same classes (in the slice's mix of classes) minus accuracy in the slice,
    `ci` the interval of the latter, both on the confirmation half. p: right answers shuffled within each class there
    (one-sided), adjusted over the slices that were worse on the discovery half. Columns: id, half, slice (-1: none was
    fitted), responsibility (of that slice for the sample), correct, label, predicted.
    """

    name: ClassVar[str] = "discovery/slices"
    paper: ClassVar[str] = "Eyuboglu et al., 2022"
    access: ClassVar[Access] = Access.FEATURES
    scope: ClassVar[Scope] = Scope.DATASET
    needs: ClassVar[tuple[str, ...]] = ("predictions",)

    slices: int = 25
    """At most so many, at least 2; fewer where the discovery half has less than `min_count` samples for each."""
    gamma: float = 10.0
    """Weight of class and answer against the features, at least 0; the paper's 10."""
    dimensions: int = 32
    """Principal components of the features that are used, at least 1; the paper's choice is 128."""
    min_count: int = 20
    """Smallest slice that is judged, half of it in each half of the samples; at least 4."""
    restarts: int = 3
    """Fits from random starts of which the best counts, at least 1."""
    min_effect: float = 0.05
    """Differences below this many accuracy points (0 to 1) are not reported."""
    max_findings: int = 20
    """At most so many slices, the worst first; at least 1."""

    def __post_init__(self) -> None:
        least = {"slices": 2, "gamma": 0, "dimensions": 1, "min_count": 4, "restarts": 1, "max_findings": 1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InvalidInput(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not np.isfinite(self.gamma):
            raise InvalidInput(f"gamma must be finite, got {self.gamma}")
        if not 0 <= self.min_effect < 1:
            raise InvalidInput(f"min_effect must be in [0, 1), got {self.min_effect}")

    def run(self, model: Model, samples: Samples, tables: Mapping[str, Rows], random: SampleRandom) -> Rows:
        answers = _drawn(tables["predictions"], random)
        features, known = _features(model, samples, Texts(answers["id"]))
        answers, features = answers.filter(pa.array(known)), features[known]
        labels, predicted = answers["label"].to_numpy(), answers["predicted"].to_numpy()
        ids = answers["id"].to_pylist()
        discovery = halves(ids, labels, random)
        found, responsibility = self.assigned(features, labels, predicted, discovery, random.numpy("starts"))
        return rows(
            ids,
            half=np.where(discovery, "discovery", "confirmation").tolist(),
            slice=found,
            responsibility=responsibility,
            correct=labels == predicted,
            label=labels,
            predicted=predicted,
        )

    def assigned(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        predicted: NDArray[np.int64],
        discovery: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The slice of each sample `[n]` and its responsibility `[n]`; slice -1 where there are too few samples.

        features: `[n, D]`. discovery: bool `[n]`, the half that the components and the mixture are fitted on.
        """
        if len(labels) < self._least:
            return np.full(len(labels), -1), np.zeros(len(labels))
        # Classes that do not occur would only lengthen the tables.
        codes = np.unique(np.stack([labels, predicted]), return_inverse=True)[1].reshape(2, -1)
        points = principal(features, discovery, self.dimensions)
        fitted = fit_mixture(
            points[discovery],
            codes[0, discovery],
            codes[1, discovery],
            min(self.slices, int(discovery.sum()) // self.min_count),
            self.gamma,
            rng,
            self.restarts,
        )
        shares = fitted.mixture.assign(points, codes[0])
        return shares.argmax(axis=1), shares.max(axis=1)

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=min(batch_size, MOST_SAMPLES))

    @property
    def _least(self) -> int:
        """Samples without which there are not even two slices."""
        return 4 * self.min_count

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        if table.num_rows == 0:
            return []
        if table.num_rows < self._least:
            return [short_finding(table.num_rows, self._least)]
        tried = sorted(self._tried(table, context), key=lambda told: -told.slice.drop)
        found: dict[str, Finding] = {}  # of slices that read the same the worst is told
        for told in tried:
            if told.slice.p_value <= LEVEL and told.slice.drop >= self.min_effect:
                found.setdefault(str(told.subject), slice_finding(told))
        doubtful = [d for d in tried if d.slice.p_value > LEVEL and d.slice.suspected_drop >= self.min_effect]
        unconfirmed = [unconfirmed_finding(doubtful, table.num_rows)] if doubtful else []
        return list(found.values())[: self.max_findings] + unconfirmed

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        if table.num_rows < self._least:
            return []
        tried = self._tried(table, context)
        return [slice_bars(tried, table)] if tried else []

    def _tried(self, table: Rows, context: Context) -> list[Described]:
        return describe(judged(table, self.min_count, context.random(self.name)), table, context)


def halves(ids: list[str], labels: NDArray[np.int64], random: SampleRandom) -> NDArray[np.bool_]:
    """True `[n]` for the discovery half: every other sample of each class, in the order of the ids' hashes."""
    rank = np.array([derive_seed(random.seed, random.method, "half", name) for name in ids], dtype=np.int64)
    discovery = np.zeros(len(ids), dtype=np.bool_)
    discovery[np.lexsort((rank, labels))[::2]] = True
    return discovery


def _drawn(predictions: Rows, random: SampleRandom) -> Rows:
    """Id, label and answer of the samples that have one, sorted by id; a random subset of a large table."""
    columns = predictions.select(["id", "label", "predicted"])
    answered = columns.filter(pc.not_equal(columns["predicted"], -1))
    if answered.num_rows > MOST_SAMPLES:
        rank = np.array([derive_seed(random.seed, random.method, "subset", name) for name in Texts(answered["id"])])
        answered = answered.take(pa.array(np.argpartition(rank, MOST_SAMPLES)[:MOST_SAMPLES]))
    return answered.sort_by("id")


def _features(model: Model, samples: Samples, ids: Texts) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features `[n, D]` in the order of `ids`, and which of them were met and are finite."""
    place = {sample_id: row for row, sample_id in enumerate(ids)}
    features = np.zeros((len(ids), 0), dtype=np.float32)
    known = np.zeros(len(ids), dtype=np.bool_)
    for batch in samples.batches():
        kept = [index for index, sample_id in enumerate(batch.ids) if sample_id in place]
        if not kept:
            continue
        read = model.features(batch.images[kept]).float().cpu().numpy()
        if features.shape[1] == 0:  # how many there are is known from the first pass on
            features = np.zeros((len(ids), read.shape[1]), dtype=np.float32)
        at = [place[batch.ids[index]] for index in kept]
        features[at], known[at] = read, np.isfinite(read).all(axis=1)
    return features, known
