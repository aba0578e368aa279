"""The demo's network: four convolutions, global average pooling, one linear layer (about 90,000 parameters)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from snellen.errors import InvalidInput

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("faulty", "healthy")


class DigitNet(nn.Module):
    """Images `[B, 3, 32, 32]` in [0, 1] to logits `[B, 10]`.

    patch_stem: begin with non-overlapping 4 x 4 patches instead of overlapping convolutions; such a network sees
    where a stroke crosses its grid and is fragile to shifts by one pixel.
    """

    def __init__(self, patch_stem: bool = False) -> None:
        super().__init__()
        self.patch_stem = patch_stem
        if patch_stem:
            self.stem = nn.Sequential(nn.Conv2d(3, 48, 4, stride=4), nn.BatchNorm2d(48), nn.ReLU())
        else:
            self.stem = nn.Sequential(_block(3, 24, 1), _block(24, 48, 2))
        self.body = nn.Sequential(_block(48, 64, 1 if patch_stem else 2), _block(64, 80, 1))
        self.head = nn.Linear(80, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self.stem(images)).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


def _block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def save_network(network: DigitNet, path: Path, notes: dict[str, str]) -> None:
    """Writes safetensors; `notes` (what was planted) go to the header."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, {"architecture": "DigitNet", "patch_stem": str(network.patch_stem), **notes})


def load_network(path: Path) -> DigitNet:
    """A network that `save_network` wrote. Raises InvalidInput when the file is something else."""
    with safe_open(path, framework="pt") as stored:
        notes = stored.metadata() or {}
        if notes.get("architecture") != "DigitNet":
            raise InvalidInput(f"{path.name} does not hold a demo network; make one with python -m snellen.demo")
        network = DigitNet(patch_stem=notes.get("patch_stem") == "True")
        network.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    return network.eval()


def shipped_network(which: str = "faulty") -> DigitNet:
    """One of the networks that come with the package: "faulty" or "healthy"."""
    if which not in SHIPPED:
        raise InvalidInput(f"the demo models are {' and '.join(SHIPPED)}, got {which!r}")
    return load_network(WEIGHTS / f"{which}.safetensors")


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy on uint8 images."""
    with torch.no_grad():
        hits = [
            network(batch.float() / 255).argmax(1).eq(truth).sum()
            for batch, truth in zip(images.split(256), labels.split(256), strict=True)
        ]
    return float(sum(hits)) / len(labels)
