"""Read row groups as source rows, a piece at a time, with the rows' true places in their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Location, StorageError, storage_errors
from workers.conditions import Condition

from .columns import as_source_rows, unreadable_rows
from .damage import damage
from .errors import SourceError
from .job import SourceSpec
from .page_limits import limits_of
from .shards import UnreadableFile, filter_columns, filtered, passing
from .source import RowGroup

_ROW = "__corpusmill_row"
# Rows decoded at once: by their size, because images make them megabytes each.
_PIECE_BYTES = 16 << 20
_PIECE_ROWS = 1024

UNIT = pa.schema(
    [
        ("url", pa.string()),
        ("index", pa.int32()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("documents", pa.int64()),
        ("duplicates", pa.list_(pa.int64())),
        ("only", pa.list_(pa.int64())),
        ("problem", pa.string()),
    ]
)
# The row of a file that has none to offer: it could not be read at all.
_NO_ROW = -1


def as_units(groups: Sequence[RowGroup], unreadable: Sequence[UnreadableFile] = ()) -> pa.Table:
    """Row groups and unreadable files as rows of a dataset: what the read stage takes."""
    rows: list[dict] = [dataclasses.asdict(group) for group in groups]
    rows += [{"url": file.url, "problem": file.reason} for file in unreadable]
    return pa.Table.from_pylist(rows, schema=UNIT)


class Read:
    """Callable over units (`as_units`): yields tables of `source_schema`, a few rows at a time.

    `where`: of each task, which rows it is asked of; None, and no entry, stand for all.
    """

    def __init__(
        self, source: SourceSpec, carry: pa.Schema, where: Sequence[tuple[Condition, ...] | None] = ()
    ) -> None:
        self._source = source
        self._carry = carry
        self._where = {t: conditions for t, conditions in enumerate(where) if conditions}

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """SourceError when the store cannot be read; rows that cannot be decoded carry their problem."""
        for unit in units.to_pylist():
            if unit["index"] is None:
                yield unreadable_rows(self._carry, url=unit["url"], rows=[_NO_ROW], problem=unit["problem"])
            else:
                yield from self._read(RowGroup(**unit))

    def _read(self, group: RowGroup) -> Iterator[pa.Table]:
        if group.problem is not None:
            yield self._unreadable(group, np.arange(group.first_row, group.first_row + group.rows), 0, group.problem)
            return
        row, ordinal = group.first_row, 0
        try:
            with storage_errors(group.url), Location(group.url).open_input() as opened:
                file = pq.ParquetFile(opened)
                columns = list(dict.fromkeys([*self._source.columns, *where_columns(self._where.values())]))
                local = Location(group.url).is_local
                limits = limits_of(opened, file.metadata, group.index, columns, local=local)
                if limits.problem:
                    yield self._unreadable(group, self._passing_rows(file, group), 0, limits.problem)
                    return
                pieces = file.iter_batches(
                    batch_size=min(_piece_rows(file.metadata.row_group(group.index)), limits.rows),
                    row_groups=[group.index],
                    columns=columns,
                    use_threads=False,
                )
                while True:
                    with damage() as found:
                        piece = next(pieces, None)
                    end = group.first_row + group.rows
                    if not found and row < end and not (piece and piece.num_rows):
                        # A damaged footer: no error, and no more rows, of which the plan counted some.
                        found.append(f"it ends after {row - group.first_row:,} of its {group.rows:,} rows")
                    if found or piece is None or row == end:
                        break
                    piece = piece.slice(0, end - row)
                    table, rows = self._passing(pa.Table.from_batches([piece]), row)
                    row += piece.num_rows
                    yield self._rows(table, rows, group, ordinal)
                    ordinal += len(rows)
                if found:
                    # A damaged page: what came before it stands, the rest of the row group cannot be read.
                    problem = f"row group {group.index} cannot be decoded from here on ({found[0]})"
                    yield self._unreadable(group, self._passing_rows(file, group)[ordinal:], ordinal, problem)
        except StorageError as error:
            raise SourceError(str(error)) from error

    def _passing_rows(self, file: pq.ParquetFile, group: RowGroup) -> np.ndarray:
        """The physical rows that pass the filter, from its columns alone: the scan could read them."""
        if not self._source.filter:
            return np.arange(group.first_row, group.first_row + group.rows)
        columns = filter_columns(self._source)
        table = file.read_row_group(group.index, columns=columns, use_threads=False)
        return self._passing(table, group.first_row)[1]

    def _unreadable(self, group: RowGroup, rows: np.ndarray, ordinal: int, problem: str) -> pa.Table:
        if group.only is not None:
            rows = rows[np.isin(np.arange(ordinal, ordinal + len(rows)), group.only)]
        return unreadable_rows(self._carry, url=group.url, rows=rows.tolist(), problem=problem)

    def _passing(self, table: pa.Table, first_row: int) -> tuple[pa.Table, np.ndarray]:
        numbered = table.append_column(_ROW, pa.array(np.arange(first_row, first_row + table.num_rows)))
        kept = filtered(numbered, self._source)
        return kept, kept.column(_ROW).to_numpy()

    def _rows(self, table: pa.Table, rows: np.ndarray, group: RowGroup, ordinal: int) -> pa.Table:
        ordinals = np.arange(ordinal, ordinal + len(rows))
        if group.only is not None:
            wanted = np.isin(ordinals, group.only)
            table, rows, ordinals = table.filter(pa.array(wanted)), rows[wanted], ordinals[wanted]
        duplicate = np.isin(ordinals, group.duplicates)
        not_asked = self._not_asked(table)
        return as_source_rows(
            table, self._source, self._carry, url=group.url, rows=rows, duplicate=duplicate, not_asked=not_asked
        )

    def _not_asked(self, table: pa.Table) -> list[list[int]]:
        """Of each row, the tasks whose `where` it does not pass."""
        found: list[list[int]] = [[] for _ in range(table.num_rows)]
        for t, conditions in self._where.items():
            columns = table.select(where_columns([conditions]))
            numbered = columns.append_column(_ROW, pa.array(range(table.num_rows), pa.int64()))
            asked = set(passing(numbered, conditions, f"tasks[{t}].where").column(_ROW).to_pylist())
            for row in set(range(table.num_rows)) - asked:
                found[row].append(t)
        return found


def where_columns(where: Iterable[tuple[Condition, ...] | None]) -> list[str]:
    """The columns that conditions look at, each once."""
    return list(dict.fromkeys(column for conditions in where for column, _, _ in conditions or ()))


def _piece_rows(group: pq.RowGroupMetaData) -> int:
    row_bytes = group.total_byte_size // max(1, group.num_rows)
    return min(_PIECE_ROWS, max(1, _PIECE_BYTES // max(1, row_bytes)))
