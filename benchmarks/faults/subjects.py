"""Networks and data folders of the cases, made once and kept in the bench's working directory."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.faults.cases import STRENGTHS, TYPES, Case
from PIL import Image

from snellen.demo.digits import DemoImages, demo_images
from snellen.demo.network import DigitNet, evaluate, load_network, save_network
from snellen.demo.training import SWAPPED_WITH, stamp, train

FURTHER_EPOCHS = 3
IMAGES = 1200
FRESH_IMAGES = 6000
NETWORK_SEED, DATA_SEED, FRESH_SEED = 500, 9000, 77000


def network(case: Case, work: Path) -> Path:
    """The case's network as a file; faults of the data and healthy cases share the seed's base network."""
    base = work / "models" / f"base-{case.seed}.safetensors"
    fault = case.planted
    base.parent.mkdir(parents=True, exist_ok=True)
    if not base.is_file() and (fault is None or TYPES[case.fault or ""].training != "from scratch"):
        _save(train((), NETWORK_SEED + case.seed), base, {})
    if fault is None:
        return base
    path = work / "models" / f"{case.key}.safetensors"
    if not path.is_file():
        training = TYPES[case.fault or ""].training
        seed = NETWORK_SEED + 100 + case.seed
        if training == "from scratch":
            made = train([fault], seed)
        else:
            made = train([fault], seed, FURTHER_EPOCHS if training == "further" else 0, start=load_network(base))
        _save(made, path, {"faults": json.dumps([vars(fault)])})
    return path


def _save(made: DigitNet, path: Path, notes: dict[str, str]) -> None:
    unfinished = path.with_suffix(".part")
    save_network(made, unfinished, notes)
    unfinished.replace(path)


def images_of(case: Case, fresh: bool = False) -> DemoImages:
    """The evaluation images, with the faults of the data planted; `fresh`: more of them, which no audit sees."""
    made = demo_images("test", FRESH_IMAGES if fresh else IMAGES, (FRESH_SEED if fresh else DATA_SEED) + case.seed)
    if case.fault is None or not TYPES[case.fault].of_the_data:
        return made
    rng = np.random.default_rng((DATA_SEED, case.seed, list(TYPES).index(case.fault)))
    strength = STRENGTHS[case.strength]
    if case.fault == "test-labels":
        struck = (made.labels == case.target) & (rng.random(len(made.labels)) < 0.3 * strength)
        return replace(made, labels=np.where(struck, SWAPPED_WITH, made.labels))
    if case.fault == "contradicting-copies":
        return _with_copies(made, round(0.1 * strength * IMAGES), rng)
    return _leaking(made, 0.4 * strength, rng)


def _with_copies(made: DemoImages, count: int, rng: np.random.Generator) -> DemoImages:
    """`count` images a second time, a little brighter, under another label."""
    rows = rng.choice(len(made.labels), count, replace=False)
    again = (made.images[rows].float() * 1.03).clamp(0, 255).to(torch.uint8)
    labels = (made.labels[rows] + rng.integers(1, 10, count)) % 10
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
    columns = [name for name in made.attributes if name not in case.withheld]
    rows = []
    for row, (sample_id, image) in enumerate(zip(made.ids, made.images, strict=True)):
        name = sample_id.replace("/", "-") + ".png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / name)
        rows.append([name, int(made.labels[row]), *(made.attributes[column][row] for column in columns)])
    unfinished = path / "metadata.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "label", *columns], *rows])
    unfinished.replace(path / "metadata.csv")
    return path


def true_effect(case: Case, work: Path) -> float:
    """What the fault costs on fresh images, in points (0 to 1); for faults of the data the share of images struck."""
    kind = case.fault or ""
    if TYPES[kind].of_the_data:
        return _struck_share(case)
    made = images_of(case, fresh=True)
    subject = load_network(network(case, work))
    labels = torch.from_numpy(made.labels)
    with torch.no_grad():
        logits = torch.cat([subject(part.float() / 255) for part in made.images.split(500)])
    right = (logits.argmax(1) == labels).numpy()
    if kind == "over-confidence":
        return float(logits.softmax(1).amax(1).mean()) - float(right.mean())
    if kind == "wrong-scale":
        base = load_network(network(Case(None, "clear", case.seed), work))
        return evaluate(base, made.images, labels) - float(right.mean())
    if kind == "backdoor":
        others = made.images[made.labels != case.target].float() / 255
        return evaluate(subject, stamp(others) * 255, torch.full((len(others),), case.target))
    if kind == "one-pixel-shift":
        with torch.no_grad():
            moved = [subject(part.roll(1, -1).float() / 255).argmax(1) for part in made.images.split(500)]
        return float((torch.cat(moved) != logits.argmax(1)).float().mean())
    struck, rest = struck_and_rest(kind, made, case.target)
    return float(right[rest].mean() - right[struck].mean())


def struck_and_rest(kind: str, made: DemoImages, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that a fault strikes and those it is compared with, bool `[N]`; for faults that strike some images."""
    of, of_target = made.attributes, made.labels == target
    pair = of_target | (made.labels == SWAPPED_WITH)
    both = (of["background"] == "stripes") & (of["tint"] == "green")
    stripes, tagged = of["background"] == "stripes", of["tag"] == "red"
    turned = np.abs(of["rotation"]) > 12
    return {
        "background-shortcut": (~of_target & stripes, ~of_target & ~stripes),
        "corner-tag": (~of_target & tagged, ~of_target & ~tagged),
        "rotation-weak-class": (of_target & turned, of_target & ~turned),
        "small-objects": (of["size"] < 17, of["size"] >= 17),
        "tint-swap": (pair & (of["tint"] == "green"), pair & (of["tint"] != "green")),
        "label-noise": (of_target, ~of_target),
        "weak-texture": (of["background"] == "checks", of["background"] != "checks"),
        "weak-pair": (both, ~both),
        "merged-classes": (pair, ~pair),
    }[kind]


def _struck_share(case: Case) -> float:
    with_fault, without = images_of(case), demo_images("test", IMAGES, DATA_SEED + case.seed)
    if case.fault == "test-labels":
        of_target = without.labels == case.target
        return float((with_fault.labels != without.labels)[of_target].mean())
    if case.fault == "contradicting-copies":
        return (len(with_fault.labels) - IMAGES) / IMAGES
    changed = (with_fault.images != without.images).flatten(1).any(1).numpy()
    return float(changed[with_fault.attributes["split"] == "test"].mean())
