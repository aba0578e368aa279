"""Batches for a model, decoded in threads ahead of it, and the one inspection that finds what cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.decode import BadImage, Geometry

CACHE_BYTES = 1 << 30
"""Decoded images kept for the next probe; a small set is decoded once a run."""


class LoadedBatch(NamedTuple):
    """ids: B strings. images: float32 `[B, C, H, W]` in [0, 1]. labels: int64 `[B]`. masks: bool `[B, H, W]`, True on
    the object, None when the data set has none. Tensors are on the device."""

    ids: list[str]
    images: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Inspection(NamedTuple):
    """The usable part of a data set, with a digest a sample in the same order."""

    dataset: Dataset
    digests: list[bytes]


class Loader:
    """Reads rows of one data set at one geometry.

    workers: decoding threads (Pillow releases the interpreter lock while it decodes).
    """

    def __init__(
        self,
        dataset: Dataset,
        geometry: Geometry,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.dataset = dataset
        self.geometry = geometry
        self.device = torch.device(device)
        self._workers = workers or min(8, os.cpu_count() or 1)
        self._cache: dict[int, Tensor] = {}
        self._cache_room = cache_bytes
        self._ids = dataset.ids
        self._labels = torch.from_numpy(np.array(dataset.labels, dtype=np.int64))

    def batches(self, rows: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[LoadedBatch]:
        """The rows in order, `batch_size` at a time, the next two batches being decoded meanwhile."""
        rows = np.asarray(rows, dtype=np.int64)
        chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if self.dataset.images.in_memory:
            yield from (self._assemble(chunk, [self._pixels(int(row)) for row in chunk]) for chunk in chunks)
            return
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool:
            waiting: list[tuple[np.ndarray, list[Future[Tensor]]]] = []
            try:
                for chunk in chunks:
                    waiting.append((chunk, [pool.submit(self._pixels, int(row)) for row in chunk]))
                    if len(waiting) > 2:
                        yield self._collect(*waiting.pop(0))
                while waiting:
                    yield self._collect(*waiting.pop(0))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def image(self, row: int) -> Tensor:
        """float32 `[C, H, W]` in [0, 1] of one row, on the CPU."""
        return self._pixels(row).float() / 255

    def inspect(self, progress: Callable[[int], None] = lambda done: None) -> Inspection:
        """Decode every image once; returns what can be used and the digests that make job keys.

        What cannot be read or decoded, comes twice under one id, or has no valid label goes to the quarantine.
        """
        digests: list[bytes] = []
        bad: list[Quarantined] = []
        with ThreadPoolExecutor(self._workers, thread_name_prefix="inspect") as pool:
            block, task = 4096, 32  # a block bounds the results in flight, a task outweighs its own dispatch
            for start in range(0, len(self._ids), block):
                chunk = range(start, min(start + block, len(self._ids)))
                tasks = [chunk[first : first + task] for first in range(0, len(chunk), task)]
                outcomes = (outcome for part in pool.map(self._inspect_rows, tasks) for outcome in part)
                for row, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, str):
                        bad.append(Quarantined(self._ids[row], outcome))
                    else:
                        digests.append(outcome)
                progress(len(chunk))
        if bad:
            self._drop(bad)
        return Inspection(self.dataset, digests)

    def _drop(self, bad: list[Quarantined]) -> None:
        gone = {sample.id for sample in bad}
        kept = [row for row, sample_id in enumerate(self._ids) if sample_id not in gone]
        self._cache = {new: self._cache[old] for new, old in enumerate(kept) if old in self._cache}
        self.dataset = self.dataset.without(bad)
        self._ids = self.dataset.ids
        self._labels = self._labels[torch.tensor(kept, dtype=torch.int64)]

    def _inspect_rows(self, rows: range) -> list[bytes | str]:
        return [self._inspect_row(row) for row in rows]

    def _inspect_row(self, row: int) -> bytes | str:
        try:
            self._pixels(row)
            digest = self.dataset.images.digest(int(self.dataset.positions[row]))
            if self.dataset.masks is not None:
                mask = self._mask(row)
                digest = hashlib.blake2b(digest + mask.numpy().tobytes(), digest_size=16).digest()
            return digest
        except BadImage as error:
            return str(error)

    def _mask(self, row: int) -> Tensor:
        try:
            return self.dataset.mask(row, self.geometry)
        except BadImage as error:
            raise BadImage(f"its mask cannot be used: {error}") from error

    def _pixels(self, row: int) -> Tensor:
        cached = self._cache.get(row)
        if cached is not None:
            return cached
        pixels = self.dataset.pixels(row, self.geometry)
        if not self.dataset.images.in_memory and pixels.numel() <= self._cache_room:
            self._cache_room -= pixels.numel()
            self._cache[row] = pixels
        return pixels

    def _collect(self, chunk: np.ndarray, futures: list[Future[Tensor]]) -> LoadedBatch:
        return self._assemble(chunk, [future.result() for future in futures])

    def _assemble(self, chunk: np.ndarray, pixels: list[Tensor]) -> LoadedBatch:
        images = torch.stack(pixels).to(self.device, non_blocking=True).float().div_(255)
        ids = [self._ids[row] for row in chunk]
        masks = None
        if self.dataset.masks is not None:
            masks = torch.stack([self._mask(int(row)) for row in chunk]).to(self.device)
        return LoadedBatch(ids, images, self._labels[torch.from_numpy(chunk)].to(self.device), masks)


def fingerprint(ids: Sequence[str], labels: np.ndarray, digests: Sequence[bytes]) -> str:
    """A hex digest of samples, their labels and their content; part of every job's key."""
    total = hashlib.blake2b(digest_size=16)
    for sample_id, label, digest in zip(ids, labels.tolist(), digests, strict=True):
        total.update(f"{sample_id}\x1f{label}\x1f".encode())
        total.update(digest)
    return total.hexdigest()
