"""A real small network on real digits, trained once for all attack tests."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.models import ModelSpec, TorchModel


class Digits(NamedTuple):
    network: nn.Module
    model: TorchModel
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="session")
def digits() -> Digits:
    """A CNN at about 95 % on 8x8 digits, and 60 test images in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for step in range(150):
            rows = slice(step * 64 % 1500, step * 64 % 1500 + 64)
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    network.eval()
    spec = ModelSpec("digits", tuple("0123456789"), (8, 8), mean=(0.0,), std=(1.0,))
    return Digits(network, TorchModel(network, spec), images[1600:1660], labels[1600:1660])


class Linear(nn.Module):
    """Two classes, margin w.x + b: every optimum is known."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("w", torch.randn(3 * 4 * 4, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        margin = images.flatten(1) @ self.get_buffer("w") - 0.5 * self.get_buffer("w").sum()
        return torch.stack([-margin, margin], dim=1)


@pytest.fixture
def linear() -> Linear:
    return Linear()
