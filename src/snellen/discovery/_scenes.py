"""Digits on textures by the sentence: a text-to-image generator that needs no download, and a captioner for it.

"the digit 7 on stripes, drawn small, with a red tag" pins the attributes it names; the others are drawn from the demo's
prior. Reading and printing a description are exact inverses of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from snellen.demo.digits import CLASS_NAMES, POSITIONS, Scene, draw_scene, handwriting, render
from snellen.discovery._trials import UndrawnSentence

TEMPLATES: Final = ("the digit {}",)
"""The prompts that `DigitScenes` reads."""
PHRASES: Final[Mapping[str, Mapping[str, str]]] = {
    "background": {
        "plain": "on a plain ground",
        "stripes": "on stripes",
        "checks": "on checks",
        "clouds": "on clouds",
        "gradient": "on a gradient",
    },
    "size": {"small": "drawn small", "medium": "drawn medium-sized", "large": "drawn large"},
    "tint": {name: f"tinted {name}" for name in ("white", "red", "green", "yellow")},
    "rotation": {"left": "turned anticlockwise", "none": "upright", "right": "turned clockwise"},
    "position": {"left": "at the left", "centre": "in the centre", "right": "at the right"},
    "tag": {"none": "with no tag", "red": "with a red tag", "blue": "with a blue tag"},
}
SIZES: Final = {"small": (14, 17), "medium": (18, 20), "large": (21, 24)}
ROTATIONS: Final = {"left": (-30, -11), "none": (-10, 10), "right": (11, 30)}
_MEANING = {phrase: (name, value) for name, values in PHRASES.items() for value, phrase in values.items()}


@dataclass(frozen=True)
class Description:
    """A digit and the attributes that are pinned, name -> value, as in `PHRASES`; the others may be anything."""

    digit: int
    pinned: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Description:
        """The inverse of `str`; details may come in any order. Raises UndrawnSentence on any other sentence."""
        opening, digit, rest = text[:10], text[10:11], text[11:].strip()
        pinned: dict[str, str] = {}
        for phrase in rest.split(", ") if rest else []:
            name, value = _MEANING.get(phrase, ("", ""))
            if not name or name in pinned:
                raise UndrawnSentence(f"prompt {text!r} has {phrase!r}, which is unknown or says an attribute twice")
            pinned[name] = value
        if opening != "the digit " or digit not in CLASS_NAMES or text[11:12] not in ("", " "):
            raise UndrawnSentence(f"prompt must begin with 'the digit' and one of 0 to 9, got {text!r}")
        return cls(int(digit), {name: pinned[name] for name in PHRASES if name in pinned})

    def __str__(self) -> str:
        details = ", ".join(PHRASES[name][self.pinned[name]] for name in PHRASES if name in self.pinned)
        return f"the digit {self.digit} {details}".strip()


@dataclass(frozen=True)
class DigitScenes:
    """A generator of the demo's scenes: images `[n, 3, 32, 32]`; split "test" has handwriting of its own."""

    split: str = "test"

    def __call__(self, prompt: str, n: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        return render(self.draw(Description.parse(prompt), n, rng), self.split, rng)[0]

    def draw(self, wanted: Description, n: int, rng: np.random.Generator) -> Scene:
        """n scenes in which the pinned attributes are what they should be and the others follow the prior."""
        drawn = draw_scene(n, self.split, rng)
        writing = np.flatnonzero(handwriting(self.split)[1] == wanted.digit)
        pinned = wanted.pinned
        scene = replace(drawn, handwriting=rng.choice(writing, n), labels=np.full(n, wanted.digit))
        if "background" in pinned:
            scene = replace(scene, background=np.full(n, pinned["background"]))
        if "tint" in pinned:
            scene = replace(scene, tint=np.full(n, pinned["tint"]))
        if "tag" in pinned:
            scene = replace(scene, tag=np.full(n, pinned["tag"]))
        if "size" in pinned:
            low, high = SIZES[pinned["size"]]
            scene = replace(scene, size=rng.integers(low, high + 1, n))
        if "rotation" in pinned:
            low, high = ROTATIONS[pinned["rotation"]]
            scene = replace(scene, rotation=rng.integers(low, high + 1, n))
        if "position" in pinned:
            shift = scene.shift.copy()
            shift[:, 0] = POSITIONS[pinned["position"]]
            scene = replace(scene, shift=shift)
        return scene


def attribute_codes(scene: Scene) -> dict[str, NDArray[np.int64]]:
    """digit and every attribute of `PHRASES` -> the index `[N]` of its value."""
    position = {right: name for name, right in POSITIONS.items()}
    named = {
        "background": scene.background,
        "tint": scene.tint,
        "tag": scene.tag,
        "position": np.array([position[int(right)] for right in scene.shift[:, 0]]),
    }
    codes = {"digit": scene.labels.astype(np.int64)}
    for name, values in named.items():
        codes[name] = np.array([list(PHRASES[name]).index(str(value)) for value in values])
    for name, ranges, numbers in (("size", SIZES, scene.size), ("rotation", ROTATIONS, scene.rotation)):
        codes[name] = np.searchsorted([high for _, high in ranges.values()], numbers).astype(np.int64)
    return codes


class AttributeCaptioner(nn.Module):
    """Reads every attribute off a scene with one head each, and prints the grammar's sentence."""

    def __init__(self) -> None:
        super().__init__()
        channels = ((3, 16), (16, 32), (32, 48))
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in channels
            ),
            nn.Flatten(),  # no pooling: where the digit stands is one of the attributes
            nn.Linear(48 * 16, 128),
            nn.ReLU(),
        )
        values = {"digit": len(CLASS_NAMES), **{name: len(of) for name, of in PHRASES.items()}}
        self.heads = nn.ModuleDict({name: nn.Linear(128, count) for name, count in values.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images `[B, 3, 32, 32]` to logits `[B, values]` of the digit and each attribute."""
        features = self.trunk(images)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def caption(self, images: Tensor) -> list[str]:
        """One sentence an image, such as "the digit 7 on stripes, drawn small, ..."."""
        read = {name: logits.argmax(dim=1).tolist() for name, logits in self(images).items()}
        return [
            str(Description(read["digit"][row], {name: list(PHRASES[name])[read[name][row]] for name in PHRASES}))
            for row in range(len(images))
        ]


def train_captioner(seed: int = 0, images: int = 6000, epochs: int = 6) -> AttributeCaptioner:
    """An attribute captioner trained on generated scenes with the training handwriting (some ten seconds)."""
    rng = np.random.default_rng([seed, 41])
    scene = draw_scene(images, "train", rng)
    pictures = render(scene, "train", rng)[0]
    truth = {name: torch.from_numpy(codes) for name, codes in attribute_codes(scene).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        captioner = AttributeCaptioner()
        optimiser = torch.optim.AdamW(captioner.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(images).split(64):
                given = captioner(pictures[batch])
                losses = [F.cross_entropy(logits, truth[name][batch]) for name, logits in given.items()]
                optimiser.zero_grad()
                torch.stack(losses).sum().backward()
                optimiser.step()
    return captioner.eval()
