"""White-box models: any `nn.Module`, or a plain callable at SCORES access."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.models.access import Access
from snellen.models.layers import LayerTap, last_linear, layer_types
from snellen.models.ledger import QueryLedger
from snellen.models.model import Activations, Model, check_images
from snellen.models.spec import ModelSpec, fingerprint_weights


class TorchModel(Model):
    """A network behind resizing and normalisation, with its passes counted.

    network: an `nn.Module` or callable, normalised images `[B, C, H, W]` in, logits `[B, K]` out. A module is put
    behind a frozen, channels-last, eval-mode copy that shares memory with the original where the layout allows; the
    original is left as it was. access: defaults to WEIGHTS for a module and SCORES for a plain callable (whose
    outputs may not be differentiable).
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Tensor],
        spec: ModelSpec,
        *,
        device: torch.device | str = "cpu",
        access: Access | None = None,
        ledger: QueryLedger | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.ledger = ledger or QueryLedger()
        self._module: nn.Module | None = None
        if isinstance(network, nn.Module):
            network = self._module = _on_device(frozen_copy(network), self.device)
            if not spec.fingerprint:
                digest = fingerprint_weights(repr(network), network.state_dict())  # repr shows strides and the like
                spec = replace(spec, fingerprint=digest)
        self.access = access or (Access.SCORES if self._module is None else Access.WEIGHTS)
        self._network: Callable[[Tensor], Tensor] = network
        self.spec = spec
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, -1, 1, 1)
        self._plain_input = all(m == 0 for m in spec.mean) and all(s == 1 for s in spec.std)

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self.spec.channels)
        self.ledger.charge(forward=len(images))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.access >= Access.GRADIENTS):
            return self._checked(self._network(self.preprocess(images)), len(images))

    def preprocess(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` in [0, 1] to what the network reads: resized, normalised, on the device."""
        images = images.to(self.device, memory_format=torch.channels_last)
        if tuple(images.shape[-2:]) != self.spec.input_size:
            images = resize(images, self.spec.input_size, self.spec.interpolation)
        return images if self._plain_input else (images - self._mean) / self._std

    def activations(self, images: Tensor, layers: Sequence[str] | None) -> Activations:
        with LayerTap(self._require_module(), layers) as tap:
            logits = self(images)
        return Activations(logits, tap.outputs)

    def features(self, images: Tensor) -> Tensor:
        module = self._require_module()
        head = last_linear(module)
        with torch.no_grad(), LayerTap(module, [head], side="input") as tap:
            self(images)
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


def resize(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize `[B, C, H, W]` to `size` (height, width), antialiased where the kernel allows, clipped to [0, 1]."""
    if interpolation == "nearest":
        return F.interpolate(images, size=size, mode="nearest")
    resized = F.interpolate(images, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized.clamp(0, 1) if interpolation == "bicubic" else resized
