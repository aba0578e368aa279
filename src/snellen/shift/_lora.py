"""Low-rank adapters on a network's linear and convolution layers, whose strength can be turned while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snellen.errors import InvalidInput

Pair: TypeAlias = tuple[int, int]


class LowRankSlider(nn.Module):
    """Adds `scale * alpha / rank * up(down(x))` to every adapted layer (Hu et al., 2022).

    At first `up` is zero, so that the network is unchanged at any scale. Only this module's parameters learn; the
    network is only read. Use it inside `attached`.
    """

    def __init__(
        self, network: nn.Module, rank: int = 4, alpha: float = 1.0, skip: tuple[str, ...] = ("attn2",)
    ) -> None:
        """skip: layers whose name holds one of these stay as they are; "attn2" are diffusers' cross-attentions."""
        super().__init__()
        if rank < 1:
            raise InvalidInput(f"rank must be 1 or more, got {rank}")
        self.scale = 0.0
        self._factor = alpha / rank
        self._layers: dict[str, nn.Module] = {}
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name, layer in network.named_modules():
            if any(part in name for part in skip):
                continue
            pair = _pair(layer, rank)
            if pair is None:
                continue
            key = name.replace(".", "/")
            self._layers[key] = layer
            self.down[key], self.up[key] = pair
        if not self._layers:
            raise InvalidInput("network must have a linear or convolution layer that is not skipped, got none")

    @contextmanager
    def attached(self) -> Iterator[LowRankSlider]:
        """While open, the network's layers add their adapters times `scale`."""
        handles: list[RemovableHandle] = []
        try:
            for key, layer in self._layers.items():
                handles.append(layer.register_forward_hook(self._hook(key)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        down, up = self.down[key], self.up[key]

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.scale == 0:
                return output
            changed: Tensor = output + self.scale * self._factor * up(down(inputs[0]))
            return changed

        return add


def _pair(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module] | None:
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        up: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        # torch declares these as longer tuples and strings than a 2-D layer has.
        size, step, dilation = (cast(Pair, v) for v in (layer.kernel_size, layer.stride, layer.dilation))
        down = nn.Conv2d(layer.in_channels, rank, size, step, cast(Pair, layer.padding), dilation, bias=False)
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    else:
        return None
    weight = layer.weight
    for part in (down, up):
        part.to(device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(up.get_parameter("weight"))
    return down, up
