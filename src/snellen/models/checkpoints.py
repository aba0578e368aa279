"""Reading model files that nobody vouches for: tensors are taken, code is refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from snellen.errors import InvalidInput, UntrustedFile

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "module")
"""Keys under which training scripts store the weights in a larger checkpoint."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or a pickled checkpoint, which is loaded with `weights_only=True`.

    Raises UntrustedFile when the pickle asks for anything but tensors and plain containers.
    """
    if not path.is_file():
        raise InvalidInput(f"the weights file {str(path)!r} does not exist")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InvalidInput(f"{path.name} is not a readable safetensors file: {error}") from error
    if _is_torchscript(path):
        raise UntrustedFile(
            f"{path.name} is a TorchScript archive, which runs code; export the model with torch.export.save"
            " (.pt2) or save its state_dict() instead"
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedFile(
            f"{path.name} is a pickle that would run code when loaded, so it was not loaded; save only the weights,"
            " safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), and name the --architecture"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path.name} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    return _tensors(stored, path)


def _tensors(stored: object, path: Path) -> dict[str, Tensor]:
    for _ in range(3):  # checkpoints are nested at most a few levels
        if not isinstance(stored, dict):
            break
        if stored and all(isinstance(value, Tensor) for value in stored.values()):
            return {str(name).removeprefix("module."): tensor for name, tensor in stored.items()}
        stored = next((stored[key] for key in WRAPPERS if key in stored), None)
    raise InvalidInput(
        f"{path.name} holds no state dict; looked for tensors at the top and under {', '.join(WRAPPERS)}"
    )


def read_exported(path: Path) -> nn.Module:
    """The module of a torch.export archive (.pt2). Pickled parts of the archive are refused."""
    refuse_code(path)
    try:
        program = torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise UntrustedFile(f"{path.name} holds a pickle that would run code, so it was not loaded") from error
    except (RuntimeError, OSError, ValueError, KeyError, zipfile.BadZipFile, AssertionError) as error:
        raise InvalidInput(
            f"{path.name} is not a readable torch.export archive: {str(error).splitlines()[0]}"
        ) from error
    return Exported(program.module())


class Exported(nn.Module):
    """An exported graph as an ordinary module: `eval()` does nothing, since the graph was fixed when exported."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def train(self, mode: bool = True) -> Exported:
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.graph(images)
        return logits


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())


_SAFE_TARGET = re.compile(
    r"torch\.ops\.(?!_)\w+\.(?!__)\w+(\.(?!__)\w+)?"
    r"|torch\.sym_\w+"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
# torch.export reads size expressions with sympify, which evaluates them: known names and numbers only.
_SAFE_EXPRESSION = re.compile(
    r"(\b[a-z]{1,3}\d+\b|'[a-z]{1,3}\d+'|\d+(\.\d+)?|[+\-*/%(), <>=&|~]"
    r"|\b(Symbol|Integer|Float|Rational|Mul|Add|Pow|Max|Min|Mod|FloorDiv|CleanDiv|CeilDiv|PythonMod|ModularIndexing"
    r"|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|oo|int_oo|True|False|true|false|positive|nonnegative|integer|real|finite)\b)*"
)
_SAFE_MEMBERS = re.compile(
    r"(models/\w+\.json|data/(weights|constants)/\w+\.json|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/sample_inputs/\w+\.pt|archive_format|archive_version|version|byteorder|\.data/\w+|extra/[\w.]+)"
)


def refuse_code(path: Path) -> None:
    """Raise UntrustedFile unless a torch.export archive holds tensors and a graph of ordinary operators only.

    Loading such an archive can unpickle custom objects, evaluate size expressions and look operators up by dotted
    name (`torch.os.system` is one), so each of the three is checked before torch sees the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                member = entry.partition("/")[2]
                if not _SAFE_MEMBERS.fullmatch(member):
                    raise UntrustedFile(f"{path.name} holds {member!r}, which torch.export does not need; not loaded")
                if member.startswith("models/"):
                    _refuse_unusual_graph(json.loads(archive.read(entry)), path)
                elif member.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedFile(f"{path.name} holds a pickle that would run code, so it was not loaded") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise InvalidInput(f"{path.name} is not a readable torch.export archive: {error}") from error


def _refuse_unusual_graph(node: object, path: Path) -> None:
    if isinstance(node, list):
        for item in node:
            _refuse_unusual_graph(item, path)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "target" and "inputs" in node and not _SAFE_TARGET.fullmatch(str(value)):
                raise UntrustedFile(f"{path.name} calls {value!r}, which is no tensor operator; it was not loaded")
            if key == "expr_str" and not _SAFE_EXPRESSION.fullmatch(str(value)):
                raise UntrustedFile(f"{path.name} has the size expression {value!r}, which is code; it was not loaded")
            _refuse_unusual_graph(value, path)
