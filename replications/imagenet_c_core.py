"""Common corruptions: does error rise with severity, and does training on noise help noise more than C-bar?

Claims (Hendrycks & Dietterich, 2019; Mintun et al., 2021): networks degrade steadily from severity 1 to 5, and an
augmentation helps most on test corruptions that resemble it.

Protocol: the demo's scenes, scikit-learn's digits on textured backgrounds at 32 px, training and test from different
handwriting; CIFAR constants; the 15 corruptions and the 7 of C-bar that are not noise, at severities 1 to 5. Five
initialisations a seed. Baseline: softmax regression on pixels. Subjects: a small convolutional network, and the same
network trained with Gaussian noise of standard deviation 0.1. Each claim must hold in 4 of 5 runs.

A first design, plain digits enlarged to 32 px, held neither claim at seeds 0 and 1: at CIFAR strength the error on
noise was 0.036 against 0.033 clean, which left nothing to measure. The data were changed for that reason, before any
result on them was seen; thresholds, networks and constants stayed. On the new data seed 2
held both claims and seed 3 the first only; seed 3 is recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.demo.digits import draw_scene, render
from snellen.randomness import SampleRandom, derive_seed, torch_generator
from snellen.replication import Claim
from snellen.shift._catalogue import BAR
from snellen.shift.corruptions import (
    CORRUPTIONS,
    GROUPS,
    corrupt,
    mean_corruption_error,
    relative_mean_corruption_error,
)

PAPER = "Hendrycks and Dietterich, 2019"
RUNS = 5
NEEDED_RUNS = 4
NEEDED_CORRUPTIONS = 12
SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
TRAINING_NOISE = 0.1
TRAIN_IMAGES, TEST_IMAGES = 6000, 500
BAR_NOISE = ("brownish_noise", "blue_noise_sample", "perlin_noise")


@dataclass(frozen=True)
class Run:
    """rising: corruptions whose error at severity 5 exceeds that at 1. cuts: shares of the error that noise training
    takes away. mce, relative_mce: of the plain network, percent of the softmax regression's, NaN where undefined.
    noise_errors: mean error of the plain and the noise-trained network on the noise corruptions. clean_errors: of the
    regression, the plain network and the noise-trained one."""

    rising: int
    cut_on_noise: float
    cut_on_bar: float
    mce: float
    relative_mce: float
    noise_errors: tuple[float, float]
    clean_errors: tuple[float, float, float]


def scenes(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images `[N, 3, 32, 32]`, their labels, test images of other handwriting, their labels."""
    rng = np.random.default_rng([seed, 2019])
    made = []
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        scene = draw_scene(count, split, rng)
        images, _ = render(scene, split, rng)
        made += [images, torch.from_numpy(np.asarray(scene.labels)).long()]
    return made[0], made[1], made[2], made[3]


def softmax_regression() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def small_network() -> nn.Module:
    layers: list[nn.Module] = []
    for incoming, outgoing in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def trained(network: nn.Module, images: Tensor, labels: Tensor, seed: int, noise: float, epochs: int) -> nn.Module:
    """Adam on batches of 64; `noise` is the standard deviation of what is added to every training image."""
    generator = torch_generator(seed, "training")
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            batch = images[chosen]
            if noise:
                batch = (batch + noise * torch.randn(batch.shape, generator=generator)).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(network(batch), labels[chosen]).backward()
            optimiser.step()
    return network.eval()


def one_run(seed: int) -> Run:
    train, train_labels, test, test_labels = scenes(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        regression, plain = softmax_regression(), small_network()
        hardened = small_network()
    hardened.load_state_dict(plain.state_dict())
    models = [
        trained(regression, train, train_labels, seed, noise=0.0, epochs=20),
        trained(plain, train, train_labels, seed, noise=0.0, epochs=10),
        trained(hardened, train, train_labels, seed, noise=TRAINING_NOISE, epochs=10),
    ]

    @torch.no_grad()
    def errors(images: Tensor) -> list[float]:
        return [float((model(images).argmax(1) != test_labels).float().mean()) for model in models]

    clean = errors(test)
    random = SampleRandom(seed, "imagenet-c-core")
    names = [str(index) for index in range(len(test))]
    by_model: list[dict[str, list[float]]] = [{}, {}, {}]
    bar = [name for name in BAR if name not in BAR_NOISE]
    for corruption in [*CORRUPTIONS, *bar]:
        steps = [errors(corrupt(test, corruption, s, random.generators(names, corruption))) for s in SEVERITIES]
        for model, curve in zip(by_model, zip(*steps, strict=True), strict=True):
            model[corruption] = list(curve)
    regression_errors, plain_errors, hardened_errors = by_model
    on_15, regression_on_15 = (
        {name: curves[name] for name in CORRUPTIONS} for curves in (plain_errors, regression_errors)
    )

    def mean_errors(names: Sequence[str]) -> tuple[float, float]:
        return fmean(fmean(plain_errors[name]) for name in names), fmean(fmean(hardened_errors[name]) for name in names)

    on_noise, on_bar = mean_errors(GROUPS["noise"]), mean_errors(bar)
    return Run(
        rising=sum(plain_errors[name][-1] > plain_errors[name][0] for name in CORRUPTIONS),
        cut_on_noise=1 - on_noise[1] / on_noise[0],
        cut_on_bar=1 - on_bar[1] / on_bar[0],
        mce=mean_corruption_error(on_15, regression_on_15).value,
        relative_mce=relative_mean_corruption_error(on_15, clean[1], regression_on_15, clean[0]).value,
        noise_errors=on_noise,
        clean_errors=(clean[0], clean[1], clean[2]),
    )


def replicate(seed: int) -> list[Claim]:
    runs = [one_run(RUNS * seed + index) for index in range(RUNS)]
    rising = sum(run.rising >= NEEDED_CORRUPTIONS for run in runs)
    helped = sum(run.cut_on_noise > run.cut_on_bar for run in runs)
    clean = np.mean([run.clean_errors for run in runs], axis=0)
    noisy = np.mean([run.noise_errors for run in runs], axis=0)

    def listed(values: list[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    return [
        Claim(
            statement="error at severity 5 exceeds error at severity 1 on at least 12 of the 15 corruptions",
            claimed=f"in at least {NEEDED_RUNS} of {RUNS} runs",
            measured=(
                f"in {rising} of {RUNS} runs; corruptions that rise: {', '.join(str(run.rising) for run in runs)}"
                f" (clean errors: regression {clean[0]:.3f}, network {clean[1]:.3f}, with noise {clean[2]:.3f};"
                f" mCE against the regression's 100: {listed([run.mce for run in runs])}; relative mCE, nan where the"
                f" regression does not degrade under some corruption: {listed([run.relative_mce for run in runs])})"
            ),
            held=rising >= NEEDED_RUNS,
        ),
        Claim(
            statement=(
                "training with Gaussian noise of 0.1 cuts the mean error on the 3 noise corruptions by a larger"
                " fraction than on the 7 of C-bar that are not noise"
            ),
            claimed=f"in at least {NEEDED_RUNS} of {RUNS} runs",
            measured=(
                f"in {helped} of {RUNS} runs; share of error cut on noise: {listed([r.cut_on_noise for r in runs])};"
                f" on C-bar: {listed([r.cut_on_bar for r in runs])}"
                f" (mean error on noise {noisy[0]:.3f} plain, {noisy[1]:.3f} trained with noise; clean {clean[1]:.3f}"
                f" and {clean[2]:.3f})"
            ),
            held=helped >= NEEDED_RUNS,
        ),
    ]


if __name__ == "__main__":
    claims = replicate(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for claim in claims:
        print(f"{'held' if claim.held else 'NOT HELD'}: {claim.statement}")
        print(f"  claimed  {claim.claimed}\n  measured {claim.measured}")
    sys.exit(not all(claim.held for claim in claims))
