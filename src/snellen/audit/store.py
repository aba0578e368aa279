"""Finished jobs as Parquet files; nothing else is state.

A job is written under a temporary name and renamed, or sent to an object store in one request (s3fs cuts one of 100 MiB
and more into parts, which appear together too), so a file that is there is whole. A killed run therefore resumes where
it was. An object store is asked for one listing, when the run directory is opened, and for one PUT a job.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from snellen.data.files import without_secrets
from snellen.errors import InvalidInput

METADATA_KEY = b"snellen"
PARTIAL = ".partial"
_JOB_FILE = re.compile(r"(?P<probe>.+)/(?P<key>[0-9a-f]{32})(?P<partial>\.partial)?\.parquet")


class JobRecord(NamedTuple):
    """What a finished job cost."""

    forward: int
    backward: int
    seconds: float
    requests: int = 0


def total_cost(records: Iterable[JobRecord]) -> JobRecord:
    return JobRecord(*(sum(column) for column in zip(JobRecord(0, 0, 0.0), *records, strict=True)))


class Store:
    """A run directory on any fsspec file system.

    url: a local path or an address such as "s3://bucket/run", made when the first file is written. The listing is read
    once, when the store is opened.
    """

    def __init__(self, url: str, must_exist: bool = False, listed: bool = True) -> None:
        self._files, self.root = _located(url)
        self.url = url
        self._local = "file" in _protocols(self._files)
        if self._local and self._files.isfile(self.root):
            raise InvalidInput(f"--out {url!r} is a file; give a folder for the run")
        if must_exist and not (self._files.isdir(self.root) if self._local else self._children(self.root)):
            raise InvalidInput(f"there is no run directory {without_secrets(url)!r}")
        # Keys are kept as their 16 bytes: of a million jobs they are all that stays in memory.
        self._finished: dict[str, set[bytes]] = defaultdict(set)
        self._partial: dict[str, set[bytes]] = defaultdict(set)
        if listed:
            self._list_results()

    @property
    def local_path(self) -> str | None:
        """The run directory on this machine, None on another file system."""
        return self.root if self._local else None

    @property
    def file_system(self) -> fsspec.AbstractFileSystem:
        return self._files

    def path(self, *parts: str) -> str:
        return str(PurePosixPath(self.root, *parts))

    def address(self, path: str) -> str:
        """A path of this store with its protocol, as DuckDB wants it."""
        return path if self._local else str(self._files.unstrip_protocol(path))

    def has(self, probe: str, key: str) -> bool:
        return bytes.fromhex(key) in self._finished[probe]

    def commit(self, probe: str, key: str, rows: pa.Table, record: JobRecord, partial: bool = False) -> None:
        """Write a job's rows. partial: the budget ended the job early; a later run does it whole."""
        noted = {**(rows.schema.metadata or {}), METADATA_KEY: json.dumps(record._asdict()).encode()}
        buffer = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(noted), buffer, compression="zstd")
        name = f"{key}{PARTIAL if partial else ''}.parquet"
        self.write(buffer.getvalue(), "results", probe, name)
        self.note(probe, key, partial)

    def note(self, probe: str, key: str, partial: bool) -> None:
        """A job's rows are there, written here or by another process; its partial rows of an earlier run go."""
        name = bytes.fromhex(key)
        (self._partial if partial else self._finished)[probe].add(name)
        if not partial and name in self._partial[probe]:
            self._partial[probe].discard(name)
            with self._reached("written"):
                self._files.rm_file(self.path("results", probe, f"{key}{PARTIAL}.parquet"))

    def find(self, probe: str, key: str) -> str | None:
        """Path of a job's rows, whole or partial, None when there are none."""
        if self.has(probe, key):
            return self.path("results", probe, f"{key}.parquet")
        there = bytes.fromhex(key) in self._partial[probe]
        return self.path("results", probe, f"{key}{PARTIAL}.parquet") if there else None

    def read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one file. columns: the ones to read, None for all."""
        if columns is None and not self._local:
            with self._reached("read"):
                # A range spares s3fs the request that asks for the size.
                content = self._files.cat_file(path, start=0)
            with self._parsed(path):
                return pq.read_table(io.BytesIO(content))
        with self._opened(path) as stored:
            return pq.read_table(stored, columns=None if columns is None else list(columns))

    def record(self, path: str) -> JobRecord:
        """The cost that `commit` stored with a job's rows."""
        with self._opened(path) as stored:
            return JobRecord(**json.loads((pq.read_schema(stored).metadata or {})[METADATA_KEY]))

    @contextmanager
    def _opened(self, path: str) -> Iterator[IO[bytes]]:
        with self._reached("read"), self._parsed(path), self._files.open(path, "rb") as stored:
            yield stored

    @contextmanager
    def _parsed(self, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Arrow and file systems share no base class; an outage must not pass for damage
            if not _is_damage(error):
                raise
            raise InvalidInput(f"{path} is damaged ({error}); delete it and run the same command again") from error

    @contextmanager
    def _reached(self, done: str) -> Iterator[None]:
        """One sentence for a file system that does not do what it is asked. done: "read" or "written"."""
        try:
            yield
        except InvalidInput:
            raise
        except Exception as error:  # each file system has exceptions of its own, and their texts quote addresses
            check = "" if self._local else "; check the address, the credentials and the endpoint in the environment"
            raise InvalidInput(
                f"the run directory {without_secrets(self.url)!r} cannot be {done}: {_cause(error)}{check}; what is"
                " stored is kept"
            ) from error

    def write(self, content: bytes, *parts: str) -> None:
        """Write a file so that a reader sees the old content or the new one, never a part."""
        path = self.path(*parts)
        with self._reached("written"):
            if not self._local:
                self._files.pipe_file(path, content)
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{platform.node()}.{os.getpid()}.tmp"
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, path)

    def read_bytes(self, *parts: str) -> bytes | None:
        """Content of a file, None when there is none."""
        path = self.path(*parts)
        with self._reached("read"):
            try:
                return bytes(self._files.cat_file(path, start=0))
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the run directory, read from it now."""
        return sorted(PurePosixPath(found).name for found in self._children(self.path(folder)))

    def _children(self, path: str) -> list[str]:
        # `exists` and `isdir` of fsspec take a server that does not answer for a file that is not there.
        with self._reached("read"):
            try:
                return [str(found) for found in self._files.ls(path, detail=False)]
            except FileNotFoundError:
                return []

    def open_for_appending(self, *parts: str) -> int:
        """A descriptor for `os.write` on this machine: each write goes to the end of the file, in one piece."""
        path = self.path(*parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _list_results(self) -> None:
        results = self.path("results")
        with self._reached("read"):
            found = self._files.find(results)
        for path in found:
            relative = PurePosixPath(path).relative_to(PurePosixPath(results))
            job = _JOB_FILE.fullmatch(relative.as_posix())
            if job is not None:
                known = self._partial if job["partial"] else self._finished
                known[job["probe"]].add(bytes.fromhex(job["key"]))
            elif self._local and _is_left_behind(relative.name):
                Path(path).unlink(missing_ok=True)
        for probe, keys in self._partial.items():
            keys -= self._finished[probe]


def _located(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        # Other processes write into the run directory: a listing from memory would not know of it.
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InvalidInput(
            f"the run directory {without_secrets(url)!r} cannot be opened ({error}); give a folder or an address such"
            " as s3://BUCKET/RUN, for which pip install snellen[remote]"
        ) from error
    if not root:
        raise InvalidInput(f"the run directory {without_secrets(url)!r} has no name; give s3://BUCKET/RUN, for example")
    return files, str(root)


def _protocols(files: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _is_left_behind(name: str) -> bool:
    """Whether it is a temporary file of a process of this machine that is gone: `NAME.HOST.PID.tmp`."""
    rest, _, process = name.removesuffix(".tmp").rpartition(".")
    if not name.endswith(".tmp") or not rest.endswith(f".{platform.node()}") or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _is_damage(error: Exception) -> bool:
    """Whether the content is at fault. Arrow raises a bare OSError for some of it, file systems one with a cause."""
    bare = type(error) is OSError and error.errno is None and error.__cause__ is None
    return bare or isinstance(error, (pa.ArrowException, KeyError, ValueError, TypeError))


def _cause(error: Exception) -> str:
    """What went wrong, without a text that a server wrote."""
    answer = getattr(error.__cause__, "response", None)  # s3fs keeps botocore's error, which has the server's code
    if isinstance(answer, dict):
        return str(answer.get("Error", {}).get("Code", type(error).__name__))
    return str(getattr(error, "strerror", None) or type(error).__name__)
