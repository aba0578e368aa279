"""Rows of accuracies of audio-visual models, with intervals, for `snellen.shift.audio_visual`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from snellen.stats import bootstrap_bca, mcnemar_exact, needed_samples, paired_difference, wilson

HARM = 0.05
"""The smallest drop that a set of clips should be able to show."""

SCHEMA = pa.schema(
    [("corruption", pa.string()), ("severity", pa.float64()), ("stream", pa.string())]
    + [(column, pa.float64()) for column in ("accuracy", "low", "high", "drop", "drop_low", "drop_high", "p_value")]
    + [(column, pa.float64()) for column in ("interaction", "interaction_low", "interaction_high")]
    + [("n", pa.int64()), ("enough_data", pa.bool_())]
)

Row = dict[str, str | float | int | bool | None]
Right = NDArray[np.bool_]


def condition_row(name: str, severity: float, stream: str, right: Right, clean: Right) -> Row:
    """One condition: right, clean: bool `[n]`, clip by clip."""
    low, high = wilson(int(right.sum()), len(right))
    drop_low, drop_high = paired_difference(clean, right)
    row = _row(name, severity, stream, right, clean)
    p_value = mcnemar_exact(int((~right & clean).sum()), int((right & ~clean).sum()))
    return row | {"low": low, "high": high, "drop_low": drop_low, "drop_high": drop_high, "p_value": p_value}


def mean_row(stream: str, mean: NDArray[np.float64], clean: Right, rng: np.random.Generator) -> Row:
    """The mean over conditions: `mean` `[n]` is the share of conditions under which each clip is right."""
    low, high = bootstrap_bca(mean, _mean, rng)
    drop_low, drop_high = bootstrap_bca(clean - mean, _mean, rng)
    row = _row("mean", None, stream, mean, clean)
    return row | {"low": low, "high": high, "drop_low": drop_low, "drop_high": drop_high}


def interaction(
    streams: Mapping[str, Right] | Mapping[str, NDArray[np.float64]], clean: Right, rng: np.random.Generator
) -> Row:
    """drop_both - (drop_frames + drop_wave), above 0 where the streams fail together worse than apart."""
    both, frames, wave = (streams[name].astype(float) for name in ("both", "frames", "wave"))
    by_clip = frames + wave - both - clean
    low, high = bootstrap_bca(by_clip, _mean, rng)
    return {"interaction": float(by_clip.mean()), "interaction_low": low, "interaction_high": high}


def _row(name: str, severity: float | None, stream: str, right: NDArray[np.generic], clean: Right) -> Row:
    accuracy, untouched, n = _mean(right), _mean(clean), len(clean)
    return {
        "corruption": name,
        "severity": severity,
        "stream": stream,
        "accuracy": accuracy,
        "drop": untouched - accuracy,
        "n": n,
        "enough_data": untouched > 0 and n >= needed_samples(min(HARM, untouched), untouched),
    }


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.astype(float).mean())
