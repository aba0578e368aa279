"""Networks and data folders of the cases, made once and kept in the bench's working directory."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.faults.cases import STRENGTHS, Case
from PIL import Image
from torch import Tensor

from snellen.demo.digits import DemoImages

IMAGES = 1200
FRESH_IMAGES = 6000
DATA_SEED, FRESH_SEED = 9000, 77000


def network(case: Case, work: Path) -> Path:
    """The case's network as a file; faults of the data and healthy cases share the seed's base network."""
    folder, family, kind = work / "models", case.family, case.type
    folder.mkdir(parents=True, exist_ok=True)
    base: Path | None = None
    if kind is None or kind.training != "from scratch":
        base = folder / f"{family.name}-base-{case.seed}.safetensors"
        _made(base, case, None, None)
    if kind is None or kind.measure == "data":
        return base or folder
    return _made(folder / f"{case.key}.safetensors", case, case.fault, base)


def _made(path: Path, case: Case, fault: str | None, base: Path | None) -> Path:
    if not path.is_file():
        unfinished = path.with_suffix(f".{case.key}.part")  # two processes may make the same base
        case.family.train(unfinished, case.seed, fault, STRENGTHS[case.strength], case.target, base)
        unfinished.replace(path)
    return path


def images_of(case: Case, fresh: bool = False) -> DemoImages:
    """The evaluation images, with the faults of the data planted; `fresh`: more of them, which no audit sees."""
    seed = (FRESH_SEED if fresh else DATA_SEED) + case.seed
    made = case.family.images(FRESH_IMAGES if fresh else IMAGES, seed)
    if case.type is None or case.type.measure != "data":
        return made
    rng = np.random.default_rng((DATA_SEED, case.seed, list(case.family.types).index(case.fault or "")))
    strength = STRENGTHS[case.strength]
    if case.fault == "test-labels":
        struck = (made.labels == case.target) & (rng.random(len(made.labels)) < 0.3 * strength)
        return replace(made, labels=np.where(struck, case.family.other, made.labels))
    if case.fault == "contradicting-copies":
        return _with_copies(made, round(0.1 * strength * IMAGES), rng)
    return _leaking(made, 0.4 * strength, rng)


def _with_copies(made: DemoImages, count: int, rng: np.random.Generator) -> DemoImages:
    """`count` images a second time, a little brighter, under another label."""
    rows = rng.choice(len(made.labels), count, replace=False)
    again = (made.images[rows].float() * 1.03).clamp(0, 255).to(torch.uint8)
    classes = len(made.class_names)
    labels = (made.labels[rows] + rng.integers(1, classes, count)) % classes
    return DemoImages(
        torch.cat([made.images, again]),
        np.concatenate([made.labels, labels]),
        made.class_names,
        {name: np.concatenate([values, values[rows]]) for name, values in made.attributes.items()},
        [*made.ids, *(f"{made.ids[row]}-b" for row in rows)],
        torch.cat([made.masks, made.masks[rows]]),
    )


def _leaking(made: DemoImages, share: float, rng: np.random.Generator) -> DemoImages:
    """A column `split`, in which a share of the test images are images of the training side, saved once more."""
    count = len(made.labels)
    split = np.where(np.arange(count) < count // 2, "train", "test")
    copied = np.flatnonzero((split == "test") & (rng.random(count) < share))
    sources = rng.choice(count // 2, len(copied), replace=False)
    images, labels, masks = made.images.clone(), made.labels.copy(), made.masks.clone()
    images[copied] = (made.images[sources].float() * 0.98).to(torch.uint8)
    labels[copied], masks[copied] = made.labels[sources], made.masks[sources]
    attributes = {name: values.copy() for name, values in made.attributes.items()}
    for values in attributes.values():
        values[copied] = values[sources]
    return replace(made, images=images, labels=labels, masks=masks, attributes=attributes | {"split": split})


def folder(case: Case, work: Path, fresh: bool = False) -> Path:
    """The case's images as PNG files with metadata.csv, as a user would have them."""
    path = work / "data" / (f"{case.key}-fresh" if fresh else case.key)
    if (path / "metadata.csv").is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    made = images_of(case, fresh)
    columns = [name for name in made.attributes if case.type is None or name not in case.type.withheld]
    rows = []
    for row, (sample_id, image) in enumerate(zip(made.ids, made.images, strict=True)):
        name = file_name(sample_id)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / name)
        rows.append([name, made.class_names[made.labels[row]], *(made.attributes[column][row] for column in columns)])
    unfinished = path / "metadata.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "label", *columns], *rows])
    unfinished.replace(path / "metadata.csv")
    return path


def file_name(sample_id: str) -> str:
    return sample_id.replace("/", "-") + ".png"


def true_effect(case: Case, work: Path) -> float:
    """What the fault costs on fresh images, in points (0 to 1), measured as its type says; 0 without one."""
    family, kind = case.family, case.type
    if kind is None or case.fault is None:
        return 0.0
    if kind.measure == "data":
        return _struck_share(case)
    made = images_of(case, fresh=True)
    logits = _answers(family.read(network(case, work), case.seed), made.images.float() / 255)
    answers, labels = logits.argmax(1), torch.from_numpy(made.labels)
    right = (answers == labels).numpy()
    if kind.measure == "confidence":
        return float(logits.softmax(1).amax(1).mean()) - float(right.mean())
    if kind.measure == "struck":
        struck, rest = family.struck(case.fault, made, case.target)
        return float(right[rest].mean() - right[struck].mean())
    if kind.measure == "base":
        base = family.read(network(replace(case, fault=None), work), case.seed)
        better = _answers(base, made.images.float() / 255).argmax(1) == labels
        return float(better.float().mean()) - float(right.mean())
    subject = family.read(network(case, work), case.seed)
    if kind.measure == "trigger":
        others = made.images[made.labels != case.target].float() / 255
        return float((_answers(subject, family.stamped(others)).argmax(1) == case.target).float().mean())
    moved = _answers(subject, made.images.float().roll(1, -1) / 255).argmax(1)
    return float((moved != answers).float().mean())


def _answers(subject: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([subject(part) for part in images.split(500)])


def _struck_share(case: Case) -> float:
    with_fault, without = images_of(case), images_of(replace(case, fault=None))
    if case.fault == "test-labels":
        of_target = without.labels == case.target
        return float((with_fault.labels != without.labels)[of_target].mean())
    if case.fault == "contradicting-copies":
        return (len(with_fault.labels) - IMAGES) / IMAGES
    changed = (with_fault.images != without.images).flatten(1).any(1).numpy()
    return float(changed[with_fault.attributes["split"] == "test"].mean())
