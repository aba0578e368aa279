"""`load_model`: a name, a file or a Python function becomes a `Model`."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.access import Access
from snellen.models.checkpoints import read_exported, read_state_dict
from snellen.models.ledger import QueryLedger
from snellen.models.model import Model
from snellen.models.spec import Interpolation, ModelSpec, fingerprint_weights
from snellen.models.torch_model import TorchModel
from snellen.randomness import torch_generator

ACCEPTED = (
    "'demo', 'demo:healthy', 'timm:NAME[@weights.safetensors]', 'FILE.pt2', a .safetensors or .pth state dict with"
    " --architecture, or 'py:module:function'"
)


@dataclass(frozen=True)
class ModelOptions:
    """What the user says about a model that cannot say it itself; None where the model or the data is to be asked.

    architecture: "timm:NAME", "torchvision:NAME" or "py:module:function", for a state dict. access: less than what
    the model would grant, to examine it as someone who has less.
    """

    classes: Sequence[str] | None = None
    input_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    architecture: str | None = None
    device: str = "cpu"
    access: Access | None = None
    budget: int | None = None


class DataHints(NamedTuple):
    """What the data can say where neither the model nor the user does."""

    class_names: Sequence[str] | None = None
    image_size: tuple[int, int] | None = None


class Source(NamedTuple):
    """A network and the facts that came with it."""

    network: nn.Module | Callable[[Tensor], Tensor]
    class_names: Sequence[str] | None = None
    input_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0
    aliases: dict[str, str] | None = None


class LoadedModel(NamedTuple):
    """The model and the assumptions that were made for it."""

    model: Model
    warnings: list[str]


def load_model(name: str, options: ModelOptions | None = None, hints: DataHints | None = None) -> LoadedModel:
    """Load a model by name or path. Nothing in a file is executed: pickles that need code are refused.

    Raises InvalidInput or UntrustedFile with a sentence that says what to do.
    """
    options, hints = options or ModelOptions(), hints or DataHints()
    source = _open(name, options)
    warnings: list[str] = []
    spec = _spec(name, source, options, hints, warnings)
    _check_device(options.device)
    model: Model = TorchModel(source.network, spec, device=options.device, ledger=QueryLedger(options.budget))
    answer = _try_out(model)
    if not spec.fingerprint and not model.spec.fingerprint:
        # A callable has no weights to hash; what it answers to a fixed picture stands in for them.
        model.spec = replace(spec, fingerprint=fingerprint_weights(name, {"answer": answer}))
    return LoadedModel(model if options.access is None else model.restrict(options.access), warnings)


def _check_device(name: str) -> None:
    known = re.fullmatch(r"cpu|mps|cuda(:(\d+))?", name)
    if known is None:
        raise InvalidInput(f"device {name!r} is unknown; accepted are cpu, cuda, cuda:N and mps")
    if name.startswith("cuda") and int(known.group(2) or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices; use --device cpu")


def _open(name: str, options: ModelOptions) -> Source:
    scheme, _, rest = name.partition(":")
    if name == "demo" or scheme == "demo":
        return _demo(rest or "faulty")
    if scheme == "timm":
        return _timm(*_split_weights(rest))
    if scheme == "py":
        return _python(rest)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InvalidInput(f"model {name!r} is neither a file nor a known form; accepted are {ACCEPTED}")
    if path.suffix == ".pt2":
        return Source(read_exported(path))
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        return _state_dict(path, options)
    raise InvalidInput(f"model file {path.name!r} has an unknown ending; accepted are {ACCEPTED}")


def _demo(which: str) -> Source:
    from snellen.demo.digits import CLASS_NAMES, SIDE
    from snellen.demo.network import load_network, shipped_network

    network = load_network(Path(which)) if Path(which).is_file() else shipped_network(which)
    return Source(network, CLASS_NAMES, (SIDE, SIDE))


def _split_weights(text: str) -> tuple[str, Path | None]:
    name, _, weights = text.partition("@")
    return name, Path(weights).expanduser() if weights else None


def _timm(name: str, weights: Path | None, classes: Sequence[str] | None = None) -> Source:
    import timm
    from timm.data import resolve_model_data_config

    state = None if weights is None else read_state_dict(weights)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:3]
        raise InvalidInput(f"timm has no model {name!r}; near names are {', '.join(near) or 'none'}")
    try:
        if state is None:
            network = timm.create_model(name, pretrained=True)
        else:
            head = _head_size(timm.create_model(name, pretrained=False, num_classes=2), state)
            network = timm.create_model(name, pretrained=False, num_classes=head)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"the pretrained weights of timm:{name} cannot be had ({reason}); give a local file, timm:{name}@file"
        ) from error
    if state is not None:
        _fill(network, state, weights)
    config = resolve_model_data_config(network)
    _, height, width = config["input_size"]
    names, aliases = _imagenet_names() if network.num_classes == 1000 else (None, None)
    return Source(
        network,
        names,
        (height, width),
        config["mean"],
        config["std"],
        config["interpolation"],
        config["crop_pct"],
        aliases,
    )


def _imagenet_names() -> tuple[list[str], dict[str, str]]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names, aliases = [], {}
    for index in range(1000):
        described = info.index_to_description(index).split(",")[0]
        synset = info.index_to_label_name(index)
        unique = described if described not in names else f"{described} ({synset})"
        names.append(unique)
        aliases[synset] = unique
    return names, aliases


def _head_size(two_class: nn.Module, state: dict[str, Tensor]) -> int:
    """Class count of a checkpoint: the first size of the tensor that has 2 rows in a two-class twin."""
    for key, tensor in reversed(list(two_class.state_dict().items())):
        if key in state and tensor.shape[:1] == (2,) and state[key].shape[1:] == tensor.shape[1:]:
            return int(state[key].shape[0])
    raise InvalidInput("the weights do not fit the architecture: no classification head was found in them")


def _state_dict(path: Path, options: ModelOptions) -> Source:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("architecture") == "DigitNet":
                return _demo(str(path))
    if options.architecture is None:
        raise InvalidInput(
            f"{path.name} holds weights but not the network; name it with --architecture timm:NAME,"
            " torchvision:NAME or py:module:function"
        )
    scheme, _, name = options.architecture.partition(":")
    if scheme == "timm":
        return _timm(name, path)
    state = read_state_dict(path)
    if scheme == "torchvision":
        import torchvision

        try:
            head = _head_size(torchvision.models.get_model(name, num_classes=2), state)
            network = torchvision.models.get_model(name, num_classes=head)
        except ValueError as error:
            raise InvalidInput(f"torchvision has no model {name!r}") from error
        source = Source(network, None, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_fraction=0.875)
    elif scheme == "py":
        source = _python(name)
    else:
        raise InvalidInput(f"architecture must be timm:NAME, torchvision:NAME or py:..., got {options.architecture!r}")
    if not isinstance(source.network, nn.Module):
        raise InvalidInput(f"architecture {options.architecture!r} gives no nn.Module, so {path.name} cannot be loaded")
    _fill(source.network, state, path)
    return source


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path | None) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InvalidInput(f"{path} does not fit {type(network).__name__}: {'; '.join(lines)}") from error


def _python(reference: str) -> Source:
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise InvalidInput(f"model 'py:{reference}' must read py:module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        raise InvalidInput(f"there is no module {error.name!r} to import from {here} or the environment") from error
    except AttributeError as error:
        raise InvalidInput(f"module {module_name!r} has no function {function_name!r}") from error
    try:
        network = factory()
    except Exception as error:  # the user's own code may raise anything
        raise InvalidInput(f"py:{reference} raised {type(error).__name__}: {error}") from error
    if not callable(network):
        raise InvalidInput(f"py:{reference} returned a {type(network).__name__}; it must return a module or callable")
    size = getattr(network, "input_size", None)
    if isinstance(size, int):
        size = (size, size)
    return Source(
        network,
        getattr(network, "class_names", None),
        tuple(int(side) for side in size[-2:]) if size is not None else None,  # type: ignore[arg-type]
        getattr(network, "mean", None),
        getattr(network, "std", None),
    )


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
        class_aliases=source.aliases or {},
    )


def _try_out(model: Model) -> Tensor:
    """One fixed image through the model, off the books, so that a wrong spec is told before the run begins."""
    ledger, model.ledger = model.ledger, QueryLedger()
    shape = (1, model.spec.channels, *model.spec.input_size)
    try:
        return model.scores(torch.rand(shape, generator=torch_generator("try out")))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"the model {model.spec.name} cannot read one image of {model.spec.channels} x"
            f" {model.spec.input_size[0]} x {model.spec.input_size[1]} ({reason}); set --input-size, --mean and --std"
        ) from error
    finally:
        model.ledger = ledger


def describe_architecture(model: Model) -> str:
    """The class of the network, for reports."""
    return type(model.module).__name__ if model.access >= Access.WEIGHTS else "black box"


def read_class_names(path: Path) -> list[str]:
    """One class name a line, or a JSON list, or a JSON object index -> name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--classes {path} cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            stored = json.loads(text)
            return [str(stored[key]) for key in sorted(stored, key=int)] if isinstance(stored, dict) else list(stored)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"--classes {path} is not a JSON list of names or object of index to name") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
