"""Metamers (Harrington and Deza, 2022): those of robust features pass in the periphery, those of standard features not.

Protocol: scikit-learn's digits at 32 x 32 on a grey ground. Encoders: the last hidden layer of a small network, trained
plainly, by PGD (L2 1.0, 7 steps), and with random weights (control). 24 targets, 2 metamers each, 500 steps. Observer:
SIMULATED (statistics in windows of 4, 8, 16 and 24 px, noise set once so that originals against the standard metamers
give 0.9 at 4 px), no substitute for the paper's people. Metric: accuracy of the two-choice task, original against
metamer, and its fall from the nearest to the farthest window. Besides, PSNR of the blurred metamer to its blurred
original. Three seeds.

Metamers that did not converge (loss above 0.1) are left out and counted, as in a study.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.discovery.metamers import (
    MetamerSynthesis,
    balanced_trials,
    calibrate_noise,
    score,
    simulate_answers,
    stimulus_name,
    synthesise,
)
from snellen.replication import Claim

PAPER = "Finding Biological Plausibility for Adversarially Robust Features via Metameric Tasks (2022)"
SEEDS = 3
ENCODERS = ("standard", "robust", "random")
WINDOWS = (4, 8, 16, 24)
TARGETS = 24
OBSERVERS = 20


class Seen(NamedTuple):
    """Of one encoder: accuracy by window, slope of its log-odds, PSNR in dB, metamers left out, mean loss."""

    accuracy: list[float]
    slope: float
    psnr: float
    excluded: int
    loss: float


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_run(seed * SEEDS + k) for k in range(SEEDS)]
    for name in ENCODERS:
        for seen in (run[name] for run in runs):
            curve = " ".join(f"{a:.3f}" for a in seen.accuracy)
            print(
                f"  {name:9s} accuracy {curve}  slope {seen.slope:+.4f}  PSNR {seen.psnr:.1f} dB"
                f"  loss {seen.loss:.3f}, {seen.excluded} of {2 * TARGETS} left out"
            )
    far = [run["standard"].accuracy[-1] - run["robust"].accuracy[-1] for run in runs]
    slopes = [run["robust"].slope - run["standard"].slope for run in runs]
    psnr = [run["robust"].psnr - run["standard"].psnr for run in runs]
    control = [run["random"].accuracy[-1] - run["robust"].accuracy[-1] for run in runs]
    return [
        Claim(
            "In the far periphery robust metamers are told apart less often than standard ones",
            f"by at least 0.10 on {SEEDS} of {SEEDS} seeds (simulated observer)",
            ", ".join(f"{difference:+.3f}" for difference in far),
            min(far) >= 0.10,
        ),
        Claim(
            "Accuracy on robust metamers falls faster with eccentricity",
            f"a more negative slope on {SEEDS} of {SEEDS} seeds (simulated observer)",
            ", ".join(f"{difference:+.4f}" for difference in slopes),
            max(slopes) < 0,
        ),
        Claim(
            "Blurred robust metamers are nearer to their blurred originals",
            f"higher PSNR on {SEEDS} of {SEEDS} seeds",
            ", ".join(f"{difference:+.1f} dB" for difference in psnr),
            min(psnr) > 0,
        ),
        Claim(
            "Random weights do not give what robust training gives (control)",
            f"told apart more often by 0.10 in the far periphery on {SEEDS} of {SEEDS} seeds (simulated observer)",
            ", ".join(f"{difference:+.3f}" for difference in control),
            min(control) >= 0.10,
        ),
    ]


def one_run(seed: int) -> dict[str, Seen]:
    digits = load_digits()
    x = F.interpolate(torch.tensor(digits.images / 16).float().unsqueeze(1), size=(32, 32), mode="bilinear")
    x, y = 0.2 + 0.6 * x.clamp(0, 1), torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[:900], order[900 : 900 + TARGETS]
    targets, ids = x[test], [f"digit{row}" for row in test.tolist()]
    encoders = {
        "standard": trained(network(seed), x[train], y[train], seed, robust=False),
        "robust": trained(network(seed), x[train], y[train], seed, robust=True),
        "random": network(seed).eval().requires_grad_(False),
    }
    images = {stimulus_name(name): picture for name, picture in zip(ids, targets, strict=True)}
    made, kept = {}, {}
    for name, model in encoders.items():
        made[name] = synthesise(model[:-1], targets, ids, MetamerSynthesis(steps=500, rate=0.3), seed=seed)
        kept[name] = [row for row in range(TARGETS) if bool(made[name].converged[row].all())]
        for row, target in enumerate(ids):
            for copy in range(2):
                images[stimulus_name(target, name, copy)] = made[name].images[row, copy]

    # Two pixels a degree and windows of 0.5 e: eccentricities in degrees equal windows in pixels.
    tables = {
        name: balanced_trials(
            name,
            [ids[row] for row in kept[name]],
            WINDOWS,
            tasks=("matching",),
            comparisons=("original-synth",),
            seed=seed,
        )
        for name in ENCODERS
    }
    nearest = [trial for trial in tables["standard"] if trial.eccentricity == WINDOWS[0]]
    noise = calibrate_noise(nearest, images, 2.0, seed=seed)
    seen = {}
    for name in ENCODERS:
        scores = score(tables[name], simulate_answers(tables[name], images, noise, 2.0, OBSERVERS, seed))
        psnr = [blurred_psnr(made[name].images[row, 0], targets[row]) for row in kept[name]]
        seen[name] = Seen(
            [cell.accuracy for cell in scores.cells],
            scores.slopes[0].log_odds,
            sum(psnr) / len(psnr),
            made[name].excluded,
            float(made[name].loss.mean()),
        )
    return seen


def blurred_psnr(a: Tensor, b: Tensor) -> float:
    difference = F.avg_pool2d(a - b, 5, stride=1)
    return float(-10 * difference.square().mean().log10())


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ELU(),
            nn.Linear(64, 10),
        )


def trained(model: nn.Sequential, x: Tensor, y: Tensor, seed: int, robust: bool) -> nn.Sequential:
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(10):
        for rows in torch.randperm(len(y), generator=draw).split(64):
            batch = pgd(model, x[rows], y[rows], 1.0, 7) if robust else x[rows]
            optimiser.zero_grad()
            F.cross_entropy(model(batch), y[rows]).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, delta)
        moved = delta.detach() + 2.5 * eps / steps * F.normalize(slope.flatten(1), dim=1).view_as(x)
        delta = moved * (eps / moved.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
    return (x + delta).detach().clamp(0, 1)
