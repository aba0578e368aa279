"""The shape and simplicity biases of adversarially robust ImageNet-trained CNNs (2020), on drawn shapes.

Claim: adversarially trained networks (R) go by shape more than standard ones (S), their filters are smoother, and their
responses pass less noise on. Protocol: 32 x 32 images of four classes, each with its own outline (circle, square,
triangle, cross) and its own fill (gratings in four directions); either cue alone suffices. R: PGD with 7 steps, L2 with
epsilon 1.0 and linf with 8/255; 3 seeds. A fill of lower contrast is printed beside, for a cue whose contrast is below
epsilon can be removed, and that is a reason to go by shape that has nothing to do with shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.discovery.filter_simplicity import filter_variation, noise_ratio
from snellen.discovery.shape_bias import scramble, shape_bias, silhouette, tile_order
from snellen.replication import Claim

PAPER = "The shape and simplicity biases of adversarially robust ImageNet-trained CNNs (2020)"
SEEDS = 3
CLASSES, SIDE, STEPS = 4, 32, 7
COUNT, EPOCHS = 1000, 7
CONTRAST, LOW_CONTRAST = 0.6, 0.4
"""Peak to peak; chosen on S alone, which must go by texture for the claim to have a meaning."""

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Measured(NamedTuple):
    bias: float
    scrambled: float
    silhouettes: float
    first_layer: float
    all_layers: float
    noise: float
    accuracy: float


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    seeds = [seed * SEEDS + k for k in range(SEEDS)]
    standard = [measure(k, none, CONTRAST) for k in seeds]
    s, r = (measure(seeds[0], attack, LOW_CONTRAST) for attack in (none, by_l2))
    print(f"contrast {LOW_CONTRAST}: shape bias of S {s.bias:.2f}, of R (L2) {r.bias:.2f}", flush=True)
    claims = []
    for name, attack in (("L2 1.0", by_l2), ("linf 8/255", by_linf)):
        robust = [measure(k, attack, CONTRAST) for k in seeds]
        pairs = list(zip(standard, robust, strict=True))
        for s, r in pairs:
            print(f"  {name}: S {s}\n  {' ' * len(name)}  R {r}")
        claims += [
            Claim(
                f"R ({name}) goes by shape more than S",
                "shape bias R - S >= 0.15 in all seeds",
                ", ".join(f"{s.bias:.2f} -> {r.bias:.2f}" for s, r in pairs),
                all(r.bias - s.bias >= 0.15 for s, r in pairs),
            ),
            Claim(
                f"Filters of R ({name}) are smoother",
                "unit-norm TV R < S in layer 1 and in the mean over layers, in all seeds",
                ", ".join(
                    f"{s.first_layer:.2f} -> {r.first_layer:.2f} and {s.all_layers:.3f} -> {r.all_layers:.3f}"
                    for s, r in pairs
                ),
                all(r.first_layer < s.first_layer and r.all_layers < s.all_layers for s, r in pairs),
            ),
            Claim(
                f"Responses of R ({name}) pass less noise on",
                "TV noisy / clean of layer 1 R < S in all seeds",
                ", ".join(f"{s.noise:.2f} -> {r.noise:.2f}" for s, r in pairs),
                all(r.noise < s.noise for s, r in pairs),
            ),
        ]
    return claims


def measure(seed: int, attack: Attack, contrast: float) -> Measured:
    rng = np.random.default_rng([seed, 1])
    shape = torch.from_numpy(rng.integers(0, CLASSES, COUNT))
    images, _ = drawn(shape, shape, contrast, rng)
    model = trained(images, shape, attack, seed)
    shape = torch.from_numpy(rng.integers(0, CLASSES, 600))
    images, masks = drawn(shape, shape, contrast, rng)
    texture = (shape + torch.from_numpy(rng.integers(1, CLASSES, 600))) % CLASSES
    conflict, _ = drawn(shape, texture, contrast, rng)
    with torch.no_grad():
        right = model(images).argmax(dim=1) == shape

        def kept(altered: Tensor) -> float:
            return float((model(altered).argmax(dim=1) == shape)[right].double().mean())

        found = shape_bias(model(conflict).argmax(dim=1), shape, texture)
        layers = [layer for layer in model if isinstance(layer, nn.Conv2d)]
        variations = [float(filter_variation(layer.weight).mean()) for layer in layers]
        ratio = noise_ratio(layers[0], images[:200], [str(i) for i in range(200)])
        return Measured(
            found.bias,
            kept(scramble(images, tile_order(2))),
            kept(silhouette(images, masks)),
            variations[0],
            float(np.mean(variations)),
            float(ratio.nanmean()),
            float(right.double().mean()),
        )


def drawn(shape: Tensor, texture: Tensor, contrast: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 32, 32]` with an object of one of four outlines and one of four fills, and its masks."""
    n = len(shape)
    down, right = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    centre = rng.uniform(13, 19, (2, n, 1, 1))
    size = rng.uniform(8, 11, (n, 1, 1))
    y, x = (down - centre[0]) / size, (right - centre[1]) / size
    outlines = np.stack(
        [
            x**2 + y**2 < 1,
            np.maximum(abs(x), abs(y)) < 0.88,
            (y < 0.75) & (y > -1 + 2 * abs(x) * 0.9),
            (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 1),
        ]
    )
    masks = outlines[shape.numpy(), np.arange(n)]
    angle = texture.numpy().reshape(n, 1, 1) * np.pi / CLASSES
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    wave = np.sin((down * np.sin(angle) + right * np.cos(angle)) * 2 * np.pi / 4 + phase)
    grey = np.where(masks, 0.6 + contrast / 2 * wave, 0.25) + rng.normal(0, 0.03, (n, SIDE, SIDE))
    images = torch.from_numpy(grey).float().clamp(0, 1)
    return images[:, None].repeat(1, 3, 1, 1), torch.from_numpy(masks)


def trained(images: Tensor, labels: Tensor, attack: Attack, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
        )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            attacked = attack(model, images[rows], labels[rows])
            optimiser.zero_grad()
            F.cross_entropy(model(attacked), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def none(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return images


def by_l2(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 1.0) -> Tensor:
    def step(change: Tensor, gradient: Tensor) -> Tensor:
        change = change + 2.5 * eps / STEPS * gradient / norm(gradient).clamp_min(1e-12)
        return change * (eps / norm(change).clamp_min(1e-12)).clamp_max(1)

    return climbed(model, images, labels, step)


def by_linf(model: nn.Module, images: Tensor, labels: Tensor, eps: float = 8 / 255) -> Tensor:
    def step(change: Tensor, gradient: Tensor) -> Tensor:
        return (change + 2.5 * eps / STEPS * gradient.sign()).clamp(-eps, eps)

    return climbed(model, images, labels, step)


def climbed(model: nn.Module, images: Tensor, labels: Tensor, step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    change = torch.zeros_like(images)
    for _ in range(STEPS):
        change.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images + change), labels), change)
        change = step(change.detach(), gradient)
        change = (images + change).clamp(0, 1) - images
    return (images + change).detach()


def norm(changes: Tensor) -> Tensor:
    return changes.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
