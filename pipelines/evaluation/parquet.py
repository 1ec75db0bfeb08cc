"""Parquet files of a person's own, read column by column: each trouble named by its key in the evaluation file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, StorageError, expand, storage_errors
from pipelines.damage import damage
from pipelines.errors import SourceError


def files_of(key: str, path: str) -> list[FileInfo]:
    """The Parquet files under `path`; SourceError when there are none."""
    try:
        files = expand(path)
    except StorageError as error:
        raise SourceError(f"{key}: {error}") from error
    if not files:
        raise SourceError(f"{key}: no Parquet file (.parquet, .parq, .pq) under {Location(path)}")
    return files


def batches(key: str, file: FileInfo, columns: dict[str, str]) -> Iterator[pa.Table]:
    """A file's row groups with only `columns` (each with the key that names it), or SourceError."""
    location, names = Location(file.url), list(dict.fromkeys(columns))
    with location.open_input() as opened:
        parquet = _read(key, location, lambda: pq.ParquetFile(opened))
        there = parquet.schema_arrow.names
        for name in names:
            if name not in there:
                raise SourceError(f"{columns[name]}: {location} has no column {name!r}{_similar(name, there)}")
        for group in range(parquet.num_row_groups):
            yield _read(key, location, lambda: parquet.read_row_group(group, columns=names))  # noqa: B023


def as_text(key: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text, numbers or truth values as strings; SourceError for any other type."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(check(kind) for check in _SPELLED):
        raise SourceError(f"{key}: the column is {kind}; it must be text")
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    return pc.cast(pc.cast(column, kind), pa.string())


def is_list(kind: pa.DataType) -> bool:
    """Whether a cell holds several values."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


_SPELLED = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_boolean, pa.types.is_null,
)  # fmt: skip


def _read(key: str, location: Location, read: Callable[[], Any]) -> Any:
    with storage_errors(location.url), damage() as found:
        return read()
    raise SourceError(f"{key}: {location} cannot be read as Parquet ({found[0]})")


def _similar(name: str, there: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, there, n=1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(there[:20])}"
