"""The image processor of a transformers model, in the terms of a `ModelSpec`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from snellen.errors import InvalidInput
from snellen.models.spec import Interpolation

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig

_RESAMPLING: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_NEAREST_KIND: dict[int, Interpolation] = {1: "bicubic", 4: "bilinear", 5: "bilinear"}  # Lanczos, box, Hamming


class ProcessorFacts(NamedTuple):
    """An image processor in the terms of a `ModelSpec`; None where it says nothing."""

    input_size: tuple[int, int] | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0
    notes: tuple[str, ...] = ()


def read_processor(place: str, local: bool, config: PretrainedConfig) -> ProcessorFacts:
    """Geometry and normalisation of a hub id's or a folder's image processor.

    Raises InvalidInput for a processor that does more than resize, crop and normalise.
    """
    from transformers import AutoImageProcessor

    own = _pair(getattr(config, "image_size", None))
    try:
        processor = AutoImageProcessor.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except OSError as error:
        if local and any(Path(place).glob("*processor_config.json")):
            raise InvalidInput(f"the image processor of {place} cannot be read: {reason(error)}") from error
        return ProcessorFacts(own, notes=(f"{place} has no preprocessor_config.json",))
    except Exception as error:  # transformers raises what it likes for damaged settings
        raise InvalidInput(f"the image processor of {place} cannot be read: {reason(error)}") from error
    try:
        return _verified(processor, _settings(processor, own), place)
    except InvalidInput:
        raise
    except Exception as error:  # transformers raises what it likes for damaged settings
        raise InvalidInput(f"the image processor of {place} is contradictory: {reason(error)}") from error


def _settings(processor: BaseImageProcessor, own: tuple[int, int] | None) -> ProcessorFacts:
    """The processor's settings; `own` is the size in the model's configuration, for one that does not resize."""
    notes = []
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    plain = (0.0,) * 3, (1.0,) * 3
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else plain
    if getattr(processor, "include_top", False) and processor.do_normalize:
        std = [value**2 for value in std]  # EfficientNet's processor divides by the deviation twice
    resample = int(processor.resample) if processor.resample is not None else 2
    if resample not in _RESAMPLING:
        notes.append(f"the image processor's resampling {resample} is not had here; {_NEAREST_KIND[resample]} is used")
    size, fraction, squashes = _geometry(processor, own)
    if squashes:
        notes.append("the image processor squashes images to a square; here they are cropped, which differs for others")
    return ProcessorFacts(
        size,
        tuple(float(value) / factor for value in mean),
        tuple(float(value) / factor for value in std),
        _RESAMPLING.get(resample) or _NEAREST_KIND[resample],
        fraction,
        tuple(notes),
    )


class _Geometry(NamedTuple):
    size: tuple[int, int] | None
    crop_fraction: float = 1.0
    squashes: bool = False


def _geometry(processor: BaseImageProcessor, own: tuple[int, int] | None) -> _Geometry:
    crops = bool(processor.do_center_crop)
    crop = _pair(processor.crop_size) if crops else None
    if not processor.do_resize:
        return _Geometry(crop or own)
    short = processor.size.get("shortest_edge")
    target = (int(short), int(short)) if short else _pair(processor.size)
    if target is None:
        return _Geometry(crop or own)
    kind = type(processor).__name__
    if kind.startswith("ConvNext"):  # resizes to size / crop_pct and crops, but squashes from 384 pixels on
        return _Geometry(target, 1.0, True) if target[0] >= 384 else _Geometry(target, float(processor.crop_pct))
    resized = target[0] / (getattr(processor, "crop_pct", None) or 1.0)
    if kind.startswith("Levit") and short:
        resized = int(target[0] * 256 / 224)
    final = crop or target
    return _Geometry(final, min(1.0, final[0] / resized), squashes=not short)


def _pair(size: object) -> tuple[int, int] | None:
    """Height and width of 224, [224, 320] or a mapping with "height" and "width"."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    height, width = (getattr(size, side, None) or _entry(size, side) for side in ("height", "width"))
    return (int(height), int(width)) if isinstance(height, int) and isinstance(width, int) else None


def _entry(size: object, side: str) -> object:
    return size.get(side) if isinstance(size, dict) else None


def _verified(processor: BaseImageProcessor, read: ProcessorFacts, place: str) -> ProcessorFacts:
    """Compare with what the processor makes of a flat coloured image, which no resizing changes.

    Some do more than they say in the settings read here, as MobileViT's, which swaps red and blue.
    """
    if read.input_size is None or read.mean is None or read.std is None:
        return read
    colour = np.array([51, 102, 204], dtype=np.uint8)[: len(read.mean)]
    flat = np.broadcast_to(colour, (*read.input_size, len(colour))).copy()
    made = processor(flat, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    expected = (colour / 255 - np.array(read.mean)) / np.array(read.std)
    wanted = (1, len(colour), *read.input_size)
    if tuple(made.shape) != wanted or np.abs(made.mean((0, 2, 3)).numpy() - expected).max() > 1e-3:
        raise InvalidInput(
            f"the {type(processor).__name__} of {place} does more than resize, crop and normalise: a flat"
            f" {read.input_size[0]} x {read.input_size[1]} image became {list(made.shape)} of other values; wrap the"
            " model in a function and give it as py:module:function"
        )
    return read


def reason(error: Exception) -> str:
    """What transformers says, on one line and cut short."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:240]} ..."
