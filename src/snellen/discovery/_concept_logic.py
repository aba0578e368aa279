"""Heads that answer by concepts alone, and the rules that can be read from them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput

TEMPERATURE = 0.6
MOST_IN_A_RULE = 10
"""Concepts that the simplifier can handle: its cost doubles, and more, with each."""

Term = tuple[bool | None, ...]
"""One conjunction: for each concept whether it must be there, must not, or does not matter."""


class EntropyLinear(nn.Module):
    """A linear layer for each class behind its attention over the concepts (Barbiero et al., 2022).

    Concepts `[N, K]` to `[N, classes, hidden]`. Attention alpha is a softmax of the L1 norms of a concept's weights.
    """

    def __init__(self, concepts: int, hidden: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = concepts**-0.5
        self.weight = nn.Parameter((torch.rand(classes, hidden, concepts, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(classes, 1, hidden, generator=generator) * 2 - 1) * bound)

    def alpha(self) -> Tensor:
        """Attention `[classes, K]`, of sum 1."""
        return (self.weight.abs().sum(dim=1) / TEMPERATURE).softmax(dim=1)

    def relative_alpha(self) -> Tensor:
        """Attention with the largest of each class at 1; a concept is used where this is above 0.5."""
        alpha = self.alpha()
        return alpha / alpha.amax(dim=1, keepdim=True)

    def entropy(self) -> Tensor:
        alpha = self.alpha()
        return -(alpha * alpha.clamp_min(1e-30).log()).sum()

    def forward(self, concepts: Tensor) -> Tensor:
        attended = concepts.unsqueeze(0) * self.relative_alpha().unsqueeze(1)
        out: Tensor = (attended @ self.weight.transpose(1, 2) + self.bias).transpose(0, 1)
        return out


class LogicHead(nn.Module):
    """Concept truth values `[N, K]` in [0, 1] to logits `[N, classes]`; its regulariser is the attention's entropy."""

    def __init__(self, concepts: int, classes: int, seed: int = 0, hidden: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.attention = EntropyLinear(concepts, hidden, classes, generator)
        self.readout = nn.Parameter((torch.rand(classes, hidden, generator=generator) * 2 - 1) * hidden**-0.5)

    def forward(self, concepts: Tensor) -> Tensor:
        return (F.leaky_relu(self.attention(concepts)) * self.readout).sum(dim=2)

    def regulariser(self) -> Tensor:
        return self.attention.entropy()

    def used(self) -> Tensor:
        """Bool `[classes, K]`."""
        return self.attention.relative_alpha().detach() > 0.5


class LinearHead(nn.Module):
    """Concept scores `[N, K]` to logits `[N, classes]`; its regulariser is the L1 norm of the weights."""

    def __init__(self, concepts: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, concepts))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, concepts: Tensor) -> Tensor:
        return F.linear(concepts, self.weight, self.bias)

    def regulariser(self) -> Tensor:
        return self.weight.abs().sum()


@dataclass(frozen=True)
class Rule:
    """A class is told where one of the terms holds. accuracy: of the rule as a classifier of class against rest."""

    terms: tuple[Term, ...]
    accuracy: float

    @property
    def length(self) -> int:
        return sum(value is not None for term in self.terms for value in term)

    def text(self, names: Sequence[str]) -> str:
        if not self.terms:
            return "never"
        said = [
            " and ".join(n if value else f"not {n}" for n, value in zip(names, term, strict=True) if value is not None)
            for term in self.terms
        ]
        return " or ".join(part or "always" for part in said)


def holds(terms: Sequence[Term], facts: Tensor) -> Tensor:
    """Whether any term is true, bool `[N]`, of facts bool `[N, K]`."""
    told = torch.zeros(len(facts), dtype=torch.bool)
    for term in terms:
        fits = torch.ones(len(facts), dtype=torch.bool)
        for k, value in enumerate(term):
            if value is not None:
                fits &= facts[:, k] == value
        told |= fits
    return told


def read_rule(truth: Tensor, used: Tensor, labels: Tensor, predicted: Tensor, target: int, most: int = 5) -> Rule:
    """The rule of one class: the conjunctions most frequent among its right answers, joined and simplified.

    truth: `[N, K]` in [0, 1], a concept is there above 0.5. used: bool `[K]`, at most 10. labels, predicted: int64
    `[N]`. most: conjunctions joined.
    """
    chosen = torch.nonzero(used).flatten().tolist()
    if len(chosen) > MOST_IN_A_RULE:
        raise InvalidInput(f"used must name at most {MOST_IN_A_RULE} concepts, got {len(chosen)}")
    facts = truth > 0.5
    right = (labels == target) & (predicted == target)
    counted = Counter(tuple(bool(v) for v in row) for row in facts[right][:, chosen].tolist())
    short = simplify([term for term, _ in counted.most_common(most)])
    terms = []
    for term in short:
        said = dict(zip(chosen, term, strict=True))
        terms.append(tuple(said.get(k) for k in range(truth.shape[1])))
    accuracy = float((holds(terms, facts) == (labels == target)).float().mean())
    return Rule(tuple(terms), accuracy)


def simplify(terms: Sequence[Term]) -> list[Term]:
    """A short list of terms with the same truth table: prime implicants (Quine, 1952), chosen greedily.

    terms: all of one length, at most 10.
    """
    if not terms:
        return []
    if len({len(term) for term in terms}) > 1 or len(terms[0]) > MOST_IN_A_RULE:
        raise InvalidInput(f"terms must have one length of at most {MOST_IN_A_RULE}, got {[len(t) for t in terms]}")
    cases = {case for term in terms for case in _cases(term)}
    primes: set[Term] = set()
    level: set[Term] = set(cases)
    while level:
        merged, shorter = set(), set()
        for one in level:
            for k, value in enumerate(one):
                if value is True and (other := (*one[:k], False, *one[k + 1 :])) in level:
                    shorter.add((*one[:k], None, *one[k + 1 :]))
                    merged |= {one, other}
        primes |= level - merged
        level = shorter
    covers = {prime: set(_cases(prime)) for prime in sorted(primes, key=repr)}
    left, chosen = set(cases), []
    while left:
        best = max(covers, key=lambda prime: len(covers[prime] & left))
        chosen.append(best)
        left -= covers[best]
    return chosen


def _cases(term: Term) -> list[Term]:
    return list(itertools.product(*[(False, True) if value is None else (value,) for value in term]))
