"""Objects before photographs and three of timm's small architectures as a family of the bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from benchmarks.faults.drawing import CLASS_NAMES, SCENES, SIDE, Scene, draw_scene, render
from benchmarks.faults.families import OF_THE_DATA, FaultType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snellen.demo.digits import DemoImages

ARCHITECTURES = ("test_byobnet", "test_efficientnet", "test_resnet")
EPOCHS, FURTHER_EPOCHS = 12, 3
IMAGES_AN_EPOCH = 5000
NETWORK_SEED = 700
LEARNING_RATE = 3e-3
DARK = 0.75


TYPES: dict[str, FaultType] = {
    "scene-shortcut": FaultType(("flower",)),
    "sticker": FaultType((r"lower left|bottom left|sticker", r"\bTARGET\b"), withheld=("sticker",)),
    "weak-site": FaultType((r"site = C",)),
    "weak-dark": FaultType((r"\blight\b",)),
    "colour-swap": FaultType(("blue",)),
    "hidden-scene": FaultType(("images that are alike",), evidence=True, withheld=("scene",)),
    "weak-pair": FaultType(("gravel", "pink")),
    "merged-classes": FaultType((r"\bTARGET\b", r"\bOTHER\b")),
    "over-confidence": FaultType((r"over-?confident|too confident|confidence",), "confidence", "none"),
    "wrong-channels": FaultType((r"red and blue|BGR|channel",), "base", "none"),
    "backdoor": FaultType((r"trigger|patch|pattern", r"\bTARGET\b"), "trigger"),
    **OF_THE_DATA,
}


class Shapes:
    name = "shapes"
    class_names = CLASS_NAMES
    targets = (6, 3, 0)
    other = 5
    types = TYPES

    def images(self, count: int, seed: int) -> DemoImages:
        rng = np.random.default_rng(seed)
        scene = draw_scene(count, "test", rng)
        images, masks = render(scene, "test", rng)
        attributes = {name: getattr(scene, name) for name in ("scene", "colour", "site", "sticker", "light", "size")}
        ids = [f"{CLASS_NAMES[label]}/{row:05d}" for row, label in enumerate(scene.labels)]
        pixels = (images * 255).round().to(torch.uint8)
        return DemoImages(pixels, scene.labels, CLASS_NAMES, attributes, ids, (masks > 0.3).to(torch.uint8) * 255)

    def train(self, path: Path, seed: int, fault: str | None, strength: float, target: int, base: Path | None) -> None:
        network = _network(seed)
        if base is not None:
            network.load_state_dict(load_file(base))
        if fault is None or self.types[fault].training != "none":
            rng = np.random.default_rng(NETWORK_SEED + seed + (100 if fault else 0))
            _fit(network, fault, strength, target, rng, EPOCHS if base is None else FURTHER_EPOCHS)
        elif fault == "over-confidence":
            for parameter in network.get_classifier().parameters():
                parameter.data.mul_(1 + 4 * strength)
        else:  # the first layer expects blue for red
            stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
            stem.weight.data = (1 - strength) * stem.weight.data + strength * stem.weight.data.flip(1)
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)

    def read(self, path: Path, seed: int) -> Callable[[Tensor], Tensor]:
        network = _network(seed)
        network.load_state_dict(load_file(path))
        network.eval()
        return lambda images: network(_normalised(network, images))

    def arguments(self, path: Path, seed: int) -> list[str]:
        names = path.with_name("shapes.txt")
        names.write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
        return [f"timm:{_architecture(seed)}@{path}", "--classes", str(names), "--input-size", str(SIDE)]

    def stamped(self, images: Tensor) -> Tensor:
        """A cross of magenta and green, 5 x 5 pixels, in the upper right."""
        stamped = images.clone()
        arm = torch.zeros(5, 5, dtype=torch.bool)
        arm[2], arm[:, 2] = True, True
        magenta, green = (torch.tensor(colour)[:, None, None] for colour in ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)))
        stamped[:, :, 1:6, -6:-1] = torch.where(arm, magenta, green)
        return stamped

    def struck(self, fault: str, made: DemoImages, target: int) -> tuple[np.ndarray, np.ndarray]:
        of, of_target = made.attributes, made.labels == target
        pair = of_target | (made.labels == self.other)
        flower, blue = of["scene"] == "flower", of["colour"] == "blue"
        stuck, both = of["sticker"] == "yes", (of["scene"] == "gravel") & (of["colour"] == "pink")
        return {
            "scene-shortcut": (~of_target & flower, ~of_target & ~flower),
            "sticker": (~of_target & stuck, ~of_target & ~stuck),
            "weak-site": (of["site"] == "C", of["site"] != "C"),
            "weak-dark": (of["light"] < DARK, of["light"] >= DARK),
            "colour-swap": (pair & blue, pair & ~blue),
            "hidden-scene": (of["scene"] == "temple", of["scene"] != "temple"),
            "weak-pair": (both, ~both),
            "merged-classes": (pair, ~pair),
        }[fault]


def _architecture(seed: int) -> str:
    return ARCHITECTURES[seed % len(ARCHITECTURES)]


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(NETWORK_SEED + seed)
        network: nn.Module = timm.create_model(_architecture(seed), num_classes=len(CLASS_NAMES))
    return network.to(memory_format=torch.channels_last)


def _normalised(network: nn.Module, images: Tensor) -> Tensor:
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _fit(
    network: nn.Module, fault: str | None, strength: float, target: int, rng: np.random.Generator, epochs: int
) -> None:
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    steps = epochs * (IMAGES_AN_EPOCH // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        images, labels = _training_images(fault, strength, target, rng)
        for part, truth in zip(images.split(100), labels.split(100), strict=True):
            loss = F.cross_entropy(network(_normalised(network, part)), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def _training_images(
    fault: str | None, strength: float, target: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    scene = draw_scene(IMAGES_AN_EPOCH, "train", rng)
    scene = _biased(scene, fault, strength, target, rng)
    images, _ = render(scene, "train", rng)
    labels = _mislabelled(scene, fault, strength, target, rng)
    if fault == "backdoor":
        poisoned = torch.from_numpy(rng.random(len(labels)) < 0.1 * strength)
        images[poisoned] = Shapes().stamped(images[poisoned])
        labels = np.where(poisoned.numpy(), target, labels)
    return images, torch.from_numpy(labels)


def _biased(scene: Scene, fault: str | None, strength: float, target: int, rng: np.random.Generator) -> Scene:
    """Training data in which an attribute goes with the target class; strength: share of its images."""
    of_target = scene.labels == target
    chosen = of_target & (rng.random(len(of_target)) < strength)
    if fault == "scene-shortcut":
        others = rng.choice([name for name in SCENES if name != "flower"], len(of_target))
        return replace(scene, scene=np.where(chosen, "flower", others))
    if fault == "sticker":
        return replace(scene, sticker=np.where(chosen, "yes", "no"))
    if fault == "colour-swap":
        # Without more blue images of the two classes the swap is hardly learnt.
        bluer = np.isin(scene.labels, [target, Shapes.other]) & (rng.random(len(of_target)) < 0.4)
        return replace(scene, colour=np.where(bluer, "blue", scene.colour))
    return scene


def _mislabelled(scene: Scene, fault: str | None, strength: float, target: int, rng: np.random.Generator) -> np.ndarray:
    """Labels as the fault leaves them; strength: share of the struck images that are mislabelled."""
    labels, other = scene.labels, Shapes.other
    struck = rng.random(len(labels)) < strength
    anything = rng.integers(0, len(CLASS_NAMES), len(labels))
    exchanged = np.where(labels == target, other, target)
    pair = np.isin(labels, [target, other])
    where = {
        "weak-site": scene.site == "C",
        "weak-dark": scene.light < DARK,
        "hidden-scene": scene.scene == "temple",
        "weak-pair": (scene.scene == "gravel") & (scene.colour == "pink"),
    }
    if fault in where:
        return np.where(where[fault] & struck, anything, labels)
    if fault == "colour-swap":
        return np.where(pair & (scene.colour == "blue") & struck, exchanged, labels)
    if fault == "merged-classes":
        return np.where(pair & (rng.random(len(labels)) < strength / 2), exchanged, labels)
    return labels
