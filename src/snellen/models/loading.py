"""`load_model`: a name, a file or a Python function becomes a `Model`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models.endpoint import Endpoint
from snellen.models.http_model import HttpModel
from snellen.models.ledger import QueryLedger
from snellen.models.model import Model
from snellen.models.opening import open_source
from snellen.models.options import DataHints, ModelOptions
from snellen.models.source import Source
from snellen.models.spec import ModelSpec, fingerprint_weights
from snellen.models.torch_model import TorchModel
from snellen.randomness import torch_generator


class LoadedModel(NamedTuple):
    """The model and the assumptions that were made for it."""

    model: Model
    warnings: list[str]


def load_model(name: str, options: ModelOptions | None = None, hints: DataHints | None = None) -> LoadedModel:
    """Load a model by name or path. Nothing in a file is executed: pickles that need code are refused.

    Raises InvalidInput or UntrustedFile with a sentence that says what to do.
    """
    options, hints = options or ModelOptions(), hints or DataHints()
    source = open_source(name, options)
    warnings = list(source.notes)
    spec = _spec(name, source, options, hints, warnings)
    ledger = QueryLedger(options.budget, options.minutes)
    if isinstance(source.network, Endpoint):
        # Not tried out here: the first query is booked by the run that sends it.
        return _restricted(LoadedModel(HttpModel(source.network, spec, ledger), warnings), options)
    _check_device(options.device)
    model: Model = TorchModel(
        source.network,
        spec,
        device=options.device,
        ledger=ledger,
        dtype=_dtype(options.dtype),
        compiled=options.compile,
    )
    answer = _try_out(model)
    if name.startswith("py:"):
        # The user's code may change while the weights stay, or have no weights: what it answers belongs to it.
        identity = fingerprint_weights(name + model.spec.fingerprint, {"answer": answer})
        model.spec = replace(model.spec, fingerprint=identity)
    return _restricted(LoadedModel(model, warnings), options)


def _restricted(loaded: LoadedModel, options: ModelOptions) -> LoadedModel:
    return loaded if options.access is None else loaded._replace(model=loaded.model.restrict(options.access))


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bf16": torch.bfloat16}
    if name not in known:
        raise InvalidInput(f"dtype must be {' or '.join(known)}, got {name!r}")
    return known[name]


def _check_device(name: str) -> None:
    known = re.fullmatch(r"cpu|mps|cuda(:(\d+))?", name)
    if known is None:
        raise InvalidInput(f"device {name!r} is unknown; accepted are cpu, cuda, cuda:N and mps")
    if name.startswith("cuda") and int(known.group(2) or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices; use --device cpu")


def _spec(name: str, source: Source, options: ModelOptions, hints: DataHints, warnings: list[str]) -> ModelSpec:
    classes = options.classes or source.class_names
    if classes is None:
        if hints.class_names is None:
            raise InvalidInput(f"{name} does not name its classes; give them with --classes names.txt, one a line")
        classes = sorted(hints.class_names)
        warnings.append(
            f"{name} does not name its classes; the data's {len(classes)} names in sorted order were taken for its"
            " outputs. If the order is another one every figure is wrong: give --classes names.txt"
        )
    size = options.input_size or source.input_size
    if size is None:
        if hints.image_size is None:
            raise InvalidInput(f"{name} does not state its input size; give it with --input-size 224")
        size = hints.image_size
        warnings.append(f"{name} does not state its input size; the images' own {size[0]} x {size[1]} was taken")
    mean = options.mean or source.mean
    std = options.std or source.std
    if mean is None and not name.startswith("demo"):
        warnings.append(f"{name} states no normalisation; it gets images in [0, 1] (set --mean and --std otherwise)")
    return ModelSpec(
        name,
        tuple(str(item) for item in classes),
        size,
        tuple(mean) if mean is not None else (0.0,) * (len(std) if std else 3),
        tuple(std) if std is not None else (1.0,) * (len(mean) if mean else 3),
        source.interpolation,
        source.crop_fraction,
        fingerprint=source.fingerprint,
        class_aliases=source.aliases or {},
    )


def _try_out(model: Model) -> Tensor:
    """One fixed image through the model, off the books, so that a wrong spec is told before the run begins."""
    shape = (1, model.spec.channels, *model.spec.input_size)
    try:
        with model.ledger.off_the_books():
            return model.scores(torch.rand(shape, generator=torch_generator("try out")))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InvalidInput(
                f"torch.compile cannot compile {model.spec.name} ({reason}); leave out --compile"
            ) from error
        raise InvalidInput(
            f"the model {model.spec.name} cannot read one image of {model.spec.channels} x"
            f" {model.spec.input_size[0]} x {model.spec.input_size[1]} ({reason}); set --input-size, --mean and --std"
        ) from error
