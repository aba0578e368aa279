"""Opening the network behind a name: one function decides by scheme, ending or folder who reads it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.checkpoints import read_exported, read_state_dict
from snellen.models.endpoint import Endpoint
from snellen.models.hugging_face import open_hugging_face
from snellen.models.imagenet_names import imagenet_names
from snellen.models.onnx_file import open_onnx
from snellen.models.options import ModelOptions
from snellen.models.source import Source, fill_weights
from snellen.models.zero_shot import open_zero_shot

ACCEPTED = (
    "'demo', 'demo:healthy', 'timm:NAME[@weights.safetensors]', 'hf:ID', a folder with a config.json, 'FILE.onnx',"
    " 'FILE.pt2', a .safetensors or .pth state dict with --architecture, 'clip:ARCHITECTURE@weights' with --classes,"
    " 'http(s)://host/v2/models/NAME', or 'py:module:function'"
)


def open_source(name: str, options: ModelOptions) -> Source:
    """The network behind a name or path."""
    scheme, _, rest = name.partition(":")
    if scheme in ("http", "https"):
        return _endpoint(name, options)
    if name == "demo" or scheme == "demo":
        return _demo(rest or "faulty")
    if scheme == "timm":
        return _timm(*_split_weights(rest))
    if scheme == "py":
        return _python(rest)
    if scheme == "hf":
        return open_hugging_face(rest)
    if scheme == "clip":
        return open_zero_shot(rest, options)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return open_hugging_face(str(path))
    if not path.is_file():
        raise InvalidInput(f"model {name!r} is neither a file nor a known form; accepted are {ACCEPTED}")
    if path.suffix == ".onnx":
        return open_onnx(path, options)
    if path.suffix == ".pt2":
        return Source(read_exported(path))
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        return _state_dict(path, options.architecture)
    raise InvalidInput(f"model file {path.name!r} has an unknown ending; accepted are {ACCEPTED}")


def _endpoint(url: str, options: ModelOptions) -> Source:
    endpoint = Endpoint(url, options.remote)
    signature = endpoint.signature
    # A server of raw pixels normalises by itself, and nobody normalises grey by habit.
    plain = signature.input.datatype == "UINT8" or signature.channels == 1
    identity = hashlib.blake2b(f"{endpoint.url} {signature.identity}".encode(), digest_size=16)
    note = f"the bearer token travels to {url} unencrypted; use https"
    return Source(
        endpoint,
        input_size=signature.size,
        mean=(0.0,) * signature.channels if plain else None,
        std=(1.0,) * signature.channels if plain else None,
        fingerprint=identity.hexdigest(),
        notes=(note,) if endpoint.tells_token else (),
    )


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
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
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
        fill_weights(network, state, weights)
    config = resolve_model_data_config(network)
    _, height, width = config["input_size"]
    names, aliases = imagenet_names() if network.num_classes == 1000 else (None, None)
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


def _head_size(two_class: nn.Module, state: dict[str, Tensor]) -> int:
    """Class count of a checkpoint: the first size of the tensor that has 2 rows in a two-class twin."""
    for key, tensor in reversed(list(two_class.state_dict().items())):
        if key in state and tensor.shape[:1] == (2,) and state[key].shape[1:] == tensor.shape[1:]:
            return int(state[key].shape[0])
    raise InvalidInput("the weights do not fit the architecture: no classification head was found in them")


def _state_dict(path: Path, architecture: str | None) -> Source:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("architecture") == "DigitNet":
                return _demo(str(path))
    if architecture is None:
        raise InvalidInput(
            f"{path.name} holds weights but not the network; name it with --architecture timm:NAME,"
            " torchvision:NAME or py:module:function"
        )
    scheme, _, name = architecture.partition(":")
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
        raise InvalidInput(f"architecture must be timm:NAME, torchvision:NAME or py:..., got {architecture!r}")
    if not isinstance(source.network, nn.Module):
        raise InvalidInput(f"architecture {architecture!r} gives no nn.Module, so {path.name} cannot be loaded")
    fill_weights(source.network, state, path)
    return source


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
    return Source(
        network,
        getattr(network, "class_names", None),
        _stated_size(getattr(network, "input_size", None)),
        getattr(network, "mean", None),
        getattr(network, "std", None),
    )


def _stated_size(stated: object) -> tuple[int, int] | None:
    """The attribute `input_size` of a user's model: 224, (224, 320) or (3, 224, 320)."""
    if stated is None:
        return None
    given = list(stated)[-2:] if isinstance(stated, (tuple, list)) else [stated, stated]
    sides = [side for side in given if isinstance(side, int) and side > 0]
    if len(sides) != 2:
        raise InvalidInput(f"the model's input_size must be 224, (224, 320) or (3, 224, 320), got {stated!r}")
    return sides[0], sides[1]
