"""The Open Inference Protocol v2, as KServe, Triton and MLServer speak it: what a server says of a model, and tensors
as JSON numbers or by the binary tensor extension."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from snellen.errors import InvalidInput

BINARY_HEADER = "Inference-Header-Content-Length"
BINARY_EXTENSIONS = {"binary_tensor_data", "binary_tensor_data_extension"}

_DTYPES: dict[str, np.dtype] = {
    **{f"FP{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
_PIXELS = ("FP32", "FP16", "FP64", "UINT8")
_FLOATS = ("FP16", "FP32", "FP64")

Layout = Literal["NCHW", "NHWC"]


class BrokenAnswer(ValueError):
    """An answer that cannot be read; the same request may be answered well the next time."""


class TensorSpec(NamedTuple):
    """shape: -1 where the server accepts any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


class Signature(NamedTuple):
    """What a server says of one image classifier. size: height and width, None where it takes any."""

    input: TensorSpec
    output: TensorSpec
    layout: Layout
    channels: int
    size: tuple[int, int] | None
    labels_only: bool
    """The output is a class for each image, not a score for each class."""
    identity: str
    """Digest of name, versions and tensors."""

    @property
    def fixed_batch(self) -> int | None:
        """Images a request must hold, None when any number is taken."""
        return self.input.shape[0] if self.input.shape[0] > 0 else None

    @property
    def classes(self) -> int | None:
        """Number of scores an image, None when the server does not say."""
        last = [length for length in self.output.shape[1:] if length != 1]
        return None if self.labels_only or len(last) != 1 or last[0] < 1 else last[0]


def read_signature(document: object, where: str) -> Signature:
    """The answer to `GET v2/models/NAME`. Raises InvalidInput when it describes no image classifier."""
    if not isinstance(document, dict):
        raise InvalidInput(f"{where} does not describe a model: it is no JSON object")
    inputs = _tensors(document.get("inputs"), where)
    images = [spec for spec in inputs if len(spec.shape) == 4 and spec.datatype in _PIXELS]
    if len(inputs) != 1 or not images:
        raise InvalidInput(
            f"{where} must take one batch of images, [N, C, H, W] or [N, H, W, C] of {', '.join(_PIXELS)};"
            f" it takes {_listed(inputs)}"
        )
    layout, channels, size = _geometry(images[0], where)
    output, labels_only = _choose_output(_tensors(document.get("outputs"), where), where)
    described = json.dumps([document.get(key) for key in ("name", "versions", "platform", "inputs", "outputs")])
    identity = hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
    return Signature(images[0], output, layout, channels, size, labels_only, identity)


def _tensors(described: object, where: str) -> list[TensorSpec]:
    try:
        assert isinstance(described, list)
        return [TensorSpec(str(t["name"]), str(t["datatype"]), tuple(int(n) for n in t["shape"])) for t in described]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where} does not describe its tensors as the Open Inference Protocol v2 does") from error


def _geometry(spec: TensorSpec, where: str) -> tuple[Layout, int, tuple[int, int] | None]:
    layout: Layout
    if spec.shape[1] in (1, 3):
        layout, (channels, height, width) = "NCHW", spec.shape[1:]
    elif spec.shape[3] in (1, 3):
        layout, (height, width, channels) = "NHWC", spec.shape[1:]
    else:
        raise InvalidInput(f"{where} takes {spec}, in which neither the second nor the last length is 1 or 3 channels")
    return layout, channels, (height, width) if min(height, width) > 0 else None


def _choose_output(outputs: Sequence[TensorSpec], where: str) -> tuple[TensorSpec, bool]:
    def lengths(spec: TensorSpec) -> list[int]:
        return [length for length in spec.shape[1:] if length != 1]

    scores = [spec for spec in outputs if spec.datatype in _FLOATS and len(lengths(spec)) == 1]
    if scores:
        named = [spec for spec in scores if any(word in spec.name.lower() for word in ("logit", "score", "prob"))]
        return (named or scores)[0], False
    labels = [spec for spec in outputs if spec.datatype not in _FLOATS and not lengths(spec)]
    if labels:
        return labels[0], True
    raise InvalidInput(
        f"{where} must give scores [N, K] or a class for each image [N]; it gives {_listed(outputs) or 'nothing'}"
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(str(spec) for spec in specs)


def encode(images: np.ndarray, signature: Signature, binary: bool) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference request. images: float32 `[B, C, H, W]`, as the network reads them."""
    tensor = images if signature.layout == "NCHW" else images.transpose(0, 2, 3, 1)
    if signature.input.datatype == "UINT8":
        tensor = np.clip(np.rint(tensor * 255), 0, 255)
    tensor = np.ascontiguousarray(tensor, dtype=_DTYPES[signature.input.datatype])
    described: dict[str, object] = {
        "name": signature.input.name,
        "shape": list(tensor.shape),
        "datatype": signature.input.datatype,
    }
    wanted: dict[str, object] = {"name": signature.output.name}
    if not binary:
        described["data"] = tensor.ravel().tolist()
        return {}, json.dumps({"inputs": [described], "outputs": [wanted]}).encode()
    raw = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()
    described["parameters"] = {"binary_data_size": len(raw)}
    wanted["parameters"] = {"binary_data": True}
    header = json.dumps({"inputs": [described], "outputs": [wanted]}).encode()
    return {BINARY_HEADER: str(len(header)), "Content-Type": "application/octet-stream"}, header + raw


def decode(content: bytes, headers: Mapping[str, str], signature: Signature) -> np.ndarray:
    """The output tensor of an answer: numbers, or an object array of text.

    Raises BrokenAnswer when the content is cut off or garbled, InvalidInput when the output is not there.
    """
    try:
        length = int(headers.get(BINARY_HEADER, len(content)))
        answer = json.loads(content[:length])
        outputs = answer["outputs"]
        position = length
        for tensor in outputs:
            size = int((tensor.get("parameters") or {}).get("binary_data_size", 0))
            if tensor["name"] == signature.output.name:
                shape = tuple(int(side) for side in tensor["shape"])
                values = _values(tensor, content[position : position + size] if size else None)
                if values.size != int(np.prod(shape)):
                    raise BrokenAnswer(f"{values.size} values for the shape {list(shape)}")
                return values.reshape(shape)
            position += size
        names = [str(tensor["name"]) for tensor in outputs]
    except BrokenAnswer:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BrokenAnswer(f"{type(error).__name__}: {str(error)[:120]}") from error
    raise InvalidInput(f"the answer holds {names}, not the output {signature.output.name!r}")


def _values(tensor: Mapping[str, object], raw: bytes | None) -> np.ndarray:
    datatype = str(tensor["datatype"])
    if datatype == "BYTES":
        return np.array(_texts(raw) if raw is not None else _flat(tensor["data"]), dtype=object)
    dtype = _DTYPES[datatype]
    if raw is not None:
        return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
    data = _flat(tensor["data"])
    if dtype.kind == "f":
        data = [np.nan if value is None else value for value in data]  # strict JSON has no NaN and writes null
    return np.array(data, dtype=dtype)


def _texts(raw: bytes) -> list[str]:
    texts, position = [], 0
    while position < len(raw):
        size = int.from_bytes(raw[position : position + 4], "little")
        if position + 4 + size > len(raw):
            raise BrokenAnswer("a text is cut off")
        texts.append(raw[position + 4 : position + 4 + size].decode())
        position += 4 + size
    return texts


def _flat(data: object) -> list[object]:
    if not isinstance(data, list):
        raise BrokenAnswer("data is no list")
    flat: list[object] = []
    for item in data:  # the protocol allows nested lists
        flat.extend(_flat(item) if isinstance(item, list) else [item])
    return flat
