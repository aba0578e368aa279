"""Pairs of an image and its counterfactual twin: another true class, everything else kept; and training on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.demo.digits import draw_scene, handwriting, render
from snellen.discovery._blocks import donors_of
from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom
from snellen.shift._edits import separate, with_background


class Twin(NamedTuple):
    """sample: of the shape of the source. label: its true class."""

    sample: Tensor
    label: int


class Editor(Protocol):
    """Makes the twin of one sample: generator, cut and paste, a counterfactual generator, a person; None: no twin."""

    def __call__(self, sample: Tensor, label: int) -> Twin | None: ...


@dataclass(frozen=True)
class Pairs:
    """samples, twins: `[n, ...]` of one shape. labels, twin_labels: int64 `[n]`, different in every pair. ids: n.

    Raises InvalidInput for no pairs, twins of the same class, twins identical to their source, and NaN.
    """

    ids: Sequence[str]
    samples: Tensor
    twins: Tensor
    labels: Tensor
    twin_labels: Tensor

    def __post_init__(self) -> None:
        if self.samples.shape != self.twins.shape or len(self.samples) == 0:
            raise InvalidInput(
                "samples and twins must be [n, ...] of one shape with n above 0,"
                f" got {list(self.samples.shape)} and {list(self.twins.shape)}"
            )
        lengths = {len(part) for part in (self.ids, self.samples, self.labels, self.twin_labels)}
        if len(lengths) > 1 or len(set(self.ids)) < len(self.ids):
            raise InvalidInput(f"ids must be different, and as many as samples and labels, got lengths {lengths}")
        if not bool((torch.isfinite(self.samples) & torch.isfinite(self.twins)).all()):
            raise InvalidInput("samples and twins must be finite")
        for wrong, what in (
            (self.labels == self.twin_labels, "has the class of its source"),
            ((self.samples == self.twins).flatten(1).all(dim=1), "is identical to its source"),
        ):
            if wrong.any():
                first = self.ids[int(wrong.nonzero()[0, 0])]
                raise InvalidInput(f"a twin must be another image of another class, but the twin of {first!r} {what}")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Sequence[int]) -> Pairs:
        at = torch.as_tensor(rows)
        ids = [self.ids[row] for row in at.tolist()]
        return Pairs(ids, self.samples[at], self.twins[at], self.labels[at], self.twin_labels[at])

    @property
    def edit_sizes(self) -> Tensor:
        """Share `[n]` of the values of a sample that its twin changes."""
        return (self.samples != self.twins).flatten(1).double().mean(dim=1)


def make_pairs(
    edit: Editor, ids: Sequence[str], samples: Tensor, labels: Tensor, largest_edit: float | None = None
) -> Pairs:
    """Pairs of all samples `[n, ...]` for which `edit` finds a twin.

    largest_edit: share of the values in (0, 1] that a twin may change; a larger edit is refused, None allows any.
    Raises InvalidInput, also when no twin is found.
    """
    made = [edit(sample, label) for sample, label in zip(samples, labels.tolist(), strict=True)]
    kept = [row for row, twin in enumerate(made) if twin is not None]
    found = [twin for twin in made if twin is not None]
    if not found:
        raise InvalidInput(f"edit found a twin for none of {len(samples)} samples")
    twin_labels = torch.tensor([twin.label for twin in found])
    twins = torch.stack([twin.sample for twin in found])
    pairs = Pairs([ids[row] for row in kept], samples[kept], twins, labels[kept], twin_labels)
    if largest_edit is not None and bool((pairs.edit_sizes > largest_edit).any()):
        raise InvalidInput(
            f"largest_edit allows {largest_edit} of the values to change, a twin changes {pairs.edit_sizes.max():.3f}"
        )
    return pairs


def cut_paste_pairs(ids: Sequence[str], images: Tensor, masks: Tensor, labels: Tensor, random: SampleRandom) -> Pairs:
    """Before the background of each image the object of a donor of its class, and as the twin that of another class.

    images: `[n, C, H, W]` in [0, 1]. masks: bool `[n, H, W]`, True on the object. Both members are pasted, so that
    seams and the filled hole of the image's own object are shared, and the answer to them is no difference. The hole
    is smooth: it keeps a trace of that object's shape, and takes a texture away from a model that reads it. Images
    without a usable mask or a donor are left out. Raises InvalidInput.
    """
    parts = separate(images, masks)
    usable = torch.nonzero(parts.kept).flatten()
    names = [ids[row] for row in usable.tolist()]
    drawn = [
        donors_of(labels[usable].cpu(), random.generators(names, purpose), foreign)
        for foreign, purpose in ((False, "own"), (True, "foreign"))
    ]
    found = (drawn[0] >= 0) & (drawn[1] >= 0)
    rows = usable[found]
    if len(rows) == 0:
        raise InvalidInput("pairs need usable masks, two images of a class and one of another; no image has all three")
    own, foreign = (usable[donors[found]] for donors in drawn)
    samples, twins = (
        with_background(separate(images[donors], masks[donors]), parts.background[rows]).images
        for donors in (own, foreign)
    )
    return Pairs([ids[row] for row in rows.tolist()], samples, twins, labels[rows], labels[foreign])


def demo_pairs(count: int, seed: int, split: str = "test") -> Pairs:
    """The demo's digits, each with a twin: the same scene down to the noise, with another digit in its place."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(count, split, rng)
    digits = handwriting(split)[1]
    others = (scene.labels + rng.integers(1, 10, count)) % 10
    written = np.array([rng.choice(np.flatnonzero(digits == digit)) for digit in others])
    samples = render(scene, split, np.random.default_rng([seed, 1]))[0]
    twins = render(replace(scene, handwriting=written, labels=others), split, np.random.default_rng([seed, 1]))[0]
    ids = [f"{split}/{row:05d}" for row in range(count)]
    return Pairs(ids, samples, twins, torch.from_numpy(scene.labels), torch.from_numpy(others))


def check_split(train: Pairs, test: Pairs) -> None:
    """Raises InvalidInput where a pair is in both: its two members together tell the answer."""
    shared = sorted(set(train.ids) & set(test.ids))
    if shared:
        raise InvalidInput(f"{len(shared)} pairs are in the training and in the test set, among them {shared[0]!r}")


def train_on_mix(
    model: nn.Module,
    pairs: Pairs,
    share: float,
    size: int,
    rng: np.random.Generator,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch: int = 64,
) -> nn.Module:
    """Train `model` in place by cross-entropy (Adam) on `size` samples: `share` of them originals, the rest twins.

    share: 1 originals alone, 0.5 whole pairs, 0 twins alone; the total is the same, so that mixes can be compared.
    Both members of a pair stand beside each other in a batch. model: `[B, ...]` to logits `[B, K]`; returned in
    eval mode. Raises InvalidInput where there are not enough pairs.
    """
    if not 0 <= share <= 1:
        raise InvalidInput(f"share must be in [0, 1], got {share}")
    originals = round(share * size)
    if size < 2 or max(originals, size - originals) > len(pairs):
        raise InvalidInput(f"size must be at least 2 and need at most the {len(pairs)} pairs there are, got {size}")
    drawn = torch.from_numpy(rng.permutation(len(pairs)))
    first, second = drawn[:originals], drawn[: size - originals]
    samples = torch.cat([pairs.samples[first], pairs.twins[second]])
    labels = torch.cat([pairs.labels[first], pairs.twin_labels[second]])
    pair = torch.cat([first, second])
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(epochs):
        place = torch.from_numpy(rng.permutation(len(pairs)))
        for at in place[pair].argsort(stable=True).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(model(samples[at]), labels[at]).backward()
            optimiser.step()
    return model.eval()
