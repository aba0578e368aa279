"""Is a gain under natural shift more than what better clean accuracy would have brought anyway?

Paper: Bansal & Grover, 2023 (Leaving Reality to Imagination), with the line of Taori et al., 2020. Plain models lie
near a line from clean to shifted accuracy on logit axes. Effective robustness rho is the height above that line;
relative robustness tau is the plain gain over a base model. The protocol for generated training data comes with it:
shift sets with class masks, checks of the generated images, and mixes by share with equal updates reported.

When it misleads: rho is only as good as the pool behind the line. Few or similar baselines, or a model outside their
range of clean accuracy, give a rho that means nothing; intervals are over images and do not show it. A model trained
on the kind of shift it is tested on has rho > 0 without being robust to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, register_functions
from snellen.shift._baseline import MIN_MODELS, Axis, Baseline, fit_baseline, from_axis, least_squares, to_axis
from snellen.shift._generated_sets import (
    MixPlan,
    Neighbours,
    check_generated,
    improbable,
    mix_plan,
    nearest_test_images,
    refuse_leaks,
)
from snellen.stats import bias_corrected_interval, needed_samples, paired_difference, wilson

__all__ = [
    "Axis",
    "Baseline",
    "MixPlan",
    "Neighbours",
    "check_generated",
    "fit_baseline",
    "improbable",
    "mix_plan",
    "nearest_test_images",
    "predict_sets",
    "refuse_leaks",
    "restrict_classes",
    "robustness_table",
]

MEAN = "mean"
"""The row that averages all shifts of a model."""
VISIBLE = 0.05
"""enough_data asks whether a difference of this size would be seen."""

Correct = Mapping[str, NDArray[np.bool_]]
"""Set name -> whether each sample is right, bool `[n]`."""
Batches = Iterable[tuple[Tensor, Tensor]]
"""Images `[B, C, H, W]` in [0, 1] and labels `[B]`."""


class Restricted(NamedTuple):
    """Logits `[n, k]` over k classes, labels as places among them `[n]`, and which samples were kept, bool `[N]`."""

    logits: Tensor
    labels: Tensor
    kept: Tensor


def restrict_classes(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Restricted:
    """Logits `[N, K]` and labels `[N]` on the classes a shift set shares with the model, both alike.

    classes: model outputs that the set has. Samples of other classes are left out. Use the same mask on the clean set:
    200 classes are easier than 1000, and rho would take the difference for robustness.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes) or not set(classes) <= set(range(logits.shape[1])):
        raise InvalidInput(f"classes must be two or more different outputs of {logits.shape[1]}, got {list(classes)}")
    place = torch.full((logits.shape[1],), -1, dtype=torch.long, device=labels.device)
    place[torch.tensor(classes, device=labels.device)] = torch.arange(len(classes), device=labels.device)
    moved = place[labels]
    kept = moved >= 0
    return Restricted(logits[kept][:, list(classes)], moved[kept], kept)


@torch.no_grad()
def predict_sets(
    model: Callable[[Tensor], Tensor], sets: Mapping[str, Batches], classes: Mapping[str, Sequence[int]] | None = None
) -> Correct:
    """Runs `model` (images -> logits) once over every set; `classes` names the shared classes of a set, where masked.

    The clean set needs the mask of the shift sets it is compared with: one table for each label space.
    """
    correct: dict[str, NDArray[np.bool_]] = {}
    for name, batches in sets.items():
        shared = (classes or {}).get(name)
        right: list[Tensor] = []
        for images, labels in batches:
            logits = model(images)
            if shared is not None:
                logits, labels, _ = restrict_classes(logits, labels.to(logits.device), shared)
            right.append((logits.argmax(dim=1) == labels.to(logits.device)).cpu())
        correct[name] = torch.cat(right).numpy() if right else np.zeros(0, dtype=bool)
    return correct


def robustness_table(
    correct: Mapping[str, Correct],
    baselines: Sequence[str],
    base: str,
    rng: np.random.Generator,
    *,
    clean: str = "clean",
    axis: Axis = "logit",
    resamples: int = 1000,
) -> Rows:
    """A row a model and shift set, and a row "mean" a model: accuracies, rho and tau with 95 % intervals.

    correct: model -> set -> bool `[n]`, every model on the same samples in the same order. baselines: 3 or more plain
    models of varied clean accuracy that fit the line. base: the model tau compares with. Images of each set are drawn
    again, the same for all models, and the line is fitted anew on each draw. tau of one set has Tango's paired
    interval; accuracies have Wilson's. Raises InvalidInput.
    """
    names = list(correct)
    shifts = [name for name in correct[names[0]] if name != clean] if names else []
    _check(correct, baselines, base, clean, shifts)
    pool = [names.index(name) for name in baselines]

    # One draw of images a set and resample, shared by all models.
    hits = {s: np.stack([np.asarray(correct[name][s], dtype=bool) for name in names]) for s in (clean, *shifts)}
    accuracy = {s: (h.mean(axis=1)[None], _redrawn(h, rng, resamples)) for s, h in hits.items()}
    sizes = {s: h.shape[1] for s, h in hits.items()}
    rho: dict[str, list[NDArray[np.float64]]] = {s: [] for s in shifts}
    for shift in shifts:
        for x, y in zip(accuracy[clean], accuracy[shift], strict=True):
            rho[shift].append(_above_line(x, y, pool, axis, sizes[clean], sizes[shift]))

    rows: list[dict[str, str | int | float | bool]] = []
    for m, name in enumerate(names):
        for shift in shifts:
            n, right = sizes[shift], hits[shift]
            tau = paired_difference(right[m], right[names.index(base)])
            row = _row(name, shift, n, float(accuracy[clean][0][0, m]), float(accuracy[shift][0][0, m]))
            low, high = wilson(int(right[m].sum()), n)
            row |= _bounds("rho", float(rho[shift][0][0, m]), rho[shift][1][:, m])
            difference = float(right[m].mean() - right[names.index(base)].mean())
            row |= {"low": low, "high": high, "tau": difference, "tau_low": tau.low, "tau_high": tau.high}
            rows.append(row)
        rows.append(_mean_row(name, m, names.index(base), accuracy, rho, sizes, clean, shifts))
    return pa.Table.from_pylist(rows)


def _mean_row(
    name: str,
    m: int,
    base: int,
    accuracy: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    rho: Mapping[str, Sequence[NDArray[np.float64]]],
    sizes: Mapping[str, int],
    clean: str,
    shifts: Sequence[str],
) -> dict[str, str | int | float | bool]:
    point, drawn = (np.mean([accuracy[s][k] for s in shifts], axis=0) for k in (0, 1))
    rho_point, rho_drawn = (np.mean([rho[s][k] for s in shifts], axis=0) for k in (0, 1))
    row = _row(name, MEAN, min(sizes[s] for s in shifts), float(accuracy[clean][0][0, m]), float(point[0, m]))
    interval = bias_corrected_interval(float(point[0, m]), drawn[:, m])
    row |= _bounds("rho", float(rho_point[0, m]), rho_drawn[:, m])
    row |= {"low": interval.low, "high": interval.high}
    return row | _bounds("tau", float(point[0, m] - point[0, base]), drawn[:, m] - drawn[:, base])


def _above_line(
    x: NDArray[np.float64], y: NDArray[np.float64], pool: Sequence[int], axis: Axis, n_clean: int, n_shifted: int
) -> NDArray[np.float64]:
    """x, y: clean and shifted accuracy `[B, models]`; returns rho `[B, models]`."""
    on_x, on_y = to_axis(x, axis, n_clean), to_axis(y, axis, n_shifted)
    line = least_squares(on_x[:, pool], on_y[:, pool])
    expected: NDArray[np.float64] = line.intercept[:, None] + line.slope[:, None] * on_x
    return y - from_axis(expected, axis)


def _redrawn(hits: NDArray[np.bool_], rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    n = hits.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), resamples)
    return np.asarray(counts @ hits.T / n, dtype=np.float64)


def _row(name: str, shift: str, n: int, clean: float, shifted: float) -> dict[str, str | int | float | bool]:
    needed = needed_samples(min(VISIBLE, shifted), shifted) if shifted > 0 else 0
    row: dict[str, str | int | float | bool] = {"model": name, "set": shift, "n": n, "clean": clean}
    return row | {"accuracy": shifted, "needed": needed, "enough_data": n >= needed}


def _bounds(name: str, value: float, drawn: NDArray[np.float64]) -> dict[str, float]:
    interval = bias_corrected_interval(value, drawn)
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _check(
    correct: Mapping[str, Correct], baselines: Sequence[str], base: str, clean: str, shifts: Sequence[str]
) -> None:
    missing = sorted({*baselines, base} - set(correct))
    if missing or len(set(baselines)) < MIN_MODELS or len(set(baselines)) != len(baselines):
        raise InvalidInput(
            f"baselines must be {MIN_MODELS} or more different models of correct, and base one, got {list(baselines)}"
            f" and {base!r}, not in correct: {missing}"
        )
    if not shifts:
        raise InvalidInput(f"correct must hold {clean!r} and at least one shift set, got {sorted(correct[base])}")
    for name, sets in correct.items():
        lengths = {s: len(sets[s]) if s in sets else 0 for s in (clean, *shifts)}
        wanted = {s: len(correct[base].get(s, ())) for s in (clean, *shifts)}
        if set(sets) != set(wanted) or lengths != wanted or min(wanted.values()) < 2:
            raise InvalidInput(
                f"correct must hold the same samples, 2 or more a set, for every model: {base} has {wanted}, {name} has"
                f" { {s: len(v) for s, v in sets.items()} }"
            )
    accuracies = [float(np.mean(correct[name][clean])) for name in baselines]
    if np.ptp(accuracies) < 1e-9:
        raise InvalidInput(f"baselines must differ in clean accuracy to fit a line, got {accuracies}")


register_functions(
    "shift/effective-robustness",
    paper="Bansal and Grover, 2023",
    card="generated-datasets",
    access=Access.LABELS,
    data="answers of several models on clean and shifted sets; generated images",
    module=__name__,
)
