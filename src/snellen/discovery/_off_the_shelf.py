"""Text-to-image pipelines of diffusers and image captioners of transformers as plug-ins of `bug_discovery`.

Both libraries are optional and imported only here; nothing is downloaded and no code that comes with a model is run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import torch_generator


class Painted(Protocol):
    images: Tensor


class TextToImage(Protocol):
    """A text-to-image pipeline of diffusers."""

    def __call__(
        self,
        *,
        prompt: list[str],
        num_inference_steps: int,
        guidance_scale: float,
        generator: list[torch.Generator],
        output_type: str,
    ) -> Painted: ...


@dataclass(frozen=True)
class DiffusersGenerator:
    """A diffusers pipeline as a generator.

    Image i of a seed has noise of its own. Trap: a safety checker paints what it rejects black, which looks like a bug
    of the model; give a realism filter, or a pipeline without a checker for harmless classes.
    """

    pipeline: TextToImage
    steps: int = 30
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.guidance >= 0:
            raise InvalidInput(f"steps must be at least 1 and guidance 0 or more, got {self.steps}, {self.guidance}")

    @classmethod
    def from_folder(cls, folder: Path, steps: int = 30, guidance: float = 7.5) -> DiffusersGenerator:
        """A pipeline that was saved with `save_pretrained`. Raises InvalidInput when there is none."""
        library = _optional("diffusers", "diffusion")
        pipeline = library.DiffusionPipeline.from_pretrained(_saved(folder, "model_index.json"), local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline, steps, guidance)

    def __call__(self, prompt: str, n: int, seed: int) -> Tensor:
        painted = self.pipeline(
            prompt=[prompt] * n,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch_generator(seed, "diffusers", row) for row in range(n)],
            output_type="pt",
        )
        return painted.images.float().cpu().clamp(0, 1)


class CaptionModel(Protocol):
    """An image-to-text model of transformers."""

    def generate(self, *, pixel_values: Tensor, max_new_tokens: int, do_sample: bool) -> Tensor: ...


class Processed(Protocol):
    pixel_values: Tensor


class Tokenizer(Protocol):
    def batch_decode(self, sequences: Tensor, *, skip_special_tokens: bool) -> list[str]: ...


@dataclass(frozen=True)
class TransformersCaptioner:
    """An image-to-text model of transformers (BLIP, GIT, vision encoder-decoder) as a captioner; greedy, so repeatable.

    prepare: the model's image processor, which takes uint8 images `[H, W, 3]`.
    """

    model: CaptionModel
    prepare: Callable[..., Processed]
    tokenizer: Tokenizer
    max_new_tokens: int = 30

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")

    @classmethod
    def from_folder(cls, folder: Path, max_new_tokens: int = 30) -> TransformersCaptioner:
        """Model, image processor and tokenizer saved with `save_pretrained`. Raises InvalidInput without a model."""
        library, where = _optional("transformers", "hf"), _saved(folder, "config.json")
        kinds = library.AutoModelForImageTextToText, library.AutoImageProcessor, library.AutoTokenizer
        model, prepare, tokenizer = (
            kind.from_pretrained(where, local_files_only=True, trust_remote_code=False) for kind in kinds
        )
        return cls(model.eval(), prepare, tokenizer, max_new_tokens)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Sequence[str]:
        pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pictures: list[NDArray[np.uint8]] = list(pixels)
        seen = self.prepare(images=pictures, return_tensors="pt").pixel_values
        written = self.model.generate(pixel_values=seen, max_new_tokens=self.max_new_tokens, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]


def _optional(library: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise InvalidInput(f"this needs the library {library}: pip install snellen[{extra}]") from error


def _saved(folder: Path, file: str) -> str:
    """The folder as text; a name that is no folder would be looked up on the network."""
    if not (Path(folder) / file).is_file():
        raise InvalidInput(f"folder must hold {file} as save_pretrained writes it, got {str(folder)!r}")
    return str(folder)
