"""The 22 obfuscations by name, as the benchmark lists them (Stimberg et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import Generator, Tensor

from snellen.shift._donors import PHOTOGRAPHS, Donors
from snellen.shift._obfuscate_colour import (
    color_noise_blocks,
    color_pattern_overlay,
    halftoning,
    invert_lines,
    texturize,
)
from snellen.shift._obfuscate_composition import (
    background_blur_composition,
    image_overlay,
    interleave,
    photo_composition,
    style_transfer,
)
from snellen.shift._obfuscate_geometry import (
    line_shift,
    perspective_composition,
    perspective_transform,
    rotate_blocks,
    rotate_image,
    swirl_warp,
    wavy_color_warp,
)
from snellen.shift._obfuscate_overlay import (
    high_contrast_border,
    icon_overlay,
    low_contrast_triangles,
    patch_stand_in,
    text_overlay,
)
from snellen.shift._transform import Random, Shift

GEOMETRY, OVERLAY, COLOUR, COMPOSITION = (
    f"obfuscation: {kind}" for kind in ("geometry", "overlay", "colour", "composition")
)


class Composition(Protocol):
    """An obfuscation that needs foreign content."""

    def __call__(
        self, images: Tensor, severity: float, generators: Sequence[Generator], donors: Donors = ...
    ) -> Tensor: ...


COMPOSITIONS: Mapping[str, Composition] = {
    "image_overlay": image_overlay,
    "interleave": interleave,
    "perspective_composition": perspective_composition,
    "photo_composition": photo_composition,
    "style_transfer": style_transfer,
}
_PLAIN: Mapping[str, tuple[str, Random]] = {
    "adversarial_patches": (OVERLAY, patch_stand_in),
    "background_blur_composition": (COMPOSITION, background_blur_composition),
    "color_noise_blocks": (COLOUR, color_noise_blocks),
    "color_pattern_overlay": (COLOUR, color_pattern_overlay),
    "halftoning": (COLOUR, halftoning),
    "high_contrast_border": (OVERLAY, high_contrast_border),
    "icon_overlay": (OVERLAY, icon_overlay),
    "invert_lines": (COLOUR, invert_lines),
    "line_shift": (GEOMETRY, line_shift),
    "low_contrast_triangles": (OVERLAY, low_contrast_triangles),
    "perspective_transform": (GEOMETRY, perspective_transform),
    "rotate_blocks": (GEOMETRY, rotate_blocks),
    "rotate_image": (GEOMETRY, rotate_image),
    "swirl_warp": (GEOMETRY, swirl_warp),
    "text_overlay": (OVERLAY, text_overlay),
    "texturize": (COLOUR, texturize),
    "wavy_color_warp": (GEOMETRY, wavy_color_warp),
}

HELD_OUT: tuple[str, ...] = ("color_pattern_overlay", "low_contrast_triangles", "perspective_composition")
"""Never trained on."""
TRAINING: tuple[str, ...] = tuple(name for name in sorted((*COMPOSITIONS, *_PLAIN)) if name not in HELD_OUT)
"""The 19 that a defender may know."""


def with_donors(donors: Donors = PHOTOGRAPHS) -> dict[str, Shift]:
    """All obfuscations, the 19 and the 3, with foreign content from `donors`."""
    shifts = {name: Shift(group, random=function) for name, (group, function) in _PLAIN.items()}
    for name, function in COMPOSITIONS.items():
        shifts[name] = Shift(COMPOSITION, random=partial(function, donors=donors))
    return {name: shifts[name] for name in (*TRAINING, *HELD_OUT)}


OBFUSCATIONS: Mapping[str, Shift] = with_donors()
