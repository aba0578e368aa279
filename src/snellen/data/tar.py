"""Reading tar archives in place: headers once, then byte ranges; nothing is extracted."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import BinaryIO

from fsspec import AbstractFileSystem

from snellen.data.files import is_local, read_file, without_secrets
from snellen.errors import InvalidInput

KEPT_FILES = 64
"""Local files kept open for the next read."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class ByteRanges:
    """Reads pieces of large files; safe for several threads, which read at once."""

    def __init__(self, files: AbstractFileSystem, paths: Sequence[str]) -> None:
        self._files = files
        self._paths = paths
        self._local = is_local(files)
        self._opened = lru_cache(KEPT_FILES)(_LocalFile)

    def __reduce__(self) -> tuple[type[ByteRanges], tuple[AbstractFileSystem, Sequence[str]]]:
        return ByteRanges, (self._files, self._paths)  # a copy in another process opens files of its own

    def read(self, file: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of a file, fewer at its end."""
        if self._local:
            return self._opened(self._paths[file]).read(offset, size)
        return read_file(self._files, self._paths[file], offset, offset + size) if size else b""


class _LocalFile:
    """An open file, closed when neither the cache nor a reading thread holds it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def tar_members(stream: BinaryIO, name: str, damage: list[str]) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar by their headers; what ends it early is added to `damage`.

    Raises InvalidInput for a compressed tar.
    """
    kind = _COMPRESSED.get(stream.read(2))
    if kind:
        raise InvalidInput(
            f"{without_secrets(name)} is compressed with {kind}, in which no single image can be reached; give a plain"
            " .tar (images are compressed already)"
        )
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    reached = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                setattr(archive, "members", [])  # it would keep every header
                if not member.issparse() and member.offset_data + member.size > size:
                    break
                yield member
                reached = archive.offset
            stream.seek(reached)
            if stream.read(512) != bytes(512):
                damage.append(f"the tar is cut off or damaged at byte {reached:,}; what comes after is lost")
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        # tarfile signals damaged headers by any of these.
        damage.append(f"the tar is cut off or damaged at byte {reached:,} ({error}); what comes after is lost")
