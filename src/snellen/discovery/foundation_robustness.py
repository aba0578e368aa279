"""How much worse is a model on images changed as far as strong other models still see the same class?

Foundation Model-oriented Robustness (Zhang et al., 2024): an image is encoded by a generator, its latent moves uphill
on the model's loss, and it stops where a panel of surrogate oracles no longer gives the label. FMR is the accuracy on
these images (PA) over the accuracy on the originals (SA): 1 for a model that keeps what the oracles keep. The set is
made for the model, so compare models by `cross_matrix`, and with two generators at least.

    decoder = PrincipalDecoder.fit(other_images, 64)
    oracle = nearest_oracle(embedder, other_images, other_labels)
    found = foundation_robustness(model, decoder, OraclePanel([oracle]), images, labels, LatentAscent(rate=0.5))

Misleads (1) with a weak oracle or one that shares the model's weaknesses: look at the images; every network loses much
to an ascent along its own gradient, so a low FMR alone is no fault, only a place in a comparison; (2) as a number by
itself: it depends on budget, step and generator, hence the sizes of change beside it; (3) for a model trained with
images of the same generator, which gains by that; (4) where the generator redraws badly: `reconstruction_accuracy`
says what it cost alone, and `fmr_from_reconstructions` leaves that out; (5) under a majority of three, where the ascent
ends just before the second oracle leaves: the share of oracles that agree (OA) falls to two thirds for any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snellen.discovery._latent_ascent import LatentAscent, Scoring, ascend, decoded, step_direction
from snellen.discovery._latent_generators import (
    ConvAutoencoder,
    LatentGenerator,
    PrincipalDecoder,
    Retoucher,
    train_autoencoder,
)
from snellen.discovery._oracles import Answering, Embedding, OraclePanel, answers, centroid_oracle, nearest_oracle
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import SampleRandom
from snellen.stats import Interval, bootstrap_bca

__all__ = [
    "ConvAutoencoder", "CrossMatrix", "FoundationRobustness", "LatentAscent", "LatentGenerator", "OraclePanel",
    "PrincipalDecoder", "Retoucher", "centroid_oracle", "cross_matrix", "foundation_robustness", "nearest_oracle",
    "step_direction", "train_autoencoder",
]  # fmt: skip

LEAST_KEPT = 0.5
REDRAWN_BADLY = 0.2


@dataclass(frozen=True)
class FoundationRobustness:
    """What a model keeps on images made for it. All of it but the first two lines is over the `rows` judged.

    n: images given. accuracy: on all of them. rows: int64 `[m]`, those whose label the oracles keep on the image and on
    its reconstruction. oracle_wrong, redrawn_wrong: rows left out, for the image and for the reconstruction.
    standard_accuracy (SA), perturbed_accuracy (PA), reconstruction_accuracy: 0 to 1. fmr: PA / SA. interval: 95 %,
    bootstrap over images. oracle_accuracy (OA): mean over images and oracles, on the changed ones. images, originals:
    `[m, C, H, W]`. labels: `[m]`. loss, start_loss: `[m]`, at the return and on the reconstruction. steps, failed_at:
    `[m]`, see `Ascended`. change: L2 length to the original `[m]`, pixels in [0, 1]. change_from_reconstruction: to
    the reconstruction. feature_change: `[m]`, L2 in the embedder's features over their length, None without embedder.
    warning: what the reader must know, None for nothing.
    """

    n: int
    accuracy: float
    rows: Tensor
    oracle_wrong: tuple[int, ...]
    redrawn_wrong: tuple[int, ...]
    standard_accuracy: float
    perturbed_accuracy: float
    reconstruction_accuracy: float
    fmr: float
    interval: Interval
    oracle_accuracy: float
    images: Tensor
    originals: Tensor
    labels: Tensor
    loss: Tensor
    start_loss: Tensor
    steps: Tensor
    failed_at: Tensor
    change: Tensor
    change_from_reconstruction: Tensor
    feature_change: Tensor | None
    warning: str | None

    @property
    def fmr_from_reconstructions(self) -> float:
        """PA over the accuracy on the reconstructions; NaN where that is 0."""
        return self.perturbed_accuracy / self.reconstruction_accuracy if self.reconstruction_accuracy else float("nan")


def foundation_robustness(
    model: Scoring,
    generator: LatentGenerator,
    panel: OraclePanel,
    images: Tensor,
    labels: Tensor,
    settings: LatentAscent | None = None,
    *,
    ids: Sequence[str] | None = None,
    embedder: Embedding | None = None,
    seed: int = 0,
) -> FoundationRobustness:
    """FMR of a model, with the images made for it.

    model: images `[B, C, H, W]` to logits `[B, K]`, in evaluation mode, with gradients unless the search is random.
    images: float32 in [0, 1]; labels: int64 `[n]`. ids: seeds of the random search, by default the position. The same
    seed gives the same images. Raises InvalidInput where the model is among the oracles, the oracles keep less than
    half of the labels, the model is right on no judged image, or the decoder leaves [0, 1].
    """
    settings = settings or LatentAscent()
    names = [str(row) for row in range(len(images))] if ids is None else list(ids)
    _check(model, panel, images, labels, names)
    right = answers(model, images) == labels

    kept = panel.keeps(images, labels)
    if float(kept.float().mean()) < LEAST_KEPT:
        raise InvalidInput(
            f"oracles must keep the label of half of the images, these keep {int(kept.sum())} of {len(kept)}"
        )
    with torch.no_grad():
        redrawn = [decoded(generator, generator.encode(x), x) for x in images.split(settings.batch)]
    reconstructions = torch.cat(redrawn)
    also = kept & panel.keeps(reconstructions, labels)
    rows = also.nonzero()[:, 0]
    if not bool(right[rows].any()):
        raise InvalidInput(f"the model must be right on some of the {len(rows)} judged images, it is on none")

    x, y = images[rows], labels[rows]
    found = ascend(model, generator, panel, x, y, [names[row] for row in rows.tolist()], settings, seed)
    before, after = right[rows], answers(model, found.images) == y
    from_redrawn = answers(model, reconstructions[rows]) == y
    flipped = int((before & ~from_redrawn).sum())
    pairs = torch.stack([after, before], dim=1).double().cpu().numpy()
    return FoundationRobustness(
        n=len(images),
        accuracy=_share(right),
        rows=rows,
        oracle_wrong=tuple((~kept).nonzero()[:, 0].tolist()),
        redrawn_wrong=tuple((kept & ~also).nonzero()[:, 0].tolist()),
        standard_accuracy=_share(before),
        perturbed_accuracy=_share(after),
        reconstruction_accuracy=_share(from_redrawn),
        fmr=_ratio(pairs),
        interval=bootstrap_bca(pairs, _ratio, SampleRandom(seed, "foundation-robustness").numpy()),
        oracle_accuracy=_share(panel.share(found.images, y)),
        images=found.images,
        originals=x,
        labels=y,
        loss=found.loss,
        start_loss=found.start_loss,
        steps=found.steps,
        failed_at=found.failed_at,
        change=_length(found.images - x),
        change_from_reconstruction=_length(found.images - reconstructions[rows]),
        feature_change=None if embedder is None else _feature_change(embedder, found.images, x),
        warning=f"the generator alone turns {flipped} of {int(before.sum())} right answers wrong, so that FMR measures"
        " it as well; read fmr_from_reconstructions"
        if flipped > REDRAWN_BADLY * int(before.sum())
        else None,
    )


@dataclass(frozen=True)
class CrossMatrix:
    """fmr: float64 `[models, sets]`, accuracy of each model on the images made for each (its column) over its accuracy
    on their originals. ranking: names of the models, the highest mean over the sets first."""

    names: tuple[str, ...]
    sets: tuple[str, ...]
    fmr: NDArray[np.float64]

    @property
    def ranking(self) -> tuple[str, ...]:
        order = np.argsort(-self.fmr.mean(axis=1), kind="stable")
        return tuple(self.names[place] for place in order.tolist())


def cross_matrix(models: Mapping[str, Answering], made_for: Mapping[str, FoundationRobustness]) -> CrossMatrix:
    """Every model on the images that were made for every model: one's own set is the hardest, so compare by rows.

    Raises InvalidInput for a model that is right on no original of a set.
    """
    if not models or not made_for:
        raise InvalidInput(f"a cross matrix needs models and sets, got {len(models)} and {len(made_for)}")
    table = []
    for name, model in models.items():
        row = []
        for of, found in made_for.items():
            right = _share(answers(model, found.originals) == found.labels)
            if right == 0:
                raise InvalidInput(f"the model {name!r} must be right on some original of the set {of!r}")
            row.append(_share(answers(model, found.images) == found.labels) / right)
        table.append(row)
    return CrossMatrix(tuple(models), tuple(made_for), np.array(table))


def _check(model: Scoring, panel: OraclePanel, images: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    if images.ndim != 4 or len(images) < 2 or labels.shape != (len(images),) or len(names) != len(images):
        raise InvalidInput(
            f"images must be two or more [n, C, H, W] with a label and an id each, got {list(images.shape)},"
            f" {list(labels.shape)} and {len(names)}"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InvalidInput("images must be finite and in [0, 1], got others")
    if any(oracle is model for oracle in panel.oracles):
        raise InvalidInput("the model under test must not be among its own oracles")


def _ratio(pairs: NDArray[np.generic]) -> float:
    after, before = np.asarray(pairs, dtype=np.float64).mean(axis=0)
    return float(after / before) if before > 0 else float("nan")


def _share(values: Tensor) -> float:
    return float(values.double().mean())


def _length(difference: Tensor) -> Tensor:
    length: Tensor = difference.flatten(1).norm(dim=1)
    return length


def _feature_change(embedder: Embedding, images: Tensor, originals: Tensor) -> Tensor:
    with torch.no_grad():
        after, before = embedder(images).flatten(1), embedder(originals).flatten(1)
    return _length(after - before) / _length(before).clamp_min(1e-12)


register_functions(
    "discovery/foundation-robustness",
    paper="Zhang et al., 2024",
    card="foundation-oriented-robustness",
    access=Access.GRADIENTS,
    data="images and labels, with a generator and surrogate oracles",
    module=__name__,
)
