"""Rows of finished probes, read from the run directory when they are asked for and not kept in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa

from snellen.audit.store import PARTIAL, JobRecord, Store
from snellen.probe import Rows
from snellen.sequences import Lazy

FILES_AT_ONCE = 8
"""An object store answers each request late and many of them at the same time."""

MOST_BYTES = 64 << 20
"""A larger table is not held in memory."""


class JobFiles(Lazy[str]):
    """Paths of jobs' files in one folder, 17 bytes each: a path as text would take ten times as much."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._keys = bytearray()
        self._partial = bytearray()

    def add(self, path: str | None) -> None:
        """None, a job without rows, is passed over."""
        if path is not None:
            key, _, rest = path.rpartition("/")[2].partition(".")
            self._keys += bytes.fromhex(key)
            self._partial.append(rest.startswith(PARTIAL[1:]))

    def __len__(self) -> int:
        return len(self._partial)

    def _item(self, position: int) -> str:
        key = self._keys[16 * position : 16 * position + 16].hex()
        return f"{self._folder}/{key}{PARTIAL if self._partial[position] else ''}.parquet"


class StoredTables(Mapping[str, Rows]):
    """label -> rows of all its jobs, in the order of the jobs. files: label -> paths in the store."""

    def __init__(self, store: Store, files: Mapping[str, Sequence[str]] | None = None) -> None:
        self._store = store
        self.files: dict[str, Sequence[str]] = dict(files or {})

    def add(self, label: str, probe: str, keys: Iterable[str]) -> None:
        """Makes the rows of these jobs known; jobs without rows are passed over."""
        files = JobFiles(self._store.path("results", probe))
        for key in keys:
            files.add(self._store.find(probe, key))
        if files:
            self.files[label] = files

    def records(self, label: str) -> Iterator[JobRecord]:
        files = self.files[label]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for start in range(0, len(files), 1000):  # so many results wait at most
                yield from pool.map(self._store.record, files[start : start + 1000])

    def query(self, label: str, sql: str) -> pa.Table:
        """A DuckDB query over one probe's rows, which are called `rows`: `SELECT avg(correct::INT) FROM rows`.

        Only the columns and files that the query needs are read.
        """
        with duckdb.connect() as connection:
            if self._store.local_path is None:
                connection.register_filesystem(self._store.file_system)
            rows = connection.read_parquet([self._store.address(path) for path in self.files[label]])
            return rows.query("rows", sql).to_arrow_table()

    def __getitem__(self, label: str) -> Rows:
        files = self.files[label]
        parts: list[pa.Table] = []
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for start in range(0, len(files), FILES_AT_ONCE):
                parts += pool.map(self._read, files[start : start + FILES_AT_ONCE])
                if sum(part.nbytes for part in parts) > MOST_BYTES:
                    rest = files[start + FILES_AT_ONCE :]
                    return self._mapped(_one(parts), (self._read(path) for path in rest))
        return _one(parts)

    def _read(self, path: str) -> pa.Table:
        return self._store.read(path).replace_schema_metadata(None)

    def _mapped(self, first: pa.Table, rest: Iterable[pa.Table]) -> pa.Table:
        """The rows in a file without a name that is mapped into memory, so that only the columns in use take any."""
        with tempfile.NamedTemporaryFile(dir=self._store.local_path, suffix=".tmp") as file:
            with pa.ipc.new_file(file.name, first.schema) as writer:
                writer.write_table(first)
                for part in rest:
                    writer.write_table(pa.concat_tables([first.slice(0, 0), part], promote_options="permissive"))
            return pa.ipc.open_file(pa.memory_map(file.name)).read_all()

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _one(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="permissive")
