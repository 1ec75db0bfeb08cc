"""The view `latest`: of all rows that a table keeps, those that its newest complete run asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from infra.storage import Location
from pipelines.asked import AskedFile, gone, newest_asked

# Kept as text: each file has its own dictionary of task names.
_PAIRS = pa.schema([("key", pa.binary(16)), ("task", pa.string()), ("group", pa.int32()), ("run_id", pa.string())])
_LATEST = "CREATE VIEW latest AS SELECT * FROM results WHERE "


def define_latest(connection: duckdb.DuckDBPyConnection, table: Location, filesystem: Any) -> None:
    """Adds the view `latest` beside `results`: a semi join with the ledger's keys, which are read when it is queried.

    It is empty as long as no run ended well, and an error of its own when the ledger has lost a file.
    """
    asked, missing = newest_asked(table)
    if missing is not None:
        message = str(gone(missing)).replace("'", "''")
        connection.execute(f"{_LATEST} error('{message}') IS NULL")
        return
    selects = []
    if old := [each for each in asked if each.hexadecimal]:
        connection.register("asked_in_text", ds.dataset([each.file.path for each in old], filesystem=filesystem))
        selects.append("SELECT unhex(key) AS key FROM asked_in_text")
    if own := [each for each in asked if not each.hexadecimal and each.groups is None]:
        connection.register("asked", _pairs(own, filesystem))
        selects.append("SELECT key FROM asked")
    if taken := [each for each in asked if each.groups is not None]:
        connection.register("asked_before", _pairs(taken, filesystem))
        connection.register("asked_before_groups", _groups(taken))
        tasks = ", ".join("'" + name.replace("'", "''") + "'" for name in taken[0].tasks or ())
        selects.append(
            'SELECT key FROM asked_before SEMI JOIN asked_before_groups USING (run_id, "group") '
            f"WHERE task IN ({tasks})"
        )
    connection.execute(_LATEST + (f"unhex(key) IN ({' UNION ALL '.join(selects)})" if selects else "false"))


def _pairs(files: Iterable[AskedFile], filesystem: Any) -> ds.Dataset:
    """The ledger's parts as one dataset, with the run of each as a column."""
    form = ds.ParquetFileFormat()
    fragments = [
        form.make_fragment(
            each.file.path, filesystem=filesystem, partition_expression=ds.field("run_id") == each.run_id
        )
        for each in files
    ]
    return ds.FileSystemDataset(fragments, _PAIRS, form, filesystem)


def _groups(files: Iterable[AskedFile]) -> pa.Table:
    """Which row groups of which runs count, each once."""
    pairs = sorted({(each.run_id, group) for each in files for group in each.groups or ()})
    return pa.table(
        {
            "run_id": pa.array([run_id for run_id, _ in pairs], pa.string()),
            "group": pa.array([group for _, group in pairs], pa.int32()),
        }
    )
