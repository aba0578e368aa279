"""Images from few numbers: the spaces in which an image is changed so that it stays an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput


class LatentGenerator(Protocol):
    """encode: images `[B, C, H, W]` to latents `[B, d]`. decode: back to images in [0, 1], with gradients.

    decode is given the original images too: a generator that only edits them keeps in the latent what it changes.
    """

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PrincipalDecoder:
    """Linear: latents are coordinates along orthonormal principal components. mean: `[D]`. axes: `[D, d]`."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, images: Tensor, dimensions: int) -> PrincipalDecoder:
        """The first components of images `[n, C, H, W]`; use other images than those that are examined."""
        flat = images.flatten(1).float()
        if not 1 <= dimensions <= min(flat.shape):
            raise InvalidInput(f"dimensions must be 1 to {min(flat.shape)} for these images, got {dimensions}")
        mean = flat.mean(dim=0)
        axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:dimensions].T
        return cls(mean, axes.contiguous())

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - self.mean) @ self.axes

    def decode(self, latents: Tensor, images: Tensor) -> Tensor:
        return (self.mean + latents @ self.axes.T).view_as(images).clamp(0, 1)


class ConvAutoencoder(nn.Module):
    """Two strides down to `latent` numbers and back; sides must be multiples of 4."""

    def __init__(self, channels: int, height: int, width: int, latent: int = 32, filters: int = 24) -> None:
        super().__init__()
        if height % 4 or width % 4 or latent < 1:
            raise InvalidInput(
                f"the sides must be multiples of 4 and latent at least 1, got {height} x {width} px and {latent}"
            )
        small = (2 * filters, height // 4, width // 4)
        self.down = nn.Sequential(
            nn.Conv2d(channels, filters, 4, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(filters, 2 * filters, 4, stride=2, padding=1),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(math.prod(small), latent),
        )
        self.up = nn.Sequential(
            nn.Linear(latent, math.prod(small)),
            nn.ELU(),
            nn.Unflatten(1, small),
            nn.ConvTranspose2d(2 * filters, filters, 4, stride=2, padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(filters, channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.down(images)
        return latents

    def decode(self, latents: Tensor, images: Tensor) -> Tensor:
        decoded: Tensor = self.up(latents)
        return decoded


def train_autoencoder(images: Tensor, latent: int = 32, epochs: int = 30, seed: int = 0) -> ConvAutoencoder:
    """An autoencoder of these images `[n, C, H, W]` (squared error, Adam with one cycle).

    Latents are normalised to no fixed scale: the size of a step has to be chosen by what it does to the images. Use
    other images than those that are examined.
    """
    if images.ndim != 4 or len(images) < 2 or epochs < 1:
        raise InvalidInput(
            f"images must be [n, C, H, W] with n >= 2 and epochs at least 1, got {list(images.shape)} and {epochs}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, height, width = images.shape[1:]
        network = ConvAutoencoder(channels, height, width, latent)
        order = torch.Generator().manual_seed(seed)
        batches = math.ceil(len(images) / 64)
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=order).split(64):
                batch = images[rows]
                loss = F.mse_loss(network.decode(network.encode(batch), batch), batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Retoucher:
    """A renderer with continuous parameters, all 0 for the image as it is; each stays within its range by a tanh.

    In order: rotation, size, right, down, shear, stroke (dilated or eroded bright areas), softness (blurred or
    sharpened), light (mean, to the right, downwards), and a gain of each colour. Ranges are the largest changes.
    """

    rotation: float = 20.0
    """Degrees."""
    size: float = 0.15
    """Logarithm of the factor."""
    shift: float = 0.08
    """Share of the side."""
    shear: float = 0.2
    stroke: float = 0.5
    """Share of the way to a 3 x 3 maximum or minimum."""
    softness: float = 0.7
    """Share of the way to a 3 x 3 mean, or away from it."""
    light: float = 0.2
    """In pixel units."""
    gain: float = 0.25
    """Share."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InvalidInput(f"{name} must be finite and at least 0, got {value}")

    def encode(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 10 + images.shape[1])

    def decode(self, latents: Tensor, images: Tensor) -> Tensor:
        turn, grow, right, down, shear, stroke, soft, light, across, along, *_ = latents.tanh().T
        angle, scale = turn * math.radians(self.rotation), (-grow * self.size).exp()
        cos, sin = angle.cos() * scale, angle.sin() * scale
        slant = shear * self.shear
        rows = [cos, slant * cos - sin, right * 2 * self.shift, sin, slant * sin + cos, down * 2 * self.shift]
        grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
        shown = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

        stroke, soft = (value.view(-1, 1, 1, 1) for value in (stroke * self.stroke, soft * self.softness))
        padded = F.pad(shown, (1, 1, 1, 1), mode="replicate")
        thick, thin = F.max_pool2d(padded, 3, stride=1), -F.max_pool2d(-padded, 3, stride=1)
        shown = torch.where(stroke >= 0, shown + stroke * (thick - shown), shown - stroke * (thin - shown))
        mean = F.avg_pool2d(F.pad(shown, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        shown = shown + soft * (mean - shown)

        height, width = images.shape[-2:]
        x = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1)
        y = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1)
        flat, across, along = (value.view(-1, 1, 1, 1) * self.light / 3 for value in (light, across, along))
        gains = 1 + self.gain * latents[:, 10:].tanh().view(len(images), -1, 1, 1)
        lit: Tensor = shown * gains + flat + across * x + along * y
        return lit.clamp(0, 1)
