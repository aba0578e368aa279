"""Small real things that many tests share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings

from snellen.data import Dataset
from snellen.models import Model, ModelSpec, TorchModel

# The same examples on every machine, and no clock: a loaded machine is not a defect.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores


@pytest.fixture
def tiny_model() -> Model:
    """An untrained convolution network with three classes on 16 px images; the same for every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.ReLU(inplace=True),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 3),
        )
    return TorchModel(network, ModelSpec("tiny", ("cat", "dog", "owl"), (16, 16)))


@pytest.fixture
def tiny_data() -> Dataset:
    """Sixty noise images of 16 px, three classes, two attributes."""
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(
        rng.integers(0, 256, (60, 3, 16, 16), dtype=np.uint8),
        np.arange(60) % 3,
        ("cat", "dog", "owl"),
        {"light": rng.choice(["day", "night"], 60), "angle": rng.uniform(-30, 30, 60)},
    )
