"""Votes of a model on noisy copies of images: the sampling that every smoothing method shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from snellen.errors import InvalidInput
from snellen.models import Model, labels_of

NOISE_BLOCK = 16
"""Copies drawn at a time. Fixed, because torch's Gaussian stream depends on how much is drawn in one call: noise must
not change with `chunk`."""


def sample_counts(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    sigma: float,
    n: int,
    generators: Sequence[Generator],
    num_classes: int,
    chunk: int = 256,
) -> Tensor:
    """How often each class is given to `n` noisy copies of each image: int64 `[B, num_classes]`.

    model: a snellen model, or a function of `[b, C, H, W]` that returns classes int `[b]` or scores `[b, K]`. Copies
    of several images share a forward pass of at most `chunk`. generators: one an image; they go on where they stand,
    so a second call draws fresh noise. Noisy copies are not clipped to [0, 1]. An answer that is not finite votes for
    no class, so a row may sum to less than n; that only weakens what follows from it.
    """
    _check(images, sigma, n, generators, model, chunk)
    counts = torch.zeros(len(images), num_classes, dtype=torch.int64, device=images.device)
    blocks = [
        (image, min(NOISE_BLOCK, n - drawn)) for image in range(len(images)) for drawn in range(0, n, NOISE_BLOCK)
    ]
    for batch in _packed(blocks, chunk):
        owners = torch.tensor([image for image, copies in batch for _ in range(copies)], device=images.device)
        answers = _answers(model, _noisy(images, batch, generators, sigma), num_classes)
        voted = answers >= 0
        counts.index_put_((owners[voted], answers[voted]), torch.ones_like(answers[voted]), accumulate=True)
    return counts


def _packed(blocks: list[tuple[int, int]], chunk: int) -> list[list[tuple[int, int]]]:
    """Whole blocks (image, copies) in batches of at most `chunk` copies."""
    batches: list[list[tuple[int, int]]] = [[]]
    filled = 0
    for block in blocks:
        if filled + block[1] > chunk and batches[-1]:
            batches.append([])
            filled = 0
        batches[-1].append(block)
        filled += block[1]
    return batches


def _noisy(images: Tensor, blocks: list[tuple[int, int]], generators: Sequence[Generator], sigma: float) -> Tensor:
    total = sum(copies for _, copies in blocks)
    noisy = torch.empty(total, *images.shape[1:])
    spans: list[tuple[int, int, int]] = []
    start = 0
    for image, copies in blocks:
        noisy[start : start + copies].normal_(generator=generators[image])
        spans.append((image, start, start + copies))
        start += copies
    noisy = noisy.to(images.device, images.dtype)
    for image, start, stop in spans:
        torch.add(images[image], noisy[start:stop], alpha=sigma, out=noisy[start:stop])
    return noisy


def _answers(model: Callable[[Tensor], Tensor], images: Tensor, num_classes: int) -> Tensor:
    if isinstance(model, Model):
        return model.labels(images)
    with torch.no_grad():
        output = model(images)
    answers = labels_of(output) if output.ndim == 2 else output
    if answers.shape != images.shape[:1] or answers.is_floating_point():
        raise InvalidInput(
            f"model must return classes int [{len(images)}] or scores [{len(images)}, K],"
            f" got {output.dtype} {list(output.shape)}"
        )
    if int(answers.max()) >= num_classes:
        raise InvalidInput(f"model answered class {int(answers.max())}, but num_classes is {num_classes}")
    return answers.long()


def _check(
    images: Tensor,
    sigma: float,
    n: int,
    generators: Sequence[Generator],
    model: Callable[[Tensor], Tensor],
    chunk: int,
) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not bool(images.isfinite().all()):
        raise InvalidInput(
            f"images must be a finite float tensor [B, C, H, W], got {images.dtype} {list(images.shape)}"
        )
    if len(generators) != len(images):
        raise InvalidInput(f"generators must be one an image, got {len(generators)} for {len(images)} images")
    if isinstance(model, nn.Module) and model.training:
        raise InvalidInput("model is in train mode, where batch norm mixes the noisy copies; call model.eval()")
    check_sampling(sigma, n, chunk)


def check_sampling(sigma: float, n: int, chunk: int) -> None:
    """Refuse noise, counts and chunks that mean nothing."""
    if not 0 < sigma < math.inf:
        raise InvalidInput(f"sigma must be a positive number in pixel units, got {sigma}")
    if n < 1:
        raise InvalidInput(f"n and n0 must be at least 1 noisy copy, got {n}")
    if chunk < NOISE_BLOCK:
        raise InvalidInput(f"chunk must be at least {NOISE_BLOCK} copies, got {chunk}")
