from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from snellen.errors import InvalidInput, UntrustedFile
from snellen.models import Access
from snellen.models.loading import load_model
from snellen.models.opening import open_source
from snellen.models.options import ModelOptions

NAMES = ["cat", "dog", "owl"]
PLAIN = ModelOptions(classes=NAMES)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ).eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    torch.onnx.export(
        network,
        (torch.rand(2, 3, 16, 16),),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    return path


def channel_means(
    path: Path,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    dtype: int = TensorProto.FLOAT,
    nhwc: bool = False,
    softmax: bool = False,
    also: Sequence[str] = (),
    initializers: Sequence[TensorProto] = (),
    metadata: dict[str, str] | None = None,
) -> Path:
    """A graph whose logits are the channel means; `also` adds outputs that repeat them."""
    nodes = []
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["images"], ["ordered"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Cast", ["ordered" if nhwc else "images"], ["values"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceMean", ["values"], ["means"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["means"], ["scores"]))
    nodes.extend(helper.make_node("Identity", ["scores"], [name]) for name in also)
    nodes.extend(helper.make_node("Add", ["means", tensor.name], [f"{tensor.name}_used"]) for tensor in initializers)
    outputs = ["scores", *also, *(f"{tensor.name}_used" for tensor in initializers)]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape[0], None]) for name in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def weights_elsewhere(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def means(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def sidecar(path: Path, **keys: object) -> None:
    path.with_suffix(".yaml").write_text(yaml.safe_dump(keys))


def test_an_exported_network_gives_the_same_scores(network: nn.Module, exported: Path) -> None:
    loaded = load_model(str(exported), ModelOptions(classes=NAMES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    images = torch.rand(5, 3, 16, 16)
    normalised = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.allclose(loaded.model.scores(images), network(normalised), atol=1e-4)
    assert loaded.model.access is Access.SCORES
    assert loaded.model.spec.input_size == (16, 16)
    assert loaded.warnings == []


def test_one_thread_repeats_bit_for_bit(exported: Path) -> None:
    images = torch.rand(4, 3, 16, 16)
    first, second = (load_model(str(exported), PLAIN).model.scores(images) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_size_serves_any_number_of_images(tmp_path: Path, batch: int) -> None:
    path = channel_means(tmp_path / "m.onnx", (batch, 3, 8, 8))
    model = load_model(str(path), PLAIN).model
    for count in (7, 4, 1, 0):
        images = torch.rand(count, 3, 8, 8)
        assert torch.allclose(model.scores(images), means(images), atol=1e-5)


def test_channels_last_graphs_are_recognised_by_their_shape(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", ("batch", 8, 12, 3), nhwc=True)
    images = torch.rand(2, 3, 8, 12)
    model = load_model(str(path), PLAIN).model
    assert model.spec.input_size == (8, 12)
    assert torch.allclose(model.scores(images), means(images), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "factor", "tolerance"),
    [
        (TensorProto.FLOAT16, 1, 1e-3),
        (TensorProto.DOUBLE, 1, 1e-6),
        (TensorProto.UINT8, 255, 1e-3),
    ],
)
def test_every_input_type_is_given_its_own_range(tmp_path: Path, dtype: int, factor: int, tolerance: float) -> None:
    path = channel_means(tmp_path / "m.onnx", dtype=dtype)
    images = torch.randint(0, 256, (3, 3, 8, 8)) / 255
    scores = load_model(str(path), PLAIN).model.scores(images)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, means(images) * factor, atol=tolerance * factor)


def test_grey_graphs_read_one_channel(tmp_path: Path) -> None:
    path = tmp_path / "grey.onnx"
    flat = numpy_helper.from_array(np.ones((16, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "grey",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [flat],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    model = load_model(str(path), ModelOptions(classes=["a", "b"])).model
    images = torch.rand(2, 1, 4, 4)
    assert model.spec.channels == 1
    assert torch.allclose(model.scores(images)[:, 0], images.sum((1, 2, 3)), atol=1e-5)


def test_probabilities_of_a_final_softmax_become_logits(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", softmax=True, also=("copy",))
    sidecar(path, output="copy")
    images = torch.rand(3, 3, 8, 8)
    scores = load_model(str(path), PLAIN).model.scores(images)
    assert torch.allclose(scores, means(images).log_softmax(1), atol=1e-5)


def test_a_probability_of_zero_gives_a_finite_logit(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", softmax=True)
    sidecar(path, scale=1000)
    images = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    scores = load_model(str(path), PLAIN).model.scores(images)
    assert scores.isfinite().all()
    assert scores[0, 1] < -27


def test_the_sidecar_says_what_the_graph_cannot(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", ("n", "c", "h", "w"))
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    sidecar(
        path, class_names="names.txt", input_size=[8, 12], mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic",
        crop_fraction=0.9, input="images", output="scores", layout="NCHW", scale=255,
    )  # fmt: skip
    loaded = load_model(str(path))
    spec = loaded.model.spec
    assert (spec.class_names, spec.input_size, spec.interpolation) == (tuple(NAMES), (8, 12), "bicubic")
    assert (spec.mean, spec.crop_fraction) == ((0.5,) * 3, 0.9)
    images = torch.rand(2, 3, 8, 12)
    assert torch.allclose(loaded.model.scores(images), means((images - 0.5) / 0.5 * 255), atol=1e-2)


def test_flags_win_over_the_sidecar(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", ("n", 3, "h", "w"))
    sidecar(path, class_names=NAMES, input_size=8, mean=[0.5] * 3, std=[0.5] * 3)
    options = ModelOptions(classes=["x", "y", "z"], input_size=(10, 10), mean=(0.1, 0.1, 0.1))
    spec = load_model(str(path), options).model.spec
    assert (spec.class_names, spec.input_size, spec.mean) == (("x", "y", "z"), (10, 10), (0.1, 0.1, 0.1))


def test_class_names_that_yaml_takes_for_truth_values_stay_words(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx")
    path.with_suffix(".yaml").write_text("class_names: [0, 1, owl]\n")
    assert open_source(str(path), ModelOptions()).class_names == ["0", "1", "owl"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"class_names": json.dumps(NAMES)},
        {"names": json.dumps({"1": "dog", "0": "cat", "2": "owl"})},
        {"names": "{0: 'cat', 1: 'dog', 2: 'owl'}"},
    ],
)
def test_class_names_are_read_from_the_metadata(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = channel_means(tmp_path / "m.onnx", metadata=metadata)
    assert open_source(str(path), ModelOptions()).class_names == NAMES


def test_metadata_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = channel_means(tmp_path / "m.onnx", metadata={"names": f"__import__('pathlib').Path({str(mark)!r}).touch()"})
    with pytest.raises(InvalidInput, match="no list of names"):
        open_source(str(path), ModelOptions())
    assert not mark.exists()


def test_a_wrong_input_size_is_told_with_both_shapes(exported: Path) -> None:
    with pytest.raises(InvalidInput, match=r"declares images of 16 x 16 .* given is 32 x 24"):
        open_source(str(exported), ModelOptions(classes=NAMES, input_size=(32, 24)))


def test_images_that_the_graph_cannot_read_are_told_with_both_shapes(exported: Path) -> None:
    network = open_source(str(exported), PLAIN).network
    with pytest.raises(InvalidInput, match=r"declares NCHW input .*16, 16.* cannot read \[2, 3, 20, 20\]"):
        network(torch.rand(2, 3, 20, 20))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": NAMES}, "classes is wrong .* keys are class_names"),
        ({"std": ["a"]}, r"std\.0 is wrong"),
        ({"input_size": [8, -8]}, "input_size"),
        ({"input_size": 9}, "declares images of 8 x 8"),
        ({"mean": [0.5]}, "reads 3 channels, but mean has 1"),
        ({"class_names": "nowhere.txt"}, "nowhere.txt"),
        ({"class_names": "../names.txt"}, "outside its folder"),
        ({"input": "pixels"}, "'pixels'; the graph has images"),
        ({"output": "nothing"}, "must have the output 'nothing'"),
        ({"layout": "NHWC"}, "reads NHWC images with 8 channels"),
    ],
)
def test_a_wrong_sidecar_is_told_in_one_sentence(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    path = channel_means(tmp_path / "m.onnx")
    sidecar(path, **keys)
    with pytest.raises((InvalidInput, UntrustedFile), match=message):
        open_source(str(path), PLAIN)


def test_a_damaged_sidecar_is_told(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx")
    for text in ("a: [", "!!python/object/apply:os.system [ls]", "- a\n- b"):
        path.with_suffix(".yaml").write_text(text)
        with pytest.raises(InvalidInput, match=r"m\.yaml"):
            open_source(str(path), PLAIN)


def test_a_normalisation_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", dtype=TensorProto.UINT8)
    with pytest.raises(InvalidInput, match="can have no mean"):
        open_source(str(path), ModelOptions(classes=NAMES, mean=(0.5, 0.5, 0.5)))


def test_several_score_outputs_need_a_choice(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", also=("auxiliary",))
    with pytest.raises(InvalidInput, match=r"scores tensor\(float\) .* auxiliary .* `output: NAME` in m.yaml"):
        open_source(str(path), PLAIN)
    sidecar(path, output="auxiliary")
    assert load_model(str(path), PLAIN).model.spec.num_classes == 3


def test_a_graph_that_is_no_image_classifier_is_told_with_its_shapes(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "vectors",
        [value("x", TensorProto.FLOAT, ["n", 5])],
        [value("y", TensorProto.FLOAT, ["n", 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "v.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidInput, match=r"four dimensions .* it has x tensor\(float\) \['n', 5\]"):
        open_source(str(tmp_path / "v.onnx"), PLAIN)


def test_a_damaged_file_is_told(exported: Path, tmp_path: Path) -> None:
    whole = exported.read_bytes()
    for damaged in (b"", b"not a graph", whole[: len(whole) // 2], whole[:40]):
        (tmp_path / "d.onnx").write_bytes(damaged)
        with pytest.raises(InvalidInput, match=r"d\.onnx"):
            open_source(str(tmp_path / "d.onnx"), PLAIN)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "sub/../../w.bin", "link.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones(3, np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = channel_means(folder / "m.onnx", initializers=[weights_elsewhere(location)])
    with pytest.raises(UntrustedFile, match="outside its folder"):
        open_source(str(path), PLAIN)


def test_weights_in_a_constant_node_are_checked_too(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=weights_elsewhere("../w.bin")),
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Add", ["m", "c"], ["y"]),
        ],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "c.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedFile, match="outside its folder"):
        open_source(str(tmp_path / "c.onnx"), PLAIN)


def test_weights_beside_the_graph_are_read_and_belong_to_its_identity(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx", initializers=[weights_elsewhere("w.bin")])
    sidecar(path, output="w_used")
    found = []
    for value in (1, 2):
        (tmp_path / "w.bin").write_bytes(np.full(3, value, np.float32).tobytes())
        model = load_model(str(path), PLAIN).model
        assert torch.allclose(model.scores(torch.zeros(1, 3, 8, 8)), torch.full((1, 3), float(value)))
        found.append(model.spec.fingerprint)
    assert found[0] != found[1]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InvalidInput, match="not beside it"):
        open_source(str(path), PLAIN)


def test_another_reading_of_the_same_file_is_another_model(tmp_path: Path) -> None:
    path = channel_means(tmp_path / "m.onnx")
    first = open_source(str(path), PLAIN).fingerprint
    assert first == open_source(str(path), PLAIN).fingerprint
    sidecar(path, scale=255)
    assert open_source(str(path), PLAIN).fingerprint != first


def test_a_custom_operator_is_told_by_name(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Magic", ["x"], ["y"], domain="my.operators")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("my.operators", 1)]
    (tmp_path / "c.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    with pytest.raises(InvalidInput, match=r"uses the operator my\.operators:Magic"):
        open_source(str(tmp_path / "c.onnx"), PLAIN)


def test_cuda_that_onnxruntime_does_not_have_is_noted(exported: Path) -> None:
    notes = open_source(str(exported), ModelOptions(classes=NAMES, device="cuda")).notes
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert has_cuda or "has no CUDA" in notes[0]
