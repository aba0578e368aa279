from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from snellen.errors import InvalidInput, UntrustedFile
from snellen.models import Access
from snellen.models.class_names import read_class_names
from snellen.models.loading import load_model
from snellen.models.options import DataHints, ModelOptions

CLASSES = ["a", "b", "c"]


class RunsCode:
    """What a hostile checkpoint holds."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    return timm.create_model("resnet10t", num_classes=3).eval()


@pytest.fixture(scope="module")
def exported(small: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(small, (torch.rand(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def rewritten(path: Path, out: Path, change: dict[str, bytes]) -> Path:
    """A copy of a zip archive with members replaced or added."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, change.pop(name, None) or source.read(name))
        for name, content in change.items():
            target.writestr(name, content)
    return out


def test_the_demo_grants_everything_and_warns_of_nothing() -> None:
    loaded = load_model("demo")
    assert loaded.model.access is Access.WEIGHTS
    assert loaded.warnings == []


def test_timm_with_local_weights_takes_the_class_count_from_them(small: torch.nn.Module, tmp_path: Path) -> None:
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(
        f"timm:resnet10t@{tmp_path / 'w.safetensors'}", ModelOptions(classes=CLASSES, input_size=(64, 64))
    )
    x = torch.rand(2, 3, 64, 64)
    normalised = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    assert torch.allclose(loaded.model.scores(x), small(normalised), atol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_state_dicts_are_found_in_checkpoints(small: torch.nn.Module, tmp_path: Path, wrap: object) -> None:
    torch.save(wrap(small.state_dict()), tmp_path / "w.pth")
    options = ModelOptions(classes=CLASSES, architecture="timm:resnet10t", input_size=(64, 64))
    assert load_model(str(tmp_path / "w.pth"), options).model.spec.num_classes == 3


def test_torchvision_architectures(tmp_path: Path) -> None:
    import torchvision

    save_file(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "w.safetensors")
    options = ModelOptions(classes=CLASSES, architecture="torchvision:squeezenet1_1")
    assert load_model(str(tmp_path / "w.safetensors"), options).model.spec.num_classes == 3


def test_an_exported_model_gives_the_same_scores(small: torch.nn.Module, exported: Path) -> None:
    loaded = load_model(str(exported), ModelOptions(classes=CLASSES, input_size=(64, 64)))
    x = torch.rand(3, 3, 64, 64)
    assert torch.allclose(loaded.model.scores(x), small(x), atol=1e-4)
    assert loaded.model.access is Access.WEIGHTS


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": RunsCode(mark)}, tmp_path / "evil.pth")
    with pytest.raises(UntrustedFile, match="would run code"):
        load_model(str(tmp_path / "evil.pth"), ModelOptions(classes=CLASSES, architecture="timm:resnet10t"))
    assert not mark.exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    with pytest.raises(UntrustedFile, match="TorchScript"):
        load_model(str(tmp_path / "s.pt"), ModelOptions(classes=CLASSES, architecture="timm:resnet10t"))


def test_an_exported_archive_with_a_pickle_is_refused(exported: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for member in ("model/data/constants/custom_obj_0", "model/data/sample_inputs/model.pt", "model/data/extra.pkl"):
        evil = rewritten(exported, tmp_path / "evil.pt2", {member: pickle.dumps(RunsCode(mark))})
        with pytest.raises((UntrustedFile, InvalidInput)):
            load_model(str(evil), ModelOptions(classes=CLASSES, input_size=(64, 64)))
        assert not mark.exists()


@pytest.mark.parametrize("target", ["torch.os.system", "_operator.call", "torch.ops.aten.__class__", "torch.hub.load"])
def test_an_exported_graph_that_calls_no_tensor_operator_is_refused(
    exported: Path, tmp_path: Path, target: str
) -> None:
    graph = zipfile.ZipFile(exported).read("model/models/model.json").decode()
    called = re.search(r'"target": "(torch\.ops\.aten\.[\w.]+)"', graph)
    assert called is not None
    changed = graph.replace(called.group(1), target, 1).encode()
    evil = rewritten(exported, tmp_path / "evil.pt2", {"model/models/model.json": changed})
    with pytest.raises(UntrustedFile, match="no tensor operator"):
        load_model(str(evil), ModelOptions(classes=CLASSES, input_size=(64, 64)))


def test_an_exported_size_expression_that_is_code_is_refused(exported: Path, tmp_path: Path) -> None:
    graph = json.loads(zipfile.ZipFile(exported).read("model/models/model.json"))
    text = json.dumps(graph)
    expression = re.search(r'"expr_str": "([^"]+)"', text)
    assert expression is not None
    mark = tmp_path / "ran"
    changed = text.replace(expression.group(1), f"__import__('pathlib').Path('{mark}').touch()").encode()
    evil = rewritten(exported, tmp_path / "evil.pt2", {"model/models/model.json": changed})
    with pytest.raises(UntrustedFile, match="size expression"):
        load_model(str(evil), ModelOptions(classes=CLASSES, input_size=(64, 64)))
    assert not mark.exists()


def python_model(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{abs(hash(body))}"
    (folder / f"{name}.py").write_text("import torch\n" + body)
    monkeypatch.chdir(folder)
    sys.path_importer_cache.clear()
    return f"py:{name}:make"


def test_a_python_function_may_return_a_module_that_describes_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "class Net(torch.nn.Module):\n    class_names = ['x', 'y']\n    input_size = 8\n"
        "    mean = (0.5,)\n    std = (0.5,)\n"
        "    def forward(self, x): return x.flatten(1)[:, :2]\n"
        "def make(): return Net()\n"
    )
    spec = load_model(python_model(tmp_path, body, monkeypatch)).model.spec
    assert (spec.class_names, spec.input_size, spec.channels) == (("x", "y"), (8, 8), 1)


def test_a_plain_callable_grants_scores_and_takes_the_rest_from_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = python_model(tmp_path, "def make(): return lambda x: x.mean((2, 3))\n", monkeypatch)
    loaded = load_model(name, hints=DataHints(["c", "a", "b"], (12, 20)))
    assert loaded.model.access is Access.SCORES
    assert loaded.model.spec.class_names == ("a", "b", "c")
    assert loaded.model.spec.input_size == (12, 20)
    assert loaded.model.spec.fingerprint
    assert len(loaded.warnings) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(): return 3\n", "must return a module or callable"),
        ("def other(): pass\n", "has no function 'make'"),
        ("def make(): raise RuntimeError('no licence')\n", "no licence"),
        ("def make(): return lambda x: x.mean((2, 3))[:, :2]\n", r"returned \[1, 2\]"),
        ("def make(): return torch.nn.Linear(5, 3)\n", "cannot read one image"),
    ],
)
def test_faulty_python_models_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_model(python_model(tmp_path, body, monkeypatch), ModelOptions(classes=CLASSES, input_size=(8, 8)))


def test_changed_code_is_another_model_even_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "class Net(torch.nn.Module):\n    class_names = ['x', 'y']\n    input_size = (3, 8, 8)\n"
        "    def forward(self, x): return x.mean((2, 3))[:, :2] * {factor}\n"
        "def make(): return Net()\n"
    )
    found = [
        load_model(python_model(tmp_path, body.format(factor=factor), monkeypatch)).model.spec for factor in (1, 2)
    ]
    assert found[0].input_size == (8, 8)
    assert found[0].fingerprint != found[1].fingerprint


@pytest.mark.parametrize("stated", ["'big'", "(8,)", "-3", "(3.5, 4)"])
def test_an_impossible_input_size_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    body = f"def make():\n    net = torch.nn.Flatten()\n    net.input_size = {stated}\n    return net\n"
    with pytest.raises(InvalidInput, match="input_size must be"):
        load_model(python_model(tmp_path, body, monkeypatch), ModelOptions(classes=CLASSES))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pt2", "neither a file nor a known form"),
        ("timm:resnet19", "timm has no model"),
        ("timm:resnet10t@nowhere.pth", "does not exist"),
        ("demo:ill", "demo models are"),
        ("py:nomodule:f", "no module 'nomodule'"),
        ("py:json", "must read py:module:function"),
    ],
)
def test_wrong_names_are_told_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_model(name)


def test_weights_that_do_not_fit_are_told(small: torch.nn.Module, tmp_path: Path) -> None:
    save_file(dict(list(small.state_dict().items())[:5]), tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput, match="do not fit"):
        load_model(f"timm:resnet10t@{tmp_path / 'w.safetensors'}")


def test_weights_without_an_architecture_are_told(small: torch.nn.Module, tmp_path: Path) -> None:
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput, match="--architecture"):
        load_model(str(tmp_path / "w.safetensors"))


def test_a_damaged_archive_is_told(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported, tmp_path / "cut.pt2")
    (tmp_path / "cut.pt2").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(InvalidInput, match="not a readable"):
        load_model(str(tmp_path / "cut.pt2"))


def test_class_names_from_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n dog \n\n")
    (tmp_path / "names.json").write_text('{"1": "dog", "0": "cat"}')
    assert read_class_names(tmp_path / "names.txt") == read_class_names(tmp_path / "names.json") == ["cat", "dog"]
