"""Single rows of a table, found by key or by document: one column is searched, then single rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError

from .table import reading

# Where one key stands in several places, the first of these is what readers see.
ZONES = ("results", "errors", "_work")
_READERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands: its zone, its file, the row group and the row in it; `value` is what was searched for."""

    zone: str
    file: FileInfo
    group: int
    row: int
    value: str


def find_keys(table: Location, prefix: str) -> list[Place]:
    """Every row whose key begins with `prefix` (lower-case hex), in the order of ZONES."""
    files = [(zone, file) for zone in ZONES for file in table.child(zone).list_files()]
    last = prefix + "g"  # after every key that begins so
    return _search(files, "key", lambda column: pc.starts_with(column, prefix), prefix, last)


def find_document(table: Location, task: str, document_id: str) -> list[Place]:
    """Every row of a document in a task's files; those in _work/ may be of any task."""
    folders = [("results", table.child("results", task)), ("errors", table.child("errors", task))]
    files = [(zone, file) for zone, folder in folders for file in folder.list_files()]
    files += [("_work", file) for file in table.child("_work").list_files()]
    return _search(files, "document_id", lambda column: pc.equal(column, document_id), document_id, document_id)


def read_row(place: Place) -> dict[str, Any]:
    """The row at a place, all its columns."""
    with reading(Location(place.file.url)) as opened:
        rows = opened.read_row_group(place.group, use_threads=False)
        return rows.slice(place.row, 1).to_pylist()[0]


def _search(
    files: Sequence[tuple[str, FileInfo]], column: str, matches: Callable, first: str, last: str
) -> list[Place]:
    def look(entry: tuple[str, FileInfo]) -> list[Place]:
        return list(_look(*entry, column, matches, first, last))

    with ThreadPoolExecutor(_READERS) as pool:
        return [place for places in pool.map(look, files) for place in places]


def _look(zone: str, file: FileInfo, column: str, matches: Callable, first: str, last: str) -> Iterator[Place]:
    try:
        with reading(Location(file.url)) as opened:
            at = opened.schema_arrow.get_field_index(column)
            groups = [g for g in range(opened.metadata.num_row_groups) if _may_hold(opened, g, at, first, last)]
            read = [(g, opened.read_row_group(g, columns=[column], use_threads=False).column(0)) for g in groups]
    except StorageError as error:
        # A work file that a publisher merged and deleted between the listing and now.
        if error.problem is not Problem.MISSING:
            raise
        return
    for group, values in read:
        for row in np.flatnonzero(pc.fill_null(matches(values), False).to_numpy()).tolist():
            yield Place(zone=zone, file=file, group=group, row=row, value=values[row].as_py())


def _may_hold(opened: pq.ParquetFile, group: int, column: int, first: str, last: str) -> bool:
    """Whether a row group's statistics leave room for values from `first` to `last`."""
    statistics = opened.metadata.row_group(group).column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    least, most = statistics.min, statistics.max
    if not isinstance(least, str) or not isinstance(most, str):
        return True
    # Compared as Parquet orders strings, by their bytes.
    return most.encode() >= first.encode() and least.encode() <= last.encode()
