"""ELR (Liu et al., 2020): the early answers of a network tell which of its training labels are wrong.

Claim, detection side only: nets fit clean labels first, so 1 - T[i, y_i] ranks wrong labels above right ones. Protocol:
scikit-learn's digits in place of MNIST, 80 % for training; the label is replaced by a uniform draw over all ten classes
for a share of 40 % or 60 % (so 36 % and 54 % are wrong); small CNN, SGD .02, momentum .9, batch 128, 1920 steps as the
card's 60 epochs of 4000 images; beta .7, lambda 3; 3 seeds. Printed beside it: what the last answers say (1 - p[y]),
accuracy and share of wrong labels learnt by heart, and all of it for cross-entropy on the first seed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.discovery.label_suspicion import EarlyLearningTargets, elr_loss
from snellen.randomness import torch_generator
from snellen.replication import Claim
from snellen.stats import separate

PAPER = "Early-Learning Regularization Prevents Memorization of Noisy Labels (2020)"
SEEDS = 3
STEPS, BATCH = 1920, 128
WEIGHT = 3.0
ARMS = {WEIGHT: range(SEEDS), 0.0: range(1)}  # cross-entropy is printed only, for which one seed will do


class Run(NamedTuple):
    """auc: of T's suspicion; final_auc: of 1 - p[y] at the end. memorised: wrong labels that are the last answer."""

    auc: float
    final_auc: float
    accuracy: float
    memorised: float


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    claims = []
    for share in (0.4, 0.6):
        runs = {weight: [train(share, weight, seed * SEEDS + k) for k in seeds] for weight, seeds in ARMS.items()}
        for weight, of in runs.items():
            auc, final, accuracy, memorised = np.array(of).mean(axis=0)
            print(
                f"noise {share:.0%}, lambda {weight:g}: AUROC of T {auc:.3f}, of the last answers {final:.3f};"
                f" accuracy {accuracy:.3f}, memorised {memorised:.3f}"
            )
        found = np.array([run.auc for run in runs[WEIGHT]])
        claims.append(
            Claim(
                f"Suspicion 1 - T[i, y] tells wrong labels from right ones at {share:.0%} symmetric noise",
                f"AUROC >= 0.9 on {SEEDS} of {SEEDS} seeds",
                f"{found.min():.3f} to {found.max():.3f}",
                bool(found.min() >= 0.9),
            )
        )
    return claims


def train(share: float, weight: float, seed: int) -> Run:
    digits, rng = load_digits(), np.random.default_rng(seed)
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    order = rng.permutation(len(images))
    rows, rest = np.split(order, [len(order) * 4 // 5])
    truth, test = torch.from_numpy(digits.target[rows]), torch.from_numpy(digits.target[rest])
    replaced = torch.from_numpy(rng.random(len(rows)) < share)
    labels = truth.where(~replaced, torch.from_numpy(rng.integers(0, 10, len(rows))))
    wrong = labels != truth

    network, state = cnn(seed), EarlyLearningTargets(len(rows), 10)
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    generator, queue = torch_generator(seed, "elr"), torch.empty(0, dtype=torch.int64)
    x = images[rows]
    for _ in range(STEPS):
        if len(queue) < BATCH:
            queue = torch.randperm(len(rows), generator=generator)
        batch, queue = queue[:BATCH], queue[BATCH:]
        logits = network(x[batch])
        loss = elr_loss(logits, labels[batch], state.update(batch, logits), weight).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    with torch.no_grad():
        p, answers = F.softmax(network(x), dim=1), network(images[rest]).argmax(1)
    last = 1 - p.gather(1, labels[:, None]).squeeze(1)
    return Run(
        auc(state.suspicion(labels), wrong),
        auc(last, wrong),
        float((answers == test).float().mean()),
        float((p.argmax(1) == labels)[wrong].float().mean()),
    )


def auc(score: Tensor, wrong: Tensor) -> float:
    return separate(score.numpy(), wrong.numpy()).auc


def cnn(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
