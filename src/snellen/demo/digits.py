"""Scikit-learn's handwritten digits composed onto textured backgrounds, with known attributes.

An image is 32 x 32 RGB. Attributes are drawn independently of the class, so that any dependence a model shows is its
own: background (texture), tint (colour of the digit), size (px), rotation (degrees), position (column), tag (corner).
Train and test use different handwriting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.errors import InvalidInput

SIDE = 32
CLASS_NAMES = tuple(str(digit) for digit in range(10))
BACKGROUNDS = ("plain", "stripes", "checks", "clouds", "gradient")
TINTS = {"white": (1, 1, 1), "red": (1, 0.45, 0.4), "green": (0.45, 1, 0.45), "yellow": (1, 0.95, 0.35)}
TAGS = ("none", "red", "blue")
TAG_COLOURS = {"red": (0.9, 0.1, 0.1), "blue": (0.15, 0.3, 0.95)}
POSITIONS = {"left": -4, "centre": 0, "right": 4}
SIZE_RANGE = (14, 24)
LARGEST_ROTATION = 30
TEST_SEED, TEST_COUNT = 20260, 1200


@dataclass(frozen=True)
class Scene:
    """One description an image; arrays of one length N. shift is (right, down) in pixels, `[N, 2]`."""

    handwriting: np.ndarray
    labels: np.ndarray
    background: np.ndarray
    tint: np.ndarray
    tag: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DemoImages:
    """images: uint8 `[N, 3, 32, 32]`. labels: int64 `[N]`. attributes: name -> N values. masks: uint8 digit masks."""

    images: Tensor
    labels: np.ndarray
    class_names: tuple[str, ...]
    attributes: dict[str, np.ndarray]
    ids: list[str]
    masks: Tensor


@cache
def handwriting(split: str) -> tuple[Tensor, np.ndarray]:
    """Glyphs `[N, 8, 8]` in [0, 1] and their digits; a third of the writing is kept for "test"."""
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise InvalidInput(f"split must be 'train' or 'test', got {split!r}")
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:1200] if split == "train" else order[1200:]
    glyphs = torch.from_numpy(digits.images[chosen] / 16).float()
    return glyphs, digits.target[chosen].astype(np.int64)


def draw_scene(count: int, split: str, rng: np.random.Generator) -> Scene:
    """`count` descriptions with classes in balance and every attribute independent of the class."""
    _, labels = handwriting(split)
    by_class = [np.flatnonzero(labels == digit) for digit in range(10)]
    wanted = rng.permutation(np.arange(count) % 10)
    chosen = np.array([rng.choice(by_class[digit]) for digit in wanted])
    column = rng.choice(list(POSITIONS), count)
    return Scene(
        handwriting=chosen,
        labels=wanted,
        background=rng.choice(BACKGROUNDS, count),
        tint=rng.choice(list(TINTS), count),
        tag=rng.choice(TAGS, count, p=(0.6, 0.2, 0.2)),
        size=rng.integers(SIZE_RANGE[0], SIZE_RANGE[1] + 1, count),
        rotation=rng.integers(-LARGEST_ROTATION, LARGEST_ROTATION + 1, count),
        shift=np.stack([[POSITIONS[name] for name in column], np.zeros(count, dtype=int)], axis=1),
    )


def render(scene: Scene, split: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, 3, 32, 32]` in [0, 1] and digit masks float32 `[N, 1, 32, 32]`."""
    glyphs = handwriting(split)[0][torch.from_numpy(scene.handwriting)]
    masks = placed(glyphs, scene.size, scene.rotation, scene.shift, SIDE)
    images = _backgrounds(scene.background, rng)
    colour = torch.tensor(np.array([TINTS[str(name)] for name in scene.tint]), dtype=torch.float32)
    images = images * (1 - masks) + masks * colour[:, :, None, None]
    for name, tag_colour in TAG_COLOURS.items():
        rows = torch.from_numpy(scene.tag == name)
        images[rows, :, 1:6, 1:6] = torch.tensor(tag_colour)[:, None, None]
    noise = torch.from_numpy(rng.normal(0, 0.02, images.shape)).float()
    return (images + noise).clamp_(0, 1), masks


def demo_images(split: str = "test", count: int = TEST_COUNT, seed: int | None = None) -> DemoImages:
    """The demo's data set; the same for everybody unless another `seed` is given."""
    rng = np.random.default_rng((TEST_SEED if split == "test" else TEST_SEED + 1) if seed is None else seed)
    scene = draw_scene(count, split, rng)
    images, masks = render(scene, split, rng)
    names = {shift: name for name, shift in POSITIONS.items()}
    attributes = {
        "background": scene.background,
        "tint": scene.tint,
        "tag": scene.tag,
        "size": scene.size,
        "rotation": scene.rotation,
        "position": np.array([names[int(right)] for right in scene.shift[:, 0]]),
    }
    ids = [f"{split}/{label}/{row:05d}" for row, label in enumerate(scene.labels)]
    return DemoImages(
        (images * 255).round().to(torch.uint8),
        scene.labels,
        CLASS_NAMES,
        attributes,
        ids,
        (masks > 0.3).to(torch.uint8) * 255,
    )


def placed(
    outlines: Tensor, size: np.ndarray, angle: np.ndarray, shift: np.ndarray, side: int, mode: str = "bicubic"
) -> Tensor:
    """Outlines `[N, h, w]` enlarged to `size` px `[N]`, turned by `angle` degrees `[N]` and moved by `shift` px (right,
    down) `[N, 2]`: `[N, 1, side, side]` in [0, 1]. mode: of torch's grid_sample."""
    turn = torch.from_numpy(np.deg2rad(angle)).float()
    zoom = side / torch.from_numpy(size).float()
    centre = torch.from_numpy(shift).float() * 2 / side
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    theta = torch.stack(
        [
            torch.stack([cos, sin, -(cos * centre[:, 0] + sin * centre[:, 1])], 1),
            torch.stack([-sin, cos, sin * centre[:, 0] - cos * centre[:, 1]], 1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [len(outlines), 1, side, side], align_corners=False)
    return F.grid_sample(outlines[:, None], grid, mode=mode, align_corners=False).clamp_(0, 1)


def _backgrounds(names: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Dim two-coloured textures `[N, 3, 32, 32]`."""
    count = len(names)
    down, right = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    phase = torch.from_numpy(rng.integers(0, 8, (count, 2))).view(count, 2, 1, 1)
    clouds = F.interpolate(torch.from_numpy(rng.random((count, 1, 5, 5))).float(), SIDE, mode="bicubic")[:, 0]
    patterns = {
        "plain": torch.full((count, SIDE, SIDE), 0.5),
        "stripes": ((right + down + phase[:, 0]) // 4 % 2).float(),
        "checks": ((right + phase[:, 0]) // 4 % 2 ^ (down + phase[:, 1]) // 4 % 2).float(),
        "clouds": clouds.clamp(0, 1),
        "gradient": ((right + 2 * phase[:, 0]) / (SIDE + 14)).expand(count, SIDE, SIDE),
    }
    weight = torch.zeros(count, SIDE, SIDE)
    for name, pattern in patterns.items():
        rows = torch.from_numpy(names == name)
        weight[rows] = pattern[rows]
    dark = torch.from_numpy(rng.uniform(0.0, 0.25, (count, 3, 1, 1))).float()
    light = dark + torch.from_numpy(rng.uniform(0.15, 0.35, (count, 3, 1, 1))).float()
    return dark + weight[:, None] * (light - dark)
