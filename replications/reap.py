"""REAP (2023): patches look stronger on pasted signs than on signs with perspective and light.

Claim: under realistic geometry and lighting, patch attacks are weaker than simple simulation suggests, and training
the patch through the renderer is what helps under them. Protocol (three seeds): 96 x 96 scenes with one of four drawn
signs under a random homography, lighting and noise on textured backgrounds; a small network classifies the 32 x 32
crop of the sign. For each class a patch of about 12 % of the sign is optimised for 150 steps on five signs, once
through the renderer (percentile light) and once on pasted signs; judged on 40 other signs a class of either kind. A
sign is hidden when its crop gets another class. Four fifths of the network's training signs are scenes and the rest
pasted, so part of the gap can be that it knows pasted signs less.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from snellen.randomness import torch_generator
from snellen.replication import Claim
from snellen.shift._composite import warp
from snellen.shift.sign_patches import (
    Light,
    Plane,
    Sign,
    attack_table,
    classifier_score,
    evaluate_patch,
    naive_signs,
    plane_to_image,
    random_patch,
    render,
    universal_patch,
)

PAPER = "REAP: A Large-Scale Realistic Adversarial Patch Benchmark (2023)"
SEEDS, SIDE, CANVAS, CROP = 3, 96, 64, 32
TRAIN_SCENES, PATCH_SIGNS, JUDGED_SIGNS, STEPS = 400, 5, 40, 150
CORNERS = torch.tensor([[0.0, 0.0], [CANVAS, 0.0], [CANVAS, CANVAS], [0.0, CANVAS]])


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_seed(seed * SEEDS + k) for k in range(SEEDS)]
    gaps = [run["naive patch, pasted"] - run["naive patch, real"] for run in runs]
    gains = [run["rendered patch, real"] - run["naive patch, real"] for run in runs]
    randoms = [run["random patch, real"] for run in runs]
    for name in runs[0]:
        print(f"  {name}: " + ", ".join(f"{run[name]:.2f}" for run in runs))
    return [
        Claim(
            "Pasted signs promise more success than the same patch has on real ones",
            "ASR pasted - ASR real >= 0.15 on 3 of 3 seeds",
            ", ".join(f"{gap:+.2f}" for gap in gaps),
            min(gaps) >= 0.15,
        ),
        Claim(
            "A patch optimised through the renderer beats one optimised on pasted signs, judged on real ones",
            "ASR rendered > ASR naive on 3 of 3 seeds",
            ", ".join(f"{gain:+.2f}" for gain in gains),
            min(gains) > 0,
        ),
        Claim(
            "A random patch hides little",
            "ASR <= 0.10 on 3 of 3 seeds",
            ", ".join(f"{value:.2f}" for value in randoms),
            max(randoms) <= 0.10,
        ),
    ]


def one_seed(seed: int) -> dict[str, float]:
    """Attack success over all classes by patch and evaluation."""
    generator = torch_generator("reap", seed)
    pictures, planes = drawn_signs()
    network = trained(pictures, planes, generator, seed)

    def crops(images: Tensor, signs: Sequence[Sign]) -> Tensor:
        return network(cropped(images, torch.stack([sign.box for sign in signs])))

    def harm(images: Tensor, signs: Sequence[Sign]) -> Tensor:
        return F.cross_entropy(crops(images, signs), torch.tensor([sign.label for sign in signs]))

    score = classifier_score(crops)
    outcomes: dict[str, list[pa.Table]] = {}
    for label, (picture, plane) in enumerate(zip(pictures, planes, strict=True)):
        sets = {
            "real": scenes(picture, plane, label, PATCH_SIGNS + JUDGED_SIGNS, generator),
            "pasted": pasted(picture, plane, label, PATCH_SIGNS + JUDGED_SIGNS, generator),
        }
        patches = {"random patch": random_patch(plane, generator)}
        for name, kind in (("rendered patch", "real"), ("naive patch", "pasted")):
            signs = sets[kind][:PATCH_SIGNS]
            run = universal_patch(harm, signs, plane, generator, steps=STEPS, per_step=PATCH_SIGNS, step_size=0.1)
            patches[name] = run.patch
        for name, patch in patches.items():
            for kind, signs in sets.items():
                key = f"{name}, {kind}"
                found = evaluate_patch(score, signs[PATCH_SIGNS:], patch, plane, condition=key)
                outcomes.setdefault(key, []).append(found)
    success = {key: attack_table(pa.concat_tables(parts)) for key, parts in outcomes.items()}
    clean = success["random patch, real"]["fnr_clean"][0].as_py()
    return {"missed clean, real": clean, **{key: table["asr"][0].as_py() for key, table in success.items()}}


def drawn_signs() -> tuple[list[Tensor], list[Plane]]:
    """Four signs `[3, 64, 64]` and their planes, with a square patch of 12 % of the sign below the middle."""
    y, x = torch.meshgrid(*(torch.arange(CANVAS) + 0.5 - CANVAS / 2,) * 2, indexing="ij")
    shapes = [
        ((x**2 + y**2).sqrt() <= 31, (0.8, 0.1, 0.1), (y.abs() < 6) & (x.abs() < 22), (1.0, 1.0, 1.0)),
        ((y - 31 <= 0) & (y >= 2 * x.abs() - 31), (0.95, 0.85, 0.1), (x.abs() < 4) & (y > -10), (0.05, 0.05, 0.05)),
        ((x.abs() <= 30) & (y.abs() <= 30), (0.1, 0.25, 0.8), (y < 0) & (y > x.abs() - 24), (1.0, 1.0, 1.0)),
        (x.abs() + y.abs() <= 31, (0.95, 0.55, 0.1), (x**2 + y**2).sqrt() < 10, (0.05, 0.05, 0.05)),
    ]
    pictures, planes = [], []
    for shape, ground, mark, ink in shapes:
        colours = [torch.tensor(colour)[:, None, None] for colour in (ground, ink)]
        pictures.append(torch.where(mark & shape, colours[1], colours[0]) * shape)
        half = (0.12 * float(shape.sum())) ** 0.5 / 2
        patch = (x.abs() <= half) & ((y - 10).abs() <= half) & shape
        planes.append(Plane(CORNERS, shape, patch))
    return pictures, planes


def textures(count: int, generator: Generator) -> Tensor:
    """Coloured noise of two scales, `[count, 3, 96, 96]`."""
    coarse, fine = (torch.rand(count, 3, cells, cells, generator=generator) for cells in (6, 24))
    grown = [F.interpolate(noise, SIDE, mode="bilinear") for noise in (coarse, fine)]
    return (0.7 * grown[0] + 0.3 * grown[1]).clamp(0, 1)


def scenes(picture: Tensor, plane: Plane, label: int, count: int, generator: Generator) -> list[Sign]:
    """Signs under a random homography, light and noise; their light has to be measured."""
    side = 28 + 32 * torch.rand(count, 1, 1, generator=generator)
    unit = CORNERS / CANVAS - 0.5
    corners = side * (unit + 0.24 * (torch.rand(count, 4, 2, generator=generator) - 0.5))
    angle = torch.deg2rad(20 * torch.rand(count, generator=generator) - 10)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    centre = SIDE / 2 + 24 * (torch.rand(count, 1, 2, generator=generator) - 0.5)
    points = corners @ turn + centre
    gain = 0.3 + 0.7 * torch.rand(count, 1, generator=generator)
    offset = (1 - gain) * 0.5 * torch.rand(count, 1, generator=generator)
    maps = torch.stack([plane_to_image(CORNERS, place) for place in points])
    light = Light(gain.expand(-1, 3), offset.expand(-1, 3))
    whole = Plane(plane.points, plane.sign, plane.sign)
    images = render(textures(count, generator), picture, whole, maps, light).images
    images = (images + 0.02 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return [Sign(f"{label}-{i}", image, points[i], label) for i, image in enumerate(images)]


def pasted(picture: Tensor, plane: Plane, label: int, count: int, generator: Generator) -> list[Sign]:
    """The synthetic baseline on the same backgrounds."""
    streams = [torch_generator("pasted", label, i, int(generator.initial_seed())) for i in range(count)]
    return naive_signs(picture, plane, textures(count, generator), label, streams)


def cropped(images: Tensor, boxes: Tensor) -> Tensor:
    """The boxes `[B, 4]` of the images, `[B, 3, 32, 32]`."""
    scale = CROP / (boxes[:, 2:] - boxes[:, :2])
    maps = torch.eye(3).repeat(len(boxes), 1, 1)
    maps[:, 0, 0], maps[:, 1, 1] = scale[:, 0], scale[:, 1]
    maps[:, :2, 2] = -scale * boxes[:, :2]
    return warp(images, maps, (CROP, CROP))


def trained(pictures: list[Tensor], planes: list[Plane], generator: Generator, seed: int) -> nn.Module:
    signs = [
        sign
        for label, (picture, plane) in enumerate(zip(pictures, planes, strict=True))
        for made in (scenes, pasted)
        for sign in made(picture, plane, label, TRAIN_SCENES if made is scenes else TRAIN_SCENES // 4, generator)
    ]
    x = cropped(torch.stack([sign.image for sign in signs]), torch.stack([sign.box for sign in signs]))
    y = torch.tensor([sign.label for sign in signs])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(48 * 16, 4),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(6):
            for batch in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(network(x[batch]), y[batch]).backward()
                optimiser.step()
    return network.eval().requires_grad_(False)
