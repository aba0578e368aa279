"""A small diffusion model of images p(x | y, a), the generator of Ktena et al. (2024) at digit size.

Denoising diffusion (Ho et al., 2020): an image is mixed with noise eps, sqrt(abar_t) x + sqrt(1 - abar_t) eps, at one
of T = 200 levels of the cosine schedule (Nichol and Dhariwal, 2021), and a UNet learns to name eps. It is told t, class
and group as a sum of three embeddings; a condition that is unknown or hidden is the null token. Images are drawn in 25
steps without further noise (DDIM, Song et al., 2021), with guidance by the null tokens (Ho and Salimans, 2022).

Guidance w: eps(null) + w (eps(y, a) - eps(null)). w = 1 is the conditional model at one pass a step, 0 knows no
condition, above 1 exaggerates both conditions at two passes. Papers that write (1 + w) eps(y, a) - w eps(null) mean
w + 1 here. Class and group are hidden apart, so that only 1 % of labelled images show the pair of null tokens: without
unlabelled ones guidance leans on a guess. Misleads beyond 32 x 32, for which network and schedule are too small, and,
as the other generators, in groups without labels: ask a classifier that knows the group what it sees in the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.discovery._fair_generators import DROPPED, UNLABELLED, Seen, cell_noise, check_images, hash_of
from snellen.errors import InvalidInput
from snellen.randomness import derive_seed, torch_generator

LEVELS = 200
LEARNING_RATE = 1e-3
LONGEST_MEMORY = 0.9999
"""Of the averaged weights, a common value for long runs. A short one would with it end near where it began."""
DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class ConditionalDiffusion:
    """network: as `fit` gives it. shape: of an image. seen: what can be asked for. Other guidance or sampling steps are
    `dataclasses.replace(model, guidance=2.0)`; they change the images and so the fingerprint too.
    """

    network: DenoisingUNet
    shape: torch.Size
    seen: Seen
    guidance: float = 1.0
    """At least 0; 1 is the conditional model."""
    sampling_steps: int = 25
    """1 to 200."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise InvalidInput(f"guidance must be finite and at least 0, got {self.guidance}")
        if not 1 <= self.sampling_steps <= LEVELS:
            raise InvalidInput(f"sampling_steps must be 1 to {LEVELS}, got {self.sampling_steps}")

    @classmethod
    def fit(
        cls,
        images: Tensor,
        labels: Tensor,
        groups: Tensor,
        steps: int = 4000,
        width: int = 48,
        batch: int = 128,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Callable[[int, float], None] = lambda step, loss: None,
    ) -> ConditionalDiffusion:
        """images: `[n, C, H, W]` in [0, 1], H and W multiples of 4. labels: int64 `[n]`, -1 for unlabelled. groups:
        int64 `[n]`. width: channels at full resolution, a multiple of 8; 48 makes 1.2 million parameters. progress:
        called after each step with its number and loss. Repeatable to the bit on the CPU, to rounding elsewhere; the
        global random state is put back. Raises InvalidInput for what it cannot be fitted on.
        """
        check_images(images, labels, groups)
        if images.shape[2] % SHRINKS or images.shape[3] % SHRINKS:
            raise InvalidInput(f"images must have sides that are multiples of {SHRINKS}, got {list(images.shape[2:])}")
        if steps < 1 or batch < 1 or width < 1 or width % NORM_GROUPS:
            raise InvalidInput(
                f"steps and batch must be at least 1 and width a multiple of {NORM_GROUPS},"
                f" got {steps}, {batch} and {width}"
            )
        generator = torch_generator(seed, "fair-augmentation/diffusion")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "fair-augmentation/diffusion"))
            network = DenoisingUNet(images.shape[1], width, int(labels.max()) + 1, int(groups.max()) + 1).to(device)
        averaged = deepcopy(network).requires_grad_(False)
        optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        schedule = cosine_schedule()
        for step in range(1, steps + 1):
            rows = torch.randint(0, len(images), (min(batch, len(images)),), generator=generator)
            level = torch.randint(0, LEVELS, (len(rows),), generator=generator)
            noise = torch.randn((len(rows), *images.shape[1:]), generator=generator)
            hidden = torch.rand(2, len(rows), generator=generator) < DROPPED
            label = labels[rows].cpu().masked_fill(hidden[0], UNLABELLED)
            group = groups[rows].cpu().masked_fill(hidden[1], UNLABELLED)
            noisy = noised(2 * images[rows].cpu() - 1, noise, schedule[level])
            predicted = network(noisy.to(device), level.to(device), label.to(device), group.to(device))
            loss = F.mse_loss(predicted, noise.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            _average(averaged, network, step)
            progress(step, float(loss.detach()))
        return cls(averaged.eval(), images.shape[1:], Seen.of(labels, groups))

    @property
    def fingerprint(self) -> str:
        asked = [*map(sorted, self.seen), self.guidance, self.sampling_steps]
        return hash_of(list(self.network.state_dict().values()), str(asked))

    @torch.no_grad()
    def sample(self, labels: Tensor, groups: Tensor, seed: int) -> Tensor:
        """float32 `[n, C, H, W]` in [0, 1] on the CPU. Raises InvalidInput for a class or group without any image."""
        self.seen.check(labels, groups)
        start = cell_noise(labels, groups, seed, self.shape.numel()).reshape(-1, *self.shape)
        device = next(self.network.parameters()).device
        parts = [
            self._denoise(*(part.to(device) for part in together)).cpu()
            for together in zip(*(whole.split(DRAWN_AT_ONCE) for whole in (start, labels, groups)), strict=True)
        ]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def predict_noise(self, noisy: Tensor, level: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """eps with guidance. noisy: `[n, C, H, W]` around [-1, 1]. level: int64 `[n]`, 0 to 199. -1 is the null token
        of labels and of groups."""
        told: Tensor = self.network(noisy, level, labels, groups)
        if self.guidance == 1:
            return told
        null = torch.full_like(labels, UNLABELLED)
        untold: Tensor = self.network(noisy, level, null, null)
        return untold + self.guidance * (told - untold)

    def _denoise(self, noisy: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        # Evenly from 0: at the last level next to nothing of the image is left for eps to tell
        levels = [LEVELS * k // self.sampling_steps for k in range(self.sampling_steps)]
        kept = torch.cat([torch.ones(1), cosine_schedule()[levels]]).to(noisy.device)
        for k in reversed(range(self.sampling_steps)):
            noise = self.predict_noise(noisy, torch.full_like(labels, levels[k]), labels, groups)
            noisy = ddim_step(noisy, noise, kept[k + 1], kept[k])
        return noisy


def cosine_schedule(levels: int = LEVELS) -> Tensor:
    """abar, float32 `[levels]`: the share of the image's variance that is kept, from nearly 1 down to nearly 0."""
    angle = (torch.linspace(0, 1, levels + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2
    lost = 1 - angle[1:].cos() ** 2 / angle[:-1].cos() ** 2
    return (1 - lost.clamp(max=0.999)).cumprod(dim=0).float()


def noised(clean: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """sqrt(abar) x + sqrt(1 - abar) eps of `[n, C, H, W]`. kept: abar, `[n]` or a scalar."""
    kept = kept.reshape(-1, 1, 1, 1)
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def denoised(noisy: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """The x of `noised`, were eps the noise. In float32 it loses digits as abar nears 0."""
    kept = kept.reshape(-1, 1, 1, 1)
    return (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()


def ddim_step(noisy: Tensor, noise: Tensor, kept: Tensor, kept_next: Tensor) -> Tensor:
    """From abar `kept` to the larger `kept_next`, 1 at the end. The image is held to [-1, 1], and the noise is then
    what is left beside it, so that both still add up to where the step began."""
    clean = denoised(noisy, noise, kept).clamp(-1, 1)
    beside = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
    return noised(clean, beside, kept_next)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, step: int) -> None:
    """The mean reaches over about the last ninth of the steps, however many, until it has that memory."""
    memory = min(LONGEST_MEMORY, (1 + step) / (10 + step))
    for mean, now in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1 - memory)


NORM_GROUPS = 8
SHRINKS = 4
"""The sides are halved twice."""


class DenoisingUNet(nn.Module):
    """eps `[n, C, H, W]` from a noisy image of that shape, its level, class and group, int64 `[n]`, -1 for null."""

    kept: Tensor
    waves: Tensor

    def __init__(self, channels: int, width: int, classes: int, groups: int) -> None:
        super().__init__()
        told, wide = 4 * width, 2 * width
        self.register_buffer("kept", cosine_schedule())
        self.register_buffer("waves", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))
        self.time = nn.Sequential(nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told))
        self.label, self.group = nn.Embedding(classes + 1, told), nn.Embedding(groups + 1, told)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.high = _Block(width, width, told)
        self.to_middle = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.middle = _Block(width, wide, told)
        self.to_low = nn.Conv2d(wide, wide, 3, stride=2, padding=1)
        self.low, self.attention, self.low_again = _Block(wide, wide, told), _Attention(wide), _Block(wide, wide, told)
        self.middle_again = _Block(2 * wide, wide, told)
        self.high_again = _Block(wide + width, width, told)
        self.last = nn.Sequential(nn.GroupNorm(NORM_GROUPS, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, noisy: Tensor, level: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        angles = level[:, None] * self.waves
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        told = F.silu(time + self.label(labels + 1) + self.group(groups + 1))

        high = self.high(self.stem(noisy), told)
        middle = self.middle(self.to_middle(high), told)
        low = self.low_again(self.attention(self.low(self.to_low(middle), told)), told)
        up = self.middle_again(torch.cat([F.interpolate(low, scale_factor=2.0), middle], dim=1), told)
        up = self.high_again(torch.cat([F.interpolate(up, scale_factor=2.0), high], dim=1), told)
        # The layers name v, a mix of eps and image (Salimans and Ho, 2022), and eps follows from it. Asked for eps
        # itself they spend a short training on copying the noise and hardly learn what they are told.
        kept = self.kept[level].reshape(-1, 1, 1, 1)
        noise: Tensor = (1 - kept).sqrt() * noisy + kept.sqrt() * self.last(up)
        return noise


class _Block(nn.Module):
    """Two convolutions beside a skip; what it is told scales and shifts what lies between them."""

    def __init__(self, before: int, after: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(NORM_GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.told, self.norm = nn.Linear(told, 2 * after), nn.GroupNorm(NORM_GROUPS, after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
        within = self.norm(self.first(features)) * (1 + scale) + shift
        out: Tensor = self.skip(features) + self.second(F.silu(within))
        return out


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.asked = nn.GroupNorm(NORM_GROUPS, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        query, key, value = self.asked(self.norm(features)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(features.shape)
        out: Tensor = features + self.out(mixed)
        return out
