"""The one face of every model: `Model`, and the honest black box `restrict` makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snellen.errors import AccessDenied, InvalidInput
from snellen.models.access import Access
from snellen.models.ledger import QueryLedger
from snellen.models.spec import ModelSpec


class Activations(NamedTuple):
    """Logits `[B, K]` and the outputs of the named layers, still attached to the graph where gradients are on."""

    logits: Tensor
    layers: dict[str, Tensor]


class Model(ABC):
    """A classifier with a spec, an access level and a ledger.

    Calling it maps images `[B, C, H, W]` (float32, [0, 1], `C = spec.channels`) to logits `[B, K]`. It resizes and
    normalises by itself, so every epsilon and sigma is in pixel units. It is a plain callable: every method that
    takes `Callable[[Tensor], Tensor]` takes a `Model`. Every image forward and backward goes through `ledger`.
    """

    spec: ModelSpec
    access: Access
    ledger: QueryLedger
    device: torch.device
    remote: bool = False
    """Every query is seen, and perhaps billed, by somebody else: none is sent without being booked."""
    batch_size: int | None = None
    """Images a pass that suit the model; None to go by their size."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[B, K]`; part of the autograd graph when `images` is and access is at least GRADIENTS."""

    def labels(self, images: Tensor) -> Tensor:
        """Predicted classes, int64 `[B]`; -1 where the outputs are not finite."""
        return labels_of(self.scores(images))

    def scores(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` without a graph."""
        with torch.no_grad():
            return self(images)

    def activations(self, images: Tensor, layers: Sequence[str] | None) -> Activations:
        """Logits and the outputs of the named layers (None: all that give a tensor) of one pass (access FEATURES)."""
        raise AccessDenied(f"{self.spec.name} does not show its layers; it grants {self.access}")

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer reads, `[B, D]`, without a graph (access FEATURES)."""
        raise AccessDenied(f"{self.spec.name} does not show its features; it grants {self.access}")

    @property
    def module(self) -> nn.Module:
        """The network itself, normalised input in, logits out (access WEIGHTS)."""
        raise AccessDenied(f"{self.spec.name} does not show its weights; it grants {self.access}")

    def layer_types(self) -> dict[str, str]:
        """Name -> class name of every layer that `activations` accepts, in order of definition (access FEATURES)."""
        raise AccessDenied(f"{self.spec.name} does not show its layers; it grants {self.access}")

    def try_out(self) -> None:  # noqa: B027  # most models are tried out while they are loaded
        """One image, booked, so that a remote model's wrong spec is told before the run begins."""

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "ledger"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """A copy in another process has a ledger of its own."""
        self.__dict__.update(state)
        self.ledger = QueryLedger()

    def restrict(self, access: Access) -> Model:
        """The same model seen by someone who has less: same spec, same ledger, lower access."""
        if access > self.access:
            raise AccessDenied(f"{self.spec.name} grants {self.access}; it cannot be raised to {access}")
        return self if access == self.access else RestrictedModel(self, access)

    def require(self, access: Access, purpose: str) -> None:
        """Raise `AccessDenied` unless the model grants `access`; `purpose` names who asks."""
        if self.access < access:
            raise AccessDenied(f"{purpose} needs {access} access, but {self.spec.name} grants only {self.access}")


class RestrictedModel(Model):
    """A view of another model with less access. Asking for more raises `AccessDenied`."""

    def __init__(self, inner: Model, access: Access) -> None:
        self._inner = inner
        self.access = access
        self.spec = inner.spec
        self.ledger = inner.ledger
        self.device = inner.device
        self.remote = inner.remote
        self.batch_size = inner.batch_size

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.ledger = self._inner.ledger

    def try_out(self) -> None:
        self._inner.try_out()

    def __call__(self, images: Tensor) -> Tensor:
        self.require(Access.SCORES, "reading scores")
        if self.access >= Access.GRADIENTS:
            return self._inner(images)
        return self._inner.scores(images.detach())

    def labels(self, images: Tensor) -> Tensor:
        return self._inner.labels(images.detach())

    def activations(self, images: Tensor, layers: Sequence[str] | None) -> Activations:
        self.require(Access.FEATURES, "reading activations")
        if self.access >= Access.GRADIENTS:
            return self._inner.activations(images, layers)
        with torch.no_grad():
            return self._inner.activations(images.detach(), layers)

    def features(self, images: Tensor) -> Tensor:
        self.require(Access.FEATURES, "reading features")
        return self._inner.features(images)

    def layer_types(self) -> dict[str, str]:
        self.require(Access.FEATURES, "listing layers")
        return self._inner.layer_types()

    @property
    def module(self) -> nn.Module:
        self.require(Access.WEIGHTS, "reading weights")
        return self._inner.module


def labels_of(logits: Tensor) -> Tensor:
    """Argmax `[B]` of logits `[B, K]`, -1 where any logit of a row is NaN or +inf (argmax of NaN means nothing)."""
    broken = torch.isnan(logits).any(dim=1) | torch.isposinf(logits).any(dim=1)
    return logits.argmax(dim=1).masked_fill(broken, -1)


def check_images(images: Tensor, channels: int) -> None:
    """Refuse what is not a float batch `[B, channels, H, W]`."""
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise InvalidInput(
            f"images must be a float tensor [B, {channels}, H, W] in [0, 1], got {images.dtype} {list(images.shape)}"
        )
