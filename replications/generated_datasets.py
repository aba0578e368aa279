"""Generated training data: does it raise accuracy under shift by more than clean accuracy explains?

Claim (Bansal & Grover, 2023): training on real and generated images beats training on real ones under natural shift,
also in effective robustness; what the generator knows beyond the real set decides.

Protocol: four shapes on textures, 32 px. In the real set (800) the colour goes with the class in 95 % of the images.
Generators: a renderer that draws all its factors uniformly (800), and a class-conditional VAE trained on the real set,
which adds nothing but smoothing (800). Shift sets: colour free of class, edges only, textures never trained on. The
same number of updates for all four trainings. The line is fitted on snapshots of the real training, early to late:
a shortcut, since the paper's pool is of different networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.randomness import SampleRandom, torch_generator
from snellen.replication import Claim
from snellen.shift.effective_robustness import (
    check_generated,
    improbable,
    mix_plan,
    nearest_test_images,
    predict_sets,
    robustness_table,
)

PAPER = "Leaving Reality to Imagination: Robust Classification via Generated Datasets (2023)"
RUNS = 5
REAL = 800
TEST = 600
SIDE = 32
UPDATES = 200
SNAPSHOTS = (5, 10, 20, 50)
COLOURS = torch.tensor([[0.9, 0.25, 0.2], [0.25, 0.8, 0.3], [0.3, 0.4, 0.95], [0.9, 0.85, 0.25]])

Images = tuple[Tensor, Tensor]
Change = Callable[[Tensor, torch.Generator], Tensor]


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one_run(seed * RUNS + k) for k in range(RUNS)]
    gains = {name: [100 * (run[name]["accuracy"] - run["real"]["accuracy"]) for run in runs] for name in runs[0]}
    clean = [100 * (run["rendered"]["clean"] - run["real"]["clean"]) for run in runs]
    lows = [run["rendered"]["rho_low"] for run in runs]
    for name in runs[0]:
        print(
            f"{name:9s} clean {fmean(r[name]['clean'] for r in runs):.3f},"
            f" shift {fmean(r[name]['accuracy'] for r in runs):.3f}, rho {fmean(r[name]['rho'] for r in runs):+.3f}"
        )
    return [
        Claim(
            "Real and rendered images raise mean shift accuracy",
            ">= 8 points over 5 seeds with clean accuracy within 1 point",
            f"{fmean(gains['rendered']):+.1f} points, clean {fmean(clean):+.1f}",
            fmean(gains["rendered"]) >= 8 and abs(fmean(clean)) <= 1,
        ),
        Claim(
            "Their effective robustness is above zero",
            "95 % interval of rho above 0 on 5 of 5 seeds",
            f"{sum(low > 0 for low in lows)} of {RUNS}, lower ends {min(lows):+.3f} to {max(lows):+.3f}",
            all(low > 0 for low in lows),
        ),
        Claim(
            "Images from a VAE of the real set change little",
            "mean shift accuracy within 4 points of real",
            f"{fmean(gains['vae']):+.1f} points",
            abs(fmean(gains["vae"])) <= 4,
        ),
        Claim(
            "Generated images beat colour augmentation under shift",
            "mean shift accuracy above that of jitter",
            f"{fmean(gains['rendered']):+.1f} against {fmean(gains['jitter']):+.1f} points",
            fmean(gains["rendered"]) > fmean(gains["jitter"]),
        ),
    ]


def one_run(seed: int) -> dict[str, dict[str, float]]:
    """The rows "mean" of the robustness table, by training."""
    real = draw(REAL, torch_generator(seed, "real"), agreement=0.95)
    rendered = draw(REAL, torch_generator(seed, "rendered"), agreement=0.25, textures=4)
    imagined = imagine(real, seed)
    for images, labels in (rendered, imagined):
        check_generated(images, labels, real[0])

    free = draw(TEST, torch_generator(seed, "free"), agreement=0.25)
    sets = {
        "clean": draw(TEST, torch_generator(seed, "clean"), agreement=0.95),
        "colour": free,
        "edges": (edges(free[0]), free[1]),
        "texture": draw(TEST, torch_generator(seed, "texture"), agreement=0.95, textures=-1),
    }
    models: dict[str, nn.Module] = {}
    snapshots = {f"real at {step}": step for step in SNAPSHOTS}
    models["real"], kept = train(real, seed, snapshots)
    models |= kept
    models["jitter"], _ = train(real, seed, change=jitter)
    for name, extra in (("rendered", rendered), ("vae", imagined)):
        plan = mix_plan(real[1], extra[1], seed=seed)
        chosen = (real[0][plan.real], extra[0][plan.generated]), (real[1][plan.real], extra[1][plan.generated])
        models[name], _ = train((torch.cat(chosen[0]), torch.cat(chosen[1])), seed)
        near = nearest_test_images((extra[0] - 0.5).flatten(1), (sets["clean"][0] - 0.5).flatten(1)).distance.min()
        with torch.no_grad():
            doubtful = improbable(models["real"](extra[0]).softmax(dim=1), extra[1]).float().mean()
        print(f"seed {seed}, {name}: {doubtful:.0%} improbable to the real network, nearest test image at {near:.3f}")

    correct = {name: predict_sets(model, {s: [data] for s, data in sets.items()}) for name, model in models.items()}
    rng = SampleRandom(seed, "replication").numpy()
    table = robustness_table(correct, ["real", *snapshots], "real", rng, resamples=500).to_pylist()
    return {row["model"]: row for row in table if row["set"] == "mean" and row["model"] not in snapshots}


def draw(count: int, generator: torch.Generator, agreement: float, textures: int = 1) -> Images:
    """Shapes in colours that are the class's own with probability about `agreement` (0.25 is chance).

    textures: how many of the training textures to use; -1 draws stripes and checks, which no training set has.
    """
    labels = torch.arange(count) % 4
    own = torch.rand(count, generator=generator) < (agreement - 0.25) / 0.75
    colour = torch.where(own, labels, torch.randint(0, 4, (count,), generator=generator))
    centre = 16 + torch.randint(-5, 6, (count, 2, 1, 1), generator=generator)
    radius = 7 + 3 * torch.rand(count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    down, right = (y - centre[:, 0]) / radius, (x - centre[:, 1]) / radius
    shapes = torch.stack([
        down**2 + right**2 < 0.9,
        (down.abs() < 0.8) & (right.abs() < 0.8),
        (down.abs() < 0.9) & (right.abs() < (down + 0.9) / 1.8),
        torch.minimum(down.abs(), right.abs()).lt(0.3) & torch.maximum(down.abs(), right.abs()).lt(0.95),
    ])  # fmt: skip
    mask = shapes[labels, torch.arange(count)][:, None]
    jittered = (COLOURS[colour] + 0.15 * (torch.rand(count, 3, generator=generator) - 0.5)).clamp(0, 1)
    images = torch.where(mask, jittered[:, :, None, None], backgrounds(count, generator, textures))
    return (images + 0.06 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def backgrounds(count: int, generator: torch.Generator, textures: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    phase = torch.randint(0, 6, (count, 1, 1), generator=generator)
    clouds = F.interpolate(torch.rand(count, 1, 5, 5, generator=generator), SIDE, mode="bicubic")[:, 0]
    if textures < 0:
        stripes = ((x + y + phase) // 3 % 2).float()
        checks = (((x + phase) // 4 + y // 4) % 2).float()
        kinds = torch.stack([stripes, checks])
    else:
        plain = torch.full((count, SIDE, SIDE), 0.5)
        gradient = (x / SIDE).expand(count, -1, -1)
        grain = torch.rand(count, SIDE, SIDE, generator=generator)
        kinds = torch.stack([clouds, plain, gradient, grain])[:textures]
    kind = torch.randint(0, len(kinds), (count,), generator=generator)
    level = 0.15 + 0.5 * kinds[kind, torch.arange(count)].clamp(0, 1)
    tint = 0.8 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    return (level[:, None] * tint).clamp(0, 1)


def edges(images: Tensor) -> Tensor:
    """Dark lines on white."""
    grey = images.mean(dim=1, keepdim=True)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    across, down = (F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), k[None, None]) for k in (kernel, kernel.T))
    return (1 - torch.hypot(across, down)).clamp(0, 1).expand_as(images)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour jitter: contrast, brightness and saturation between half and one and a half."""
    factors = 0.5 + torch.rand(3, len(images), 1, 1, 1, generator=generator)
    grey = images.mean(dim=1, keepdim=True)
    saturated = grey + factors[0] * (images - grey)
    return ((saturated - 0.5) * factors[1] + 0.5).mul(factors[2]).clamp(0, 1)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 4),
    )  # fmt: skip


def train(
    data: Images, seed: int, snapshots: dict[str, int] | None = None, change: Change | None = None
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The network after UPDATES updates, and copies of it after the updates named."""
    images, labels = data
    kept: dict[str, nn.Module] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network()
    generator = torch_generator(seed, "train")
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    order = torch.empty(0, dtype=torch.long)
    for update in range(1, UPDATES + 1):
        if len(order) < 64:
            order = torch.randperm(len(labels), generator=generator)
        rows, order = order[:64], order[64:]
        x = images[rows] if change is None else change(images[rows], generator)
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x), labels[rows]).backward()
        optimiser.step()
        for name, step in (snapshots or {}).items():
            if step == update:
                kept[name] = network()
                kept[name].load_state_dict(model.state_dict())
                kept[name].eval()
    return model.eval(), kept


class Imagination(nn.Module):
    """A class-conditional VAE with 24 latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(7, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 48),
        )
        self.widen = nn.Linear(28, 2048)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))

    def decode(self, latent: Tensor, labels: Tensor) -> Tensor:
        wide = self.widen(torch.cat([latent, F.one_hot(labels, 4).float()], dim=1)).relu()
        return torch.sigmoid(self.decoder(wide.view(-1, 32, 8, 8)))

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        planes = F.one_hot(labels, 4).float()[:, :, None, None].expand(-1, -1, SIDE, SIDE)
        mean, log_variance = self.encoder(torch.cat([images, planes], dim=1)).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        rebuilt = self.decode(mean + noise * (log_variance / 2).exp(), labels)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)
        # Gaussian likelihood with the images' own noise level.
        return ((rebuilt - images) ** 2).flatten(1).sum(dim=1).div(2 * 0.1**2).add(divergence).mean()


def imagine(real: Images, seed: int) -> Images:
    """As many images as the real set has, class by class, from a VAE that saw nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Imagination()
    generator = torch_generator(seed, "vae")
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(math.ceil(350 * 64 / REAL)):
        for rows in torch.randperm(REAL, generator=generator).split(64):
            optimiser.zero_grad()
            model.loss(real[0][rows], real[1][rows], generator).backward()
            optimiser.step()
    labels = torch.arange(REAL) % 4
    with torch.no_grad():
        images = model.decode(torch.randn(REAL, 24, generator=generator), labels)
    noise = 0.06 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 1), labels
