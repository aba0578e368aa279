"""From flags to a model and a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from snellen.data import Dataset, load_dataset
from snellen.errors import InvalidInput
from snellen.models import Access, Model
from snellen.models.class_names import read_class_names
from snellen.models.endpoint import Remote
from snellen.models.loading import LoadedModel, load_model
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
    budget: str | None
    label_column: str
    template: str | None = None
    compile: bool = False
    dtype: str = "float32"
    remote: str | None = None
    batch_size: int | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest. Nothing secret is among them."""
        return {**self._asdict(), "classes": None if self.classes is None else str(self.classes)}


class Inputs(NamedTuple):
    model: Model
    dataset: Dataset
    warnings: list[str]


def load_inputs(model: str, data: str, flags: ModelFlags) -> Inputs:
    """The model and the data set of a command line."""
    budget = _pairs("--budget", flags.budget, {"queries": int, "minutes": float}, alone="queries")
    options = ModelOptions(
        classes=read_class_names(flags.classes) if flags.classes else None,
        input_size=_size(flags.input_size),
        mean=_numbers("--mean", flags.mean),
        std=_numbers("--std", flags.std),
        architecture=flags.architecture,
        device=flags.device,
        access=_access(flags.access),
        budget=None if (queries := budget.get("queries")) is None else int(queries),
        minutes=budget.get("minutes"),
        remote=_remote(flags.remote),
        template=flags.template or ModelOptions.template,
        compile=flags.compile,
        dtype=flags.dtype,
    )
    for name in (model, data):
        refuse_secrets(name)
    dataset = load_dataset(data, label_column=flags.label_column)
    loaded: LoadedModel = load_model(model, options, DataHints(dataset.class_names, dataset.common_size()))
    if flags.batch_size is not None:
        loaded.model.batch_size = flags.batch_size
    return Inputs(loaded.model, dataset, loaded.warnings)


def refuse_secrets(name: str) -> None:
    """Names are stored with the run and printed in its commands."""
    if re.search(r"://[^/@\s]*:[^/@\s]*@", name):
        raise InvalidInput(
            f"the address {re.sub('://[^@]*@', '://…@', name)!r} holds a password, which would be stored with the run;"
            " put it into the environment or the file system's own configuration"
        )


def _remote(text: str | None) -> Remote:
    numbers = {"concurrency": int, "timeout": float, "retries": int, "backoff": float, "rate": float, "batch": int}
    words = {"token": str}
    return Remote(**_pairs("--remote", text, {**numbers, **words}))


def _pairs(
    flag: str, text: str | None, kinds: Mapping[str, Callable[[str], Any]], alone: str | None = None
) -> dict[str, Any]:
    """`a=1,b=2` with known keys, each value of its kind; a value without a key belongs to `alone`."""
    found: dict[str, Any] = {}
    for part in (text or "").split(",") if text else ():
        key, equals, value = part.partition("=")
        if not equals and alone is not None:
            key, value = alone, part
        if key.strip() not in kinds:
            raise InvalidInput(f"{flag} takes {', '.join(f'{known}=…' for known in kinds)}, got {part!r}")
        try:
            found[key.strip()] = kinds[key.strip()](value.strip().replace("_", ""))
        except ValueError as error:
            raise InvalidInput(f"{flag}: {key.strip()} must be a number, got {value!r}") from error
    return found


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
