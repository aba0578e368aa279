"""Does tuning a small part of a large model buy robustness without costing clean accuracy or transfer?

Paper: Jain et al., 2023 (Efficiently Robustify Pre-trained Models): its evaluation protocol, for any list of tuned
models against named baselines. Clean accuracy, mean accuracy over corruptions, accuracy on shift sets, transfer by a
linear probe of the features, parameters trained, and training time where it was measured; all on the same images, so
that differences are paired.

When it misleads: corruptions used in training tell nothing when met again (`corruption_overlap` lists them), one
linear probe is one task, and trained parameters are not training cost: the frozen part is still run forward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Rows, register_functions
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import CORRUPTIONS, check_name, check_severity, corrupt
from snellen.shift._tuning import (
    CORRUPTED,
    METHOD,
    ParameterCount,
    accuracy_row,
    comparison_row,
    count_parameters,
    frozen_fingerprint,
    linear_probe,
)

__all__ = [
    "Labelled",
    "ParameterCount",
    "TransferTask",
    "TunedModel",
    "TuningProtocol",
    "TuningReport",
    "corruption_overlap",
    "count_parameters",
    "frozen_fingerprint",
    "linear_probe",
    "tuning_report",
]


class Labelled(NamedTuple):
    """Images float `[N, C, H, W]` in [0, 1] and labels int `[N]`."""

    images: Tensor
    labels: Tensor


class TransferTask(NamedTuple):
    """Another task: the linear probe is fitted on `train` and judged on `test`."""

    train: Labelled
    test: Labelled


@dataclass(frozen=True)
class TunedModel:
    """classify: images -> logits. features: images -> `[N, D]`, for transfer. module: whose parameters are counted;
    those that train must still have requires_grad set. seconds: training time, where measured."""

    classify: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor] | None = None
    module: nn.Module | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class TuningProtocol:
    """What every model is judged on."""

    clean: Labelled
    shifts: Mapping[str, Labelled]
    """Further test sets of the same task, by name; may be empty."""
    transfer: TransferTask | None = None
    corruptions: tuple[str, ...] = CORRUPTIONS
    """Applied to the clean set; the paper's 15."""
    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.corruptions:
            check_name(name)
        for severity in self.severities:
            check_severity(severity)
        if not self.corruptions or not self.severities:
            raise InvalidInput("corruptions and severities must not be empty")
        if self.batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, got {self.batch_size}")
        for name, (images, labels) in {"clean": self.clean, **self.shifts}.items():
            if images.ndim != 4 or len(images) != len(labels) or len(labels) < 2:
                raise InvalidInput(
                    f"{name} must be two or more images [N, C, H, W] with N labels,"
                    f" got {list(images.shape)} and {len(labels)}"
                )


class TuningReport(NamedTuple):
    """accuracies: a row a model and measure. comparisons: a row a model, measure and baseline, on the same images.
    costs: a row a model."""

    accuracies: Rows
    comparisons: Rows
    costs: Rows


Scores = dict[str, NDArray[np.float64]]
"""Measure -> share right per image `[n]`: 0 or 1, for corruptions the mean over conditions."""


def tuning_report(models: Mapping[str, TunedModel], baselines: Sequence[str], protocol: TuningProtocol) -> TuningReport:
    """Judges every model on every measure, once, and compares each with the named baselines (Jain et al., 2023).

    Measures: "clean", "corrupted" (mean over corruptions and severities), "shift: NAME", "transfer". Differences are
    model minus baseline with 95 % intervals; p from exact McNemar, NaN for "corrupted", where the interval decides.
    """
    unknown = sorted(set(baselines) - set(models))
    if unknown or not baselines:
        raise InvalidInput(f"baselines must name models ({', '.join(models)}), got {list(baselines)}")
    lacking = [name for name, model in models.items() if model.features is None]
    if protocol.transfer is not None and lacking:
        raise InvalidInput(f"transfer needs the features of every model, {', '.join(lacking)} have none")

    scores = _all_scores(models, protocol)
    accuracies = [
        accuracy_row(name, measure, s, protocol.seed) for name in models for measure, s in scores[name].items()
    ]
    comparisons = [
        comparison_row(name, against, measure, scores[name][measure], scores[against][measure], protocol.seed)
        for name in models
        for against in baselines
        if name != against
        for measure in scores[name]
    ]
    return TuningReport(pa.Table.from_pylist(accuracies), pa.Table.from_pylist(comparisons), _costs(models))


@torch.no_grad()
def _all_scores(models: Mapping[str, TunedModel], protocol: TuningProtocol) -> dict[str, Scores]:
    """Corrupts each batch once a condition and shows it to every model."""
    clean = protocol.clean
    conditions = [(name, severity) for name in protocol.corruptions for severity in protocol.severities]
    sums = {name: torch.zeros(len(clean.labels), dtype=torch.float64) for name in models}
    random = SampleRandom(protocol.seed, METHOD)
    for rows in torch.arange(len(clean.labels)).split(protocol.batch_size):
        for corruption, severity in conditions:
            generators = random.generators([str(row) for row in rows.tolist()], corruption)
            images = corrupt(clean.images[rows], corruption, severity, generators)
            for name, model in models.items():
                sums[name][rows] += _right(model, images, clean.labels[rows])

    found: dict[str, Scores] = {}
    for name, model in models.items():
        scores = {"clean": _right_all(model, clean, protocol), CORRUPTED: (sums[name] / len(conditions)).numpy()}
        scores |= {f"shift: {shift}": _right_all(model, data, protocol) for shift, data in protocol.shifts.items()}
        if protocol.transfer is not None and model.features is not None:
            task = protocol.transfer
            train, test = (_features(model.features, part, protocol) for part in task)
            scores["transfer"] = linear_probe(train, task.train.labels, test, task.test.labels).astype(np.float64)
        found[name] = scores
    return found


def corruption_overlap(trained_on: Collection[str], protocol: TuningProtocol) -> tuple[str, ...]:
    """Evaluation corruptions that were also training augmentations; figures on them do not count as robustness."""
    return tuple(name for name in protocol.corruptions if name in trained_on)


def _right(model: TunedModel, images: Tensor, labels: Tensor) -> Tensor:
    return (model.classify(images).argmax(dim=1).cpu() == labels.cpu()).double()


def _right_all(model: TunedModel, data: Labelled, protocol: TuningProtocol) -> NDArray[np.float64]:
    parts = zip(data.images.split(protocol.batch_size), data.labels.split(protocol.batch_size), strict=True)
    return torch.cat([_right(model, images, labels) for images, labels in parts]).numpy()


def _features(features: Callable[[Tensor], Tensor], data: Labelled, protocol: TuningProtocol) -> Tensor:
    return torch.cat([features(part).flatten(1).cpu() for part in data.images.split(protocol.batch_size)])


def _costs(models: Mapping[str, TunedModel]) -> Rows:
    rows: list[dict[str, str | int | float | None]] = []
    for name, model in models.items():
        count = count_parameters(model.module) if model.module is not None else None
        row: dict[str, str | int | float | None] = {"model": name, "seconds": model.seconds}
        row |= {"parameters": count.total, "trained": count.trained, "share": count.share} if count else {}
        rows.append({"parameters": None, "trained": None, "share": None, **row})
    return pa.Table.from_pylist(rows)


register_functions(
    METHOD,
    paper="Jain et al., 2023",
    card="efficiently-robustify",
    access=Access.LABELS,
    data="tuned models against named baselines",
    module=__name__,
)
