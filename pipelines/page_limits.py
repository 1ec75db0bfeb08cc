"""What a row group would take in memory, told from its page headers before anything is unpacked.

A Parquet footer only claims sizes; a page's own header is what a reader allocates by, and a dictionary can make many
large values of few bytes. Layout: https://parquet.apache.org/docs/file-format/data-pages (Thrift's compact protocol).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Far above what writers make (a million rows, gigabytes of images); what is beyond is refused as damage is.
MAX_ROWS = 1 << 27
MAX_GROUP_BYTES = 64 << 30
# Of the columns that are read whole: the ids, and what a filter looks at.
MAX_WHOLE_BYTES = 4 << 30
MAX_PAGES = 1_000_000
# One read decodes about this much at most; a single page may have 2 GiB by its format.
_AT_ONCE_BYTES = 256 << 20
# The headers of a remote file's longer chunks would be a request each: there the footer is believed.
_REMOTE_BYTES = 8 << 20
_HEADER_BYTES = 256
_MOST_HEADER_BYTES = 16 << 20
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)


@dataclass(frozen=True, slots=True)
class Limits:
    """`problem`: why the row group is not read; `rows`: how many to decode at once."""

    problem: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class _Page:
    unpacked: int
    packed: int
    values: int
    dictionary: bool
    uses_dictionary: bool


@dataclass(frozen=True, slots=True)
class _Chunk:
    column: str
    values: int
    unpacked: int
    packed: int
    start: int


def claimed_rows(metadata: pq.FileMetaData) -> str | None:
    """Why a file is not read for the rows that its footer claims: each would be a row of the table. Else None."""
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    for index, rows in enumerate(counts):
        if not 0 <= rows <= MAX_ROWS:
            return f"row group {index} claims {rows:,} rows; up to {MAX_ROWS:,} in one are read"
    if sum(counts) != metadata.num_rows:
        return f"its footer counts {metadata.num_rows:,} rows and its row groups {sum(counts):,}"
    return None


def limits_of(
    opened: Any, metadata: pq.FileMetaData, index: int, columns: Iterable[str], *, local: bool, whole: bool = False
) -> Limits:
    """Looks at the page headers of `columns` in one row group; `whole`: they will be read at once, not in pieces."""
    rows = metadata.row_group(index).num_rows
    wanted, total, densest = set(columns), 0, 1.0
    chunks = _chunks(_footer_of(opened))
    if chunks is None or index >= len(chunks):
        return Limits(f"row group {index}: its place in the footer cannot be read", 1)
    for chunk in chunks[index]:
        if chunk.column not in wanted:
            continue
        unpacked, per_value = 0, 0.0
        for count, page in enumerate(_pages(opened, chunk, local)):
            if count > MAX_PAGES:
                return Limits(f"row group {index} has more than {MAX_PAGES:,} pages in a column", 1)
            unpacked += page.unpacked
            # A value that stands in the dictionary may be as long as the whole of it.
            if page.dictionary or not page.uses_dictionary:
                per_value = max(per_value, page.unpacked / (1 if page.dictionary else max(1, page.values)))
        total += max(unpacked, chunk.unpacked)
        densest += per_value * max(1.0, chunk.values / max(1, rows))
    most = MAX_WHOLE_BYTES if whole else MAX_GROUP_BYTES
    if total > most:
        return Limits(f"row group {index} unpacks to {total:,} bytes; up to {most:,} are read", 1)
    return Limits(None, max(1, int(_AT_ONCE_BYTES / densest)))


def dictionary_columns(schema: pa.Schema, columns: Iterable[str]) -> list[str]:
    """Those of `columns` that pyarrow can read as dictionaries: a repeated value then takes its bytes once."""
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    return [name for name in columns if name in schema.names and schema.field(name).type in kinds]


def decoded(table: pa.Table, schema: pa.Schema) -> pa.Table | None:
    """`table`, read as dictionaries, under `schema`; None when its values would take more than MAX_WHOLE_BYTES."""
    needed = sum(_expanded(column) for column in table.columns if pa.types.is_dictionary(column.type))
    if needed > MAX_WHOLE_BYTES:
        return None
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def _expanded(column: pa.ChunkedArray) -> int:
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
        total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _footer_of(opened: Any) -> bytes:
    """The footer's own bytes; empty for a file that has none."""
    end = opened.seek(0, 2)
    opened.seek(max(0, end - 8))
    length = int.from_bytes(opened.read(8)[:4], "little")
    opened.seek(max(0, end - 8 - length))
    return opened.read(length) if 0 < length <= end - 8 else b""


@lru_cache(maxsize=32)
def _chunks(footer: bytes) -> list[list[_Chunk]] | None:
    """The column chunks of each row group; None for a footer that cannot be read.

    Not by pyarrow's `RowGroupMetaData.column`: of a damaged footer its C++ throws where nothing catches, and that
    ends the process.
    """
    try:
        groups = _struct(footer, 0, 0)[0].get(4) or []
        return [[_chunk(each[3]) for each in group.get(1) or []] for group in groups]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _chunk(fields: dict[int, Any]) -> _Chunk:
    starts = [start for start in (fields[9], fields.get(11)) if start]
    name = fields[3][0].decode(errors="surrogateescape")
    return _Chunk(name, fields[5], fields[6], fields[7], min(starts, default=0))


def _pages(opened: Any, chunk: _Chunk, local: bool) -> Iterator[_Page]:
    """The headers of a column chunk's pages; ends early at one that cannot be read, as the reader itself will."""
    at = max(0, chunk.start)
    end, seen = at + chunk.packed, 0
    only_first = not local and chunk.packed > _REMOTE_BYTES
    while at < end and seen < chunk.values:
        found = _header(opened, at)
        if found is None:
            return
        page, length = found
        yield page
        if only_first:
            return
        seen += 0 if page.dictionary else page.values
        at += length + page.packed


def _header(opened: Any, at: int) -> tuple[_Page, int] | None:
    size = _HEADER_BYTES
    while size <= _MOST_HEADER_BYTES:
        opened.seek(at)
        data = opened.read(size)
        try:
            fields, length = _struct(data, 0, 0)
            return _page(fields), length
        except IndexError:
            if len(data) < size:
                return None
            size *= 16
        except (ValueError, KeyError):
            return None
    return None


def _page(fields: dict[int, Any]) -> _Page:
    kind, unpacked, packed = fields[1], fields[2], fields[3]
    inner = fields.get(5) or fields.get(7) or fields.get(8) or {}
    encoding = inner.get(4 if 8 in fields else 2)
    values = inner.get(1, 0)
    if min(unpacked, packed, values) < 0:
        raise ValueError("a negative size")
    return _Page(unpacked, packed, values, kind == _DICTIONARY_PAGE, encoding in _DICTIONARY_ENCODINGS)


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct and where it ends; IndexError past the end of `data`, ValueError for nonsense."""
    fields: dict[int, Any] = {}
    number = 0
    if depth > 16:
        raise ValueError("nested too deeply")
    while kind := data[at]:
        step, kind = kind >> 4, kind & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:  # true, false
            return kind == 1, at
        case 3:  # a byte
            return data[at], at + 1
        case 4 | 5 | 6:  # integers
            return _integer(data, at)
        case 7:  # a double
            return None, at + 8
        case 8:  # bytes
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError
            return data[at : at + length], at + length
        case 9 | 10:  # a list, a set
            return _list(data, at, depth)
        case 12:
            return _struct(data, at, depth + 1)
    raise ValueError(f"type {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(data, at)
    found = []
    for _ in range(count):
        # In a list a truth value is a byte of its own.
        value, at = (None, at + 1) if kind in (1, 2) else _value(data, at, kind, depth + 1)
        if at > len(data):
            raise IndexError
        found.append(value)
    return found, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
