"""What an ONNX graph cannot say of itself: a YAML file beside it, or class names in its metadata."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from snellen.errors import InvalidInput, UntrustedFile
from snellen.models.class_names import read_class_names
from snellen.models.spec import Interpolation

Layout = Literal["NCHW", "NHWC"]


def _both_sides(size: object) -> object:
    return (size, size) if isinstance(size, int) else size


def _as_text(names: object) -> object:
    # YAML reads the class names 0, 1, yes and no as numbers and truth values.
    return [str(name) for name in names] if isinstance(names, list) else names


class Sidecar(BaseModel):
    """The keys of `model.yaml` beside `model.onnx`; flags of the command line win over them.

    The graph is given `scale * (image - mean) / std` with the image in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_names: Annotated[list[str] | str | None, BeforeValidator(_as_text)] = None
    """One name an output, or a file of names (one a line, or JSON) in the same folder."""
    input_size: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_both_sides)] = None
    """Height and width in pixels, or one number for both."""
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    input: str | None = None
    """The graph's input, by name."""
    output: str | None = None
    """The output with the scores, where the graph has several."""
    layout: Layout | None = None
    """Order of the input's dimensions, where the shape does not show it."""
    scale: float | None = Field(default=None, gt=0)
    """255 where the graph wants 0 to 255. Unset: 255 for uint8, otherwise 1."""


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of an .onnx file: `model.onnx.yaml`, else `model.yaml`, else an empty one."""
    beside = next((file for file in (Path(f"{path}.yaml"), path.with_suffix(".yaml")) if file.is_file()), None)
    if beside is None:
        return Sidecar()
    try:
        return Sidecar.model_validate(yaml.safe_load(beside.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInput(
            f"{beside.name}: {key} is wrong ({first['msg']}, got {first['input']!r}); keys are"
            f" {', '.join(Sidecar.model_fields)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{beside.name} is no readable YAML: {' '.join(str(error).split())}") from error


def sidecar_class_names(sidecar: Sidecar, path: Path) -> list[str] | None:
    """The sidecar's class names, from its file of names where it gives one."""

    if not isinstance(sidecar.class_names, str):
        return sidecar.class_names
    folder = path.parent.resolve()
    file = (folder / sidecar.class_names).resolve()
    if not file.is_relative_to(folder):
        raise UntrustedFile(f"class_names of {path.name} is {sidecar.class_names!r}, outside its folder; not read")
    return read_class_names(file)


def embedded_class_names(metadata: Mapping[str, str], path: Path) -> list[str] | None:
    """Class names in the graph's metadata: "class_names" or "names", a list or an index -> name mapping.

    Written as JSON, or as a Python literal as ultralytics does. Raises InvalidInput for anything else.
    """
    key = next((key for key in ("class_names", "names") if key in metadata), None)
    if key is None:
        return None
    try:
        stored = _literal(metadata[key])
        if isinstance(stored, dict):
            stored = [stored[index] for index in sorted(stored, key=int)]
        if isinstance(stored, list) and stored:
            return [str(name) for name in stored]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InvalidInput(f"the metadata {key!r} of {path.name} is no list of names: {error}") from error
    raise InvalidInput(f"the metadata {key!r} of {path.name} is no list of names; give --classes names.txt")


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)
