"""Source files opened while planning: their footers and their ids, of what is not known already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError, storage_errors
from workers.conditions import Condition

from .columns import check_columns
from .damage import damage, first_line
from .errors import SourceError
from .job import SourceSpec
from .keys import KEY, hashes_of
from .known import KnownFile
from .page_limits import claimed_rows, decoded, dictionary_columns, limits_of

_PARALLEL = 16
# Calls that wait for a thread at once: a corpus may have as many files as it likes.
_WINDOW = 4096
# The ids of a file with few row groups are read while it is open for its footer.
_FEW = 4

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, kw_only=True)
class Shard:
    """A readable file: the rows of each row group, and as far as they were read the hashes (S16) of its documents' ids.

    `problems`: why a row group's ids cannot be read; its ids are as many nulls as it has rows then.
    """

    file: FileInfo
    schema: pa.Schema
    rows: list[int]
    ids: dict[int, np.ndarray] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFile:
    """A file under the source path that is no Parquet file."""

    url: str
    etag: str
    reason: str


def open_shards(
    source: SourceSpec, listed: Sequence[FileInfo], known: Mapping[str, KnownFile]
) -> tuple[list[Shard], list[UnreadableFile]]:
    """The files in order, those that are known whole unopened, and those that are no Parquet files."""
    opener = _Opener(source, known)
    unknown = [file for file in listed if opener.recalled(file) is None]
    opened = iter(in_threads(opener.open, unknown))
    shards: list[Shard] = []
    unreadable: list[UnreadableFile] = []
    for file in listed:
        found = opener.recalled(file) or next(opened)
        unreadable.append(found) if isinstance(found, UnreadableFile) else shards.append(found)
    return shards, unreadable


def read_ids(source: SourceSpec, shards: Sequence[Shard]) -> None:
    """Reads the ids that are not there yet."""
    missing = [(shard, index) for shard in shards for index in range(len(shard.rows)) if index not in shard.ids]
    for (shard, index), (ids, problem) in zip(missing, in_threads(lambda each: _ids(source, *each), missing)):
        shard.ids[index] = ids
        if problem is not None:
            shard.problems[index] = problem


def in_threads(call: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
    """`call` of each argument, in order, by a few threads, with a bounded number waiting."""
    if not arguments:
        return
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for start in range(0, len(arguments), _WINDOW):
            yield from pool.map(call, arguments[start : start + _WINDOW])


class _Opener:
    def __init__(self, source: SourceSpec, known: Mapping[str, KnownFile]) -> None:
        self._source = source
        self._known = known
        # One object for all files of a schema: there may be more files than memory for as many schemas.
        self._schemas: dict[bytes, pa.Schema] = {}
        for file in known.values():
            self._shared(file.schema)

    def recalled(self, file: FileInfo) -> Shard | None:
        """The file as it is known, when all of it is."""
        known = self._known.get(file.url)
        if known is None or not known.whole or len(known.ids) != known.row_groups:
            return None
        rows = [known.found[index].rows for index in range(known.row_groups)]
        return Shard(file=file, schema=self._shared(known.schema), rows=rows, ids=dict(known.ids))

    def open(self, file: FileInfo) -> Shard | UnreadableFile:
        try:
            with storage_errors(file.url), Location(file.url).open_input() as opened, damage() as found:
                parquet = pq.ParquetFile(opened)
                if problem := claimed_rows(parquet.metadata):
                    return UnreadableFile(url=file.url, etag=file.etag, reason=problem)
                groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
                shard = Shard(file=file, schema=self._shared(parquet.schema_arrow), rows=groups)
                known = self._known.get(file.url)
                shard.ids.update(known.ids if known else {})
                if len(groups) <= _FEW and self._fits(shard):
                    for index in range(len(groups)):
                        if index not in shard.ids:
                            ids, problem = _ids_in(self._source, file.url, opened, parquet.metadata, index)
                            shard.ids[index] = ids
                            if problem is not None:
                                shard.problems[index] = problem
                return shard
        except StorageError as error:
            if error.problem is Problem.MISSING:
                return UnreadableFile(
                    url=file.url, etag=file.etag, reason="the file vanished while the source was read"
                )
            raise SourceError(str(error)) from error
        return UnreadableFile(url=file.url, etag=file.etag, reason=f"not a Parquet file ({found[0]})")

    def _shared(self, schema: pa.Schema) -> pa.Schema:
        plain = schema.remove_metadata()
        return self._schemas.setdefault(plain.serialize().to_pybytes(), plain)

    def _fits(self, shard: Shard) -> bool:
        try:
            check_columns(self._source, [(shard.file.url, shard.schema)])
        except SourceError:
            # Told later, of the first such file in order.
            return False
        return True


def _ids(source: SourceSpec, shard: Shard, index: int) -> tuple[np.ndarray, str | None]:
    """The ids of the rows that pass; or as many nulls as there are rows, and why the ids cannot be read."""
    try:
        with storage_errors(shard.file.url), Location(shard.file.url).open_input() as opened:
            with damage() as found:
                return _ids_in(source, shard.file.url, opened, pq.read_metadata(opened), index)
            return np.zeros(shard.rows[index], KEY), _undecoded(index, found)
    except StorageError as error:
        raise SourceError(str(error)) from error


def _ids_in(
    source: SourceSpec, url: str, opened: Any, footer: pq.FileMetaData, index: int
) -> tuple[np.ndarray, str | None]:
    table, problem = None, None
    with damage() as found:
        table, problem = _whole_columns(opened, footer, index, filter_columns(source), Location(url).is_local)
    if table is None:
        return np.zeros(footer.row_group(index).num_rows, KEY), problem or _undecoded(index, found)
    return hashes_of(filtered(table, source).column(source.id).cast(pa.string())), None


def _whole_columns(
    opened: Any, footer: pq.FileMetaData, index: int, columns: list[str], local: bool
) -> tuple[pa.Table | None, str | None]:
    """Whole columns of a row group, or why they are not read: they would take more memory than anybody's ids do."""
    problem = limits_of(opened, footer, index, columns, local=local, whole=True).problem
    if problem:
        return None, problem
    schema = footer.schema.to_arrow_schema()
    file = pq.ParquetFile(opened, metadata=footer, read_dictionary=dictionary_columns(schema, columns))
    read = file.read_row_group(index, columns=columns, use_threads=False)
    if read.num_rows != footer.row_group(index).num_rows:
        raise pa.ArrowInvalid(
            f"it holds {read.num_rows:,} rows and its footer says {footer.row_group(index).num_rows:,}"
        )
    table = decoded(read, schema)
    return table, None if table is not None else f"row group {index}: its ids repeat too many bytes to be read"


def _undecoded(index: int, found: list[str]) -> str:
    return f"row group {index} cannot be decoded ({found[0]})"


def filter_columns(source: SourceSpec) -> list[str]:
    """The id and what the filter looks at: enough to know which rows are documents."""
    return list(dict.fromkeys([source.id, *(column for column, _, _ in source.filter or ())]))


def filtered(table: pa.Table, source: SourceSpec) -> pa.Table:
    """The rows that pass the job's filter; SourceError when a value does not fit its column's type."""
    return passing(table, source.filter, "source.filter") if source.filter else table


def passing(table: pa.Table, conditions: Sequence[Condition], name: str) -> pa.Table:
    """The rows that pass; SourceError, which begins with `name`, when a value does not fit its column."""
    table = _without_views(table)
    try:
        return table.filter(pq.filters_to_expression([tuple(condition) for condition in conditions]))
    except pa.ArrowException as error:
        raise SourceError(f"{name}: {first_line(error)}") from error


def _without_views(table: pa.Table) -> pa.Table:
    """`table` with plain strings and bytes: Arrow reads views from a file, and cannot filter them."""
    for i, column in enumerate(table.schema):
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            plain = pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary()
            table = table.set_column(i, column.name, table.column(i).cast(plain))
    return table
