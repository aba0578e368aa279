"""Rules against concepts, a head trained to obey them, and the proof that it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from snellen.discovery._concept_logic import LinearHead, LogicHead
from snellen.errors import InvalidInput
from snellen.randomness import torch_generator
from snellen.stats import separate

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
LEAST_OBEDIENCE = 0.01
BATCH = 64

Head = LinearHead | LogicHead


def forbidden(rules: Iterable[str], classes: Sequence[str], concepts: Sequence[str]) -> Tensor:
    """Bool `[classes, K]` of rules such as "ruler must not imply melanoma" or "forall x: ruler(x) must not imply ...".

    With two classes a concept forbidden to one is of no use to the other either: their log-probabilities go together.
    """
    mask = torch.zeros(len(classes), len(concepts), dtype=torch.bool)
    for rule in rules:
        read = re.fullmatch(r"(?:forall x:\s*)?(.+?)(?:\(x\))? must not imply (.+?)(?:\(x\))?", rule.strip())
        if read is None:
            raise InvalidInput(f"rule {rule!r} must read CONCEPT must not imply CLASS")
        concept, named = read.groups()
        if concept not in concepts:
            raise InvalidInput(f"rule {rule!r} names no concept; the concepts are {', '.join(concepts)}")
        if named not in classes:
            raise InvalidInput(f"rule {rule!r} names no class; the classes are {', '.join(classes)}")
        mask[classes.index(named), concepts.index(concept)] = True
    for row, name in zip(mask, classes, strict=True):
        if row.all():
            raise InvalidInput(f"the rules forbid every concept of class {name!r}; leave it at least one")
    return mask


def influence(head: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """Mean squared derivative of each class's log-probability by each concept, `[classes, K]`.

    scores: `[N, K]`, in the units the head was trained on.
    """
    scores = scores.detach().requires_grad_()
    with torch.enable_grad():
        logs = F.log_softmax(head(scores), dim=1).sum(dim=0)
        by_class = [torch.autograd.grad(log, scores, retain_graph=True)[0].square().mean(dim=0) for log in logs]
    return torch.stack(by_class)


def _penalty(head: Head, scores: Tensor, mask: Tensor) -> Tensor:
    """Sum over forbidden pairs of the same, with a graph (Ross et al., 2017, on concepts)."""
    scores = scores.detach().requires_grad_()
    logs = F.log_softmax(head(scores), dim=1).sum(dim=0)
    total = scores.new_zeros(())
    for row in torch.nonzero(mask.any(dim=1)).flatten().tolist():
        (gradient,) = torch.autograd.grad(logs[row], scores, create_graph=True)
        total = total + gradient.square().mean(dim=0)[mask[row]].sum()
    return total


def train_head(
    head: Head,
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    strength: float = 0.0,
    regularisation: float = 1e-4,
    epochs: int = 60,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Head:
    """Trains the head in place on concept scores `[N, K]` and labels int64 `[N]`, by Adam with a cosine decay.

    mask: from `forbidden`. strength: of the penalty on forbidden influence; 0 trains as if there were no rule. The
    learning rate is ten times the paper's, for few images make few steps; its decay lets the penalty settle near zero.
    """
    if strength < 0 or scores.ndim != 2 or len(scores) != len(labels) or len(scores) == 0:
        raise InvalidInput(
            f"scores [N, K] and labels [N] need one length above 0 and strength at least 0, got {list(scores.shape)},"
            f" {list(labels.shape)} and {strength}"
        )
    steps = epochs * -(-len(scores) // BATCH)
    optimiser = torch.optim.Adam(head.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch_generator("train-head", seed)
    for _ in range(epochs):
        for at in torch.randperm(len(scores), generator=generator).split(BATCH):
            loss = F.cross_entropy(head(scores[at]), labels[at]) + regularisation * head.regulariser()
            if mask is not None and strength > 0:
                loss = loss + strength * _penalty(head, scores[at], mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return head


class Rewritten(NamedTuple):
    """strength: the smallest that obeys. before, after: influence `[classes, K]` without the rules and with them.
    forbidden_share: of the whole influence, the forbidden pairs' part, afterwards."""

    head: Head
    strength: float
    before: Tensor
    after: Tensor
    forbidden_share: float


def rewrite(make_head: Callable[[], Head], scores: Tensor, labels: Tensor, mask: Tensor, seed: int = 0) -> Rewritten:
    """A head that obeys: the smallest strength of 1 to 1000 at which forbidden influence is under 1 % of the whole.

    make_head: a fresh head, each time the same. Where none obeys, the strongest is returned: look at
    `forbidden_share`.
    """
    plain = train_head(make_head(), scores, labels, seed=seed)
    before = influence(plain, scores)
    for strength in STRENGTHS:
        head = train_head(make_head(), scores, labels, mask, strength, seed=seed)
        after = influence(head, scores)
        share = float(after[mask].sum() / after.sum().clamp_min(1e-30))
        if share < LEAST_OBEDIENCE:
            break
    return Rewritten(head, strength, before, after, share)


def residual_leak(outputs: Tensor, present: Tensor, rng: np.random.Generator) -> float:
    """Area under the ROC with which a linear probe tells a confounder from the head's outputs; 0.5 is chance.

    outputs: `[N, classes]`; present: bool `[N]`. Fitted on a random half, measured on the other. Only means a leak on
    images where the confounder does not go together with the class.
    """
    first = rng.permutation(len(outputs)) % 2 == 0
    x, y = outputs.detach().double().numpy(), present.numpy()
    if min(y[first].sum(), (~y[first]).sum(), y[~first].sum(), (~y[~first]).sum()) < 2:
        raise InvalidInput(f"present needs at least a few of both kinds, got {int(y.sum())} of {len(y)}")
    x = (x - x[first].mean(axis=0)) / np.maximum(x[first].std(axis=0), 1e-12)
    probe = LogisticRegression(max_iter=1000).fit(x[first], y[first])
    return float(separate(probe.decision_function(x[~first]), y[~first]).auc)
