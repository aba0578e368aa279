"""Ktena et al. (2024): images from a conditional generator raise accuracy at new sites and shrink the gap.

Claim: more than ordinary augmentation and oversampling do. Protocol: scikit-learn's digits in four sites (contrast and
brightness a colour; one inverted, one blurred), 70 % for training: 400 labelled of sites 0 and 1 (site 1 is 5 % of
them), the rest unlabelled, of sites 2 and 3; every test digit in all four sites, 2 and 3 are new (OOD). Small CNN, 400
steps; arms: real only, oversampled cells, jitter of contrast and brightness (which inverts nothing), both, and made
images (6 times the labelled, alpha .5) of a PCA Gaussian (sites with labels only) or a conditional VAE (all sites).
5 seeds. The gap is that of accuracy over the four sites. A diffusion model is not part of this: only digit-size
generators that train in seconds. Printed beside it: all arms, memorised images, and how often an oracle, trained on all
labels at all sites, sees in the made images the class that was asked for.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.discovery.fair_augmentation import (
    ConditionalVae,
    ImageSet,
    PcaGaussian,
    balanced_cells,
    correct_answers,
    fairness,
    memorisation,
    synthesise,
    train_mixed,
)
from snellen.replication import Claim

PAPER = "Generative models improve fairness of medical classifiers under distribution shifts (2024)"
SEEDS = 5
LABELLED, RARE_SHARE, TIMES = 400, 0.05, 6
PLAIN = ("real only", "oversampled", "jitter", "jitter and oversampled")
MADE = ("PCA Gaussian", "conditional VAE")
GAIN = torch.tensor([[1.0, 1.0, 1.0], [0.6, 0.3, 0.3], [-0.7, -0.5, -0.6], [0.3, 0.5, 0.4]])
OFFSET = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.1, 0.0], [0.9, 0.8, 0.7], [0.5, 0.2, 0.3]])


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [one(seed * SEEDS + k) for k in range(SEEDS)]
    for name in (*PLAIN, *MADE):
        mean = np.array([run[name] for run in runs]).mean(axis=0)
        print(f"{name:24s} accuracy known sites {mean[0]:.3f}, new sites {mean[1]:.3f}, gap {mean[2]:.3f}")
    claims = []
    for name in MADE:
        best = [max((run[plain] for plain in PLAIN), key=lambda found: found[1]) for run in runs]
        gains = np.array([run[name][1] - plain[1] for run, plain in zip(runs, best, strict=True)])
        falls = np.array([1 - run[name][2] / plain[2] for run, plain in zip(runs, best, strict=True)])
        claims += [
            Claim(
                f"Accuracy at new sites rises over the best arm without a generator ({name})",
                "by >= 3 points on >= 4 of 5 seeds",
                f"{(gains >= 0.03).sum()} of 5; {100 * gains.min():.1f} to {100 * gains.max():.1f} points",
                bool((gains >= 0.03).sum() >= 4),
            ),
            Claim(
                f"The gap between sites falls against that arm ({name})",
                "by >= 20 % relative on >= 4 of 5 seeds",
                f"{(falls >= 0.2).sum()} of 5; {falls.min():.0%} to {falls.max():.0%}",
                bool((falls >= 0.2).sum() >= 4),
            ),
        ]
    return claims


def one(seed: int) -> dict[str, tuple[float, float, float]]:
    """Arm -> accuracy at known sites, at new sites, and the gap over all four."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    rows, rest = np.split(order, [len(order) * 7 // 10])
    groups = np.concatenate([
        (np.arange(LABELLED) < LABELLED * RARE_SHARE).astype(np.int64), 2 + np.arange(len(rows) - LABELLED) % 2,
    ])  # fmt: skip
    labels = np.where(groups < 2, digits.target[rows], -1)
    real = ImageSet(styled(digits.images[rows], groups), torch.from_numpy(labels), torch.from_numpy(groups))
    sites = np.repeat(np.arange(4), len(rest))
    again = np.tile(rest, 4)
    test = ImageSet(
        styled(digits.images[again], sites), torch.from_numpy(digits.target[again]), torch.from_numpy(sites)
    )

    cell = real.labels.clamp_min(0) * 4 + real.groups
    oversample = 1 / cell.bincount()[cell].float()
    generators = {
        "PCA Gaussian": (PcaGaussian.fit(real.images, real.labels, real.groups), 2),
        "conditional VAE": (ConditionalVae.fit(real.images, real.labels, real.groups, seed=seed), 4),
    }
    oracle = cnn(seed)
    everywhere = styled(digits.images[np.tile(rows, 4)], np.repeat(np.arange(4), len(rows)))
    truth = torch.from_numpy(np.tile(digits.target[rows], 4))
    train_mixed(oracle, ImageSet(everywhere, truth, torch.arange(4).repeat_interleave(len(rows))), alpha=1.0, seed=seed)

    found = {}
    for name in (*PLAIN, *MADE):
        made = None
        if name in generators:
            generator, known = generators[name]
            cells = balanced_cells(real.labels, known, TIMES * LABELLED, seed)
            if name == "PCA Gaussian":  # a cell of the rare site may have too few images to know its mean
                cells = cells[[pair in generator.means for pair in map(tuple, cells.tolist())]]
            made = synthesise(generator, cells, seed)
            agrees = oracle(made.images).argmax(dim=1) == made.labels
            by_site = [f"{float(agrees[made.groups == site].float().mean()):.0%}" for site in range(known)]
            share = memorisation(made.images, real.images).share
            print(f"seed {seed}, {name}: {share:.1%} memorised, asked class seen at the sites {', '.join(by_site)}")
        network = cnn(seed)
        train_mixed(
            network,
            real,
            made,
            alpha=1.0 if made is None else 0.5,
            seed=seed,
            augment=jitter if "jitter" in name else None,
            weights=oversample if "oversampled" in name else None,
        )
        right = correct_answers(network, test)
        found[name] = right[sites < 2].mean(), right[sites >= 2].mean(), fairness(right, sites, rng).gap
    return found


def styled(images: NDArray[np.float64], sites: NDArray[np.int64]) -> Tensor:
    """Images `[n, 8, 8]` of 0 to 16 as `[n, 3, 8, 8]` in [0, 1] in the style of each one's site."""
    grey = torch.from_numpy(images / 16).float()[:, None]
    blurred = F.avg_pool2d(grey, 3, stride=1, padding=1)
    site = torch.from_numpy(sites)
    grey = torch.where((site == 3)[:, None, None, None], blurred, grey)
    return (GAIN[site][:, :, None, None] * grey + OFFSET[site][:, :, None, None]).clamp(0, 1)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast of .5 to 1.5 and brightness of -.3 to .3 for each image and colour."""
    gain, offset = torch.rand(2, len(images), 3, 1, 1, generator=generator)
    return ((images - 0.5) * (0.5 + gain) + 0.5 + 0.6 * (offset - 0.5)).clamp(0, 1)


def cnn(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
