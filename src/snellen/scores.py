"""Reading the scores back from the `predictions` table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import log_softmax

from snellen.errors import InvalidInput
from snellen.probe import Rows
from snellen.randomness import derive_seed
from snellen.sequences import Texts

FLOOR = -100.0
"""Smallest log-probability: a probability of exactly 0 on the true class must not make a mean infinite."""
MOST_SCORES = 20_000_000
MOST_SAMPLES = 200_000
"""Of a larger table a random subset of the samples is read: so many logits (160 MB), and so many samples, on which an
error of calibration is known to a tenth of a point."""


@dataclass(frozen=True)
class Scores:
    """Samples whose scores are finite, sorted by id. logits: float64 `[n, K]`; labels: int64 `[n]`."""

    ids: Sequence[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return np.exp(log_probabilities(self.logits))


def log_probabilities(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-softmax `[n, K]` of logits divided by a temperature."""
    return np.asarray(log_softmax(logits / temperature, axis=1))


def read_scores(predictions: Rows, purpose: str) -> Scores:
    """The scores of the `predictions` table, sorted by id so that the order of shards does not matter.

    Rows without a finite output are left out (the probe `predictions` reports them). Of more than `MOST_SAMPLES`
    samples or `MOST_SCORES` logits a random subset is kept, the same for every order of the rows. Raises
    `InvalidInput` when the table holds labels only.
    """
    answered = np.flatnonzero(predictions["predicted"].to_numpy() != -1)
    if len(answered) and predictions["logits"].slice(int(answered[0]), 1).null_count:
        raise InvalidInput(f"{purpose} needs scores, but the predictions hold labels only (labels access)")
    classes = len(predictions["logits"][int(answered[0])]) if len(answered) else 1
    most = min(MOST_SAMPLES, max(1000, MOST_SCORES // max(classes, 1)))
    if len(answered) > most:
        ids = predictions["id"].take(pa.array(answered))
        answered = answered[_drawn(ids, most)]
    table = predictions.select(["id", "label", "logits"]).take(pa.array(answered)).sort_by("id")
    lists = pa.concat_arrays(table["logits"].chunks) if table.num_rows else table["logits"].combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    logits = flat.reshape(table.num_rows, -1) if table.num_rows else np.empty((0, 0))
    return Scores(Texts(table["id"]), table["label"].to_numpy(), np.maximum(logits, -1e30))


def _drawn(ids: pa.ChunkedArray, count: int) -> NDArray[np.int64]:
    """`count` positions, by the hash of the id: independent of the order and of what else is there."""
    rank = np.array([derive_seed(0, "scores", str(sample_id)) for sample_id in ids])
    return np.sort(np.argpartition(rank, count)[:count])
