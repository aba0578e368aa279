"""Concepts as directions in feature space: found from exemplars, read as scores, and taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from snellen.errors import InvalidInput

FEWEST_EXEMPLARS = 10
LEAST_ACCURACY = 0.7
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class ConceptBank:
    """names: of K concepts. vectors: `[K, D]`. accuracies: `[K]`, of each concept's SVM on exemplars held out."""

    names: tuple[str, ...]
    vectors: Tensor
    accuracies: tuple[float, ...]

    def scores(self, features: Tensor) -> Tensor:
        """Concept scores `[N, K]` of features `[N, D]`: the projection on each vector, 1 for the vector itself."""
        if features.ndim != 2 or features.shape[1] != self.vectors.shape[1]:
            raise InvalidInput(f"features must be [N, {self.vectors.shape[1]}], got {list(features.shape)}")
        return features @ self.vectors.T / self.vectors.square().sum(dim=1)

    def index(self, name: str) -> int:
        if name not in self.names:
            raise InvalidInput(f"there is no concept {name!r}; the concepts are {', '.join(self.names)}")
        return self.names.index(name)


def fit_concept_bank(exemplars: Mapping[str, tuple[Tensor, Tensor]], seed: int = 0) -> ConceptBank:
    """One linear SVM a concept on pooled features; its unit normal is the concept (Yuksekgonul et al., 2023).

    exemplars: name -> features `[P, D]` of images with the concept and `[Q, D]` without it, 10 or more each; about 50
    are advised. A third is held out for the accuracy, the SVM's C is chosen on the rest by three folds. Raises
    `InvalidInput` for too few exemplars and for a concept not told apart in more than 70 % of those held out.
    """
    if not exemplars:
        raise InvalidInput("exemplars must name at least one concept, got none")
    vectors, accuracies = [], []
    for name, (present, absent) in exemplars.items():
        if min(len(present), len(absent)) < FEWEST_EXEMPLARS:
            raise InvalidInput(
                f"concept {name!r} needs at least {FEWEST_EXEMPLARS} exemplars with and without it,"
                f" got {len(present)} and {len(absent)}"
            )
        x = torch.cat([present, absent]).double().numpy()
        y = np.arange(len(x)) < len(present)
        x_fit, x_held, y_fit, y_held = train_test_split(x, y, test_size=1 / 3, stratify=y, random_state=seed)
        # Without scaling, C would mean another thing for every network.
        machine = make_pipeline(StandardScaler(), LinearSVC(dual=False, class_weight="balanced"))
        search = GridSearchCV(machine, {"linearsvc__C": STRENGTHS}, cv=3).fit(x_fit, y_fit)
        predicted = search.predict(x_held)
        accuracy = float(np.mean([(predicted == y_held)[y_held == side].mean() for side in (False, True)]))
        if accuracy <= LEAST_ACCURACY:
            raise InvalidInput(
                f"concept {name!r} is told apart in {accuracy:.0%} of the exemplars held out, which must be more than"
                f" {LEAST_ACCURACY:.0%}; give more or clearer exemplars, or leave it out"
            )
        scaler, svm = search.best_estimator_
        normal = torch.from_numpy(svm.coef_[0] / scaler.scale_)
        vectors.append((normal / normal.norm()).float())
        accuracies.append(accuracy)
    return ConceptBank(tuple(exemplars), torch.stack(vectors), tuple(accuracies))


def erasing_matrix(features: Tensor, present: Tensor) -> Tensor:
    """The rank-one `A` `[D, D]` for which `x - A (x - mean)` holds nothing linear of a concept and changes x least.

    LEACE (Belrose et al., 2023) for a concept that is there or not. features: `[N, D]`; present: bool `[N]`.
    """
    if present.dtype != torch.bool or present.shape != features.shape[:1] or present.all() or not present.any():
        raise InvalidInput(f"present must be bool [{len(features)}] with both values, got {present.dtype}")
    x = features.double() - features.double().mean(dim=0)
    z = present.double() - present.double().mean()
    sigma, together = x.T @ x / len(x), x.T @ z / len(x)
    whitened = torch.linalg.pinv(sigma, rtol=1e-9, hermitian=True) @ together
    matrix: Tensor = torch.outer(together, whitened) / (together @ whitened).clamp_min(1e-300)
    return matrix.float()


def drop_concept(bank: ConceptBank, name: str, eraser: Tensor | None = None) -> ConceptBank:
    """The bank without a concept, its direction taken out of every other vector.

    Afterwards moving features along the concept changes no score, but the others may still tell it: a normal says how
    to separate the concept, not where it moves the features. eraser: from `erasing_matrix`, takes that out too; in
    our replication it stopped the leak and the normal alone did not. Raises `InvalidInput` where a concept has no
    direction of its own left.
    """
    at = bank.index(name)
    others = [k for k in range(len(bank.names)) if k != at]
    if not others:
        raise InvalidInput(f"concept {name!r} is the only one; a head needs at least one other")
    kept, v = bank.vectors[others], bank.vectors[at]
    vectors = kept - torch.outer(kept @ v / (v @ v), v) if eraser is None else kept - kept @ eraser
    for k, before, after in zip(others, kept.norm(dim=1).tolist(), vectors.norm(dim=1).tolist(), strict=True):
        if after < 1e-4 * before:
            raise InvalidInput(f"concept {bank.names[k]!r} has no direction besides {name!r}; leave it out too")
    return ConceptBank(tuple(bank.names[k] for k in others), vectors, tuple(bank.accuracies[k] for k in others))
