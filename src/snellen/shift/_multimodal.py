"""What methods for models with several inputs share: failures, scores, the additive form, an attack.

A model with several inputs is any callable on a dict of tensors, name -> `[B, ...]` with one batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.stats import bias_corrected_interval

Inputs: TypeAlias = Mapping[str, Tensor]
MultiModel: TypeAlias = Callable[[dict[str, Tensor]], Tensor]
Failed: TypeAlias = tuple[str, ...]
"""The inputs that failed, in the order of all inputs."""

Fill = Literal["zero", "mean", "last"]
"""What a failed input delivers: zeros, its mean, or the sample before (the data being in order of time)."""

TINY = 1e-12
"""Floor of a norm that is divided by; a zero gradient then moves nothing."""
MIN_SAMPLES = 20
"""Below this a bootstrap interval is not given."""
RESAMPLES = 2000


class Condition(NamedTuple):
    """scenario: what happened, as "clean" or "missing". failed: to which inputs, in the order of all inputs."""

    scenario: str
    failed: Failed


CLEAN = Condition("clean", ())


def place(condition: Condition, conditions: Sequence[Condition]) -> int:
    """Where a table has the condition; the error names the scenarios that it has."""
    if condition not in conditions:
        scenarios = list(dict.fromkeys(known.scenario for known in conditions))
        raise InvalidInput(f"condition must be one of the table's (scenarios {scenarios}), got {condition}")
    return conditions.index(condition)


class Score(NamedTuple):
    """A value with its 95 % interval over n samples; the bounds are None where n is too small for one."""

    value: float
    low: float | None
    high: float | None
    n: int


def bootstrap_score(
    counts: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    rng: np.random.Generator,
) -> Score:
    """A statistic of summed counts, with the bias-corrected bootstrap interval over samples (Efron, 1987).

    counts: `[n, ...]`, a row a sample. statistic: sums `[..., *counts.shape[1:]]` -> values `[...]`, for all resamples
    at once.
    """
    n = len(counts)
    value = float(statistic(counts.sum(0)))
    if n < MIN_SAMPLES:
        return Score(value, None, None, n)
    times = rng.multinomial(n, [1 / n] * n, RESAMPLES).astype(np.float64)
    sums = (times @ counts.reshape(n, -1)).reshape(RESAMPLES, *counts.shape[1:])
    low, high = bias_corrected_interval(value, statistic(sums))
    return Score(value, low, high, n)


def check_inputs(inputs: Inputs, names: Sequence[str] | None = None) -> int:
    """The batch size. Refuses fewer than two inputs, other names than `names`, batches that differ and no floats."""
    if len(inputs) < 2:
        raise InvalidInput(f"inputs must hold two modalities or more, got {list(inputs)}")
    if names is not None and set(inputs) != set(names):
        raise InvalidInput(f"inputs must have the same modalities in every batch, {list(names)}, got {list(inputs)}")
    sizes = {name: list(tensor.shape) for name, tensor in inputs.items()}
    if not all(tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() for tensor in inputs.values()):
        raise InvalidInput(f"inputs must be float tensors [B, ...] that are not empty, got shapes {sizes}")
    if len({shape[0] for shape in sizes.values()}) > 1:
        raise InvalidInput(f"inputs must have one batch size, got shapes {sizes}")
    return len(next(iter(inputs.values())))


def failure_subsets(names: Sequence[str]) -> list[Failed]:
    """All 2^N sets of failed inputs, the smallest first: from none to all."""
    return [failed for size in range(len(names) + 1) for failed in combinations(names, size)]


def with_failed(inputs: Inputs, damaged: Inputs, failed: Failed) -> dict[str, Tensor]:
    """`inputs` with the failed ones taken from `damaged`; copies, so that a model may work in place."""
    return {name: (damaged[name] if name in failed else tensor).clone() for name, tensor in inputs.items()}


def fill_frames(
    inputs: Inputs, fill: Fill, means: Mapping[str, Sequence[float]], previous: Inputs
) -> dict[str, Tensor]:
    """What each input delivers once it has failed, in the shapes of `inputs`.

    means: for "mean", a value a channel. previous: for "last", the sample `[1, ...]` before this batch; empty at the
    start, where nothing has come yet and zeros stand in.
    """
    if fill == "last":
        first = previous or {name: torch.zeros_like(frames[:1]) for name, frames in inputs.items()}
        return {name: torch.cat([first[name], frames[:-1]]) for name, frames in inputs.items()}
    if fill == "zero":
        return {name: torch.zeros_like(frames) for name, frames in inputs.items()}
    channels = {name: frames.shape[1] for name, frames in inputs.items()}
    if {name: len(values) for name, values in means.items()} != channels:
        raise InvalidInput(f"means must give one value a channel for {channels}, got {dict(means)}")
    return {
        name: frames.new_tensor(means[name]).view(1, -1, *[1] * (frames.ndim - 2)).expand_as(frames)
        for name, frames in inputs.items()
    }


def failure_weights(names: Sequence[str], p: float | Mapping[str, float]) -> dict[Failed, float]:
    """Probability of every proper subset of failed inputs when input m fails with probability p_m on its own.

    p: one number for all, or one a name, in [0, 1). The weights sum to 1 - prod p_m, since the case that all fail is
    left out (Liao et al., 2025).
    """
    chances = dict(p) if isinstance(p, Mapping) else dict.fromkeys(names, p)
    if set(chances) != set(names) or not all(0 <= chance < 1 for chance in chances.values()):
        raise InvalidInput(f"p must be in [0, 1) for each of {list(names)}, got {p!r}")
    return {
        failed: math.prod(chances[name] if name in failed else 1 - chances[name] for name in names)
        for failed in failure_subsets(names)[:-1]
    }


def shapley_weights(names: Sequence[str], name: str) -> dict[Failed, float]:
    """The Shapley value of input `name` as a weighted sum of the scores of all 2^N subsets (Shapley, 1953)."""
    weights = {}
    for failed in failure_subsets(names):
        others = len(names) - len(failed) - (name not in failed)  # present ones besides `name`
        share = 1 / (len(names) * math.comb(len(names) - 1, others))
        weights[failed] = -share if name in failed else share
    return weights


def input_gradients(model: MultiModel, inputs: Inputs, labels: Tensor, wanted: Sequence[str]) -> list[Tensor]:
    """Gradients of each sample's cross-entropy with respect to the inputs `wanted`; nothing else is written to."""
    # All inputs ask for a gradient, or a frozen model that ignores the wanted one would look undifferentiable.
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    with torch.enable_grad():
        logits = model(leaves)
        check_logits(logits, labels)
        if not logits.requires_grad:
            raise InvalidInput("model gives no gradients (its logits are cut off from the inputs); use one that does")
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sources = [leaves[name] for name in wanted]
        return list(torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True))


def l2_attack(
    model: MultiModel,
    inputs: Inputs,
    labels: Tensor,
    attacked: Sequence[str],
    eps: float,
    steps: int = 4,
    step: float = 1 / 3,
    boxes: Mapping[str, tuple[float, float]] | None = None,
    first: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Ascent of the cross-entropy in the joint L2 ball over the `attacked` inputs; the others stay clean.

    eps: radius of the ball, in input units, per sample. step: length of a step as a share of eps. One step of length
    one is the fast gradient method. boxes: closed range of an input, where it has one. first: the `input_gradients` at
    `inputs`, where they are known. Returns all inputs, the attacked ones moved. A saturated model has no gradient and
    then looks robust.
    """
    clean = {name: inputs[name].detach() for name in attacked}
    points = {**inputs}
    for taken in range(steps):
        known = first if taken == 0 else None
        gradients = known if known is not None else input_gradients(model, points, labels, attacked)
        length = _joint_norm(gradients).clamp(min=TINY)
        changes = [
            points[name] + _per_sample(step * eps / length, gradient) * gradient - clean[name]
            for name, gradient in zip(attacked, gradients, strict=True)
        ]
        shrink = (eps / _joint_norm(changes).clamp(min=TINY)).clamp(max=1)
        for name, change in zip(attacked, changes, strict=True):
            low, high = (boxes or {}).get(name, (-math.inf, math.inf))
            # Ball first, then box: cutting at the box only shortens a change of a point that lies in it.
            points[name] = (clean[name] + _per_sample(shrink, change) * change).clamp(low, high)
    return points


def check_boxes(inputs: Inputs, boxes: Mapping[str, tuple[float, float]]) -> None:
    for name, (low, high) in boxes.items():
        if name not in inputs:
            raise InvalidInput(f"boxes must name modalities among {list(inputs)}, got {name!r}")
        lowest, highest = (float(value) for value in inputs[name].aminmax())
        if not (low <= lowest and highest <= high):
            raise InvalidInput(f"{name} must lie in its box [{low:g}, {high:g}], got {lowest:.4g} to {highest:.4g}")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse labels and logits that do not fit each other."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise InvalidInput(f"labels must be int64 [B], got {labels.dtype} {list(labels.shape)}")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InvalidInput(f"model must return logits [{len(labels)}, K], got {list(logits.shape)}")
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise InvalidInput(f"labels must be in 0..{logits.shape[1] - 1}, got values from {low} to {high}")


def _joint_norm(parts: Sequence[Tensor]) -> Tensor:
    """L2 norm `[B]` over all parts `[B, ...]` together."""
    flat = torch.cat([part.flatten(1) for part in parts], dim=1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
