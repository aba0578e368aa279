"""The set an attacker may move in: a norm ball around each image, cut with the pixel box [0, 1].

Images are `[B, C, H, W]` in any memory layout, which every function keeps. Epsilons are in pixel units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.linalg import vector_norm

from snellen.errors import InvalidInput
from snellen.randomness import normal, uniform

Norm = Literal["linf", "l2"]

IMAGE = (1, 2, 3)
TINY = 1e-12
"""Floor of a norm that is divided by; a zero gradient then moves nothing."""


class Ball(ABC):
    """Points within `eps` of `centre` `[B, C, H, W]` and within [0, 1]."""

    def __init__(self, centre: Tensor, eps: float) -> None:
        self.centre = centre
        self.eps = eps

    @abstractmethod
    def project_(self, points: Tensor) -> Tensor:
        """Bring points back into the ball and the box, in place."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent of length one in this norm; zero where the gradient is."""

    @abstractmethod
    def distance(self, points: Tensor) -> Tensor:
        """Distance `[B]` from the centre, per image."""

    @abstractmethod
    def interior_noise(self, generators: Sequence[Generator]) -> Tensor:
        """Offsets uniform in the ball, row i from `generators[i]` alone, on the CPU."""

    @abstractmethod
    def boundary_noise(self, generators: Sequence[Generator]) -> Tensor:
        """Offsets on the boundary of the ball, row i from `generators[i]` alone, on the CPU."""

    def start(self, generators: Sequence[Generator] | None, *, boundary: bool = False) -> Tensor:
        """A fresh starting point: the centre without generators, otherwise a random one in (or on) the ball."""
        points = self.centre.clone()
        if generators is None:
            return points
        noise = self.boundary_noise(generators) if boundary else self.interior_noise(generators)
        return self.project_(points.add_(noise.to(points.device)))

    def keep(self, rows: Tensor) -> Ball:
        """The ball of the chosen rows."""
        return type(self)(self.centre[rows], self.eps)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.centre.shape[1:])


class LinfBall(Ball):
    """At most `eps` on every pixel and channel; ball and box together are one interval a pixel."""

    def __init__(self, centre: Tensor, eps: float) -> None:
        super().__init__(centre, eps)
        self._low = (centre - eps).clamp_(min=0)
        self._high = (centre + eps).clamp_(max=1)

    def project_(self, points: Tensor) -> Tensor:
        return points.clamp_(self._low, self._high)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def distance(self, points: Tensor) -> Tensor:
        return (points - self.centre).abs_().amax(IMAGE)

    def interior_noise(self, generators: Sequence[Generator]) -> Tensor:
        return uniform(generators, self.shape, -self.eps, self.eps)

    def boundary_noise(self, generators: Sequence[Generator]) -> Tensor:
        noise = uniform(generators, self.shape, -1.0, 1.0)
        return noise.mul_(self.eps / noise.abs().amax(IMAGE, keepdim=True).clamp_(min=TINY))


class L2Ball(Ball):
    """Euclidean length of the whole change, over all pixels and channels, at most `eps`."""

    def project_(self, points: Tensor) -> Tensor:
        # Projecting on the ball and then on the box stays in the ball: clipping only shortens a change.
        change = points.sub_(self.centre)
        shrink = (self.eps / _length(change).clamp_(min=TINY)).clamp_(max=1)
        return change.mul_(shrink).add_(self.centre).clamp_(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient / _length(gradient).clamp_(min=TINY)

    def distance(self, points: Tensor) -> Tensor:
        distance: Tensor = vector_norm(points - self.centre, dim=IMAGE)
        return distance

    def interior_noise(self, generators: Sequence[Generator]) -> Tensor:
        noise = self.boundary_noise(generators)
        radius = uniform(generators, (1, 1, 1)).pow_(1 / noise[0].numel())
        return noise.mul_(radius)

    def boundary_noise(self, generators: Sequence[Generator]) -> Tensor:
        noise = normal(generators, self.shape)
        return noise.mul_(self.eps / _length(noise).clamp_(min=TINY))


def _length(images: Tensor) -> Tensor:
    length: Tensor = vector_norm(images, dim=IMAGE, keepdim=True)
    return length


def make_ball(norm: Norm, centre: Tensor, eps: float) -> Ball:
    """The ball of radius `eps` in `norm` around every image of `centre` `[B, C, H, W]`."""
    check_norm(norm)
    if not 0 < eps < float("inf"):
        raise InvalidInput(f"eps must be a positive number in pixel units, got {eps}")
    return LinfBall(centre, eps) if norm == "linf" else L2Ball(centre, eps)


def check_norm(norm: str) -> None:
    if norm not in get_args(Norm):
        raise InvalidInput(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse what is not a batch of images in [0, 1] with one label each."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InvalidInput(f"images must be a float tensor [B, C, H, W], got {images.dtype} {list(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InvalidInput(
            f"labels must be int64 [{len(images)}], one an image, got {labels.dtype} {list(labels.shape)}"
        )
    if images.numel() == 0:
        raise InvalidInput("images must hold at least one image, got an empty batch")
    low, high = (value.item() for value in images.aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also refuses NaN, which aminmax passes on
        raise InvalidInput(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse, at the first pass, a model that gives no scores, no gradient, or too few classes for the labels."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InvalidInput(f"model must return logits [{len(labels)}, K], got {list(logits.shape)}")
    if not logits.requires_grad:
        raise InvalidInput(
            "model gives no gradients (its logits are cut off from the images); a gradient attack needs a"
            " differentiable model"
        )
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise InvalidInput(f"labels must be in 0..{logits.shape[1] - 1}, got values from {low} to {high}")
