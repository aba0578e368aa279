"""Image classifiers in the format of Hugging Face transformers: a hub id or a folder that save_pretrained wrote.

No code of the model's repository runs: `trust_remote_code` is off, and a configuration that asks for it is refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from snellen.errors import InvalidInput, SnellenError, UntrustedFile
from snellen.models.hugging_face_processor import read_processor, reason
from snellen.models.imagenet_names import imagenet_aliases
from snellen.models.source import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class HuggingFaceClassifier(nn.Module):
    """A transformers classifier as an ordinary network: normalised images `[B, C, H, W]` in, logits `[B, K]` out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits

    def extra_repr(self) -> str:
        # The fingerprint reads this: the layers' own text leaves out what acts, the number of heads for example.
        settings = self.model.config.to_dict()
        for incidental in ("_name_or_path", "transformers_version"):
            settings.pop(incidental, None)
        text = json.dumps(settings, sort_keys=True, default=str)
        return f"config={hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def open_hugging_face(reference: str) -> Source:
    """The classifier of a hub id or a folder, with its image processor's geometry and normalisation.

    Raises UntrustedFile when the configuration asks for code of its own, InvalidInput when there is no image
    classifier to be had or its weights are incomplete.
    """
    try:
        import transformers
    except ImportError as error:
        raise InvalidInput(f"hf:{reference} needs transformers; pip install snellen[hf]") from error
    if not reference:
        raise InvalidInput("model 'hf:' must read hf:OWNER/NAME of the Hugging Face hub, or hf:FOLDER")
    folder = Path(reference).expanduser()
    place = str(folder) if folder.is_dir() else reference
    config = _config(place, folder.is_dir())
    try:
        with _quiet():
            model, report = transformers.AutoModelForImageClassification.from_pretrained(
                place,
                config=config,
                local_files_only=folder.is_dir(),
                trust_remote_code=False,
                weights_only=True,
                ignore_mismatched_sizes=True,  # told below, in one sentence
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise UntrustedFile(f"the weights of {place} are a pickle that would run code; not loaded") from error
    except Exception as error:  # transformers raises what it likes for a damaged folder
        raise InvalidInput(f"{place} is no image classifier that transformers can load: {reason(error)}") from error
    _refuse_unfinished(report, place)
    names = _class_names(config)
    read = read_processor(place, folder.is_dir(), config)
    aliases = imagenet_aliases(names) if names else None
    return Source(
        # Weights stored in half precision come as such, and images are float32.
        HuggingFaceClassifier(model.float()),
        names,
        read.input_size,
        read.mean,
        read.std,
        read.interpolation,
        read.crop_fraction,
        aliases,
        notes=read.notes,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no table of tensors: what matters of it is told as an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_unfinished(report: Mapping[str, Any], place: str) -> None:
    """Tensors that the checkpoint lacks, or has in another shape, would be random numbers."""
    missing = sorted(str(key) for key in report["missing_keys"])
    misfits = [f"{key} {list(stored)} for {list(wanted)}" for key, stored, wanted in report["mismatched_keys"]]
    if missing or misfits:
        raise InvalidInput(
            f"the weights of {place} leave {len(missing) + len(misfits)} tensors untrained"
            f" ({', '.join((missing + misfits)[:3])}); it is no finished classifier of its config.json, fine-tune it"
        )


def _config(place: str, local: bool) -> PretrainedConfig:
    from transformers import AutoConfig, PretrainedConfig

    try:
        stored, _ = PretrainedConfig.get_config_dict(place, local_files_only=local)
        _refuse_code(stored, place)
        if local:
            _refuse_paths(Path(place))
        config = AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except SnellenError:
        raise
    except Exception as error:  # transformers raises what it likes for a damaged folder
        raise InvalidInput(
            f"{place!r} is neither a folder with a readable config.json nor a model to be had from the Hugging Face"
            f" hub: {reason(error)}"
        ) from error
    if config.model_type == "timm_wrapper":
        raise InvalidInput(f"{place} wraps a timm model; open it as timm:NAME@weights.safetensors")
    config.return_dict = True  # a stored False would turn the outputs into a tuple
    return config


def _refuse_code(stored: dict[str, object], place: str) -> None:
    if "auto_map" in stored:
        raise UntrustedFile(
            f"config.json of {place} has an auto_map, which runs Python code of the model's repository; not loaded."
            " Write a function that builds the model and give it as py:module:function"
        )
    for key, value in stored.items():
        # An attention implementation "owner/name" is a kernel that transformers fetches from the hub and runs.
        if key.strip("_").startswith("attn_implementation") and value not in (None, "eager", "sdpa"):
            raise UntrustedFile(f"config.json of {place} asks for {key} {value!r}; accepted are 'eager' and 'sdpa'")


def _refuse_paths(folder: Path) -> None:
    for index in folder.glob("*.index.json"):
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        outside = [name for name in files if Path(str(name)).name != name]
        if outside:
            raise UntrustedFile(f"{index.name} reads weights from {outside[0]!r}, outside its folder; not loaded")


def _class_names(config: PretrainedConfig) -> list[str] | None:
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return None
    # ImageNet has two classes "crane".
    return [name if name not in names[:index] else f"{name} ({index})" for index, name in enumerate(names)]
