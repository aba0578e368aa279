"""`Source`: a network as it was found, with the facts that came with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.endpoint import Endpoint
from snellen.models.spec import Interpolation


class Source(NamedTuple):
    """A network and the facts that came with it."""

    network: nn.Module | Callable[[Tensor], Tensor] | Endpoint
    class_names: Sequence[str] | None = None
    input_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0
    aliases: dict[str, str] | None = None
    fingerprint: str = ""
    """Identity of what is no `nn.Module`, whose weights cannot be hashed."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, a sentence each; the user is shown them as warnings."""


def fill_weights(network: nn.Module, state: dict[str, Tensor], path: Path | None) -> None:
    """Put the tensors of `path` into the network; a sentence says where they do not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InvalidInput(f"{path} does not fit {type(network).__name__}: {'; '.join(lines)}") from error
