"""Rows of finished probes, read from the run directory when they are asked for and not kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa

from snellen.audit.store import JobRecord, Store
from snellen.probe import Rows


class StoredTables(Mapping[str, Rows]):
    """label -> rows of all its jobs, in the order of the jobs. files: label -> paths in the store."""

    def __init__(self, store: Store, files: Mapping[str, Sequence[str]] | None = None) -> None:
        self._store = store
        self.files: dict[str, Sequence[str]] = dict(files or {})

    def add(self, label: str, probe: str, keys: Iterable[str]) -> None:
        """Makes the rows of these jobs known; jobs without rows are passed over."""
        found = (self._store.find(probe, key) for key in keys)
        if files := [path for path in found if path is not None]:
            self.files[label] = files

    def records(self, label: str) -> Iterator[JobRecord]:
        return (self._store.record(path) for path in self.files[label])

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
        parts = [self._store.read(path).replace_schema_metadata(None) for path in self.files[label]]
        return pa.concat_tables(parts, promote_options="permissive")

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
