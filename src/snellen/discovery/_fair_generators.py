"""Two cheap generators of images p(x | y, a), and the interface they share with the diffusion model beside them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom, derive_seed, normal, torch_generator

UNLABELLED = -1


class Generator(Protocol):
    """fingerprint: a hash of all parameters. `sample` takes int64 `[n]` twice and gives float32 `[n, C, H, W]` in
    [0, 1]; row i depends on the seed, i and its cell alone."""

    @property
    def fingerprint(self) -> str: ...
    def sample(self, labels: Tensor, groups: Tensor, seed: int) -> Tensor: ...


class Seen(NamedTuple):
    """The classes and the groups that images were fitted on had; a pair of them need not have come together."""

    labels: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, labels: Tensor, groups: Tensor) -> Seen:
        return cls(frozenset(labels[labels != UNLABELLED].tolist()), frozenset(groups.tolist()))

    def check(self, labels: Tensor, groups: Tensor) -> None:
        """Refuse to draw what no image has shown."""
        if labels.ndim != 1 or labels.shape != groups.shape or len(labels) == 0:
            raise InvalidInput(
                "labels and groups to sample must be [n] and at least 1,"
                f" got {list(labels.shape)} and {list(groups.shape)}"
            )
        for name, asked, seen in zip(("labels", "groups"), (labels, groups), self, strict=True):
            if unseen := sorted(set(asked.tolist()) - seen):
                raise InvalidInput(f"{name} to sample must have been seen with an image, got {unseen}")


@dataclass(frozen=True)
class PcaGaussian:
    """Each cell's own mean, and one covariance within cells for all of them, in the space of the first components.

    It knows the cells with at least 2 labelled images only, so it evens out groups but cannot fill a group that has no
    labels at all. shape: of an image. means: cell -> `[d]`. spread: `[components, d]`, rows scaled to their deviation.
    """

    shape: torch.Size
    means: dict[tuple[int, int], Tensor]
    spread: Tensor

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, groups: Tensor, components: int = 32) -> PcaGaussian:
        """images: `[n, C, H, W]` in [0, 1]. labels: int64 `[n]`, -1 for unlabelled. groups: int64 `[n]`."""
        check_images(images, labels, groups)
        if components < 1:
            raise InvalidInput(f"components must be at least 1, got {components}")
        flat, means, residuals = images.flatten(1), {}, []
        for label, group in torch.stack([labels, groups], dim=1).unique(dim=0).tolist():
            cell = flat[(labels == label) & (groups == group)]
            if label != UNLABELLED and len(cell) >= 2:
                means[label, group] = cell.mean(dim=0)
                residuals.append(cell - means[label, group])
        if not means:
            raise InvalidInput("labels must give at least one cell of class and group 2 images, got none")
        within = torch.cat(residuals)
        _, scale, rows = torch.linalg.svd(within, full_matrices=False)
        deviation = scale / max(len(within) - len(means), 1) ** 0.5
        return cls(images.shape[1:], means, (deviation[:, None] * rows)[:components])

    @property
    def fingerprint(self) -> str:
        return hash_of([*self.means.values(), self.spread], str(sorted(self.means)))

    def sample(self, labels: Tensor, groups: Tensor, seed: int) -> Tensor:
        cells = list(zip(labels.tolist(), groups.tolist(), strict=True))
        missing = sorted(set(cells) - self.means.keys())
        if missing:
            raise InvalidInput(f"cells of class and group need at least 2 labelled images each, too few in {missing}")
        mean = torch.stack([self.means[cell] for cell in cells])
        drawn = mean + cell_noise(labels, groups, seed, len(self.spread)) @ self.spread
        return drawn.clamp(0, 1).reshape(-1, *self.shape)


class ConditionalVae:
    """A variational autoencoder (Kingma and Welling, 2014) told class and group; unlabelled images have the null class.

    Class and group are added as separate inputs, so a class can be drawn in a group that has no labels; whether the
    image then is of that class is what the network made of it, so look at some.
    """

    def __init__(self, network: _Vae, shape: torch.Size, seen: Seen) -> None:
        self.network, self.shape, self.seen = network, shape, seen

    @classmethod
    def fit(
        cls, images: Tensor, labels: Tensor, groups: Tensor, steps: int = 1500, latent: int = 16, seed: int = 0
    ) -> ConditionalVae:
        """As `PcaGaussian.fit`. steps, latent: at least 1. The global random state is put back afterwards."""
        check_images(images, labels, groups)
        if steps < 1 or latent < 1:
            raise InvalidInput(f"steps and latent must be at least 1, got {steps} and {latent}")
        flat, n = images.flatten(1), len(images)
        generator = torch_generator(seed, "fair-augmentation/vae")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "fair-augmentation/vae"))
            network = _Vae(flat.shape[1], latent, int(labels.max()) + 1, int(groups.max()) + 1)
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(steps):
            rows = torch.randint(0, n, (min(128, n),), generator=generator)
            dropped = torch.rand(len(rows), generator=generator) < DROPPED
            condition = network.condition(labels[rows].masked_fill(dropped, UNLABELLED), groups[rows])
            mean, log_variance = network.encoder(torch.cat([flat[rows], condition], dim=1)).chunk(2, dim=1)
            noise = torch.randn(mean.shape, generator=generator)
            made = network.decoder(torch.cat([mean + (log_variance / 2).exp() * noise, condition], dim=1))
            divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
            squared = F.mse_loss(made.sigmoid(), flat[rows], reduction="none").sum(dim=1) / (2 * PIXEL_VARIANCE)
            loss = (squared + divergence).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return cls(network.eval(), images.shape[1:], Seen.of(labels, groups))

    @property
    def fingerprint(self) -> str:
        return hash_of(list(self.network.state_dict().values()), str([sorted(side) for side in self.seen]))

    @torch.no_grad()
    def sample(self, labels: Tensor, groups: Tensor, seed: int) -> Tensor:
        self.seen.check(labels, groups)
        noise = cell_noise(labels, groups, seed, self.network.latent)
        made = self.network.decoder(torch.cat([noise, self.network.condition(labels, groups)], dim=1))
        images: Tensor = made.sigmoid().reshape(-1, *self.shape)
        return images


DROPPED = 0.1
"""Share of the images whose condition is hidden in training, as for guidance without a classifier."""
PIXEL_VARIANCE = 0.03
"""Of the noise the decoder is allowed. Less, and the latent tells the class as well, so that images drawn from noise
contradict the class they were asked for (13 % of digits at 0.01, 2 % at 0.03); more, and they come near to means."""
WIDTH = 256


class _Vae(nn.Module):
    def __init__(self, pixels: int, latent: int, classes: int, groups: int) -> None:
        super().__init__()
        self.latent, self.classes, self.groups = latent, classes, groups
        told = classes + groups
        self.encoder = nn.Sequential(nn.Linear(pixels + told, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent + told, WIDTH), nn.ReLU(), nn.Linear(WIDTH, pixels))

    def condition(self, labels: Tensor, groups: Tensor) -> Tensor:
        """`[n, classes + groups]`; the null class is all zeros."""
        told = F.one_hot(labels.clamp_min(0), self.classes) * (labels != UNLABELLED)[:, None]
        return torch.cat([told, F.one_hot(groups, self.groups)], dim=1).float()


def check_images(images: Tensor, labels: Tensor, groups: Tensor) -> None:
    """Refuse what no generator can be fitted on."""
    if images.ndim != 4 or not len(images) == len(labels) == len(groups) or len(images) == 0:
        raise InvalidInput(
            "images must be [n, C, H, W] with n labels and groups,"
            f" got {list(images.shape)}, {len(labels)} and {len(groups)}"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InvalidInput("images must be finite and in [0, 1], got values outside or NaN")
    if bool((labels < UNLABELLED).any()) or bool((groups < 0).any()):
        raise InvalidInput("labels must be at least -1 (unlabelled) and groups at least 0, got smaller ones")
    if bool((labels == UNLABELLED).all()):
        raise InvalidInput("labels must name the class of some images, got none labelled")


def cell_noise(labels: Tensor, groups: Tensor, seed: int, size: int) -> Tensor:
    """Gaussian `[n, size]`; row i depends on the seed, i and its cell alone."""
    random = SampleRandom(seed, "fair-augmentation")
    rows = zip(labels.tolist(), groups.tolist(), strict=True)
    return normal([random.generator(str(row), *cell) for row, cell in enumerate(rows)], (size,))


def hash_of(tensors: list[Tensor], more: str) -> str:
    """Of all values, and of whatever else decides the images."""
    digest = hashlib.blake2b(more.encode(), digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
