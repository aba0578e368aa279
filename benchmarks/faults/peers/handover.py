"""What a peer gets: the case's images, labels and metadata, and what the network says of them.

A tool in an environment of its own gets them as a folder and answers with a file:

    images.npy         uint8 [N, H, W, 3]
    labels.npy         int64 [N]
    probabilities.npy  float64 [N, K]
    attributes.csv     the metadata that the audit may see too, one row an image
    network.onnx       float32 [1, 3, H, W] in [0, 1] to logits [1, K]
    classes.json       the classes' names
    reference/         the first four again, of as many images of the same origin on which nothing is wrong
    told.json          written by the tool's script: tool, seconds, statements
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.faults.cases import Case
from benchmarks.faults.peers.judging import Statement, Told
from benchmarks.faults.subjects import images_of, network
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from snellen.demo.digits import DemoImages

LONGEST = 3600
"""Seconds after which a tool is stopped."""


@dataclass(frozen=True)
class Subject:
    """features: `[N, D]`, what the last layer sees. probabilities: `[N, K]`."""

    made: DemoImages
    features: np.ndarray
    probabilities: np.ndarray


class Network(nn.Module):
    """The case's network as a module, of which ONNX files are made; float images in [0, 1] to logits."""

    def __init__(self, case: Case, work: Path) -> None:
        super().__init__()
        self.read = case.family.read(network(case, work), case.seed)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images)


def subject(case: Case, work: Path) -> Subject:
    made = images_of(case)
    return Subject(made, *answers(Network(case, work), made.images))


def answers(net: nn.Module, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What the last linear layer sees of uint8 images, `[N, D]`, and the probabilities, `[N, K]`."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            seen.append(given[0])

    features, logits = [], []
    with register_module_forward_pre_hook(keep), torch.no_grad():
        for part in images.split(300):
            logits.append(net(part.float() / 255))
            features.append(seen[-1])
            seen.clear()
    return torch.cat(features).numpy(), torch.cat(logits).double().softmax(1).numpy()


def hand_over(case: Case, work: Path, folder: Path) -> None:
    """Writes the folder described above."""
    net, made = Network(case, work), images_of(case)
    fresh, count = images_of(replace(case, fault=None), fresh=True), len(made.labels)
    _write(folder, net, made.images, made.labels, _told_attributes(case, made))
    attributes = {name: values[:count] for name, values in _told_attributes(case, fresh).items()}
    _write(folder / "reference", net, fresh.images[:count], fresh.labels[:count], attributes)
    (folder / "classes.json").write_text(json.dumps(list(made.class_names)), encoding="utf-8")
    with torch.no_grad():
        torch.onnx.export(net, (made.images[:1].float() / 255,), folder / "network.onnx", dynamo=True, verbose=False)


def _told_attributes(case: Case, made: DemoImages) -> dict[str, np.ndarray]:
    withheld = case.type.withheld if case.type else ()
    return {name: values for name, values in made.attributes.items() if name not in withheld}


def _write(folder: Path, net: nn.Module, images: Tensor, labels: np.ndarray, attributes: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).numpy())
    np.save(folder / "labels.npy", labels.astype(np.int64))
    np.save(folder / "probabilities.npy", answers(net, images)[1])
    with (folder / "attributes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(attributes), *zip(*attributes.values(), strict=True)])


def ask(python: Path, script: Path, folder: Path) -> Told:
    """Runs a peer's script with the Python of its own environment on a folder that was handed over."""
    done = subprocess.run(
        [str(python), "-I", str(script), str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=LONGEST,
        check=False,
    )
    if not (folder / "told.json").is_file():
        raise RuntimeError(f"{script.name} told nothing of {folder.name}: {done.stderr[-2000:]}")
    return read_told(folder / "told.json")


def read_told(path: Path) -> Told:
    found = json.loads(path.read_text(encoding="utf-8"))
    statements: Sequence[Statement] = [Statement(**line) for line in found["statements"]]
    return Told(found["tool"], statements, found["seconds"])
