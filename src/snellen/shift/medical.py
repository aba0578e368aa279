"""Does a medical-image classifier survive the artefacts of its own modality?

Paper: Di Salvo et al., 2024 (MedMNIST-C). Each modality has its own list of accidents with its own constants: ink and
air bubbles on slides, black corners and lettering on skin photographs, gamma on radiographs. Errors are balanced over
classes, so a model that gives up the rare class cannot hide it, and can be divided by a baseline's. The same list,
drawn at random, is a training augmentation.

When it misleads: constants were published for 224 px pictures and their lengths are scaled to others; ink spots and
letters are drawn by us; grey pictures get grey noise where the published files, grey repeated to RGB, got coloured
noise. A ratio to a baseline flatters where the baseline is poor: read the balanced errors too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from snellen.errors import InvalidInput
from snellen.exhibits import Bar, Bars, Exhibit
from snellen.probe import Batch, Condition, Context, Finding, Passes, Rows, register
from snellen.randomness import SampleRandom
from snellen.shift._catalogue import apply_shift, check_batch, check_severities
from snellen.shift._curve import curves_of, on_common_samples
from snellen.shift._medical_balance import (
    BalancedErrors,
    balanced_corruption_error,
    balanced_error,
    balanced_errors,
    balanced_mean,
    errors_by_severity,
    labels_of,
    relative_balanced_corruption_error,
)
from snellen.shift._medical_tables import ARTEFACTS, MODALITIES, PRESETS, Modality, shifts_of
from snellen.shift._trials import HARM, ShiftProbe
from snellen.stats import exceedance_p_value, needed_samples

__all__ = [
    "MODALITIES",
    "BalancedErrors",
    "MedicalArtefacts",
    "MedicalAugmentation",
    "Modality",
    "balanced_corruption_error",
    "balanced_error",
    "balanced_errors",
    "errors_by_severity",
    "relative_balanced_corruption_error",
    "shifts_of",
]


@dataclass(frozen=True)
class MedicalAugmentation:
    """Draws one artefact or none for every image, all equally likely, at a strength between severities 1 and 5.

    The repair of Di Salvo et al., 2024. Each constant is uniform between its first and its last published value.
    """

    modality: Modality = "path"
    """Whose artefacts."""
    without: tuple[str, ...] = ()
    """Artefacts, or whole groups ("noise", "blur", "digital", "colour", "task"), to leave out."""

    def __post_init__(self) -> None:
        _check_modality(self.modality)
        known = {*PRESETS[self.modality], *(ARTEFACTS[name].group for name in PRESETS[self.modality])}
        if not set(self.without) <= known:
            raise InvalidInput(f"without must name artefacts or groups of {sorted(known)}, got {list(self.without)}")
        if not self.names:
            raise InvalidInput(f"without must leave an artefact, got {list(self.without)}")

    @property
    def names(self) -> list[str]:
        """The artefacts that are drawn from."""
        return [n for n in PRESETS[self.modality] if n not in self.without and ARTEFACTS[n].group not in self.without]

    def choose(self, generator: Generator) -> tuple[str, tuple[float, ...]] | None:
        """An artefact and its constants, or None for the untouched image."""
        names = self.names
        chosen = int(torch.randint(len(names) + 1, (), generator=generator))
        if chosen == len(names):
            return None
        rows = PRESETS[self.modality][names[chosen]]
        shares = torch.rand(len(rows[0]), generator=generator).tolist()
        ends = zip(rows[0], rows[-1], shares, strict=True)
        return names[chosen], tuple(first + share * (last - first) for first, last, share in ends)

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """images: float32 `[B, C, H, W]` in [0, 1], C = 1 or 3; generator: on the CPU. Returns new images."""
        check_batch(images, 16)
        result = images.clone()
        for index in range(len(images)):
            drawn = self.choose(generator)
            if drawn is not None:
                name, constants = drawn
                result[index : index + 1] = ARTEFACTS[name](images[index : index + 1], constants, [generator])
        return result.clamp_(0, 1)


@register
@dataclass(frozen=True)
class MedicalArtefacts(ShiftProbe):
    """Accuracy under the artefacts of a medical imaging modality, also balanced (Di Salvo et al., 2024)."""

    name: ClassVar[str] = "shift/medical"
    paper: ClassVar[str] = "Di Salvo et al., 2024"
    card: ClassVar[str | None] = "medmnist-c"

    modality: Modality = "path"
    """One of path, blood, derma, retina, tissue, oct, breast, chest, pneumonia, organ."""
    severities: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Each in (0, 5], ascending; the paper's 1 to 5."""

    def __post_init__(self) -> None:
        _check_modality(self.modality)
        check_severities(self.severities)

    def conditions(self, batch: Batch, random: SampleRandom) -> Iterator[Condition]:
        for name, shift in shifts_of(self.modality).items():
            for severity in self.severities:
                generators = random.generators(batch.ids, name)
                yield Condition(name, severity, apply_shift(shift, batch.images, severity, generators, name=name))

    def cost(self, batch_size: int) -> Passes:
        return Passes(forward=batch_size * (1 + len(PRESETS[self.modality]) * len(self.severities)))

    def group(self, shift: str) -> str:
        return ARTEFACTS[shift].group

    def findings(self, table: Rows, context: Context) -> list[Finding]:
        balanced = self._balanced(table, context)
        return [*([balanced] if balanced else []), *super().findings(table, context)]

    def _balanced(self, table: Rows, context: Context) -> Finding | None:
        """How far balanced accuracy falls, mean over artefacts and severities on the samples that have all."""
        curves = on_common_samples([curve for curve in curves_of(table) if curve.ids])
        if not curves:
            return None
        ids, labels = curves[0].ids, labels_of(table)
        truth, clean = np.array([labels[sample] for sample in ids]), curves[0].correct[0]
        shifted = np.concatenate([curve.correct[1:] for curve in curves]).mean(axis=0)
        names = context.spec.class_names
        empty = [name for label, name in enumerate(names) if label not in truth]
        subject: dict[str, str | int | float] = {"corruption": "all", "modality": self.modality}
        metric = "balanced accuracy drop"
        if empty:
            title = f"Balanced accuracy is undefined: no samples of {', '.join(empty[:5])}"
            title += " and others" if len(empty) > 5 else ""
            return Finding("shift", title, metric, None, 0.0, len(ids), subject, enough_data=False)

        rng = context.random(self.name)
        lost = clean - shifted
        drop = balanced_mean(lost, truth, rng)
        weights = 1 / (len(names) * np.bincount(truth)[truth])
        # Without harm, untouched and shifted could change places in every sample.
        flipped = [(2 * rng.integers(0, 2, len(ids)) - 1) @ (weights * lost) for _ in range(999)]
        p_value = exceedance_p_value(drop.value, np.array(flipped))
        before = min(float(weights @ clean), 1.0)  # rounding may go beyond
        worth, needed = int(1 / (weights**2).sum()), needed_samples(min(HARM, before), before) if before > 0 else 0
        enough = p_value < 0.05 or worth >= needed
        title = (
            f"Balanced accuracy is {before - drop.value:.2f} over {len(curves)} artefacts of {self.modality} images,"
            f" against {before:.2f} untouched"
        )
        if not enough:
            title = (
                f"Whether balanced accuracy falls cannot be told, not enough data: n = {worth}, needs about {needed}"
            )
        lost_ids = [ids[i] for i in np.argsort(shifted, kind="stable").tolist() if clean[i] and shifted[i] < 1]
        return Finding(
            kind="shift",
            title=title,
            metric=metric,
            value=drop.value,
            baseline=before,
            effect=max(drop.value, 0.0),
            n=len(ids),
            subject=subject,
            ci=(drop.low, drop.high),
            p_value=p_value,
            evidence=lost_ids[:12],
            enough_data=enough,
        )

    def exhibits(self, table: Rows, context: Context) -> list[Exhibit]:
        labels, rng = labels_of(table), context.random(f"{self.name} exhibits")
        bars = []
        for curve in curves_of(table):
            truth = np.array([labels[sample] for sample in curve.ids], dtype=np.int64)
            if len(set(truth.tolist())) == len(context.spec.class_names):
                error = balanced_mean(1 - curve.correct[1:].mean(axis=0), truth, rng)
                bars.append(Bar(curve.shift.replace("_", " "), error.value, error.low, error.high, error.n))
        if not bars:
            return super().exhibits(table, context)
        title, label = f"Balanced error under each artefact of {self.modality} images", "balanced error"
        caption = "Mean over severities, every class counting the same; 95 % bootstrap intervals."
        return [Bars(title, caption, label, bars), *super().exhibits(table, context)]


def _check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise InvalidInput(f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}")
