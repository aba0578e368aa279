"""Files wherever fsspec reaches: found by address, read with a second chance, named without secrets."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from snellen.data.decode import BadImage
from snellen.data.sources import EncodedImages
from snellen.errors import InvalidInput

HTTP_SECONDS = 60
"""A file that an HTTP server has not sent by then counts as failed."""

RETRY_AFTER = (0.5, 2.0)
"""Seconds before the second and the third attempt at a remote file."""


def locate(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path on it."""
    try:
        files, path = fsspec.core.url_to_fs(address, **_options(address))
        return files, str(path)
    except ImportError as error:
        raise InvalidInput(
            f"{without_secrets(address)} needs a package that is not installed ({error}); pip install snellen[remote]"
        ) from error
    except Exception as error:  # each file system refuses an address in its own way
        raise InvalidInput(
            f"{without_secrets(address)} is not an address that can be read: {type(error).__name__}; give a path or a"
            " URL of a file system that fsspec knows, as s3:// or https://"
        ) from error


def _options(address: str) -> dict[str, Any]:
    if not address.startswith(("http://", "https://")):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=HTTP_SECONDS, connect=10)}}


def is_local(files: AbstractFileSystem) -> bool:
    return isinstance(files, LocalFileSystem)


def is_url(address: str) -> bool:
    return "://" in address


def suffix_of(address: str) -> str:
    """The lower-case suffix of a path or URL, a query left aside."""
    path = urlsplit(address).path if is_url(address) else address
    return posixpath.splitext(path)[1].lower()


def without_secrets(address: str) -> str:
    """The address without credentials, query and fragment."""
    if not is_url(address):
        return address
    return re.sub(r"^([^:]+://)[^/@]*@", r"\1", re.sub(r"[?#].*$", "", address))


def read_file(files: AbstractFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or those from `start` up to `end`.

    Remote files get three attempts. Raises FileNotFoundError or another OSError, and `BadImage` with a reason that
    names no credentials for whatever else a remote file system raises.
    """
    if is_local(files):
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever, a device never end
            raise BadImage("it is no regular file")
        with open(path, "rb") as file:
            file.seek(start or 0)
            return file.read(-1 if end is None else end - (start or 0))
    for wait in (*RETRY_AFTER, None):
        try:
            return bytes(files.cat_file(path, start=start, end=end))
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has exceptions of its own, and their texts quote URLs
            if wait is None or not _may_pass(error):
                status = getattr(error, "status", None)
                said = f"{type(error).__name__}{f' {status}' if status else ''}"
                raise BadImage(f"{without_secrets(path)} cannot be read: {said}") from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return not refused and not isinstance(error, PermissionError)


def expand(files: AbstractFileSystem, pattern: str) -> list[str]:
    """The files that match a glob pattern, in name order; a name without wild cards stands for itself."""
    if not any(character in pattern for character in "*?["):
        return [pattern]
    return sorted(str(path) for path in files.glob(pattern) if not files.isdir(path))


def distinct_stems(paths: Sequence[str]) -> list[str]:
    """Names without suffix that tell the files apart: relative to the folder that all of them share."""
    shared = posixpath.commonpath([posixpath.dirname(path) or "." for path in paths])
    relative = [path if shared == "." else posixpath.relpath(path, shared) for path in paths]
    return [posixpath.splitext(path)[0] for path in relative]


_LEAVES = r"^\s*$|^/|(^|/)\.\.(/|$)|^[^/]*:|\x00"
"""Empty, absolute and `..` names, drives and addresses, zero bytes."""


def leaves_folder(name: str) -> bool:
    """Whether a name is empty or leads out of the folder it is relative to."""
    return re.search(_LEAVES, name.replace("\\", "/")) is not None


def stays_inside(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The opposite of `leaves_folder` for a column; False for null."""
    plain = pc.replace_substring(names, "\\", "/")
    return pc.fill_null(pc.invert(pc.match_substring_regex(plain, _LEAVES)), False)


def named_files(files: AbstractFileSystem, root: str, names: pa.Array | pa.ChunkedArray) -> EncodedImages:
    """Images in files below `root`; the names are known to stay inside, null stands for no file."""

    def read(position: int) -> bytes:
        name = names[position].as_py()
        if name is None:
            raise FileNotFoundError("no file is named")
        return read_file(files, f"{root}/{name}")

    return EncodedImages(len(names), read)


def title_of(path: str) -> str:
    """A data set's name from the path it was read from."""
    return Path(without_secrets(path).rstrip("/")).stem or "data"
