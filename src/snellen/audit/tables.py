"""Rows of finished probes, read from the run directory when they are asked for and not kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa

from snellen.audit.store import JobRecord, Store
from snellen.probe import Rows


class StoredTables(Mapping[str, Rows]):
    """label -> rows of all its jobs, in the order of the jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, list[str]] = {}

    def add(self, label: str, probe: str, keys: Sequence[str]) -> None:
        """Makes the rows of these jobs known; jobs without rows are passed over."""
        found = [path for key in keys if (path := self._store.find(probe, key)) is not None]
        if found:
            self._files[label] = found

    def records(self, label: str) -> list[JobRecord]:
        return [self._store.record(path) for path in self._files[label]]

    def query(self, label: str, sql: str) -> pa.Table:
        """A DuckDB query over one probe's rows, which are called `rows`: `SELECT avg(correct::INT) FROM rows`.

        Only the columns and files that the query needs are read. Run directories on this machine only.
        """
        with duckdb.connect() as connection:
            rows = connection.read_parquet(self._files[label])
            return rows.query("rows", sql).to_arrow_table()

    def __getitem__(self, label: str) -> Rows:
        parts = [self._store.read(path).replace_schema_metadata(None) for path in self._files[label]]
        return pa.concat_tables(parts, promote_options="permissive")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
