"""Eight kinds of objects drawn before photographs, with known attributes; 48 x 48 pixels.

Nothing is shared with the digits: outlines drawn in many variants (other ones for training than for testing), shaded
and coloured, before crops of two photographs that scikit-learn carries, a smooth wall or gravel, under more or less
light, from three sites whose cameras differ, some with a sticker in the lower left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from snellen.demo.digits import placed

SIDE = 48
CLASS_NAMES = ("arrow", "cross", "disc", "heart", "ring", "square", "star", "triangle")
SCENES = ("flower", "gravel", "temple", "wall")
COLOURS = {"blue": (0.25, 0.35, 0.95), "orange": (0.95, 0.55, 0.1), "pink": (0.95, 0.35, 0.7), "white": (0.95,) * 3}
SITES = ("A", "B", "C")
VARIANTS = {"train": 60, "test": 30}


@dataclass(frozen=True)
class Scene:
    """One description an image; arrays of one length N. shift: (right, down) in pixels `[N, 2]`."""

    labels: np.ndarray
    variant: np.ndarray
    scene: np.ndarray
    colour: np.ndarray
    site: np.ndarray
    sticker: np.ndarray
    light: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    shift: np.ndarray


def draw_scene(count: int, split: str, rng: np.random.Generator) -> Scene:
    """Classes in balance and every attribute independent of the class."""
    return Scene(
        labels=rng.permutation(np.arange(count) % len(CLASS_NAMES)),
        variant=rng.integers(0, VARIANTS[split], count),
        scene=rng.choice(SCENES, count),
        colour=rng.choice(list(COLOURS), count),
        site=rng.choice(SITES, count, p=(0.5, 0.3, 0.2)),
        sticker=rng.choice(("no", "yes"), count, p=(0.85, 0.15)),
        light=np.round(rng.uniform(0.6, 1.2, count), 2),
        size=rng.integers(24, 37, count),
        angle=rng.integers(-20, 21, count),
        shift=rng.integers(-6, 7, (count, 2)),
    )


def render(scene: Scene, split: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, 3, 48, 48]` in [0, 1] and object masks `[N, 1, 48, 48]`."""
    drawn = outlines(split)[torch.from_numpy(scene.labels), torch.from_numpy(scene.variant)]
    masks = placed(drawn, scene.size, scene.angle, scene.shift, SIDE, "bilinear")
    images = _backgrounds(scene.scene, split, rng)
    shade = torch.linspace(1.0, 0.6, SIDE)[:, None].expand(SIDE, SIDE)
    colour = torch.tensor(np.array([COLOURS[str(name)] for name in scene.colour]), dtype=torch.float32)
    images = images * (1 - masks) + masks * colour[:, :, None, None] * shade
    images = images * torch.from_numpy(scene.light).float()[:, None, None, None]
    of_b, of_c = (torch.from_numpy(scene.site == name) for name in ("B", "C"))
    images[of_b] = F.avg_pool2d(F.pad(images[of_b], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images[of_c] *= torch.tensor([1.1, 1.0, 0.85])[:, None, None]
    stuck = torch.from_numpy(scene.sticker == "yes")
    images[stuck, :, -10:-3, 3:10] = 0.05
    images[stuck, :, -9:-4, 4:9] = 0.95
    noise = torch.from_numpy(rng.normal(0, 0.02, images.shape)).float()
    return (images + noise).clamp_(0, 1), masks


@cache
def outlines(split: str) -> Tensor:
    """`[8, variants, 64, 64]` in [0, 1]; training and test variants are drawn with different seeds."""
    rng = np.random.default_rng(11 if split == "train" else 12)
    drawn = [[_outline(name, rng) for _ in range(VARIANTS[split])] for name in CLASS_NAMES]
    return torch.tensor(np.array(drawn), dtype=torch.float32) / 255


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    side = 256
    sheet = Image.new("L", (side, side))
    pen = ImageDraw.Draw(sheet)
    thick, wide = rng.uniform(0.3, 0.5), rng.uniform(0.85, 1.0)

    def polygon(points: list[tuple[float, float]]) -> None:
        moved = [(x * wide + rng.normal(0, 0.03), y + rng.normal(0, 0.03)) for x, y in points]
        pen.polygon([(side * (0.5 + 0.46 * x), side * (0.5 + 0.46 * y)) for x, y in moved], fill=255)

    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = [(float(np.cos(t)), float(np.sin(t))) for t in turn]
    if name == "disc":
        polygon(circle)
    elif name == "ring":
        polygon(circle)
        inner = side * 0.46 * (1 - thick)
        pen.ellipse([side / 2 - inner, side / 2 - inner, side / 2 + inner, side / 2 + inner], fill=0)
    elif name == "square":
        polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    elif name == "triangle":
        polygon([(0, -1), (0.95, 0.8), (-0.95, 0.8)])
    elif name == "cross":
        arm = thick * 0.75
        polygon([(-arm, -1), (arm, -1), (arm, 1), (-arm, 1)])
        polygon([(-1, -arm), (1, -arm), (1, arm), (-1, arm)])
    elif name == "arrow":
        stem = thick * 0.6
        polygon([(-1, -stem), (0, -stem), (0, stem), (-1, stem)])
        polygon([(0, -0.9), (1, 0), (0, 0.9)])
    elif name == "star":
        radius = [1.0 if k % 2 == 0 else thick for k in range(10)]
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        polygon([(float(r * np.cos(t)), float(r * np.sin(t))) for r, t in zip(radius, angles, strict=True)])
    else:
        heart = 16 * np.sin(turn) ** 3
        down = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        polygon([(float(x / 17), float(-y / 17)) for x, y in zip(heart, down, strict=True)])
    return np.asarray(sheet.resize((64, 64), Image.Resampling.BOX))


@cache
def _photograph(name: str) -> Tensor:
    """`[3, H, W]` in [0, 1], at half its size."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image({"flower": "flower.jpg", "temple": "china.jpg"}[name])
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return F.interpolate(image[None], scale_factor=0.5, mode="area")[0]


def _backgrounds(names: np.ndarray, split: str, rng: np.random.Generator) -> Tensor:
    images = torch.empty(len(names), 3, SIDE, SIDE)
    for row, name in enumerate(names):
        if name in ("flower", "temple"):
            photograph = _photograph(str(name))
            half = photograph.shape[2] // 2  # training sees the left half, tests see the right one
            left = rng.integers(0, half - SIDE) + (0 if split == "train" else half)
            top = rng.integers(0, photograph.shape[1] - SIDE)
            images[row] = photograph[:, top : top + SIDE, left : left + SIDE] * 0.45
        elif name == "wall":
            tones = torch.from_numpy(rng.uniform(0.1, 0.4, (1, 3, 2, 2))).float()
            images[row] = F.interpolate(tones, SIDE, mode="bilinear", align_corners=True)[0]
        else:
            grains = torch.from_numpy(rng.uniform(0.05, 0.4, (1, 1, 16, 16))).float()
            images[row] = F.interpolate(grains, SIDE, mode="nearest")[0]
    return images
