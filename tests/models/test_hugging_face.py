from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    MobileViTImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from snellen.data.decode import Geometry
from snellen.errors import InvalidInput, UntrustedFile
from snellen.models import Access
from snellen.models.loading import load_model
from snellen.models.opening import open_source
from snellen.models.options import DataHints, ModelOptions
from snellen.models.torch_model import frozen_copy

NAMES = {0: "cat", 1: "dog", 2: "owl"}
SIDE = 32


def vit(**settings: object) -> PreTrainedModel:
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIDE,
        "patch_size": 8,
        "id2label": NAMES,
    }
    return ViTForImageClassification(ViTConfig(**{**config, **settings}))


def resnet() -> PreTrainedModel:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=NAMES)
    )


def convnext() -> PreTrainedModel:
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, id2label=NAMES))


def saved(folder: Path, make: Callable[[], PreTrainedModel], processor: object | None = None) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def changed(folder: Path, file: str = "config.json", **keys: object) -> None:
    stored = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**stored, **keys}))


SQUARE = {"height": SIDE, "width": SIDE}
MODELS = {
    "vit": (vit, lambda: ViTImageProcessor(size=SQUARE)),
    "resnet": (resnet, lambda: ConvNextImageProcessor(size={"shortest_edge": 384})),
    "convnext": (convnext, lambda: BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)),
    "efficientnet processor": (resnet, lambda: EfficientNetImageProcessor(size=SQUARE)),
    "not rescaled": (resnet, lambda: ViTImageProcessor(size=SQUARE, do_rescale=False, image_mean=[99.0] * 3)),
    "not normalised": (resnet, lambda: ViTImageProcessor(size=SQUARE, do_normalize=False)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_processor_and_model(tmp_path: Path, kind: str) -> None:
    make, processor = MODELS[kind]
    folder = saved(tmp_path, make, processor())
    model = load_model(f"hf:{folder}").model
    pixels = np.random.default_rng(0).integers(0, 256, (*model.spec.input_size, 3), dtype=np.uint8)
    original = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        inputs = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="pt")
        expected = original(**inputs).logits
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    assert torch.allclose(model.scores(images), expected, atol=1e-5)


def test_everything_inside_is_open_to_the_examination(tmp_path: Path) -> None:
    model = load_model(str(saved(tmp_path, vit, ViTImageProcessor(size=SQUARE)))).model
    assert model.access is Access.WEIGHTS
    assert model.spec.class_names == ("cat", "dog", "owl")
    images = torch.rand(2, 3, SIDE, SIDE, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert gradient.abs().sum() > 0
    features = model.features(images.detach())
    assert features.shape == (2, 16)
    head = model.module.model.classifier
    assert torch.allclose(head(features), model.scores(images.detach()), atol=1e-6)


def test_the_network_can_be_copied(tmp_path: Path) -> None:
    network = open_source(str(saved(tmp_path, convnext)), ModelOptions()).network
    assert isinstance(network, nn.Module)
    images = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(frozen_copy(network)(images), network.eval()(images))


def test_placeholder_names_count_as_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda: vit(id2label=None, num_labels=3), ViTImageProcessor(size=SQUARE))
    assert open_source(str(folder), ModelOptions()).class_names is None
    loaded = load_model(str(folder), hints=DataHints(["b", "a", "c"]))
    assert loaded.model.spec.class_names == ("a", "b", "c")


def test_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda: vit(id2label={0: "crane", 1: "dog", 2: "crane"}))
    assert open_source(str(folder), ModelOptions()).class_names == ["crane", "dog", "crane (2)"]


@pytest.mark.parametrize(
    ("processor", "size", "crop", "interpolation"),
    [
        (ViTImageProcessor(size={"height": 24, "width": 40}), (24, 40), 1.0, "bilinear"),
        (ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875), (28, 28), 0.875, "bicubic"),
        (BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE, resample=0), (32, 32), 0.8, "nearest"),
        (BitImageProcessor(size={"shortest_edge": 36}, do_center_crop=False), (36, 36), 1.0, "bicubic"),
        (LevitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), (28, 28), 0.875,
         "bicubic"),
        (ViTImageProcessor(size=SQUARE, resample=1), (32, 32), 1.0, "bicubic"),
        (ViTImageProcessor(do_resize=False), (32, 32), 1.0, "bilinear"),
    ],
)  # fmt: skip
def test_the_processors_geometry_is_honoured(
    tmp_path: Path, processor: object, size: tuple[int, int], crop: float, interpolation: str
) -> None:
    source = open_source(str(saved(tmp_path, vit, processor)), ModelOptions())
    assert (source.input_size, source.interpolation) == (size, interpolation)
    assert source.crop_fraction == pytest.approx(crop)


def test_a_cropped_picture_is_the_processors_own(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit, ConvNextImageProcessor(size={"shortest_edge": 28}))
    source = open_source(str(folder), ModelOptions())
    height, width = np.mgrid[0:64, 0:96]
    picture = Image.fromarray(np.stack([height * 4, width * 2, height + width], 2).astype(np.uint8))
    theirs = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"][0]
    ours = Geometry(source.input_size, source.crop_fraction, source.interpolation).apply(picture)
    normalised = (torch.from_numpy(np.array(ours)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert (normalised - theirs).abs().max() < 4 / 255 / 0.5


def test_a_squashing_processor_is_noted(tmp_path: Path) -> None:
    notes = open_source(str(saved(tmp_path, vit, ViTImageProcessor(size=SQUARE))), ModelOptions()).notes
    assert any("squashes" in note for note in notes)


def test_a_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    processor = MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE)  # swaps red and blue
    with pytest.raises(InvalidInput, match="does more than resize"):
        open_source(str(saved(tmp_path, vit, processor)), ModelOptions())


def test_without_a_processor_the_configuration_gives_the_size(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path, vit)), ModelOptions())
    assert (source.input_size, source.mean) == ((SIDE, SIDE), None)
    assert "preprocessor_config.json" in source.notes[0]


def test_weights_in_half_precision_read_float_images(tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda: vit().half(), ViTImageProcessor(size=SQUARE))
    assert load_model(str(folder)).model.scores(torch.rand(1, 3, SIDE, SIDE)).dtype == torch.float32


def test_imagenet_classes_are_known_by_their_wordnet_id(tmp_path: Path) -> None:
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index) for index in range(1000)]
    folder = saved(tmp_path, lambda: vit(id2label=dict(enumerate(names))), ViTImageProcessor(size=SQUARE))
    spec = load_model(str(folder)).model.spec
    assert [spec.class_index(info.index_to_label_name(index)) for index in range(1000)] == list(range(1000))


def test_global_randomness_is_left_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit, ViTImageProcessor(size=SQUARE))
    before = torch.get_rng_state()
    open_source(str(folder), ModelOptions())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stored_tuple_output_is_still_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit, ViTImageProcessor(size=SQUARE))
    changed(folder, return_dict=False)
    assert load_model(str(folder)).model.scores(torch.rand(1, 3, SIDE, SIDE)).shape == (1, 3)


def test_the_same_weights_with_other_heads_are_another_model(tmp_path: Path) -> None:
    found = []
    for heads in (2, 4):
        folder = saved(tmp_path / str(heads), lambda heads=heads: vit(num_attention_heads=heads))
        options = ModelOptions(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        found.append(load_model(str(folder), options).model)
    first, second = (model.module.state_dict().values() for model in found)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert found[0].spec.fingerprint != found[1].spec.fingerprint


def test_the_folders_place_is_no_part_of_its_identity(tmp_path: Path) -> None:
    found = {
        load_model(str(saved(tmp_path / place, vit, ViTImageProcessor(size=SQUARE)))).model.spec.fingerprint
        for place in ("here", "there")
    }
    assert len(found) == 1


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, lambda: ViTModel(vit().config))
    with pytest.raises(InvalidInput, match=r"untrained .*classifier"):
        open_source(str(tmp_path), ModelOptions())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "modeling.Net"}}, "auto_map"),
        ({"attn_implementation": "someone/kernel"}, "someone/kernel"),
        ({"_attn_implementation": "someone/kernel"}, "someone/kernel"),
    ],
)
def test_configurations_that_ask_for_code_are_refused(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    folder = saved(tmp_path, vit)
    mark = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Net: ...\n")
    changed(folder, **keys)
    with pytest.raises(UntrustedFile, match=message):
        open_source(str(folder), ModelOptions())
    assert not mark.exists()


def test_a_processor_that_asks_for_code_does_not_run_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit, ViTImageProcessor(size=SQUARE))
    mark = tmp_path / "ran"
    (folder / "processing.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Mine: ...\n")
    changed(folder, "preprocessor_config.json", image_processor_type="Mine", auto_map={
        "AutoImageProcessor": "processing.Mine"
    })  # fmt: skip
    with pytest.raises(InvalidInput, match="image processor"):
        open_source(str(folder), ModelOptions())
    assert not mark.exists()


class RunsCode:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit)
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    torch.save({"x": RunsCode(mark)}, folder / "pytorch_model.bin")
    with pytest.raises((UntrustedFile, InvalidInput)):
        open_source(str(folder), ModelOptions())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(mark)))
    with pytest.raises((UntrustedFile, InvalidInput)):
        open_source(str(folder), ModelOptions())
    assert not mark.exists()


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", vit)
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "elsewhere.safetensors", {"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UntrustedFile, match="outside its folder"):
        open_source(str(folder), ModelOptions())


def test_damaged_folders_are_told_in_one_sentence(tmp_path: Path) -> None:
    for number, damage in enumerate(
        [
            lambda folder: (folder / "config.json").write_text("{"),
            lambda folder: (folder / "config.json").write_text("[]"),
            lambda folder: changed(folder, model_type="unheard-of"),
            lambda folder: changed(folder, model_type="bert"),
            lambda folder: changed(folder, hidden_size="wide"),
            lambda folder: changed(folder, num_attention_heads=3),
            lambda folder: changed(folder, hidden_size=20),
            lambda folder: changed(folder, id2label={"0": "a", "1": "b"}),
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            lambda folder: (folder / "model.safetensors").unlink(),
            lambda folder: (folder / "preprocessor_config.json").write_text("{"),
            lambda folder: changed(folder, "preprocessor_config.json", size="big"),
            lambda folder: changed(folder, "preprocessor_config.json", image_mean=[0.5]),
            lambda folder: changed(folder, "preprocessor_config.json", resample=77),
        ]
    ):
        folder = saved(tmp_path / str(number), vit, ViTImageProcessor(size=SQUARE))
        damage(folder)
        with pytest.raises(InvalidInput) as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)


def test_weights_of_another_class_count_are_told_with_both_shapes(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit)
    changed(folder, id2label={"0": "a", "1": "b"})
    with pytest.raises(InvalidInput, match=r"classifier.weight \[3, 16\] for \[2, 16\]"):
        open_source(str(folder), ModelOptions())


def test_a_name_that_cannot_be_had_is_told() -> None:
    for name in ("hf:no/such/model", "hf:", "hf:./nowhere"):  # malformed, so the hub is not asked
        with pytest.raises(InvalidInput, match="hub"):
            open_source(name, ModelOptions())
