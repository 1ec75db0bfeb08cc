"""A table's outputs: the newest row of each document and task, found without reading a text that nobody asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import Location
from pipelines.damage import first_line
from pipelines.errors import JobError, TableError
from pipelines.job import Condition
from pipelines.schema import OUTPUT
from pipelines.table import reading

_LIGHT = [
    "document_id", "task", "kind", "language", "status", "error_code", "finish_reason", "truncated", "model",
    "model_revision", "backend", "dtype", "task_fingerprint", "run_id", "job", "created_at",
]  # fmt: skip
# Rows that stand for a place in the source and not for a document; of a repeated id the first row is the document's.
_PLACES = ["null_id", "duplicate_id", "bad_row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """`rows`: one row per (document, task), in the order of document ids, without texts; `files` hold those.

    `unpublished`: files of finished rows that no run has moved to where readers look; they are not looked at.
    """

    location: Location
    rows: pa.Table
    files: list[str]
    superseded: int
    unpublished: int

    def of_task(self, task: str) -> pa.Table:
        """The rows of one task."""
        return self.rows.filter(pc.equal(self.rows.column("task"), task))

    def texts(self, rows: pa.Table, column: str = "text") -> list[str | None]:
        """The texts (or another column) of some `rows`, in their order; only the row groups they are in are read."""
        places, at = rows.column("_file").to_numpy(), rows.column("_row").to_numpy()
        found: list[str | None] = [None] * len(rows)
        for number in np.unique(places):
            mine = np.flatnonzero(places == number)
            values = _cells(Location(self.files[number]), at[mine], column)
            for index, value in zip(mine, values, strict=True):
                found[index] = value
        return found


def read_outputs(path: str, conditions: Sequence[Condition] = ()) -> Outputs:
    """The outputs of the table at `path`; TableError when there is none there.

    Of several rows of one document and task (an older prompt, model or text) the newest counts. JobError when the
    conditions name a column that the table does not have.
    """
    location = Location(path)
    files = [file.url for zone in ("results", "errors") for file in location.child(zone).list_files()]
    if not files:
        raise TableError(f"{location}: there is no table here; name the folder that the run job's output.path names")
    parts = [_light(Location(url), number, conditions) for number, url in enumerate(files)]
    rows = _documents(pa.concat_tables(parts, promote_options="permissive"))
    newest = _newest(rows)
    kept = rows.take(newest)
    return Outputs(
        location=location,
        rows=kept.take(pc.sort_indices(kept, [("document_id", "ascending")])),
        files=files,
        superseded=len(rows) - len(kept),
        unpublished=len(location.child("_work").list_files()),
    )


def _light(location: Location, number: int, conditions: Sequence[Condition]) -> pa.Table:
    with reading(location) as opened:
        there = opened.schema_arrow.names
        asked = [column for column, _, _ in conditions]
        for column in asked:
            if column not in there:
                raise JobError(f"table.filter: {location} has no column {column!r}; it has {', '.join(there)}")
        table = opened.read(columns=[name for name in dict.fromkeys([*_LIGHT, *asked]) if name in there])
    for name in _LIGHT:
        if name not in there:
            # An older version's file may lack a column; one that no row can be without is of no table.
            field = OUTPUT.field(name)
            if not field.nullable or name == "document_id":
                raise TableError(f"{location}: column {name} is missing; this is not a corpusmill table")
            table = table.append_column(name, pa.nulls(len(table), field.type))
    table = table.append_column("_file", pa.array(np.full(len(table), number, np.int32)))
    table = table.append_column("_row", pa.array(np.arange(len(table), dtype=np.int64)))
    if conditions:
        try:
            table = table.filter(pq.filters_to_expression([tuple(condition) for condition in conditions]))
        except pa.ArrowException as error:
            raise JobError(f"table.filter: {first_line(error)}") from error
    return table.select([*_LIGHT, "_file", "_row"])


def _documents(rows: pa.Table) -> pa.Table:
    place = pc.is_in(rows.column("error_code"), value_set=pa.array(_PLACES))
    return rows.filter(pc.and_(pc.is_valid(rows.column("document_id")), pc.invert(place)))


def _newest(rows: pa.Table) -> np.ndarray:
    """Which row of each (document, task) was made last; of two at one moment the one that has a text."""
    documents, tasks = _codes(rows.column("document_id")), _codes(rows.column("task"))
    made = rows.column("created_at").cast(pa.int64()).fill_null(0).to_numpy()
    ok = pc.equal(rows.column("status"), "ok").to_numpy()
    order = np.lexsort((ok, made, tasks, documents))
    documents, tasks = documents[order], tasks[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (documents[1:] != documents[:-1]) | (tasks[1:] != tasks[:-1])
    return np.sort(order[last])


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    # Large: the ids of a large table are more than the 2 GiB that a plain string column can hold.
    encoded = pc.dictionary_encode(column.cast(pa.large_string()))
    codes = [chunk.indices.to_numpy() for chunk in encoded.unify_dictionaries().chunks]
    return np.concatenate(codes) if codes else np.empty(0, np.int32)


def _cells(location: Location, rows: np.ndarray, column: str) -> list[str | None]:
    """Cells of one file's rows, given in any order."""
    with reading(location) as opened:
        counts = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
        ends = np.cumsum(counts)
        groups = np.searchsorted(ends, rows, side="right")
        found: list[str | None] = [None] * len(rows)
        for group in np.unique(groups):
            inside = np.flatnonzero(groups == group)
            first = ends[group] - counts[group]
            cells = opened.read_row_group(int(group), columns=[column]).column(column)
            for index, value in zip(inside, cells.take(pa.array(rows[inside] - first)).to_pylist(), strict=True):
                found[index] = value
        return found
