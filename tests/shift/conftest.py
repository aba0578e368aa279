"""Photos, and the peer `imagecorruptions`, whose import needs the `pkg_resources` that setuptools dropped."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos() -> NDArray[np.uint8]:
    """Four crops of 224 px from two photos, uint8 `[4, 224, 224, 3]`."""
    crops = [
        photo[y : y + 224, x : x + 224] for photo in load_sample_images().images for y, x in ((20, 50), (180, 330))
    ]
    return np.stack(crops)


@pytest.fixture(scope="session")
def images(photos: NDArray[np.uint8]) -> Tensor:
    """The same as float `[4, 3, 224, 224]` in [0, 1]."""
    return torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous().float() / 255


@pytest.fixture(scope="session")
def peer() -> Iterator[types.ModuleType]:
    """The module `imagecorruptions.corruptions`."""
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or found.origin is None:
        pytest.skip("imagecorruptions is not installed")
    missing = importlib.util.find_spec("pkg_resources") is None
    if missing:
        folder = Path(found.origin).parent
        stand_in = types.ModuleType("pkg_resources")
        setattr(stand_in, "resource_filename", lambda _, name: str(folder / name))
        sys.modules["pkg_resources"] = stand_in
    yield importlib.import_module("imagecorruptions.corruptions")
    if missing:
        del sys.modules["pkg_resources"]
