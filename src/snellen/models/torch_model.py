"""White-box models: any `nn.Module`, or a plain callable at SCORES access."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.access import Access
from snellen.models.layers import LayerTap, last_linear, layer_types
from snellen.models.ledger import QueryLedger
from snellen.models.model import Activations, Model, check_images
from snellen.models.preprocessing import Preprocessing
from snellen.models.spec import ModelSpec, fingerprint_weights


class TorchModel(Model):
    """A network behind resizing and normalisation, with its passes counted.

    network: an `nn.Module` or callable, normalised images `[B, C, H, W]` in, logits `[B, K]` out. A module is put
    behind a frozen, channels-last, eval-mode copy that shares memory with the original where the layout allows; the
    original is left as it was. access: defaults to WEIGHTS for a module and SCORES for a plain callable (whose
    outputs may not be differentiable). dtype: torch.bfloat16 computes under autocast, logits come as float32; expect
    differences of some hundredths. compiled: passes without taps run through `torch.compile`, whose sums may differ
    from the eager ones in the last digits. Both are part of the fingerprint.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Tensor],
        spec: ModelSpec,
        *,
        device: torch.device | str = "cpu",
        access: Access | None = None,
        ledger: QueryLedger | None = None,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self._autocast = None if dtype == torch.float32 else dtype
        self._compiled = compiled
        self.ledger = ledger or QueryLedger()
        self._module: nn.Module | None = None
        if isinstance(network, nn.Module):
            network = self._module = _on_device(frozen_copy(network), self.device)
            if not spec.fingerprint:
                digest = fingerprint_weights(repr(network), network.state_dict())  # repr shows strides and the like
                spec = replace(spec, fingerprint=digest)
        if dtype != torch.float32 or compiled:
            spec = replace(spec, fingerprint=f"{spec.fingerprint}-{str(dtype)[6:]}{'-compiled' * compiled}")
        self.access = access or (Access.SCORES if self._module is None else Access.WEIGHTS)
        self._eager: Callable[[Tensor], Tensor] = network
        self._network = self._fast()
        self.spec = spec
        self.preprocess = Preprocessing(spec, self.device)

    def __call__(self, images: Tensor) -> Tensor:
        return self._forward(self._network, images)

    def _forward(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        check_images(images, self.spec.channels)
        self.ledger.charge(forward=len(images))
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.access >= Access.GRADIENTS),
            torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None),
        ):
            return self._checked(network(self.preprocess(images)), len(images))

    def _fast(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self._eager) if self._compiled else self._eager

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in super().__getstate__().items() if key != "_network"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._network = self._fast()

    def activations(self, images: Tensor, layers: Sequence[str] | None) -> Activations:
        with LayerTap(self._require_module(), layers) as tap:
            logits = self._forward(self._eager, images)  # hooks would break a compiled graph
        return Activations(logits, tap.outputs)

    def features(self, images: Tensor) -> Tensor:
        module = self._require_module()
        head = last_linear(module)
        with torch.no_grad(), LayerTap(module, [head], side="input") as tap:
            self._forward(self._eager, images)
        return tap.outputs[head].flatten(1)

    def layer_types(self) -> dict[str, str]:
        return layer_types(self._require_module())

    @property
    def module(self) -> nn.Module:
        self.require(Access.WEIGHTS, "reading weights")
        return self._require_module()

    def _require_module(self) -> nn.Module:
        self.require(Access.FEATURES, "reading inner layers")
        if self._module is None:
            raise InvalidInput(f"{self.spec.name} is a plain callable and has no layers")
        return self._module

    def _checked(self, logits: Tensor, batch_size: int) -> Tensor:
        expected = (batch_size, self.spec.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInput(
                f"the model {self.spec.name} returned {came} for {batch_size} images, but {len(self.spec.class_names)}"
                f" class names need {list(expected)}; give the model's own classes with --classes names.txt"
            )
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits if logits.dtype == torch.float32 else logits.float()

    def _count_backward(self, gradient: Tensor) -> None:
        # A hook on the logits sees every backward pass, also those that a method starts by itself.
        self.ledger.charge(backward=len(gradient))


def frozen_copy(module: nn.Module) -> nn.Module:
    """The module in eval mode with parameters that ask for no gradient, sharing storage with the original.

    Frozen parameters spare the backward pass the activations that only weight gradients need.
    """
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach()
    try:
        copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        raise InvalidInput(
            f"the module {type(module).__name__} cannot be copied ({error}); pass a fresh nn.Module,"
            " or wrap it in a function to use it at scores access"
        ) from error
    for layer in copied.modules():
        if getattr(layer, "inplace", False):
            setattr(layer, "inplace", False)  # an in-place ReLU would overwrite what a tap has recorded
    return copied.eval()


def _on_device(module: nn.Module, device: torch.device) -> nn.Module:
    for parameter in module.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        parameter.data = parameter.data.to(device, memory_format=layout)
    return module.to(device)
