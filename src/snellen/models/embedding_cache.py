"""Class embeddings on disk, so that the text tower of a zero-shot classifier reads its sentences once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def read_embeddings(key: str, classes: int) -> Tensor | None:
    """Embeddings `[classes, D]` that were written under `key`; None when there are none or the file is damaged."""
    try:
        stored: Tensor = load_file(_place(key))["embeddings"]
    except (OSError, SafetensorError, KeyError):
        return None
    fits = stored.ndim == 2 and len(stored) == classes and stored.dtype == torch.float32
    return stored if fits and bool(stored.isfinite().all()) else None


def write_embeddings(key: str, embeddings: Tensor) -> None:
    """Keep embeddings `[K, D]` under `key`, where the cache folder can be written."""
    path = _place(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            save_file({"embeddings": embeddings.contiguous()}, whole)
            whole.replace(path)  # other runs never see half a file
    except (OSError, SafetensorError):
        return  # a home that cannot be written costs time, nothing else


def _place(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "snellen" / "text_embeddings" / f"{key}.safetensors"
