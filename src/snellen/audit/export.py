"""The findings and rows of a run as flat CSV files.

A cell of text that a spreadsheet would take for a formula gets an apostrophe in front: names in a run directory come
from whoever made the data.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from snellen.audit.store import Store
from snellen.audit.stored_run import StoredFinding, StoredRun

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_csv(run: StoredRun, folder: str) -> list[str]:
    """Writes `findings.csv` and `rows/<probe>.csv` for every probe with rows; returns their paths.

    folder: local or any fsspec address. Lists and mappings become JSON, bytes base64.
    """
    out = Store(folder, listed=False)
    names = list(StoredFinding.model_fields)
    records = [finding.model_dump(mode="json") for finding in run.findings]
    out.write(_csv(names, ([record[name] for name in names] for record in records)), "findings.csv")
    written = [out.path("findings.csv")]
    for probe, table in run.tables.items():
        name = re.sub(r"[^A-Za-z0-9_-]", ".", probe) + ".csv"
        out.write(table_csv(table), "rows", name)
        written.append(out.path("rows", name))
    return written


def table_csv(table: pa.Table) -> bytes:
    """Rows as CSV with a header, UTF-8, lines as in RFC 4180."""
    batches = table.to_batches(max_chunksize=4096)
    return _csv(
        table.column_names,
        (row for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)),
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")  # as RFC 4180; a lone \r in a cell is quoted only then
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(_finite(value), ensure_ascii=False)
    return value


def _finite(value: object) -> object:
    """NaN and infinities as null: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
