"""ONNX graphs on onnxruntime: a plain callable that shows its scores and nothing else.

What a graph cannot say (class names, normalisation, value range) stands in a YAML file beside it, see `onnx_sidecar`.

Trap: many exported graphs end in a softmax and give probabilities. Everything here expects logits (temperature
scaling, energy scores, margins), so the logarithm of the probabilities is returned, which is a set of logits of the
same distribution. A final sigmoid (many labels an image) is not recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models.onnx_graph import ends_in_softmax, external_files, read_graph, reason
from snellen.models.onnx_sidecar import Layout, Sidecar, embedded_class_names, read_sidecar, sidecar_class_names
from snellen.models.options import ModelOptions
from snellen.models.source import Source

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_INPUT_DTYPES = {**_DTYPES, "tensor(uint8)": "uint8"}

SMALLEST_PROBABILITY = 1e-12
"""A softmax that underflowed to 0 would give -inf, and NaN in every loss; this floor keeps a loss below 28 nats and
lies under what a float16 or quantised softmax tells from 0."""


class ImageInput(NamedTuple):
    """What the graph says of its input; None where it is dynamic."""

    name: str
    dtype: str
    layout: Layout
    batch: int | None
    channels: int
    size: tuple[int | None, int | None]
    """Height and width."""


class OnnxNetwork:
    """Normalised images `[B, C, H, W]` in, logits `[B, K]` (float32) out, never part of an autograd graph.

    A graph of a fixed batch size is fed in chunks of that size, the last one padded with zeros. A copy in another
    process reads the file again.
    """

    def __init__(
        self, path: Path, device: str, image: ImageInput, output: str, scale: float, probabilities: bool
    ) -> None:
        self._arguments = (path, device, image, output, scale, probabilities)
        self._session = _session(path, device)
        self._image = image
        self._output = output
        self._scale = scale
        self._probabilities = probabilities

    def __reduce__(self) -> tuple[type[OnnxNetwork], tuple[object, ...]]:
        return OnnxNetwork, self._arguments

    def __call__(self, images: Tensor) -> Tensor:
        fed = self._as_declared(images)
        step = self._image.batch or max(len(fed), 1)
        chunks = [self._run(fed[start : start + step]) for start in range(0, max(len(fed), 1), step)]
        scores = torch.from_numpy(np.concatenate(chunks)).to(images.device, torch.float32)
        return scores.clamp_min(SMALLEST_PROBABILITY).log() if self._probabilities else scores

    def _as_declared(self, images: Tensor) -> NDArray[Any]:
        values = images.detach() * self._scale
        if self._image.layout == "NHWC":
            values = values.permute(0, 2, 3, 1)
        if self._image.dtype == "uint8":
            values = values.round().clamp(0, 255)
        fed: NDArray[Any] = values.cpu().numpy().astype(self._image.dtype)
        return np.ascontiguousarray(fed)

    def _run(self, chunk: NDArray[Any]) -> NDArray[Any]:
        missing = (self._image.batch or len(chunk)) - len(chunk)
        padded = np.pad(chunk, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else chunk
        try:
            scores: NDArray[Any] = self._session.run([self._output], {self._image.name: padded})[0]
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            declared = self._session.get_inputs()[0].shape
            raise InvalidInput(
                f"the ONNX graph declares {self._image.layout} input {declared} and cannot read"
                f" {list(padded.shape)} ({reason(error)}); set --input-size"
            ) from error
        return scores[: len(chunk)]


def open_onnx(path: Path, options: ModelOptions) -> Source:
    """The network of an .onnx file with the facts of its sidecar and its metadata.

    Raises InvalidInput for a damaged file, a graph that is no image classifier, or options that contradict it, and
    UntrustedFile for weights outside the file's folder.
    """
    model = read_graph(path)
    weight_files = sorted(external_files(model, path))
    sidecar = read_sidecar(path)
    session = _session(path, options.device)
    image = _image_input(session, sidecar, path)
    output = _logits_output(session, sidecar, path)
    probabilities = ends_in_softmax(model.graph, output)
    scale = sidecar.scale or (255.0 if image.dtype == "uint8" else 1.0)
    size = _input_size(image, options.input_size or sidecar.input_size, path)
    mean, std = _normalisation(image, options, sidecar, path)
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    reading = f"{image.layout} {scale:g} {output}"
    return Source(
        OnnxNetwork(path.resolve(), options.device, image, output, scale, probabilities),
        sidecar_class_names(sidecar, path) or embedded_class_names(metadata, path),
        size,
        mean,
        std,
        sidecar.interpolation,
        sidecar.crop_fraction,
        fingerprint=_fingerprint([path, *weight_files], reading),
        notes=_notes(session, options.device),
    )


def _notes(session: InferenceSession, device: str) -> tuple[str, ...]:
    if device.startswith("cuda") and "CUDAExecutionProvider" not in session.get_providers():
        return ("onnxruntime here has no CUDA; the ONNX graph runs on the CPU (pip install onnxruntime-gpu)",)
    return ()


def _session(path: Path, device: str) -> InferenceSession:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()  # sums of one thread repeat bit for bit
    settings.inter_op_num_threads = 1
    settings.use_deterministic_compute = True
    settings.log_severity_level = 3  # errors come as exceptions
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": torch.device(device).index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        said = reason(error)
        if "is not a registered function/op" in said:
            operator = said.split("is not a registered")[0].split()[-1].partition("(")[0]
            raise InvalidInput(
                f"{path.name} uses the operator {operator}, which is not part of ONNX; libraries of custom operators"
                " are not loaded, so export the model with standard operators"
            ) from error
        raise InvalidInput(f"onnxruntime cannot load {path.name}: {said}") from error


def _image_input(session: InferenceSession, sidecar: Sidecar, path: Path) -> ImageInput:
    inputs = session.get_inputs()
    shown = _shown(inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _INPUT_DTYPES:
        raise InvalidInput(
            f"{path.name} must have one input, images of four dimensions in one of {', '.join(_INPUT_DTYPES)}; it has"
            f" {shown}"
        )
    if sidecar.input not in (None, inputs[0].name):
        raise InvalidInput(f"the sidecar of {path.name} names the input {sidecar.input!r}; the graph has {shown}")
    dims = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
    layout = sidecar.layout or ("NHWC" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "NCHW")
    channels, height, width = (dims[3], dims[1], dims[2]) if layout == "NHWC" else (dims[1], dims[2], dims[3])
    if channels not in (1, 3, None):
        raise InvalidInput(f"{path.name} reads {layout} images with {channels} channels, not 1 or 3: {shown}")
    given = len(sidecar.mean or sidecar.std or (0, 0, 0))
    return ImageInput(
        inputs[0].name, _INPUT_DTYPES[inputs[0].type], layout, dims[0], channels or given, (height, width)
    )


def _logits_output(session: InferenceSession, sidecar: Sidecar, path: Path) -> str:
    outputs = session.get_outputs()
    fitting = [output.name for output in outputs if output.type in _DTYPES and len(output.shape) == 2]
    if sidecar.output is not None:
        fitting = [name for name in fitting if name == sidecar.output]
    if len(fitting) != 1:
        wanted = f"the output {sidecar.output!r}" if sidecar.output else "exactly one output"
        raise InvalidInput(
            f"{path.name} must have {wanted} of the form [N, K] (a score for each class); it has {_shown(outputs)}."
            f" Choose one with `output: NAME` in {path.stem}.yaml"
        )
    return str(fitting[0])


def _input_size(image: ImageInput, asked: tuple[int, int] | None, path: Path) -> tuple[int, int] | None:
    height, width = image.size
    if asked is None:
        return None if height is None or width is None else (height, width)
    if (height or asked[0], width or asked[1]) != asked:
        raise InvalidInput(
            f"{path.name} declares images of {height or 'any'} x {width or 'any'} ({image.layout}), but the input size"
            f" given is {asked[0]} x {asked[1]}; leave --input-size out or export the graph with dynamic sides"
        )
    return asked


class _Normalisation(NamedTuple):
    mean: Sequence[float] | None
    std: Sequence[float] | None


def _normalisation(image: ImageInput, options: ModelOptions, sidecar: Sidecar, path: Path) -> _Normalisation:
    mean, std = options.mean or sidecar.mean, options.std or sidecar.std
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and image.dtype == "uint8":
            raise InvalidInput(f"{path.name} reads whole numbers 0 to 255, so it can have no {name}; leave it out")
        if values is not None and len(values) != image.channels:
            raise InvalidInput(f"{path.name} reads {image.channels} channels, but {name} has {len(values)} values")
    if image.dtype == "uint8" or (image.channels == 1 and mean is None and std is None):
        return _Normalisation((0.0,) * image.channels, (1.0,) * image.channels)
    return _Normalisation(mean, std)


def _fingerprint(files: Sequence[Path], reading: str) -> str:
    digest = hashlib.blake2b(reading.encode(), digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values) or "none"
