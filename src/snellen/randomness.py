"""Noise that belongs to a sample and not to a batch.

Global random state is never read nor written. A sample's stream is seeded by (run seed, method, sample id), so a
row does not depend on batch size, shard, worker count or executor: one worker and eight give the same rows.
Numbers are drawn on the CPU and moved, so they are also the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; equal parts give equal seeds on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@dataclass(frozen=True)
class SampleRandom:
    """Random streams for one method in one run.

    seed: the run's seed. method: the probe's name, so that two methods do not share noise.
    """

    seed: int
    method: str

    def generator(self, sample_id: str, *purpose: object) -> torch.Generator:
        """The stream of one sample; `purpose` (a restart number, a severity) opens further independent streams."""
        return torch_generator(self.seed, self.method, sample_id, *purpose)

    def generators(self, sample_ids: Iterable[str], *purpose: object) -> list[torch.Generator]:
        """One stream a sample, in the order given."""
        return [self.generator(sample_id, *purpose) for sample_id in sample_ids]

    def numpy(self, *purpose: object) -> np.random.Generator:
        """A stream for work on the whole set: bootstraps, permutations, splits."""
        return np.random.default_rng(derive_seed(self.seed, self.method, *purpose))


def uniform(generators: Sequence[torch.Generator], shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform noise `[B, *shape]`, float32 on the CPU, row i drawn from `generators[i]` alone."""
    drawn = torch.stack([torch.rand(*shape, generator=generator) for generator in generators])
    return drawn.mul_(high - low).add_(low)


def normal(generators: Sequence[torch.Generator], shape: Sequence[int], std: float = 1.0) -> Tensor:
    """Gaussian noise `[B, *shape]`, float32 on the CPU, row i drawn from `generators[i]` alone."""
    drawn = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
    return drawn if std == 1.0 else drawn.mul_(std)
