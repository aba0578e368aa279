"""Zero-shot classifiers: CLIP (Radford et al., 2021) scores an image against one sentence a class.

The sentence is a template with the class name in place of `{}` and underscores as spaces. Several templates, with `|`
between, are averaged after normalisation, as the paper's prompt ensembles. Text is encoded once and cached.

Trap: sentences longer than the model's context (77 tokens as a rule) are cut by the tokenizer without a word.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.checkpoints import read_state_dict
from snellen.models.embedding_cache import read_embeddings, write_embeddings
from snellen.models.options import ModelOptions
from snellen.models.source import Source, fill_weights
from snellen.models.spec import Interpolation, fingerprint_weights

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

_TEXTS_AT_ONCE = 256


class ZeroShotClassifier(nn.Module):
    """Normalised images `[B, 3, H, W]` in, `scale * cosine(image, class)` as logits `[B, K]` out.

    text_embeddings: `[K, D]`, one a class. logit_scale: the factor itself (about 100), not its logarithm. Both make up
    the weights of the last layer, so that methods which read a classifier's head find one.
    """

    def __init__(self, image_encoder: nn.Module, text_embeddings: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        classes, width = text_embeddings.shape
        self.head = nn.utils.skip_init(nn.Linear, width, classes, bias=False)  # draws no random weights
        self.head.weight = nn.Parameter(logit_scale * F.normalize(text_embeddings, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.normalize(self.image_encoder(images), dim=1))
        return logits


class _OpenClip(NamedTuple):
    """An open_clip model with what belongs to it."""

    model: CLIP | CustomTextCLIP
    tokenize: Callable[[list[str]], Tensor]
    settings: dict[str, object]
    """Its architecture, as in open_clip's JSON files."""
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: Interpolation
    notes: tuple[str, ...]


def open_zero_shot(reference: str, options: ModelOptions) -> Source:
    """A CLIP model with `options.classes` as its classes.

    reference: "ARCHITECTURE@weights", an open_clip name or the path of a JSON file of such an architecture, and a
    local weights file or an open_clip tag. Raises InvalidInput for missing classes, a wrong template, an unknown name.
    """
    architecture, _, weights = reference.partition("@")
    if not architecture or not weights:
        raise InvalidInput(f"model 'clip:{reference}' must read clip:ARCHITECTURE@weights, as clip:ViT-B-32@openai")
    if not options.classes:
        raise InvalidInput(f"clip:{reference} scores the classes you name; give them with --classes names.txt")
    templates = _templates(options.template)
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"clip:{reference} needs open_clip; pip install snellen[clip]") from error
    opened = _open(architecture, weights)
    size = opened.model.visual.image_size
    names = [str(name) for name in options.classes]
    network = ZeroShotClassifier(
        opened.model.visual, _text_embeddings(opened, names, templates), opened.model.logit_scale.exp().item()
    )
    return Source(
        network,
        names,
        (size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        opened.mean,
        opened.std,
        opened.interpolation,
        notes=opened.notes,
    )


def _templates(text: str) -> list[str]:
    templates = [part.strip() for part in text.split("|")]
    wrong = [part for part in templates if part.count("{}") != 1]
    if wrong:
        raise InvalidInput(
            f"template needs exactly one {{}} for the class name in each sentence (| stands between sentences), got"
            f" {wrong[0]!r}; an example is 'a photo of a {{}}.'"
        )
    return templates


def _open(architecture: str, weights: str) -> _OpenClip:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    settings = _settings(architecture)
    file = Path(weights).expanduser()
    if not file.is_file():
        return _with_tag(architecture, weights, settings)
    model = _untrained(architecture, settings)
    fill_weights(model, read_state_dict(file), file)
    note = f"{file.name} does not state its normalisation; CLIP's was taken (set --mean and --std otherwise)"
    return _OpenClip(
        model.eval(), _tokenizer(architecture, settings), settings, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, "bicubic",
        (note,),
    )  # fmt: skip


def _with_tag(architecture: str, tag: str, settings: dict[str, object]) -> _OpenClip:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise InvalidInput(
            f"{tag!r} is neither a weights file nor one of open_clip's for {architecture}:"
            f" {', '.join(tags) or 'it has none'}"
        )
    try:
        with torch.random.fork_rng(devices=()):
            model = open_clip.create_model(architecture, pretrained=tag, pretrained_text=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"the weights clip:{architecture}@{tag} cannot be had ({str(error).splitlines()[0]}); give a local file"
        ) from error
    stated = open_clip.get_model_preprocess_cfg(model)
    interpolation: Interpolation = "bilinear" if stated["interpolation"] == "bilinear" else "bicubic"
    squash = (
        "the model was made for squashed images; here they are cropped" if stated["resize_mode"] == "squash" else ""
    )
    return _OpenClip(
        model.eval(), _tokenizer(architecture, settings), settings, stated["mean"], stated["std"], interpolation,
        (squash,) if squash else (),
    )  # fmt: skip


def _settings(architecture: str) -> dict[str, object]:
    import open_clip

    path = Path(architecture).expanduser()
    if path.suffix == ".json":
        return _settings_of_file(path)
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        raise InvalidInput(f"open_clip has no model {architecture!r}; near names are {', '.join(near) or 'none'}")
    known: dict[str, object] = copy.deepcopy(open_clip.get_model_config(architecture))
    return known


def _settings_of_file(path: Path) -> dict[str, object]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings = stored.get("model_cfg", stored)
        towers = settings["vision_cfg"], settings["text_cfg"]
        # These would fetch a tokenizer or a tower from the hub, with whatever arguments the file likes.
        remote = [key for tower in towers for key in tower if key.startswith(("hf_", "tokenizer_"))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"{path} is no open_clip model configuration with vision_cfg and text_cfg") from error
    if remote:
        raise InvalidInput(f"{path.name} sets {remote[0]}, which is only accepted of open_clip's own architectures")
    return dict(settings)


def _untrained(architecture: str, settings: dict[str, object]) -> CLIP | CustomTextCLIP:
    from open_clip import CLIP, CustomTextCLIP

    arguments = copy.deepcopy(settings)
    try:
        vision, text = arguments["vision_cfg"], arguments["text_cfg"]
        assert isinstance(vision, dict)
        assert isinstance(text, dict)
        # The weights come from the file, so nothing is to be downloaded.
        vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
        custom = arguments.pop("custom_text", False) or "hf_model_name" in text
        with torch.random.fork_rng(devices=()):  # initial weights are drawn, and replaced
            return CustomTextCLIP(**arguments) if custom else CLIP(**arguments)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(f"open_clip cannot build {architecture}: {str(error) or type(error).__name__}") from error


def _tokenizer(architecture: str, settings: dict[str, object]) -> Callable[[list[str]], Tensor]:
    import open_clip

    tokenizer: Callable[[list[str]], Tensor]
    if architecture.endswith(".json"):
        text = settings["text_cfg"]
        length = text.get("context_length", 77) if isinstance(text, dict) else 77
        tokenizer = open_clip.SimpleTokenizer(context_length=length)
        return tokenizer
    try:
        tokenizer = open_clip.get_tokenizer(architecture)
    except (OSError, ImportError, ValueError) as error:
        raise InvalidInput(f"the tokenizer of {architecture} cannot be had: {str(error).splitlines()[0]}") from error
    return tokenizer


def _text_embeddings(opened: _OpenClip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class embeddings `[K, D]`, from the cache where the same weights have read the same sentences before."""
    sentences = [part.replace("{}", name.replace("_", " ")) for name in names for part in templates]
    text_weights = {
        name: tensor for name, tensor in opened.model.state_dict().items() if not name.startswith("visual.")
    }
    question = json.dumps([opened.settings, len(names), sentences], sort_keys=True)
    key = fingerprint_weights(question, text_weights)
    if (cached := read_embeddings(key, len(names))) is not None:
        return cached
    try:
        with torch.no_grad():
            parts = [
                opened.model.encode_text(opened.tokenize(sentences[start : start + _TEXTS_AT_ONCE]), normalize=True)
                for start in range(0, len(sentences), _TEXTS_AT_ONCE)
            ]
    except (RuntimeError, IndexError, ValueError) as error:  # a vocabulary smaller than the tokenizer's, for one
        raise InvalidInput(f"the text tower cannot read the class names: {str(error).splitlines()[0]}") from error
    embeddings = F.normalize(torch.cat(parts).view(len(names), len(templates), -1).mean(1), dim=1)
    write_embeddings(key, embeddings)
    return embeddings
