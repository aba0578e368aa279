"""Batches for a model, decoded in threads ahead of it, and the one inspection that finds what cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from snellen.data.dataset import Dataset
from snellen.data.decode import BadImage, Geometry

CACHE_BYTES = 256 << 20
"""A set whose decoded images fit is decoded once a run; of a larger one nothing is kept."""
TENSOR_BYTES = 500
"""What a tensor object weighs beside its values."""


class LoadedBatch(NamedTuple):
    """ids: B strings. images: float32 `[B, C, H, W]` in [0, 1]. labels: int64 `[B]`. masks: bool `[B, H, W]`, True on
    the object, None when the data set has none. Tensors are on the device."""

    ids: list[str]
    images: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Inspection(NamedTuple):
    """The usable part of a data set. digests: uint8 `[N, 16]`, of each sample's id, label and content."""

    dataset: Dataset
    digests: np.ndarray


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
        # Probes go over the data in order, so that keeping a part of a large set would only cost memory.
        height, width = geometry.size or (256, 256)
        whole = len(dataset) * (geometry.channels * height * width + TENSOR_BYTES)
        self._cached = not dataset.images.in_memory and whole <= cache_bytes
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

        What cannot be read or decoded goes to the quarantine.
        """
        count = len(self.dataset)
        digests = np.zeros((count, 16), dtype=np.uint8)
        bad: dict[int, str] = {}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="inspect") as pool:
            block, task = 4096, 32  # a block bounds the results in flight, a task outweighs its own dispatch
            for start in range(0, count, block):
                chunk = range(start, min(start + block, count))
                tasks = [chunk[first : first + task] for first in range(0, len(chunk), task)]
                outcomes = (outcome for part in pool.map(self._inspect_rows, tasks) for outcome in part)
                for row, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, str):
                        bad[row] = outcome
                    else:
                        digests[row] = np.frombuffer(outcome, dtype=np.uint8)
                progress(len(chunk))
        if bad:
            kept = self._drop(bad)
            digests = digests[kept]
        return Inspection(self.dataset, digests)

    def _drop(self, bad: dict[int, str]) -> np.ndarray:
        kept = np.delete(np.arange(len(self.dataset)), list(bad))
        self._cache = {new: self._cache[old] for new, old in enumerate(kept.tolist()) if old in self._cache}
        self.dataset = self.dataset.without(bad)
        self._labels = self._labels[torch.from_numpy(kept)]
        return kept

    def _inspect_rows(self, rows: range) -> list[bytes | str]:
        ids = self.dataset.table.column("id").slice(rows.start, len(rows)).to_pylist()
        return [self._inspect_row(row, sample_id) for row, sample_id in zip(rows, ids, strict=True)]

    def _inspect_row(self, row: int, sample_id: str) -> bytes | str:
        try:
            self._pixels(row)
            digest = hashlib.blake2b(f"{sample_id}\x1f{int(self._labels[row])}\x1f".encode(), digest_size=16)
            digest.update(self.dataset.images.digest(int(self.dataset.positions[row])))
            if self.dataset.masks is not None:
                digest.update(self._mask(row).numpy().tobytes())
            return digest.digest()
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
        if self._cached:
            self._cache[row] = pixels
        return pixels

    def _collect(self, chunk: np.ndarray, futures: list[Future[Tensor]]) -> LoadedBatch:
        return self._assemble(chunk, [future.result() for future in futures])

    def _assemble(self, chunk: np.ndarray, pixels: list[Tensor]) -> LoadedBatch:
        images = torch.stack(pixels).to(self.device, non_blocking=True).float().div_(255)
        ids = self.dataset.table.column("id").take(pa.array(chunk)).to_pylist()
        masks = None
        if self.dataset.masks is not None:
            masks = torch.stack([self._mask(int(row)) for row in chunk]).to(self.device)
        return LoadedBatch(ids, images, self._labels[torch.from_numpy(chunk)].to(self.device), masks)


def fingerprint(digests: np.ndarray) -> str:
    """A hex digest of samples, their labels and their content, from the digests of an inspection."""
    return hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()
