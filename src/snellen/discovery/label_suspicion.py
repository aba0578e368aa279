"""Which training labels are suspicious, by what a network says of them early on, or by where their features lie?

ELR (Liu et al., 2020): a network fits right labels before it learns wrong ones by heart, so a running mean T of its own
probabilities keeps the early answer, and 1 - T[i, y_i] is high where the label disagrees. The term log(1 - <T, p>) in
the loss pulls towards T and so keeps the network from memorising. For a training loop of the user's own: `update` with
each batch's logits before the loss of the same step.

RCAL (Zhang et al., 2023), detection only: in an embedding, each given class is cleaned by the Local Outlier Factor, the
rest gives its Gaussian, and an outlier whose nearest class by Mahalanobis distance is another one has a suspicious
label. Here the Gaussians that judge one half of the images come from the other half.

Misleads: (ELR) where a class is labelled wrong more often than right, the early answer is the wrong one, and hard or
rare images look like wrong labels; (RCAL) an exchange that puts many alike images into one class makes a cluster
of its own, in which no image is an outlier (tested), and classes that are no Gaussians (`gaussianity`) have no such
distance. On the demo network's own features `discovery/label-errors` ranked planted wrong labels better, scattered
ones (AUROC .999 against .995) and exchanged classes (1.000 against .942), so this is no probe.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snellen.discovery._label_gaussians import (
    ClassGaussians,
    Suspects,
    TailCalibration,
    advises_against,
    calibrate_tail,
    class_gaussians,
    class_outliers,
    gaussianity,
    mahalanobis,
    suspected_labels,
)
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions

__all__ = [
    "ClassGaussians",
    "EarlyLearningTargets",
    "ElrLoss",
    "Suspects",
    "TailCalibration",
    "advises_against",
    "calibrate_tail",
    "class_gaussians",
    "class_outliers",
    "elr_loss",
    "elr_term",
    "elr_term_gradient",
    "gaussianity",
    "mahalanobis",
    "suspected_labels",
]

SMALLEST = 1e-4
"""Probabilities are kept in [1e-4, 1 - 1e-4], which keeps the logarithm finite (Liu et al., 2020)."""


class EarlyLearningTargets:
    """The matrix T `[N, C]`, zero at first; 4 N C bytes on `device` (512 MB for 1.28 million images and 100 classes).

    beta: weight of the past in [0, 1); the paper's .7 for 10 classes and .9 for 100. A sample's index in [0, N) must
    stay the same over all epochs.
    """

    def __init__(self, samples: int, classes: int, beta: float = 0.7, device: torch.device | str = "cpu") -> None:
        if samples < 1 or classes < 2:
            raise InvalidInput(f"samples must be at least 1 and classes at least 2, got {samples} and {classes}")
        if not 0 <= beta < 1:
            raise InvalidInput(f"beta must be in [0, 1), got {beta}")
        self.beta = beta
        self.matrix = torch.zeros(samples, classes, device=device)
        self.updates = torch.zeros(samples, dtype=torch.int64, device=device)

    def update(self, index: Tensor, logits: Tensor) -> Tensor:
        """T[i] <- beta T[i] + (1 - beta) p for the batch, before its loss; the new rows `[B, C]`, without gradient.

        index: int64 `[B]`, each sample once. logits: `[B, C]` of the view that is trained on. Raises InvalidInput for
        an index out of range or repeated, and for logits that are not finite.
        """
        samples, classes = self.matrix.shape
        if logits.shape != (len(index), classes) or not bool(torch.isfinite(logits).all()):
            raise InvalidInput(f"logits must be finite [{len(index)}, {classes}], got {list(logits.shape)}")
        if index.dtype != torch.int64 or not bool(((index >= 0) & (index < samples)).all()):
            raise InvalidInput(f"index must be int64 in [0, {samples}), got {index.dtype} {index.tolist()[:5]}")
        if len(index.unique()) != len(index):
            raise InvalidInput("index must name each sample of the batch once, got one repeated")
        p = F.softmax(logits.detach().float(), dim=1).clamp(SMALLEST, 1 - SMALLEST)
        at = index.to(self.matrix.device)
        p = (p / p.sum(dim=1, keepdim=True)).to(self.matrix.device)
        self.matrix[at] = self.beta * self.matrix[at] + (1 - self.beta) * p
        self.updates[at] += 1
        return self.matrix[at].to(logits.device)

    def suspicion(self, labels: Tensor) -> Tensor:
        """1 - T[i, y_i] `[N]` in [0, 1], high for a suspicious label; NaN for samples never seen.

        labels: int64 `[N]`, the given ones. After few updates T sums to 1 - beta^k only, so compare samples that were
        updated equally often.
        """
        samples, classes = self.matrix.shape
        if labels.shape != (samples,) or not bool(((labels >= 0) & (labels < classes)).all()):
            raise InvalidInput(f"labels must be [{samples}] in [0, {classes}), got {list(labels.shape)}")
        given = self.matrix.gather(1, labels.to(self.matrix.device)[:, None]).squeeze(1)
        return (1 - given).where(self.updates > 0, torch.nan)


class ElrLoss(NamedTuple):
    """total = cross_entropy + weight * term, scalars; the term is negative and falls as p aligns with T."""

    total: Tensor
    cross_entropy: Tensor
    term: Tensor


def elr_loss(logits: Tensor, labels: Tensor, targets: Tensor, weight: float = 3.0) -> ElrLoss:
    """The loss of a batch. logits: `[B, C]`. labels: int64 `[B]`. targets: rows of T from `update`.

    weight: lambda, at least 0; the paper's 3 for 10 classes and 7 for 100. 0 is cross-entropy.
    """
    if not weight >= 0:
        raise InvalidInput(f"weight must be at least 0, got {weight}")
    cross_entropy, term = F.cross_entropy(logits, labels), elr_term(logits, targets).mean()
    return ElrLoss(cross_entropy + weight * term, cross_entropy, term)


def elr_term(logits: Tensor, targets: Tensor) -> Tensor:
    """log(1 - <T, p>) `[B]`, of logits and rows of T `[B, C]`."""
    p = F.softmax(logits, dim=1).clamp(SMALLEST, 1 - SMALLEST)
    return torch.log(1 - (targets * p).sum(dim=1))


def elr_term_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of `elr_term` with respect to the logits, `[B, C]`, in closed form and without the clamp."""
    p = F.softmax(logits, dim=1)
    agreement = (targets * p).sum(dim=1, keepdim=True)
    return p * (agreement - targets) / (1 - agreement)


register_functions(
    "discovery/early-learning",
    paper="Liu et al., 2020",
    card="elr",
    access=Access.WEIGHTS,
    data="a training loop of the user's own that knows each sample's index",
    module=__name__,
)
register_functions(
    "discovery/label-gaussians",
    paper="Zhang et al., 2023",
    card=None,  # the claim of card rcal is about training; its detection makes none
    access=Access.FEATURES,
    data="features of images from any encoder, with their given labels",
    module=__name__,
)
