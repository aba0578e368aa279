"""CRMT (2024): a jointly trained model is far more vulnerable on the modality it prefers.

Claim: joint training (JT) leans on one modality, an L2 attack on that one costs much more accuracy than the same attack
on the other, the vulnerability eta names it, and no attack below the certified radius flips an answer. Protocol:
scikit-learn's digits in two modalities, A = the left half as it is, B = the right half with noise of .3; an MLP encoder
each, concatenated, one linear head, which is the paper's additive form with all a = 1; 10 classes, 5 seeds. The
preferred modality is the one whose absence costs most, found before any attack. PGD-L2 with 4 steps at eps = .5, the
box [0, 1] for A and none for B.

Waits for `training/`: that CRMT gains 5 points under attack on the preferred modality at a clean loss of 1 at most.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.replication import Claim
from snellen.shift.modality_preference import (
    AdditiveModel,
    ModalityPreference,
    certified_radius,
    empirical_lipschitz,
    evaluate,
    l2_attack,
    margin_shares,
    spectral_lipschitz,
    vulnerability,
)

PAPER = "Quantifying and Enhancing Multi-modal Robustness with Modality Preference (2024)"
SEEDS = 5
EPS = (0.25, 0.5, 1.0)
DECIDES = "pgd 0.5"
BOXES = {"A": (0.0, 1.0)}


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    extra, named, flipped, certified = [], 0, 0, 0
    for k in range(SEEDS):
        inputs, labels = halves(seed * SEEDS + k)
        split = 1000
        train = {name: tensor[:split] for name, tensor in inputs.items()}
        test, y = {name: tensor[split:] for name, tensor in inputs.items()}, labels[split:]
        model = jointly_trained(train, labels[:split], seed * SEEDS + k)

        table = evaluate(model, [(test, y)], ModalityPreference(EPS, boxes=BOXES))
        preferred = table.preferred()
        other = "B" if preferred.name == "A" else "A"
        costs = {f"pgd {eps:g}": table.extra_cost(f"pgd {eps:g}", preferred.name, other) for eps in EPS}
        extra.append(costs[DECIDES].value)

        eta = {
            m: float(v.mean()) for m, v in vulnerability(model, test, y, empirical_lipschitz(model, [train])).items()
        }
        costlier = preferred.name if extra[-1] > 0 else other
        named += max(eta, key=lambda m: eta[m]) == costlier
        shares = {m: float(v.mean()) for m, v in margin_shares(model, test, y).items()}

        radius = certified_radius(model, test, y, spectral_lipschitz(model)).joint
        flipped += broken_inside(model, test, y, radius)
        certified += int((radius > 0).sum())
        print(
            f"seed {k}: clean {table.score(table.conditions[0]).value:.3f}, preferred {preferred.name}"
            f" (p = {preferred.p_value:.1g}), share of the margin {shares[preferred.name]:.2f}, eta"
            f" {', '.join(f'{m} {v:.1f}' for m, v in eta.items())}; extra cost"
            f" {', '.join(f'{name} {c.value:+.2f} [{c.low:+.2f}, {c.high:+.2f}]' for name, c in costs.items())};"
            f" median certified radius {float(radius.median()):.3f}"
        )
    hit = sum(cost >= 0.1 for cost in extra)
    return [
        Claim(
            "PGD-L2 on the preferred modality costs joint training much more than on the other",
            "10 points more in 4 of 5 seeds",
            f"{hit} of {SEEDS}: {', '.join(f'{cost:+.2f}' for cost in extra)}",
            hit >= 4,
        ),
        Claim(
            "The larger eta (from empirical tau) names the modality whose attack costs more",
            "4 of 5 seeds",
            f"{named} of {SEEDS}",
            named >= 4,
        ),
        Claim(
            "No joint-L2 attack below the certified radius flips a right answer",
            "0 flips",
            f"{flipped} of {certified} samples",
            flipped == 0 and certified > 0,
        ),
    ]


def halves(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    order = torch.randperm(len(images), generator=generator)
    left, right = images[order, :, :4].flatten(1), images[order, :, 4:].flatten(1)
    noise = 0.3 * torch.randn(right.shape, generator=generator)
    return {"A": left, "B": right + noise}, torch.tensor(digits.target)[order]


def jointly_trained(inputs: dict[str, Tensor], labels: Tensor, seed: int) -> AdditiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for m in inputs})
        head = nn.Linear(64, 10)
        heads = dict(zip(inputs, head.weight.split(32, dim=1), strict=True))
        model = AdditiveModel(dict(encoders.items()), heads, dict.fromkeys(inputs, torch.ones(10)), head.bias)
        optimiser = torch.optim.Adam([*encoders.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(40):
            for rows in torch.randperm(len(labels)).split(64):
                weights = dict(zip(inputs, head.weight.split(32, dim=1), strict=True))
                current = AdditiveModel(model.encoders, weights, model.scales, head.bias)
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(current({m: x[rows] for m, x in inputs.items()}), labels[rows])
                loss.backward()
                optimiser.step()
    encoders.requires_grad_(False)
    frozen = {m: w.detach() for m, w in zip(inputs, head.weight.split(32, dim=1), strict=True)}
    return AdditiveModel(model.encoders, frozen, model.scales, head.bias.detach())


def broken_inside(model: AdditiveModel, inputs: dict[str, Tensor], labels: Tensor, radius: Tensor) -> int:
    """How many right answers 20 steps of PGD on both modalities flip at .999 of the certified radius.

    The attack has one eps a call, so inputs are scaled to where every sample's radius is one.
    """
    right = radius > 0
    scale = 0.999 * radius[right, None].float()
    x = {m: tensor[right] for m, tensor in inputs.items()}

    def from_clean(moved: dict[str, Tensor]) -> Tensor:
        return model({m: x[m] + scale * moved[m] for m in x})

    start = {m: torch.zeros_like(tensor) for m, tensor in x.items()}
    moved = l2_attack(from_clean, start, labels[right], list(x), eps=1.0, steps=20, step=0.25)
    with torch.no_grad():
        return int((from_clean(moved).argmax(1) != labels[right]).sum())
