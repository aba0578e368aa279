"""Named layers of any `nn.Module`: reading them by forward hooks that are always taken off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snellen.errors import InvalidInput


class LayerTap:
    """Within the `with` block, keeps what the named layers read or wrote in the last forward pass.

    module: any network. layers: names from `named_modules()`, or None for every layer that gives a tensor, recorded in
    the order of execution. side: "output" or "input" (the first argument). Tensors stay attached to the graph:
    `torch.autograd.grad(target, tap.outputs[name])` gives their gradient. A tuple is recorded by its first tensor.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str] | None, side: Literal["input", "output"] = "output"
    ) -> None:
        named = {name: layer for name, layer in module.named_modules() if name}
        missing = [name for name in layers or () if name not in named]
        if missing:
            raise InvalidInput(f"the model has no layer {missing[0]!r}; it has {_shortened(list(named))}")
        self.outputs: dict[str, Tensor] = {}
        self._everything = layers is None
        self._layers = named if layers is None else {name: named[name] for name in layers}
        self._side = side
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> LayerTap:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(self._recorder(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None and not self._everything:
            silent = [name for name in self._layers if name not in self.outputs]
            if silent:
                raise InvalidInput(f"the forward pass never ran the layer {silent[0]!r}; choose another layer")

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def record(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            seen = inputs[0] if self._side == "input" else output
            if isinstance(seen, (tuple, list)):
                seen = seen[0]
            if not isinstance(seen, Tensor):
                if self._everything:
                    return
                raise InvalidInput(f"the layer {name!r} gives a {type(seen).__name__}, not a tensor")
            self.outputs[name] = seen

        return record


def layer_types(module: nn.Module) -> dict[str, str]:
    """Name -> class name of every layer, in order of definition."""
    return {name: type(layer).__name__ for name, layer in module.named_modules() if name}


def last_linear(module: nn.Module) -> str:
    """The name of the last `nn.Linear` (the head of almost every classifier), or of the last 1x1 convolution."""
    layers = list(module.named_modules())
    names: list[str] = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    if not names:
        names = [name for name, layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    if not names:
        raise InvalidInput("the model has no linear layer to read features from; name a layer instead")
    return names[-1]


def _shortened(names: list[str], shown: int = 12) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
