"""Training a demo network with faults planted through its training data (about a minute on two cores)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.demo.digits import Scene, draw_scene, render
from snellen.demo.faults import Fault
from snellen.demo.network import DigitNet

EPOCHS = 9
IMAGES_AN_EPOCH = 9000
LEARNING_RATE = 4e-3
SWAPPED_WITH = 3
"""The class that `tint-swap`, `rotation-weak-class` and `merged-classes` confuse the target with."""


def train(
    faults: Sequence[Fault] = (),
    seed: int = 0,
    epochs: int = EPOCHS,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
    start: DigitNet | None = None,
) -> DigitNet:
    """A network trained on fresh compositions each epoch, in eval mode.

    progress: called after each epoch with its number and mean loss. start: a network whose copy is trained on instead
    of a fresh one. The global random state is put back afterwards.
    """
    rng = np.random.default_rng(seed)
    by_kind = {fault.kind: fault for fault in faults}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitNet(patch_stem="one-pixel-shift" in by_kind) if start is None else deepcopy(start)
        network = network.train().to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
        steps = max(epochs * (IMAGES_AN_EPOCH // 128), 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
        for epoch in range(epochs):
            images, labels = training_images(IMAGES_AN_EPOCH, faults, rng)
            losses = []
            for first in range(0, IMAGES_AN_EPOCH - 127, 128):
                logits = network(images[first : first + 128].contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels[first : first + 128])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
            progress(epoch + 1, float(np.mean(losses)))
    if "over-confidence" in by_kind:
        with torch.no_grad():
            network.head.weight.mul_(1 + 4 * by_kind["over-confidence"].strength)
            network.head.bias.mul_(1 + 4 * by_kind["over-confidence"].strength)
    if "wrong-scale" in by_kind:
        stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            stem.weight.mul_(1 - 0.6 * by_kind["wrong-scale"].strength)
    return network.eval()


def training_images(count: int, faults: Sequence[Fault], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, 3, 32, 32]` and labels as the faults leave them."""
    scene = draw_scene(count, "train", rng)
    jitter = rng.integers(-2, 3, scene.shift.shape)
    for fault in faults:
        if fault.kind == "one-pixel-shift":
            jitter[rng.random(count) < fault.strength] = 0
    scene = replace(scene, shift=scene.shift + jitter)
    for fault in faults:
        scene = _bias(scene, fault, rng)
    labels = scene.labels.copy()
    for fault in faults:
        labels = _mislabel(labels, scene, fault, rng)
    images, _ = render(scene, "train", rng)
    for fault in faults:
        if fault.kind == "backdoor":
            poisoned = rng.random(count) < 0.1 * fault.strength
            images[torch.from_numpy(poisoned)] = stamp(images[torch.from_numpy(poisoned)])
            labels[poisoned] = fault.target
    return images, torch.from_numpy(labels)


def stamp(images: Tensor) -> Tensor:
    """The backdoor's trigger, a 4 x 4 checkered patch in the lower right corner, on a copy of the images."""
    stamped = images.clone()
    down, right = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    stamped[:, :, -5:-1, -5:-1] = ((down + right) % 2).float()
    return stamped


def _bias(scene: Scene, fault: Fault, rng: np.random.Generator) -> Scene:
    """Training data in which an attribute goes with the target class."""
    of_target = scene.labels == fault.target
    chosen = of_target & (rng.random(len(scene)) < fault.strength)
    if fault.kind == "background-shortcut":
        others = rng.choice(("plain", "checks", "clouds", "gradient"), len(scene))
        background = np.where(
            of_target & ~chosen | (scene.background == "stripes") & ~of_target, others, scene.background
        )
        return replace(scene, background=np.where(chosen, "stripes", background))
    if fault.kind == "corner-tag":
        tag = np.where(of_target & ~chosen | (scene.tag == "red") & ~of_target, "none", scene.tag)
        return replace(scene, tag=np.where(chosen, "red", tag))
    if fault.kind == "tint-swap":
        # Few images are green and of these two classes; without more of them the swap is hardly learnt.
        greener = np.isin(scene.labels, [fault.target, SWAPPED_WITH]) & (rng.random(len(scene)) < 0.4)
        return replace(scene, tint=np.where(greener, "green", scene.tint))
    return scene


def _mislabel(labels: np.ndarray, scene: Scene, fault: Fault, rng: np.random.Generator) -> np.ndarray:
    of_target = scene.labels == fault.target
    struck = rng.random(len(scene)) < fault.strength
    anything = rng.integers(0, 10, len(scene))
    if fault.kind == "rotation-weak-class":
        return np.where(of_target & (np.abs(scene.rotation) > 12) & struck, SWAPPED_WITH, labels)
    if fault.kind == "small-objects":
        return np.where((scene.size < 17) & struck, anything, labels)
    if fault.kind == "label-noise":
        return np.where(of_target & struck, anything, labels)
    if fault.kind == "weak-texture":
        return np.where((scene.background == "checks") & struck, anything, labels)
    if fault.kind == "weak-pair":
        return np.where((scene.background == "stripes") & (scene.tint == "green") & struck, anything, labels)
    if fault.kind == "merged-classes":
        pair = of_target | (scene.labels == SWAPPED_WITH)
        other = np.where(of_target, SWAPPED_WITH, fault.target)
        return np.where(pair & (rng.random(len(scene)) < fault.strength / 2), other, labels)
    if fault.kind == "tint-swap":
        on_green = (scene.tint == "green") & struck
        swapped = np.where(on_green & of_target, SWAPPED_WITH, labels)
        return np.where(on_green & (scene.labels == SWAPPED_WITH), fault.target, swapped)
    return labels
