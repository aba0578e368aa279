"""Finished jobs as Parquet files; nothing else is state.

A job is written under a temporary name and renamed, or sent to an object store in one request, so a file that is
there is whole. A killed run therefore resumes where it was.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from snellen.errors import InvalidInput

METADATA_KEY = b"snellen"
PARTIAL = ".partial"


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
        self._files, self.root = fsspec.core.url_to_fs(url)
        self.url = url
        self._local = "file" in _protocols(self._files)
        if self._files.isfile(self.root):
            raise InvalidInput(f"--out {url!r} is a file; give a folder for the run")
        if must_exist and not self._files.isdir(self.root):
            raise InvalidInput(f"there is no run directory {url!r}")
        self._finished, self._partial = self._list_results() if listed else (set(), set())

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
        return f"{probe}/{key}" in self._finished

    def commit(self, probe: str, key: str, rows: pa.Table, record: JobRecord, partial: bool = False) -> None:
        """Write a job's rows. partial: the budget ended the job early; a later run does it whole."""
        noted = {**(rows.schema.metadata or {}), METADATA_KEY: json.dumps(record._asdict()).encode()}
        buffer = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(noted), buffer, compression="zstd")
        name = f"{key}{PARTIAL if partial else ''}.parquet"
        self.write(buffer.getvalue(), "results", probe, name)
        self.note(probe, key, partial)
        if not partial and f"{probe}/{key}" in self._partial:
            self._partial.discard(f"{probe}/{key}")
            self._files.rm_file(self.path("results", probe, f"{key}{PARTIAL}.parquet"))

    def note(self, probe: str, key: str, partial: bool) -> None:
        """A job's rows are there: another process has written them."""
        (self._partial if partial else self._finished).add(f"{probe}/{key}")

    def find(self, probe: str, key: str) -> str | None:
        """Path of a job's rows, whole or partial, None when there are none."""
        if self.has(probe, key):
            return self.path("results", probe, f"{key}.parquet")
        there = f"{probe}/{key}" in self._partial
        return self.path("results", probe, f"{key}{PARTIAL}.parquet") if there else None

    def read(self, path: str) -> pa.Table:
        """Rows of one file."""
        with self._opened(path) as stored:
            return pq.read_table(stored)

    def record(self, path: str) -> JobRecord:
        """The cost that `commit` stored with a job's rows."""
        with self._opened(path) as stored:
            return JobRecord(**json.loads((pq.read_schema(stored).metadata or {})[METADATA_KEY]))

    @contextmanager
    def _opened(self, path: str) -> Iterator[IO[bytes]]:
        try:
            with self._files.open(path, "rb") as stored:
                yield stored
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise InvalidInput(f"{path} is damaged ({error}); delete it and run the same command again") from error

    def write(self, content: bytes, *parts: str) -> None:
        """Write a file so that a reader sees the old content or the new one, never a part."""
        path = self.path(*parts)
        if not self._local:
            self._files.pipe_file(path, content)
            return
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"the run directory {self.url!r} cannot be written: {error.strerror}") from error
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)

    def read_bytes(self, *parts: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self.path(*parts)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the run directory."""
        path = self.path(folder)
        if not self._files.exists(path):
            return []
        return sorted(PurePosixPath(str(found)).name for found in self._files.ls(path, detail=False))

    def open_for_appending(self, *parts: str) -> int:
        """A descriptor for `os.write` on this machine: each write goes to the end of the file, in one piece."""
        path = self.path(*parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _list_results(self) -> tuple[set[str], set[str]]:
        """Whole and partial jobs, as "probe/key"."""
        finished, partial = set[str](), set[str]()
        results = self.path("results")
        if not self._files.exists(results):
            return finished, partial
        for path in self._files.find(results):
            relative = PurePosixPath(path).relative_to(PurePosixPath(results))
            if relative.suffix == ".parquet":
                name = relative.with_suffix("").as_posix()
                if name.endswith(PARTIAL):
                    partial.add(name.removesuffix(PARTIAL))
                else:
                    finished.add(name)
            elif relative.suffix == ".tmp" and self._local:
                os.unlink(path)  # what a killed run was writing
        return finished, partial - finished


def _protocols(files: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
