"""From flags to a model and a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from snellen.data import Dataset, load_dataset
from snellen.errors import InvalidInput
from snellen.models import Access, Model
from snellen.models.loading import LoadedModel, load_model, read_class_names
from snellen.models.options import DataHints, ModelOptions


class ModelFlags(NamedTuple):
    """The flags that `audit` and `run` share, as typed."""

    classes: Path | None
    input_size: str | None
    mean: str | None
    std: str | None
    architecture: str | None
    device: str
    access: str | None
    budget: int | None
    label_column: str

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest. Nothing secret is among them."""
        return {**self._asdict(), "classes": None if self.classes is None else str(self.classes)}


class Inputs(NamedTuple):
    model: Model
    dataset: Dataset
    warnings: list[str]


def load_inputs(model: str, data: str, flags: ModelFlags) -> Inputs:
    """The model and the data set of a command line."""
    options = ModelOptions(
        classes=read_class_names(flags.classes) if flags.classes else None,
        input_size=_size(flags.input_size),
        mean=_numbers("--mean", flags.mean),
        std=_numbers("--std", flags.std),
        architecture=flags.architecture,
        device=flags.device,
        access=_access(flags.access),
        budget=flags.budget,
    )
    dataset = load_dataset(data, label_column=flags.label_column)
    loaded: LoadedModel = load_model(model, options, DataHints(dataset.class_names, dataset.common_size()))
    return Inputs(loaded.model, dataset, loaded.warnings)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"--input-size must read 224 or 224x320, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"{flag} must be numbers with commas between, as 0.5,0.5,0.5, got {text!r}") from error


def _access(text: str | None) -> Access | None:
    if text is None:
        return None
    try:
        return Access[text.upper()]
    except KeyError as error:
        levels = ", ".join(str(level) for level in Access)
        raise InvalidInput(f"--access must be one of {levels}, got {text!r}") from error
