"""Models that add one score a modality: their form, their normalised heads and the margin loss (CRMT, 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.shift._multimodal import Inputs, check_inputs, check_logits


@dataclass(frozen=True, eq=False)
class AdditiveModel:
    """h_k = sum_m a_k^m <W_k^m, phi_m(x_m)> + b_k, itself a callable on a dict of inputs.

    encoders: x_m -> `[B, d_m]`. heads: W^m `[K, d_m]` as used (normalised by the caller where wanted). scales: a^m
    `[K]`. bias: `[K]`. A linear layer on concatenated features is this form with all scales 1.
    """

    encoders: Mapping[str, Callable[[Tensor], Tensor]]
    heads: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    bias: Tensor

    def __post_init__(self) -> None:
        names = set(self.encoders)
        if len(names) < 2 or names != set(self.heads) or names != set(self.scales):
            given = f"{list(self.encoders)}, {list(self.heads)} and {list(self.scales)}"
            raise InvalidInput(f"encoders, heads and scales must have the same two or more modalities, got {given}")

    def scores(self, inputs: Inputs) -> dict[str, Tensor]:
        """s^m `[B, K]` of every modality."""
        check_inputs(inputs, tuple(self.encoders))
        return {name: encoder(inputs[name]) @ self.heads[name].T for name, encoder in self.encoders.items()}

    def __call__(self, inputs: Inputs) -> Tensor:
        return torch.stack([self.scales[name] * s for name, s in self.scores(inputs).items()]).sum(0) + self.bias


class Lipschitz(NamedTuple):
    """tau: s_k^m changes by at most tau_k^m `[K]` per unit of L2 in x_m. sound: proven, not the largest one seen."""

    tau: Mapping[str, Tensor]
    sound: bool


def normalise_head(weight: Tensor, mode: Literal["row", "full"] = "row") -> Tensor:
    """The paper's head `[K, d]`: rows centred, then of unit length (its code) or orthonormal (full, needs K < d)."""
    exact = weight.double()  # a nearly equal row is little but the rounding of its mean
    centred = exact - exact.mean(1, keepdim=True)
    if mode == "row":
        length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        if bool((length <= 1e-6 * torch.linalg.vector_norm(exact, dim=1, keepdim=True)).any()):
            raise InvalidInput("weight must have no row of equal entries: it has no direction once it is centred")
        return centred.div(length).to(weight)

    # Centred rows lie in d - 1 dimensions. No gradient where eigenvalues coincide.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    if len(weight) >= weight.shape[1] or bool(values[0] <= 1e-10 * values[-1]):
        raise InvalidInput(f"weight must have K < d and independent centred rows for mode full, got {[*weight.shape]}")
    orthonormal: Tensor = vectors / values.sqrt() @ vectors.T @ centred
    return orthonormal.to(weight)


def margin_loss(scores: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Mean over samples of log(sum over m and k != y of exp(s_k^m - s_y^m) + 1e-5): a smooth largest violation.

    scores: s^m `[B, K]`. Training adds rho = 2 times it to the cross-entropy. Stable for scores of any size.
    """
    parts = []
    for s in scores.values():
        check_logits(s, labels)
        gaps = s - s.gather(1, labels[:, None])
        parts.append(gaps.scatter(1, labels[:, None], -torch.inf))
    floor = torch.full_like(parts[0][:, :1], 1e-5).log()
    return torch.cat([*parts, floor], dim=1).logsumexp(1).mean()
