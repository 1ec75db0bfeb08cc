"""The keys that a run asked for, as `pipelines.lineage.KeysWriter` wrote them down."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from infra.storage import Location

from .table import reading

_ROWS = 1 << 18
_COLUMNS = ["key", "task", "status"]
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])


def asked_keys(table: Location, run_id: str) -> Iterator[pa.RecordBatch]:
    """Every pair that a run asked for, made or there before: key (32 hex), task, status when the run was done with it.

    StorageError with Problem.MISSING when the run wrote no keys (it did not get to its end); TableError for a file that
    is damaged. Some rows at a time.
    """
    with reading(table.child("_runs", run_id, "keys.parquet")) as opened:
        for batch in opened.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False):
            yield pa.RecordBatch.from_arrays(
                [batch.column(name).cast(pa.string()) for name in _COLUMNS], schema=_SCHEMA
            )
