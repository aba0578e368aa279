"""ImageNet-E (2023): editing the background breaks a model that learnt it, and small objects cost more.

Claim: a changed background costs accuracy (9.23 points on average in the paper), and so does a smaller object.
Protocol (five seeds): handwritten 3, 5, 8 and 9 of scikit-learn as coloured glyphs on 64 x 64 textures; four textures
go together with the class in 90 % of the training and test images. A small CNN, and the same CNN trained with each
glyph put before a random texture in every epoch. Background drop: the test glyphs before the texture of another image
drawn from all four kinds at random. Sizes .10 and .05 of the image's pixels, on the images where both can be reached.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from snellen.randomness import torch_generator
from snellen.replication import Claim
from snellen.shift.attribute_edits import Edit, separate, with_background, with_size
from snellen.stats import paired_difference

PAPER = "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing (2023)"
SEEDS, SIDE, EPOCHS, CORRELATION = 5, 64, 8, 0.9
DIGITS = (3, 5, 8, 9)


class Data(NamedTuple):
    images: Tensor
    masks: Tensor
    labels: Tensor


class Drops(NamedTuple):
    clean: float
    background: float
    low: float
    high: float
    size_10: float
    size_05: float


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_seed(seed * SEEDS + k) for k in range(SEEDS)]
    for k, run in enumerate(runs):
        for name, drops in zip(("plain", "randomised"), run, strict=True):
            print(
                f"  seed {k}, {name}: clean {drops.clean:.2f}, background {drops.background:+.3f}"
                f" [{drops.low:+.3f}, {drops.high:+.3f}], size .10 {drops.size_10:+.3f}, .05 {drops.size_05:+.3f}"
            )
    plain, fair = ([run[i] for run in runs] for i in (0, 1))
    halved = [b.background <= a.background / 2 for a, b in zip(plain, fair, strict=True)]
    smaller = [drops.size_05 > drops.size_10 for drops in plain]
    return [
        Claim(
            "A foreign background breaks the model that learnt the correlation",
            "drop >= 0.10 on 5 of 5 seeds",
            f"{min(d.background for d in plain):.3f} to {max(d.background for d in plain):.3f}",
            all(drops.background >= 0.10 for drops in plain),
        ),
        Claim(
            "Random backgrounds in training at least halve that drop",
            "drop <= half of the plain model's on 5 of 5 seeds",
            f"{min(d.background for d in fair):.3f} to {max(d.background for d in fair):.3f} ({sum(halved)} held)",
            all(halved),
        ),
        Claim(
            "Size .05 costs more than size .10",
            "on 4 of 5 seeds or more",
            f"{sum(smaller)} of {SEEDS}",
            sum(smaller) >= 4,
        ),
    ]


def one_seed(seed: int) -> tuple[Drops, Drops]:
    """Drops of the plain and of the randomised model."""
    generator = torch_generator("imagenet-e", seed)
    glyphs, labels = writing()
    order = torch.randperm(len(labels), generator=generator)
    train, test = order[:400], order[400:]
    data = rendered(glyphs[train], labels[train], generator)
    probe = rendered(glyphs[test], labels[test], generator)
    return judged(trained(data, seed, randomise=False), probe, seed), judged(
        trained(data, seed, randomise=True), probe, seed
    )


def writing() -> tuple[Tensor, Tensor]:
    """Glyphs `[N, 8, 8]` in [0, 1] of the four digits, labels 0 to 3."""
    digits = load_digits()
    chosen = np.isin(digits.target, DIGITS)
    labels = np.searchsorted(DIGITS, digits.target[chosen])
    return torch.tensor(digits.images[chosen] / 16, dtype=torch.float32), torch.tensor(labels)


def rendered(glyphs: Tensor, labels: Tensor, generator: Generator) -> Data:
    """Coloured glyphs of 36 to 60 px at a random place, on textures that go with the class."""
    count = len(labels)
    zoom = SIDE / (36 + 24 * torch.rand(count, generator=generator))
    place = 0.2 * (2 * torch.rand(count, 2, generator=generator) - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom, zoom
    theta[:, :, 2] = -place * zoom[:, None]
    grid = F.affine_grid(theta, [count, 1, SIDE, SIDE], align_corners=False)
    masks = F.grid_sample(glyphs[:, None], grid, mode="bicubic", align_corners=False) > 0.4
    colours = 0.55 + 0.45 * torch.rand(count, 3, 1, 1, generator=generator)
    follows = torch.rand(count, generator=generator) < CORRELATION
    kinds = torch.where(follows, labels, torch.randint(4, (count,), generator=generator))
    return Data(torch.where(masks, colours, textures(kinds, generator)), masks[:, 0], labels)


def textures(kinds: Tensor, generator: Generator) -> Tensor:
    """Stripes down, stripes across, checks and clouds in dim random colours, `[N, 3, 64, 64]`."""
    count = len(kinds)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    phase = torch.randint(0, 12, (count, 2, 1, 1), generator=generator)
    down, across = (x + phase[:, 0]) // 6 % 2, (y + phase[:, 1]) // 6 % 2
    clouds = F.interpolate(torch.rand(count, 1, 9, 9, generator=generator), SIDE, mode="bilinear")[:, 0]
    patterns = torch.stack([down.float(), across.float(), (down ^ across).float(), clouds], dim=1)
    pattern = patterns[torch.arange(count), kinds][:, None]
    dark = 0.25 * torch.rand(count, 3, 1, 1, generator=generator)
    return dark + pattern * (0.1 + 0.2 * torch.rand(count, 3, 1, 1, generator=generator))


def trained(data: Data, seed: int, randomise: bool) -> nn.Module:
    generator = torch_generator("training", seed)
    parts = separate(data.images, data.masks)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48 * 4, 4),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(EPOCHS):
            images = data.images
            if randomise:
                kinds = torch.randint(4, (len(data.labels),), generator=generator)
                images = with_background(parts, textures(kinds, generator)).images
            for batch in torch.randperm(len(data.labels), generator=generator).split(32):
                optimiser.zero_grad()
                F.cross_entropy(network(images[batch]), data.labels[batch]).backward()
                optimiser.step()
    return network.eval()


def judged(network: nn.Module, data: Data, seed: int) -> Drops:
    generator = torch_generator("judging", seed)
    parts = separate(data.images, data.masks)
    kinds = torch.randint(4, (len(data.labels),), generator=generator)
    foreign = with_background(parts, textures(kinds, generator))
    sizes = [with_size(parts, size) for size in (0.10, 0.05)]

    @torch.no_grad()
    def right(images: Tensor) -> Tensor:
        return network(images).argmax(dim=1) == data.labels

    clean = right(data.images)

    def drop(edit: Edit, kept: Tensor) -> float:
        return float(clean[kept].float().mean() - right(edit.images)[kept].float().mean())

    both = sizes[0].kept & sizes[1].kept
    low, high = paired_difference(clean[foreign.kept].numpy(), right(foreign.images)[foreign.kept].numpy())
    return Drops(float(clean.float().mean()), drop(foreign, foreign.kept), low, high, *(drop(s, both) for s in sizes))
