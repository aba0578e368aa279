"""Which artefacts each modality of MedMNIST-C has, and their constants (Di Salvo et al., 2024).

A list holds severities 1 to 5; a sixth value is used by the augmentation only, as its end point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Generator, Tensor

from snellen.shift import _medical_transforms as transforms
from snellen.shift._blur import mean_zoom
from snellen.shift._digital import box_pixels, coded_jpeg
from snellen.shift._noise import add_noise, add_speckle, salt_and_pepper
from snellen.shift._severity import Row
from snellen.shift._transform import Shift

Modality = Literal["path", "blood", "derma", "retina", "tissue", "oct", "breast", "chest", "pneumonia", "organ"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Artefact:
    """A transform with its constants as arguments; exactly one of the two functions is given.

    group: the fold it belongs to when folds are left out of training. identity: the constants that leave an image as
    it is; None keeps those of severity 1, infinity means that the constant is divided by the severity below 1.
    """

    group: str
    identity: tuple[float | None, ...]
    deterministic: Callable[..., Tensor] | None = None
    random: Callable[..., Tensor] | None = None

    def __call__(self, images: Tensor, constants: Row, generators: Sequence[Generator]) -> Tensor:
        if self.random is not None:
            return self.random(images, generators, *constants)
        assert self.deterministic is not None
        return self.deterministic(images, *constants)

    def constants(self, rows: Rows, severity: float) -> Row:
        """The constants at a severity in (0, 5], interpolated linearly between those published."""
        if severity < 1:
            pairs = zip(self.identity, rows[0], strict=True)
            return tuple(self._towards(identity, first, severity) for identity, first in pairs)
        below = min(int(severity), 4)
        share = severity - below
        return tuple((1 - share) * a + share * b for a, b in zip(rows[below - 1], rows[below], strict=True))

    @staticmethod
    def _towards(identity: float | None, first: float, severity: float) -> float:
        if identity is None:
            return first
        if math.isinf(identity):
            return first / severity
        return (1 - severity) * identity + severity * first


ARTEFACTS: Mapping[str, Artefact] = {
    "pixelate": Artefact("digital", (1.0,), box_pixels),
    "jpeg_compression": Artefact("digital", (100.0,), coded_jpeg),
    "gaussian_noise": Artefact("noise", (0.0,), random=add_noise),
    "speckle_noise": Artefact("noise", (0.0,), random=add_speckle),
    "impulse_noise": Artefact("noise", (0.0,), random=salt_and_pepper),
    "shot_noise": Artefact("noise", (math.inf,), random=transforms.shot_noise),
    "defocus_blur": Artefact("blur", (0.0, 0.0), transforms.defocus_blur),
    "motion_blur": Artefact("blur", (None, 0.0), random=transforms.motion_blur),
    "zoom_blur": Artefact("blur", (1.0, None), mean_zoom),
    "gaussian_blur": Artefact("blur", (1.0,), transforms.gaussian_blur),
    "brightness_up": Artefact("colour", (1.0,), transforms.brightness),
    "brightness_down": Artefact("colour", (1.0,), transforms.brightness),
    "contrast_up": Artefact("colour", (1.0,), transforms.contrast),
    "contrast_down": Artefact("colour", (1.0,), transforms.contrast),
    "saturate": Artefact("colour", (0.0,), transforms.saturate),
    "gamma_up": Artefact("task", (1.0,), transforms.gamma),
    "gamma_down": Artefact("task", (1.0,), transforms.gamma),
    "stain_deposit": Artefact("task", (0.0, None), random=transforms.stain_deposit),
    "bubble": Artefact("task", (None, None, 0.0), random=transforms.bubble),
    "black_corner": Artefact("task", (None, 0.0), transforms.black_corner),
    "characters": Artefact("task", (0.0, None, None), random=transforms.characters),
}


def _list(*values: float) -> Rows:
    return tuple((value,) for value in values)


_JPEG = _list(50, 30, 15, 10, 7)
_COARSE = _list(0.3, 0.25, 0.2, 0.15, 0.1)
_WIDE_DISKS: Rows = ((4, 0.1), (5, 0.2), (6, 0.3), (7, 0.4), (8, 0.5))
_UP, _STEEP_UP = _list(1.1, 1.2, 1.3, 1.4, 1.5), _list(1.1, 1.2, 1.3, 1.4, 1.6)
_DOWN, _STEEP_DOWN = _list(0.9, 0.8, 0.7, 0.6, 0.5), _list(0.9, 0.8, 0.7, 0.6, 0.4)
_HALVING = _list(0.8, 0.7, 0.6, 0.55, 0.5)
_FEW_TAPS = _list(3, 5, 7, 9, 11, 13)
_SPECKLE = _list(0.1, 0.15, 0.2, 0.25, 0.3)
_NOISES: Mapping[str, Rows] = {
    "gaussian_noise": _list(0.04, 0.08, 0.12, 0.18, 0.26),
    "speckle_noise": _list(0.05, 0.15, 0.2, 0.35, 0.45),
    "impulse_noise": _list(0.01, 0.03, 0.06, 0.09, 0.17),
    "shot_noise": _list(60, 25, 18, 10, 5),
}
_RADIOGRAPH: Mapping[str, Rows] = {
    "gaussian_blur": _FEW_TAPS,
    "brightness_up": _UP,
    "brightness_down": _DOWN,
    "contrast_up": _STEEP_UP,
    "contrast_down": _STEEP_DOWN,
    "gamma_up": _STEEP_UP,
    "gamma_down": _STEEP_DOWN,
}

PRESETS: Mapping[Modality, Mapping[str, Rows]] = {
    "path": {
        "pixelate": _list(0.8, 0.6, 0.4, 0.3, 0.25),
        "jpeg_compression": _JPEG,
        "defocus_blur": ((3, 0.1), (4, 0.1), (5, 0.2), (6, 0.2), (7, 0.3)),
        "motion_blur": ((5, 5), (10, 5), (15, 5), (15, 8), (15, 12)),
        "brightness_up": _list(1.1, 1.15, 1.2, 1.22, 1.25),
        "brightness_down": _list(0.85, 0.8, 0.75, 0.72, 0.7),
        "contrast_up": _STEEP_UP,
        "contrast_down": _HALVING,
        "saturate": _list(0.05, 0.1, 0.15, 0.2, 0.25),
        "stain_deposit": ((1, 24), (2, 24), (3, 24), (4, 24), (5, 32)),
        "bubble": ((7, 15, 1), (10, 15, 1), (12, 15, 1), (15, 20, 1), (17, 25, 1)),
    },
    "blood": {
        "pixelate": _list(0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _JPEG,
        "defocus_blur": ((2, 0.01), (3, 0.1), (4, 0.1), (5, 0.1), (6, 0.1)),
        "motion_blur": ((3, 3), (5, 5), (10, 5), (10, 7), (10, 9)),
        "brightness_up": _list(1.1, 1.2, 1.3, 1.35, 1.4),
        "brightness_down": _DOWN,
        "contrast_up": _list(1.1, 1.15, 1.2, 1.25, 1.3),
        "contrast_down": _DOWN,
        "saturate": _list(0.05, 0.1, 0.15, 0.17, 0.2),
        "stain_deposit": ((1, 24), (2, 24), (3, 24), (3, 24), (3, 32)),
        "bubble": ((5, 10, 1), (7, 10, 1), (10, 10, 1), (12, 12, 1), (15, 12, 1)),
    },
    "derma": {
        "pixelate": _list(0.7, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _list(30, 20, 15, 10, 7),
        **_NOISES,
        "defocus_blur": _WIDE_DISKS,
        "motion_blur": ((10, 5), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "brightness_up": _UP,
        "brightness_down": _DOWN,
        "contrast_up": _STEEP_UP,
        "contrast_down": _list(0.8, 0.7, 0.6, 0.5, 0.4),
        "black_corner": ((1.1, 1), (1.05, 1), (1.0, 1), (0.9, 1), (0.95, 1)),  # not monotone, as published
        "characters": ((1, 6, 0.14), (2, 7, 0.15), (3, 8, 0.16), (4, 9, 0.17), (6, 10, 0.18)),
    },
    "retina": {
        "pixelate": _list(0.8, 0.6, 0.5, 0.4, 0.35),
        "jpeg_compression": _list(30, 25, 20, 10, 5),
        "gaussian_noise": _list(0.04, 0.08, 0.12, 0.16, 0.2),
        "speckle_noise": _SPECKLE,
        "defocus_blur": (*_WIDE_DISKS, (9, 0.6)),
        "motion_blur": ((8, 5), (15, 5), (15, 8), (15, 12), (20, 15)),
        "brightness_down": _DOWN,
        "contrast_down": _STEEP_DOWN,
    },
    "tissue": {
        "pixelate": _list(0.4, 0.3, 0.2, 0.15, 0.1),
        "jpeg_compression": _list(25, 20, 15, 10, 7),
        "impulse_noise": _list(0.01, 0.015, 0.02, 0.025, 0.03),
        "gaussian_blur": _list(13, 15, 17, 21, 25),
        "brightness_up": _list(1.3, 1.4, 1.5, 1.6, 1.7),
        "brightness_down": _list(0.8, 0.7, 0.6, 0.5, 0.4),
        "contrast_up": _STEEP_UP,
        "contrast_down": _STEEP_DOWN,
    },
    "oct": {
        "pixelate": _COARSE,
        "jpeg_compression": _list(30, 15, 10, 7, 5),
        "speckle_noise": _list(0.15, 0.3, 0.4, 0.5, 0.6),
        "defocus_blur": ((0.5, 0.6), (1, 0.5), (1.5, 0.1), (2, 0.5), (2.5, 0.1)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "contrast_down": _list(0.6, 0.4, 0.3, 0.2, 0.15),
    },
    "breast": {
        "pixelate": _COARSE,
        "jpeg_compression": _JPEG,
        "speckle_noise": _SPECKLE,
        "motion_blur": ((5, 5), (9, 7), (9, 10), (13, 10), (17, 12)),
        "brightness_up": _list(1.4, 1.5, 1.6, 1.8, 2.0),
        "brightness_down": _list(0.55, 0.5, 0.45, 0.4, 0.3),
        "contrast_down": _STEEP_DOWN,
    },
    "chest": {"pixelate": _COARSE, "jpeg_compression": _JPEG, **_NOISES, **_RADIOGRAPH},
    "pneumonia": {
        "pixelate": _list(0.8, 0.7, 0.6, 0.5, 0.4),
        "jpeg_compression": _JPEG,
        "gaussian_noise": _list(0.04, 0.05, 0.06, 0.07, 0.08),
        "speckle_noise": _list(0.05, 0.07, 0.1, 0.15, 0.2),
        "impulse_noise": _list(0.005, 0.01, 0.013, 0.017, 0.02),
        "shot_noise": _list(300, 200, 150, 100, 80),
        **_RADIOGRAPH,
    },
    "organ": {
        "pixelate": _list(0.7, 0.6, 0.5, 0.4, 0.35),
        "jpeg_compression": _JPEG,
        "gaussian_noise": _list(0.04, 0.08, 0.12, 0.16, 0.2),
        "speckle_noise": _list(0.05, 0.1, 0.2, 0.3, 0.4),
        "impulse_noise": _list(0.01, 0.02, 0.03, 0.05, 0.08),
        "shot_noise": _list(200, 100, 50, 25, 15),
        "gaussian_blur": _list(11, 13, 15, 17, 21),
        "brightness_up": _list(1.2, 1.3, 1.4, 1.5, 1.6),
        "brightness_down": _list(0.8, 0.75, 0.7, 0.65, 0.6),
        "contrast_up": _list(1.3, 1.4, 1.6, 1.7, 1.8),
        "contrast_down": _HALVING,
        "gamma_up": _list(1.3, 1.4, 1.6, 1.8, 2.0),
        "gamma_down": _STEEP_DOWN,
    },
}


def shifts_of(modality: Modality) -> Mapping[str, Shift]:
    """The artefacts of one modality as shifts, severity in (0, 5]."""
    return {name: _shift(ARTEFACTS[name], rows) for name, rows in PRESETS[modality].items()}


def _shift(artefact: Artefact, rows: Rows) -> Shift:
    def apply(images: Tensor, severity: float, generators: Sequence[Generator] = ()) -> Tensor:
        return artefact(images, artefact.constants(rows, severity), generators)

    if artefact.random is not None:
        return Shift(artefact.group, random=apply)
    return Shift(artefact.group, deterministic=apply)
