"""Generated images as data: are they clean, and which of them go into a training set?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom

MIN_PROBABILITY = 0.1
"""Bansal & Grover (2023) keep everything; this threshold is ours."""
CHUNK = 1024


class Neighbours(NamedTuple):
    """Per generated image: distance to the nearest test image and its index, float32 and int64 `[N]`."""

    distance: Tensor
    nearest: Tensor


def improbable(probabilities: Tensor, labels: Tensor, threshold: float = MIN_PROBABILITY) -> Tensor:
    """Which generated images a reference classifier does not take for their class: bool `[N]`.

    probabilities: `[N, K]` in [0, 1]. labels: int `[N]`. Misleads when the reference classifier has the very weakness
    the images were made for: what it rejects may be what is wanted, so look at some of them.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise InvalidInput(
            f"probabilities must be [N, K] for N labels, got {list(probabilities.shape)} and {len(labels)}"
        )
    if len(labels) and not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise InvalidInput("probabilities must lie in [0, 1]: give softmax outputs, not logits")
    if not 0 <= threshold <= 1:
        raise InvalidInput(f"threshold must be in [0, 1], got {threshold}")
    _check_labels(labels, probabilities.shape[1])
    return probabilities.gather(1, labels[:, None])[:, 0] < threshold


def nearest_test_images(generated: Tensor, test: Tensor) -> Neighbours:
    """Cosine distance, in [0, 2], of each embedding `[N, D]` to the nearest of `test` `[M, D]`."""
    if generated.ndim != 2 or test.ndim != 2 or generated.shape[1] != test.shape[1] or len(test) == 0:
        raise InvalidInput(
            f"embeddings must be [N, D] and [M, D] with M > 0, got {list(generated.shape)} and {list(test.shape)}"
        )
    reference = torch.nn.functional.normalize(test.float(), dim=1)
    found = [
        (torch.nn.functional.normalize(part.float(), dim=1) @ reference.T).max(dim=1)
        for part in generated.split(CHUNK)
        if len(part)
    ]
    if not found:
        return Neighbours(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    closeness = torch.cat([best.values for best in found])
    return Neighbours((1 - closeness).clamp(0, 2), torch.cat([best.indices for best in found]))


def refuse_leaks(generated: Tensor, test: Tensor, threshold: float) -> None:
    """Raises InvalidInput when a generated image lies nearer than `threshold` (cosine distance) to a test image."""
    near = nearest_test_images(generated, test)
    leaking = torch.nonzero(near.distance < threshold)[:, 0].tolist()
    if leaking:
        pairs = ", ".join(f"{i} near test {int(near.nearest[i])}" for i in leaking[:5])
        raise InvalidInput(
            f"generated must not repeat test images (distance below {threshold}), got {len(leaking)} that do: {pairs}"
        )


@dataclass(frozen=True)
class MixPlan:
    """real, generated: indices of the images to train on, ascending. counts: class -> (real, generated)."""

    real: NDArray[np.int64]
    generated: NDArray[np.int64]
    counts: Mapping[int, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.real) + len(self.generated)

    def epochs_for_equal_updates(self, real_images: int, epochs: int) -> float:
        """Epochs over this mix that make as many updates as `epochs` over `real_images`: report both, since a larger
        union trained for the same epochs also gets more updates."""
        return epochs * real_images / len(self)


def mix_plan(
    real_labels: Tensor, generated_labels: Tensor, *, real_share: float = 1.0, generated_share: float = 1.0, seed: int
) -> MixPlan:
    """Which images to train on when every class gives a share of its real and of its generated ones.

    real_labels, generated_labels: int `[N]`, `[M]`. Shares in [0, 1]; a larger share holds the smaller one, so that a
    curve over shares adds images only. generated_share = 0 is standard training: nothing but real images, in order.
    """
    for name, share in (("real_share", real_share), ("generated_share", generated_share)):
        if not 0 <= share <= 1:
            raise InvalidInput(f"{name} must be in [0, 1], got {share}")
    classes = real_labels.unique().tolist()
    lacking = sorted(set(classes) - set(generated_labels.tolist()))
    unknown = sorted(set(generated_labels.tolist()) - set(classes))
    if (lacking and generated_share > 0) or unknown:
        raise InvalidInput(
            f"generated_labels must hold every class of real_labels and no other, lacking {lacking}, unknown {unknown}"
        )

    random = SampleRandom(seed, "shift/effective-robustness")
    real, generated = (
        {label: _part(labels, label, share, random.numpy("mix", kind, label)) for label in classes}
        for kind, labels, share in (("real", real_labels, real_share), ("generated", generated_labels, generated_share))
    )
    counts = {label: (len(real[label]), len(generated[label])) for label in classes}
    if not any(a + b for a, b in counts.values()):
        raise InvalidInput("real_share and generated_share must leave images to train on, got none")
    return MixPlan(_joined(real), _joined(generated), counts)


def check_generated(images: Tensor, labels: Tensor, real_images: Tensor) -> None:
    """Refuse generated images of another size, channel count or range than the real ones, or without labels."""
    if images.shape[1:] != real_images.shape[1:] or images.ndim != 4 or len(labels) != len(images):
        raise InvalidInput(
            f"generated images must be [N, {', '.join(map(str, real_images.shape[1:]))}] with N labels,"
            f" got {list(images.shape)} and {len(labels)} labels"
        )
    if len(images) and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise InvalidInput(
            f"generated images must lie in [0, 1], got {float(images.min()):.3g} to {float(images.max()):.3g}"
        )


def _part(labels: Tensor, label: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    own = np.flatnonzero(labels.cpu().numpy() == label)
    return rng.permutation(own)[: round(share * len(own))].astype(np.int64)


def _joined(parts: Mapping[int, NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate(list(parts.values())))


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InvalidInput(f"labels must be in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
