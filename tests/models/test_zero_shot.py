from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from snellen.errors import InvalidInput, UntrustedFile
from snellen.models import Access
from snellen.models.loading import load_model
from snellen.models.opening import open_source
from snellen.models.options import ModelOptions
from snellen.models.torch_model import frozen_copy
from snellen.models.zero_shot import ZeroShotClassifier

SETTINGS = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
NAMES = ["cat", "golden_retriever", "owl"]
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "snellen" / "text_embeddings"


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(**json.loads(json.dumps(SETTINGS))).eval()


@pytest.fixture
def name(clip: nn.Module, tmp_path: Path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(SETTINGS))
    save_file(clip.state_dict(), tmp_path / "tiny.safetensors")
    return f"clip:{tmp_path / 'tiny.json'}@{tmp_path / 'tiny.safetensors'}"


def options(template: str = "a photo of a {}.") -> ModelOptions:
    return ModelOptions(classes=NAMES, template=template)


def text_logits(clip: nn.Module, images: torch.Tensor, sentences: list[str]) -> torch.Tensor:
    """What CLIP itself makes of images and sentences."""
    tokens = open_clip.SimpleTokenizer(context_length=20)(sentences)
    with torch.no_grad():
        return clip.get_logits((images - MEAN) / STD, tokens)[0]


def test_logits_are_clips_own(clip: nn.Module, name: str) -> None:
    model = load_model(name, options()).model
    images = torch.rand(4, 3, 32, 32)
    sentences = ["a photo of a cat.", "a photo of a golden retriever.", "a photo of a owl."]
    assert torch.allclose(model.scores(images), text_logits(clip, images, sentences), atol=1e-4)
    assert model.spec.class_names == tuple(NAMES)
    assert (model.spec.input_size, model.spec.interpolation) == ((32, 32), "bicubic")
    assert model.access is Access.WEIGHTS


def test_several_templates_are_averaged_as_open_clip_does(clip: nn.Module, name: str) -> None:
    templates = ["a photo of a {}.", "a drawing of a {}."]
    model = load_model(name, options(" | ".join(templates))).model
    images = torch.rand(2, 3, 32, 32)
    spoken = [text.replace("_", " ") for text in NAMES]
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    weights = open_clip.build_zero_shot_classifier(clip, tokenizer, spoken, templates)
    with torch.no_grad():
        expected = clip.logit_scale.exp() * clip.encode_image((images - MEAN) / STD, normalize=True) @ weights
    assert torch.allclose(model.scores(images), expected, atol=1e-4)


def test_everything_inside_is_open_to_the_examination(name: str) -> None:
    model = load_model(name, options()).model
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert gradient.abs().sum() > 0
    features = model.features(images.detach())
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(model.module.head(features), model.scores(images.detach()), atol=1e-5)


def test_the_network_can_be_copied(name: str) -> None:
    network = open_source(name, options()).network
    assert isinstance(network, nn.Module)
    images = torch.rand(1, 3, 32, 32)
    # Frozen weights let attention take another kernel, so the last bits may differ.
    assert torch.allclose(frozen_copy(network)(images), network.eval()(images), atol=1e-5)


def test_logits_are_the_scaled_cosine() -> None:
    images, classes = torch.randn(5, 3, 2, 2), torch.randn(4, 12)
    expected = 10 * F.cosine_similarity(images.flatten(1)[:, None], classes[None], dim=2)
    assert torch.allclose(ZeroShotClassifier(nn.Flatten(), classes, 10)(images), expected, atol=1e-5)


def test_other_names_or_sentences_are_another_model(name: str) -> None:
    asked = [options(), options("a drawing of a {}."), ModelOptions(classes=["cat", "dog", "owl"]), options()]
    found = [load_model(name, one).model.spec.fingerprint for one in asked]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_text_is_encoded_once(name: str, own_cache: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    first = load_model(name, options()).model.scores(images)
    (cached,) = own_cache.iterdir()
    written = cached.stat().st_mtime_ns
    assert torch.equal(load_model(name, options()).model.scores(images), first)
    assert cached.stat().st_mtime_ns == written
    # The cache is what is read: turned embeddings turn the scores.
    save_file({"embeddings": -load_file(cached)["embeddings"]}, cached)
    assert torch.allclose(load_model(name, options()).model.scores(images), -first, atol=1e-5)


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_cache_is_made_anew(name: str, own_cache: Path, damage: bytes | None) -> None:
    images = torch.rand(2, 3, 32, 32)
    first = load_model(name, options()).model.scores(images)
    (cached,) = own_cache.iterdir()
    if damage is None:
        save_file({"embeddings": torch.full((3, 12), torch.nan)}, cached)
    else:
        cached.write_bytes(damage)
    assert torch.equal(load_model(name, options()).model.scores(images), first)
    assert load_file(cached)["embeddings"].isfinite().all()


def test_other_weights_do_not_meet_the_cache(clip: nn.Module, name: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    first = load_model(name, options()).model.scores(images)
    changed = {key: -value if key == "text_projection" else value for key, value in clip.state_dict().items()}
    save_file({key: value.clone() for key, value in changed.items()}, tmp_path / "tiny.safetensors")
    assert torch.allclose(load_model(name, options()).model.scores(images), -first, atol=1e-4)


def test_a_cache_that_cannot_be_written_is_no_error(name: str, own_cache: Path) -> None:
    own_cache.parent.parent.write_text("a file where the folder should be")
    assert load_model(name, options()).model.spec.num_classes == 3


def test_global_randomness_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    open_source(name, options())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", "a {} | no place", "a {0.__class__}", ""])
def test_a_template_needs_one_place_for_the_name(name: str, template: str) -> None:
    with pytest.raises(InvalidInput, match="exactly one"):
        open_source(name, options(template))


def test_braces_in_a_class_name_are_only_text(name: str) -> None:
    asked = ModelOptions(classes=["{}", "{0.__class__}", "%s"])
    assert load_model(name, asked).model.scores(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_missing_classes_are_asked_for(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"--classes names\.txt"):
        open_source(name, ModelOptions())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("clip:ViT-B-32", "must read clip:ARCHITECTURE@weights"),
        ("clip:@openai", "must read clip:ARCHITECTURE@weights"),
        ("clip:ViT-B-33@openai", "near names are .*ViT-B-32"),
        ("clip:ViT-B-32@nothing", "neither a weights file nor one of open_clip's for ViT-B-32: .*openai"),
        ("clip:nowhere.json@openai", "no open_clip model configuration"),
    ],
)
def test_wrong_names_are_told_in_one_sentence(reference: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        open_source(reference, options())


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("text_cfg", {"hf_model_name": "someone/model"}, "hf_model_name"),
        ("text_cfg", {"hf_tokenizer_name": "someone/code"}, "hf_tokenizer_name"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
        ("text_cfg", {"vocab_size": 100}, "does not fit"),
        ("text_cfg", {"heads": 3}, "cannot build"),
        ("vision_cfg", {"width": "wide"}, "cannot build"),
        ("vision_cfg", {"head_width": 0}, "cannot build"),
        ("vision_cfg", {"colour": 3}, "cannot build"),
        ("vision_cfg", {"layers": 3}, "does not fit"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_sentence(
    name: str, tmp_path: Path, tower: str, change: dict[str, object], message: str
) -> None:
    settings = {**SETTINGS, tower: {**SETTINGS[tower], **change}}
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(name, options())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"vision_cfg": 3, "text_cfg": {}}'])
def test_a_damaged_configuration_is_told(name: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "tiny.json").write_text(text)
    with pytest.raises(InvalidInput, match="no open_clip model configuration"):
        open_source(name, options())


def test_pickled_weights_are_read_without_running_code(clip: nn.Module, name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "w.pt")
    images = torch.rand(1, 3, 32, 32)
    pickled = f"{name.partition('@')[0]}@{tmp_path / 'w.pt'}"
    assert torch.equal(
        load_model(pickled, options()).model.scores(images), load_model(name, options()).model.scores(images)
    )

    class RunsCode:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": RunsCode()}, tmp_path / "w.pt")
    with pytest.raises(UntrustedFile):
        open_source(pickled, options())
    assert not (tmp_path / "ran").exists()


def test_an_architecture_of_open_clip_reads_local_weights(tmp_path: Path) -> None:
    save_file({"logit_scale": torch.ones(())}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput, match=r"w\.safetensors does not fit CLIP"):
        open_source(f"clip:RN50@{tmp_path / 'w.safetensors'}", options())
