"""Rows, statements and pictures that the explanation probes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from snellen.exhibits import Curve, CurvePoint, Exhibit, Gallery, GalleryItem
from snellen.explain._curves import area, faithfulness_curves, random_maps
from snellen.models import Model
from snellen.probe import Batch, Context, Finding, Rows, rows
from snellen.randomness import SampleRandom
from snellen.stats import bootstrap_bca

SHOWN = 12
ENOUGH = 20
"""Below so many samples no statement about a map is made."""
RANDOM = "random order"


class NamedMaps(NamedTuple):
    """Heat maps `[B, H, W]` of one method, larger is more relevant."""

    name: str
    maps: Tensor


def explanation_rows(
    model: Model, batch: Batch, predicted: Tensor, maps: Sequence[NamedMaps], curve_steps: int, random: SampleRandom
) -> Rows:
    """One row a sample and method: curves, their areas, and the map itself (uint8 of |map|, 255 = 99th percentile).

    The random order of pixels is a method of its own, without a map.
    """
    targets = predicted.clamp_min(0)
    chance = NamedMaps(RANDOM, random_maps(random.generators(batch.ids, "order"), batch.images))
    judged = [*maps, chance]
    curves = faithfulness_curves(model.scores, batch.images, [item.maps for item in judged], targets, curve_steps)
    parts = []
    for (name, heat_maps), (deletion, insertion) in zip(judged, curves, strict=True):
        parts.append(
            rows(
                batch.ids,
                label=batch.labels,
                predicted=predicted,
                method=[name] * len(batch),
                deletion_area=area(deletion),
                insertion_area=area(insertion),
                deletion=deletion,
                insertion=insertion,
                height=[heat_maps.shape[1]] * len(batch),
                heat_map=pa.nulls(len(batch), pa.binary()) if name == RANDOM else _quantised(heat_maps),
            )
        )
    return pa.concat_tables(parts)


def explanation_findings(table: Rows, context: Context) -> list[Finding]:
    """One statement a method: does its order of pixels beat a random one, and by how much?"""
    chance = _of(table, RANDOM)
    found = []
    for method in _methods(table):
        mine = _of(table, method)
        gain = (chance.deletion - mine.deletion + mine.insertion - chance.insertion) / 2
        n = len(gain)
        subject = {"method": method}
        if n < ENOUGH or np.ptp(gain) == 0:
            title = f"Not enough data to judge {method} maps: n = {n}, needs about {ENOUGH}."
            found.append(Finding("explanation", title, "faithfulness", None, 0.0, n, subject, enough_data=False))
            continue
        interval = bootstrap_bca(gain, lambda values: float(values.mean()), context.random(f"explain {method}"))
        mean = float(gain.mean())
        verdict = "say more than a random order of pixels about what the score depends on"
        if interval.low <= 0:
            verdict = "were not shown to say more than a random order of pixels, so do not rely on them for this model"
        title = f"The {method} maps {verdict}: insertion and deletion areas are better by {mean:+.3f} on {n} images."
        found.append(
            Finding(
                "explanation",
                title,
                "faithfulness",
                mean,
                0.0,
                n,
                subject,
                baseline=0.0,
                ci=(interval.low, interval.high),
                evidence=[mine.ids[row] for row in np.argsort(-gain)[:SHOWN]],
            )
        )
    return found


def explanation_exhibits(table: Rows, context: Context) -> list[Exhibit]:
    """Mean curves of every method, and maps beside images, mistakes first."""
    shown: list[Exhibit] = []
    for kind, hint in (
        ("deletion", "Most relevant pixels hidden first: lower is better."),
        ("insertion", "Most relevant pixels shown first: higher is better."),
    ):
        points = []
        for method in [*_methods(table), RANDOM]:
            curves = table.filter(pa.compute.equal(table["method"], method))[kind].to_pylist()
            mean = np.mean(np.array(curves, dtype=np.float64), axis=0)
            points += [
                CurvePoint(place / (len(mean) - 1), float(score), series=method) for place, score in enumerate(mean)
            ]
        shown.append(
            Curve(f"{kind.capitalize()} curves", hint, "share of pixels", "score of the predicted class", points)
        )
    return [*shown, _gallery(table, context)]


class _Areas(NamedTuple):
    ids: list[str]
    deletion: np.ndarray
    insertion: np.ndarray


def _of(table: Rows, method: str) -> _Areas:
    mine = table.filter(pa.compute.equal(table["method"], method)).sort_by("id")
    return _Areas(
        mine["id"].to_pylist(),
        mine["deletion_area"].to_numpy().astype(np.float64),
        mine["insertion_area"].to_numpy().astype(np.float64),
    )


def _methods(table: Rows) -> list[str]:
    return [name for name in table["method"].unique().to_pylist() if name != RANDOM]


def _quantised(heat_maps: Tensor) -> list[bytes]:
    strength = heat_maps.abs().float().nan_to_num()
    scale = torch.quantile(strength.flatten(1), 0.99, dim=1).clamp_min(1e-12).view(-1, 1, 1)
    levels = (strength / scale).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return [image.tobytes() for image in levels]


def _gallery(table: Rows, context: Context) -> Gallery:
    names = context.spec.class_names
    first = table.filter(pa.compute.equal(table["method"], _methods(table)[0])).select(["id", "label", "predicted"])
    cases = sorted(first.to_pylist(), key=lambda row: (row["label"] == row["predicted"], row["id"]))[:SHOWN]
    kept = table.filter(pa.compute.is_in(table["id"], pa.array([case["id"] for case in cases])))
    maps: dict[str, list[tuple[str, list[list[float]]]]] = {}
    for row in kept.to_pylist():
        if row["heat_map"] is not None:
            levels = np.frombuffer(row["heat_map"], np.uint8).reshape(row["height"], -1) / 255
            maps.setdefault(row["id"], []).append((row["method"], levels.tolist()))
    items = []
    for case in cases:
        answer = names[case["predicted"]] if case["predicted"] >= 0 else "nothing finite"
        note = f"{names[case['label']]}, answered {answer}"
        items.append(GalleryItem(case["id"], note, maps.get(case["id"], [])))
    caption = (
        "Mistakes first. Light is what counted for the answer given; the 99th percentile of each map is full light."
    )
    return Gallery("Heat maps", caption, items)
