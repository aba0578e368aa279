"""FMR (Zhang et al., 2024): augmented training keeps more of what strong oracles keep than plain training.

Protocol: scikit-learn's digits at 16 x 16, 900 for training, the others for testing, of which 300 are drawn. Models: a
plain network, one trained with affine and lighting changes, one trained by PGD (L2, 1.0), a logistic regression.
Oracles: three larger networks with augmentation, on all images, by majority. Generators: an autoencoder (latent 32) on
the training images, and a renderer of continuous edits (other ranges than the training's). 30 steps, three seeds.
Truth: the renderer keeps labels by construction of its ranges, which says nothing, so that both sets are judged by an
independent classifier as well: a support vector machine on the pixels of all original images (a strict judge, since it
knows no changes of light). Control: pixel PGD at the mean L2 length of the autoencoder's changes, to see whether the
ranking of the models is another one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn

from snellen.discovery.foundation_robustness import (
    LatentAscent,
    OraclePanel,
    Retoucher,
    foundation_robustness,
    train_autoencoder,
)
from snellen.replication import Claim

PAPER = "Foundation Model-oriented Robustness: Robust Image Model Evaluation with Pretrained Models (2024)"
SEEDS = 3
STEPS = 30
MODELS = ("plain", "augmented", "PGD", "logistic")
GENERATORS = ("autoencoder", "renderer")


class Run(NamedTuple):
    """Of one seed: FMR of (generator, model), least OA and least agreement of the judge, and accuracy under PGD."""

    fmr: dict[tuple[str, str], float]
    oracle: float
    judge: float
    judge_on_originals: float
    pixel: dict[str, float]


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_run(seed * SEEDS + k) for k in range(SEEDS)]
    for generator in GENERATORS:
        for name in MODELS:
            print(f"  {generator:12s}{name:10s}" + " ".join(f"{run.fmr[generator, name]:.3f}" for run in runs))
    for name in MODELS:
        print(f"  {'pixel PGD':12s}{name:10s}" + " ".join(f"{run.pixel[name]:.3f}" for run in runs))

    claims = []
    for generator in GENERATORS:
        gains = [run.fmr[generator, "augmented"] - run.fmr[generator, "plain"] for run in runs]
        claims.append(
            Claim(
                f"Augmented training raises FMR over plain training ({generator})",
                f"by at least 0.10 on {SEEDS} of {SEEDS} seeds",
                ", ".join(f"{gain:+.3f}" for gain in gains),
                min(gains) >= 0.10,
            )
        )
    oracle, judge = min(run.oracle for run in runs), min(run.judge for run in runs)
    lowest = [(g, run) for g in GENERATORS for run in runs if min(MODELS, key=lambda m: run.fmr[g, m]) == "logistic"]
    fmr_order = [tuple(sorted(MODELS, key=lambda m: run.fmr["autoencoder", m])) for run in runs]
    pixel_order = [tuple(sorted(MODELS, key=lambda m: run.pixel[m])) for run in runs]
    differing = sum(a != b for a, b in zip(fmr_order, pixel_order, strict=True))
    return [
        *claims,
        Claim("The oracles give the label on the changed images", "OA >= 0.95", f"least {oracle:.3f}", oracle >= 0.95),
        Claim(
            "An independent classifier still sees the label",
            "on at least 0.95 of every set",
            f"least {judge:.3f} (on originals {min(run.judge_on_originals for run in runs):.3f})",
            judge >= 0.95,
        ),
        Claim(
            "FMR of the logistic regression is the lowest",
            "for both generators on all seeds",
            f"{len(lowest)} of {2 * SEEDS}",
            len(lowest) == 2 * SEEDS,
        ),
        Claim(
            "Pixel PGD of equal length ranks the models differently",
            "another order on all seeds",
            f"{differing} of {SEEDS}",
            differing == SEEDS,
        ),
    ]


def one_run(seed: int) -> Run:
    digits = load_digits()
    x = F.interpolate(torch.tensor(digits.images / 16).float().unsqueeze(1), size=(16, 16), mode="bilinear")
    x, y = x.clamp(0, 1), torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[:900], order[900:1200]
    models = {
        "plain": trained(network(16, seed), x[train], y[train], seed),
        "augmented": trained(network(16, seed), x[train], y[train], seed, "augmented"),
        "PGD": trained(network(16, seed), x[train], y[train], seed, "PGD"),
        "logistic": trained(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), x[train], y[train], seed),
    }
    oracles = [
        trained(network(24, 100 + seed * 3 + k), x[order], y[order], 100 + seed * 3 + k, "augmented", epochs=8)
        for k in range(3)
    ]
    panel = OraclePanel(oracles)
    judge = SVC(C=10, gamma="scale").fit(x.flatten(1).numpy(), y.numpy())

    fmr, validity, agreement, on_originals, length = {}, [], [], [], []
    for generator, drawn, rate in (
        ("autoencoder", train_autoencoder(x[train], 32, 20, seed), 0.3),
        ("renderer", Retoucher(), 0.1),
    ):
        for name, model in models.items():
            settings = LatentAscent(steps=STEPS, rate=rate)
            found = foundation_robustness(model, drawn, panel, x[test], y[test], settings, seed=seed)
            fmr[generator, name] = found.fmr
            validity.append(found.oracle_accuracy)
            agreement.append(judge.score(found.images.flatten(1).numpy(), found.labels.numpy()))
            on_originals.append(judge.score(found.originals.flatten(1).numpy(), found.labels.numpy()))
            if generator == "autoencoder":
                length.append(float(found.change.mean()))
            print(
                f"  seed {seed} {generator:12s}{name:10s} SA {found.standard_accuracy:.3f}"
                f" redrawn {found.reconstruction_accuracy:.3f} PA {found.perturbed_accuracy:.3f} OA {validity[-1]:.3f}"
                f" judge {agreement[-1]:.3f} L2 {float(found.change.mean()):.2f} of {len(found.rows)}"
            )
    pixel = {}
    for name, model in models.items():
        attacked = pgd(model, x[test], y[test], float(np.mean(length)), 20)
        right = (model(x[test]).argmax(1) == y[test]).float().mean()
        pixel[name] = float((model(attacked).argmax(1) == y[test]).float().mean() / right)
    return Run(fmr, min(validity), min(agreement), min(on_originals), pixel)


def network(filters: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, filters, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(filters, 2 * filters, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * filters, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def trained(model: nn.Module, x: Tensor, y: Tensor, seed: int, how: str = "plain", epochs: int = 15) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=draw).split(64):
            batch = x[rows]
            if how == "augmented":
                batch = augmented(batch, draw)
            elif how == "PGD":
                batch = pgd(model, batch, y[rows], 1.0, 7)
            optimiser.zero_grad()
            F.cross_entropy(model(batch), y[rows]).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def augmented(x: Tensor, draw: torch.Generator) -> Tensor:
    """Rotation to 25 degrees, size, shift, contrast, light and blur, all at random."""
    u = torch.rand(len(x), 7, generator=draw) * 2 - 1
    angle, scale = u[:, 0] * math.radians(25), (0.2 * u[:, 1]).exp()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [cos, -sin + 0.2 * u[:, 6], 0.2 * u[:, 2], sin, cos, 0.2 * u[:, 3]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    gain, light, soft = (u[:, k].view(-1, 1, 1, 1) for k in (4, 5, 0))
    return ((moved + soft.abs() * (blurred - moved)) * (1 + 0.3 * gain) + 0.15 * light).clamp(0, 1)


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, delta)
        unit = F.normalize(slope.flatten(1), dim=1).view_as(x)
        moved = delta.detach() + 2.5 * eps / steps * unit
        length = moved.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = moved * (eps / length).clamp_max(1).view(-1, 1, 1, 1)
    return (x + delta).detach().clamp(0, 1)
