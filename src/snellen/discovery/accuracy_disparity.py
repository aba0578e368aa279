"""If a model is made robust, which classes pay, and how much of the new gap comes from imbalance, not robustness?

Hu et al. (2023): robust training has an inherent part, standard accuracy lost by all classes, seen where the
training classes are equally frequent, and an imbalance part, a wider gap between frequent and rare classes. For linear
rules on Gaussian (or stable) classes both have a closed form: robustness shrinks the margin D, and the prior moves the
offset by sigma^2 ln(R) / (2 D), so the gap is one of the offset. Whether per-class biases undo it can be tried, on data
not used to choose them.

`snellen compare` pairs two stored runs, class by class; here are two models as callables, the gap between classes, its
rise, and the attempt to undo it. Misleads as a statement about robust training in general: a pair of models is one
draw of training, and every interval here is about the test images only; repeat over seeds. A gap that biases undo
is one of thresholds; one that stays lies in the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from snellen.discovery._disparity_audit import (
    Decomposition,
    Disparity,
    Estimate,
    Labels,
    Payment,
    decompose,
    disparity,
    who_paid,
)
from snellen.discovery._disparity_theory import ClassAccuracies, LinearRule, Mixture, accuracies, best_rule
from snellen.discovery._disparity_training import imbalanced_rows, one_step, train_linear
from snellen.discovery.slices import halves
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import register_functions
from snellen.randomness import SampleRandom

__all__ = [
    "ClassAccuracies",
    "Decomposition",
    "Disparity",
    "Estimate",
    "LinearRule",
    "Mixture",
    "Payment",
    "Undone",
    "accuracies",
    "best_rule",
    "class_biases",
    "decompose",
    "disparity",
    "imbalanced_rows",
    "one_step",
    "scores_of",
    "train_linear",
    "undo_gap",
    "who_paid",
]

BATCH = 256
RIDGE = 1e-4
"""Keeps the biases finite where a class is missing or separated without an error."""

Floats = NDArray[np.float64]


class Undone(NamedTuple):
    """On images not used to choose the biases. plain: standard to robust. recalibrated: standard to robust with
    biases. effect: robust to robust with biases; a `rise` below 0 is gap undone, and `lost` its price in accuracy.

    biases: `[K]`, added to the robust model's logits."""

    biases: Floats
    plain: Disparity
    recalibrated: Disparity
    effect: Disparity


def scores_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Floats:
    """Logits `[n, K]` of `images` `[n, ...]`. Raises InvalidInput for pixels or logits that are not finite."""
    if not bool(torch.isfinite(images).all()):
        raise InvalidInput("images must be finite, got NaN or infinite pixels")
    with torch.no_grad():
        scores = torch.cat([model(part).detach().cpu() for part in images.split(BATCH)]).double().numpy()
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise InvalidInput(f"the model must give finite logits [n, K], got shape {list(scores.shape)}")
    return scores


def class_biases(scores: Floats, labels: Labels) -> Floats:
    """Biases `[K]` to add to the logits `[n, K]`, of mean 0, under which all classes weigh alike.

    They minimise the cross-entropy with every class weighted equally, over the biases and one scale of the logits,
    which is convex; the scale keeps over-confident logits from hiding the gap and does not change an answer.
    """
    weight = 1 / np.bincount(labels, minlength=scores.shape[1])[labels]
    weight = weight / weight.sum()
    truth = np.eye(scores.shape[1])[labels]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logs = log_softmax(parameters[0] * scores + parameters[1:], axis=1)
        error = weight[:, None] * (np.exp(logs) - truth)
        slope = np.concatenate([[(error * scores).sum()], error.sum(axis=0)])
        value = -float((weight[:, None] * truth * logs).sum()) + RIDGE * float(parameters @ parameters)
        return value, slope + 2 * RIDGE * parameters

    start = np.concatenate([[1.0], np.zeros(scores.shape[1])])
    bounds = [(1e-6, None)] + [(None, None)] * scores.shape[1]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    biases = found[1:] / found[0]
    return np.asarray(biases - biases.mean())


def undo_gap(
    ids: Sequence[str],
    labels: Labels,
    standard: Floats,
    robust: Floats,
    minority: int,
    seed: int = 0,
    majority: int | None = None,
) -> Undone:
    """Whether per-class biases undo what robust training did to the gap: chosen on one half, judged on the other.

    ids: of the images, whose hashes make the halves. standard, robust: logits `[n, K]` of the two models. Raises
    InvalidInput where a side of the gap has fewer than 10 images in the second half.
    """
    if not len(ids) == len(labels) == len(standard) == len(robust):
        raise InvalidInput(f"ids, labels and scores must agree in length, got {len(ids)}, {len(labels)}, {len(robust)}")
    random = SampleRandom(seed, "discovery/accuracy-disparity")
    chosen = halves(list(ids), labels, random)
    biases = class_biases(robust[chosen], labels[chosen])
    judged, rng = ~chosen, random.numpy("judged")
    first, second = standard[judged].argmax(axis=1), robust[judged].argmax(axis=1)
    third = (robust[judged] + biases).argmax(axis=1)
    pairs = ((first, second), (first, third), (second, third))
    found = [disparity(labels[judged], a, b, minority, rng, majority) for a, b in pairs]
    return Undone(biases, *found)


register_functions(
    "discovery/accuracy-disparity",
    paper="Hu et al., 2023",
    card="accuracy-disparity",
    access=Access.LABELS,
    data="two models as callables and one labelled data set, or a mixture of two Gaussian or stable classes",
    module=__name__,
)
