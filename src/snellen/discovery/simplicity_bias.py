"""Does the model use only the easiest feature that tells the classes apart, and ignore all others?

Shah et al. (2020): on data whose features are known (slab coordinates of a known number of pieces, an easy image
stacked above a hard one), a block of features is permuted jointly across the test samples of a trained model, which
breaks its tie to the class and nothing else. AUC near 0.5 says that the model relies on that block alone; an unchanged
AUC that it ignores the block. Permuting everything but the block asks the reverse. `swapped` is the stronger form: the
block comes from a sample of the other class.

`discovery/block-reliance` asks the same of any labelled images. Misleads where blocks depend on each other given the
class: a permuted block then also makes samples that never occur, and the model's answer to the unusual is counted
as reliance. AUC shows an order only; a shifted threshold is invisible to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snellen.discovery._slab_data import SlabData, Slabs, linear_coordinate, slab_coordinate, stacked_images
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.stats import separate

__all__ = [
    "Dependence",
    "SlabData",
    "Slabs",
    "complement",
    "dependence",
    "linear_coordinate",
    "randomised",
    "slab_coordinate",
    "stacked_images",
    "swapped",
]

BATCH = 4096


@dataclass(frozen=True)
class Dependence:
    """AUC of the untouched samples, and mean and standard deviation over permutations of the AUC with the block
    randomised, with all but the block randomised (NaN for a block of everything), and of the accuracy with the block
    of a sample of the other class."""

    clean_auc: float
    randomised_auc: tuple[float, float]
    complement_auc: tuple[float, float]
    swap_accuracy: tuple[float, float]


def randomised(x: Tensor, block: Tensor | Sequence[int], rng: np.random.Generator) -> Tensor:
    """`x` `[n, ...]` with the features of the block permuted jointly across samples.

    block: bool of the shape of one sample (or one that broadcasts to it, such as `[H, W]` for images), or indices of
    columns. The marginals and the joint law inside the block stay exactly as they are.
    """
    order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return torch.where(_mask(x, block), x[order], x)


def swapped(x: Tensor, y: Tensor, block: Tensor | Sequence[int], rng: np.random.Generator) -> Tensor:
    """`x` with the block of a random sample of another class. y: `[n]`."""
    _check_classes(y)
    donors = torch.zeros(len(x), dtype=torch.int64)
    for label in y.unique().tolist():
        others = torch.nonzero(y.cpu() != label).flatten()
        rows = y.cpu() == label
        donors[rows] = others[torch.from_numpy(rng.integers(0, len(others), int(rows.sum())))]
    return torch.where(_mask(x, block), x[donors.to(x.device)], x)


def complement(x: Tensor, block: Tensor | Sequence[int]) -> Tensor:
    """All features but the block, bool `x.shape[1:]`. Raises InvalidInput when nothing is left."""
    rest = ~_mask(x, block)
    if not rest.any():
        raise InvalidInput("the block holds every feature, so that its complement is empty")
    return rest


def dependence(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    block: Tensor | Sequence[int],
    rng: np.random.Generator,
    permutations: int = 10,
    rotation: Tensor | None = None,
) -> Dependence:
    """How far a trained binary model depends on a block of features (Shah et al., 2020); it is not trained again.

    model: samples `[n, ...]` to logits `[n, 2]`, eval mode. x: `[n, ...]`; y: 0 or 1 `[n]`. rotation: orthonormal
    `[d, d]`; the block is then one of the basis `x @ rotation.T`, in which it is permuted before x is rotated back.
    Passes: 3 x permutations + 1 a sample. Raises InvalidInput for one class, an empty block, fewer than 2 permutations
    or a rotation that is not orthonormal.
    """
    _check_classes(y)
    if not set(y.tolist()) <= {0, 1}:
        raise InvalidInput("y must hold the classes 0 and 1")
    if permutations < 2:
        raise InvalidInput(f"permutations must be at least 2, got {permutations}")
    features = x
    if rotation is not None:
        _check_rotation(rotation, x)
        features = x @ rotation.T

    def logits(changed: Tensor) -> Tensor:
        return _logits(model, changed if rotation is None else changed @ rotation)

    def auc(scores: Tensor) -> float:
        return float(separate((scores[:, 1] - scores[:, 0]).numpy(), y.cpu().numpy() == 1).auc)

    mask = _mask(features, block)
    rest = None if mask.all() else ~mask
    alone, others, swap = [], [], []
    for _ in range(permutations):
        alone.append(auc(logits(randomised(features, mask, rng))))
        others.append(float("nan") if rest is None else auc(logits(randomised(features, rest, rng))))
        answers = logits(swapped(features, y, mask, rng)).argmax(dim=1)
        swap.append(float((answers == y.cpu()).double().mean()))
    return Dependence(auc(_logits(model, x)), _spread(alone), _spread(others), _spread(swap))


def _logits(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model(part).cpu() for part in x.split(BATCH)]).double()
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise InvalidInput(f"the model must give logits [n, 2], got {list(logits.shape)}")
    return logits


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _mask(x: Tensor, block: Tensor | Sequence[int]) -> Tensor:
    """The block as bool `x.shape[1:]`."""
    if isinstance(block, Tensor) and block.dtype == torch.bool:
        try:
            mask = block.to(x.device).expand(x.shape[1:])
        except RuntimeError as error:
            raise InvalidInput(
                f"the block must have the shape of one sample {list(x.shape[1:])}, got {list(block.shape)}"
            ) from error
    else:
        columns = [int(column) for column in block]
        if x.ndim != 2 or not all(0 <= column < x.shape[1] for column in columns):
            raise InvalidInput(f"a block of indices needs x [n, d] and columns below d, got {list(x.shape)}, {columns}")
        mask = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        mask[columns] = True
    if not mask.any():
        raise InvalidInput("the block must hold at least one feature, got none")
    return mask


def _check_classes(y: Tensor) -> None:
    if len(y.unique()) < 2:
        raise InvalidInput(f"y must hold two classes, got {len(y.unique())}")


def _check_rotation(rotation: Tensor, x: Tensor) -> None:
    if x.ndim != 2 or rotation.shape != (x.shape[1], x.shape[1]):
        raise InvalidInput(f"rotation must be [d, d] for x [n, d], got {list(rotation.shape)} for {list(x.shape)}")
    if not torch.dist(rotation @ rotation.T, torch.eye(len(rotation), dtype=rotation.dtype)) <= 1e-4:
        raise InvalidInput("rotation must be orthonormal: its product with its transpose is not the identity")


register_functions(
    "discovery/simplicity-bias",
    paper="Shah et al., 2020",
    card="simplicity-bias",
    access=Access.SCORES,
    data="vectors or images with known blocks of features, and their generators",
    module=__name__,
)
