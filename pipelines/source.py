"""The source: which Parquet row groups there are, which documents they hold, and how a row group is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError, expand, storage_errors
from workers.conditions import Condition

from .columns import carried_schema, check_columns
from .damage import damage, first_line
from .errors import SourceError
from .job import SourceSpec
from .schema import OUTPUT

_PARALLEL = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of one file. `documents`: its rows that pass the filter, of which `duplicates` (by their ordinal
    among them) repeat an id that stands earlier in the source; `only`, when given, are the ordinals to read.
    `problem`: why even its ids cannot be read; all its rows are documents then."""

    url: str
    index: int
    first_row: int
    rows: int
    documents: int
    duplicates: Sequence[int] = ()
    only: Sequence[int] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFile:
    """A file under the source path that is no Parquet file."""

    url: str
    etag: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A readable file, for the manifest."""

    url: str
    size: int
    etag: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A source as one run sees it."""

    files: list[SourceFile]
    unreadable: list[UnreadableFile]
    row_groups: list[RowGroup]
    carry: pa.Schema

    @property
    def documents(self) -> int:
        """Documents that pass the filter, duplicates included."""
        return sum(group.documents for group in self.row_groups)

    @property
    def bytes(self) -> int:
        """Size of the readable files."""
        return sum(file.size for file in self.files)


def scan(
    source: SourceSpec, also: Iterable[str] = (), key: str = "source", reserved: Iterable[str] = OUTPUT.names
) -> Corpus:
    """List the source, read its footers and its ids; SourceError names what does not fit the job.

    `also`: columns that must be there besides the source's own; `key`: what the job file calls this source; `reserved`:
    names that a carried column may not have.
    Costs one listing, a footer per file, and the id (and filter) columns. A file that is no Parquet is reported, not
    raised, as long as another one is.
    """
    try:
        listed = expand(source.path)
    except StorageError as error:
        raise SourceError(f"{key}.path: {error}") from error
    if not listed:
        raise SourceError(f"{key}.path: no Parquet file (.parquet, .parq, .pq) under {source.path}")
    with ThreadPoolExecutor(_PARALLEL) as pool:
        opened = list(pool.map(_footer, listed))
    unreadable = [found for found in opened if isinstance(found, UnreadableFile)]
    footers = [found for found in opened if not isinstance(found, UnreadableFile)]
    if not footers:
        raise SourceError(f"{unreadable[0].url}: {unreadable[0].reason}")
    check_columns(source, [(file.url, footer.schema.to_arrow_schema()) for file, footer in footers], tuple(also))
    carry = carried_schema(source, [(file.url, footer.schema.to_arrow_schema()) for file, footer in footers], reserved)
    return Corpus(
        files=[
            SourceFile(url=file.url, size=file.size, etag=file.etag, rows=footer.num_rows) for file, footer in footers
        ],
        unreadable=unreadable,
        row_groups=_with_duplicates(source, footers),
        carry=carry,
    )


def sample(corpus: Corpus, count: int) -> list[RowGroup]:
    """`count` documents spread evenly over the corpus, as row groups that read only these."""
    total = corpus.documents
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)) if total else np.empty(0)
    groups, start = [], 0
    for group in corpus.row_groups:
        inside = chosen[(chosen >= start) & (chosen < start + group.documents)] - start
        if len(inside):
            groups.append(replace(group, only=tuple(inside.tolist())))
        start += group.documents
    return groups


def _footer(file: FileInfo) -> tuple[FileInfo, pq.FileMetaData] | UnreadableFile:
    try:
        with storage_errors(file.url), Location(file.url).open_input() as opened, damage() as found:
            footer = pq.read_metadata(opened)
            counts = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
            if min(counts, default=0) < 0 or sum(counts) != footer.num_rows:
                # A damaged footer, told here: rows that it only claims would fill the memory.
                raise pa.ArrowInvalid(f"its footer counts {footer.num_rows:,} rows and its row groups {sum(counts):,}")
            return file, footer
    except StorageError as error:
        if error.problem is Problem.MISSING:
            return UnreadableFile(url=file.url, etag=file.etag, reason="the file vanished while the source was read")
        raise SourceError(str(error)) from error
    return UnreadableFile(url=file.url, etag=file.etag, reason=f"not a Parquet file ({found[0]})")


def _with_duplicates(source: SourceSpec, footers: Sequence[tuple[FileInfo, pq.FileMetaData]]) -> list[RowGroup]:
    """Every row group with its document count and its repeated ids, in the source's order."""
    places = []
    for file, footer in footers:
        first = 0
        for index in range(footer.num_row_groups):
            rows = footer.row_group(index).num_rows
            places.append(RowGroup(url=file.url, index=index, first_row=first, rows=rows, documents=0))
            first += rows
    with ThreadPoolExecutor(_PARALLEL) as pool:
        ids = list(pool.map(lambda place: _ids(source, place), places))
    repeated = _repeated([column for column, _ in ids])
    groups, start = [], 0
    for place, (column, problem) in zip(places, ids, strict=True):
        duplicates = np.flatnonzero(repeated[start : start + len(column)])
        start += len(column)
        counted = replace(place, documents=len(column), duplicates=tuple(duplicates.tolist()), problem=problem)
        groups.append(counted)
    return groups


def _ids(source: SourceSpec, place: RowGroup) -> tuple[pa.ChunkedArray, str | None]:
    """The ids of the rows that pass; or as many nulls as there are rows, and why the ids cannot be read."""
    columns = filter_columns(source)
    try:
        with storage_errors(place.url), Location(place.url).open_input() as opened, damage() as found:
            table = pq.ParquetFile(opened).read_row_group(place.index, columns=columns, use_threads=False)
            if table.num_rows != place.rows:
                raise pa.ArrowInvalid(f"it holds {table.num_rows:,} rows and its footer says {place.rows:,}")
    except StorageError as error:
        raise SourceError(str(error)) from error
    if found:
        problem = f"row group {place.index} cannot be decoded ({found[0]})"
        return pa.chunked_array([pa.nulls(place.rows, pa.string())]), problem
    return filtered(table, source).column(source.id).cast(pa.string()), None


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
    for i, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type) or pa.types.is_binary_view(field.type):
            plain = pa.large_string() if pa.types.is_string_view(field.type) else pa.large_binary()
            table = table.set_column(i, field.name, table.column(i).cast(plain))
    return table


def _repeated(ids: Iterable[pa.ChunkedArray]) -> np.ndarray:
    """For every id in order: whether it stood earlier. Null ids are no repetition: each is rejected by itself."""
    chunks = [chunk for column in ids for chunk in column.chunks]
    # Large: the ids of a large corpus are more than the 2 GiB that a plain string column can hold.
    column = pa.chunked_array([chunk.cast(pa.large_string()) for chunk in chunks], pa.large_string())
    codes = column.combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.unify_dictionaries().combine_chunks()
    values = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    repeated = np.ones(len(values), dtype=bool)
    _, first = np.unique(values, return_index=True)
    repeated[first] = False
    repeated[values == -1] = False
    return repeated
