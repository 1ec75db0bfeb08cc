"""Source columns → the names and types the stages use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from .damage import printable
from .errors import SourceError
from .job import SourceSpec
from .schema import IMAGE, OUTPUT, source_schema

_ID_KINDS = "a string or a whole number"
_TEXT_KINDS = "a string"
_IMAGE_KINDS = "bytes, a path, a struct of bytes and path, or a list of these"


def check_columns(source: SourceSpec, files: Sequence[tuple[str, pa.Schema]], also: Iterable[str] = ()) -> None:
    """SourceError when a file lacks a column that the job names, or holds it in a type that cannot be used."""
    for url, schema in files:
        for name in (*source.columns, *also):
            if name not in schema.names:
                raise SourceError(f"{url} has no column {name!r}; it has {_listed(schema.names)}")
        _must_be(url, source.id, schema, _is_id, _ID_KINDS)
        if source.text is not None:
            _must_be(url, source.text, schema, _is_string, _TEXT_KINDS)
        if source.images is not None:
            _must_be(url, source.images, schema, _is_images, _IMAGE_KINDS)


def carried_schema(
    source: SourceSpec, files: Sequence[tuple[str, pa.Schema]], reserved: Iterable[str] = OUTPUT.names
) -> pa.Schema:
    """The carried columns' types: one type over all files (null columns aside), dictionaries decoded."""
    taken = sorted(set(source.carry) & set(reserved))
    if taken:
        raise SourceError(f"source.carry: the table has a column {taken[0]!r} of its own; carry it under another name")
    fields = []
    for name in source.carry:
        kinds: dict[pa.DataType, str] = {}
        for url, schema in files:
            kinds.setdefault(_plain(schema.field(name).type), url)
        real = [kind for kind in kinds if not pa.types.is_null(kind)] or [pa.null()]
        if len(real) > 1:
            raise SourceError(
                f"source.carry: column {name!r} is {real[0]} in {kinds[real[0]]} and {real[1]} in {kinds[real[1]]}"
            )
        fields.append(pa.field(name, real[0]))
    return pa.schema(fields)


def as_source_rows(
    table: pa.Table,
    source: SourceSpec,
    carry: pa.Schema,
    *,
    url: str,
    rows: np.ndarray,
    duplicate: np.ndarray,
    not_asked: Sequence[Sequence[int]] | None = None,
) -> pa.Table:
    """A piece of a row group under `source_schema`; `rows` are the physical rows in the file."""
    count = table.num_rows
    carried = [_flat(_decoded(table.column(field.name)).cast(field.type)) for field in carry]
    problems: list[str | None] = [None] * count
    for n, field in enumerate(carry):
        carried[n] = _utf8(carried[n], field.name, problems)
    columns = {
        "document_id": _decoded(table.column(source.id)).cast(pa.string()),
        "text": pa.nulls(count, pa.string()) if source.text is None else _text(table.column(source.text)),
        "images": pa.nulls(count, pa.list_(IMAGE)) if source.images is None else _images(table.column(source.images)),
        "source_path": pa.array([url] * count, pa.string()),
        "source_row": pa.array(rows, pa.int64()),
        "duplicate": pa.array(duplicate, pa.bool_()),
        "not_asked": pa.array([()] * count if not_asked is None else not_asked, pa.list_(pa.int16())),
        "problem": pa.array(problems, pa.string()),
        "carry": pa.StructArray.from_arrays(carried, fields=list(carry))
        if len(carry)
        else pa.array([{}] * count, pa.struct([])),
    }
    return pa.table(columns, schema=source_schema(carry))


def unreadable_rows(carry: pa.Schema, *, url: str, rows: Sequence[int], problem: str) -> pa.Table:
    """Rows whose cells could not be read: known by their place, each to be rejected with `problem`."""
    schema = source_schema(carry)
    place = {"source_path": [url] * len(rows), "source_row": list(rows), "problem": [problem] * len(rows)}
    return pa.table(
        {
            field.name: pa.array(place[field.name], field.type)
            if field.name in place
            else pa.nulls(len(rows), field.type)
            for field in schema
        },
        schema=schema,
    )


def _utf8(array: pa.Array, name: str, problems: list[str | None]) -> pa.Array:
    """`array` with nulls for what is no UTF-8, each noted in `problems`: a table must not hold what nobody can read."""
    try:
        array.validate(full=True)
        return array
    except pa.ArrowInvalid:
        good = []
        for i, cell in enumerate(array):
            try:
                good.append(cell.as_py())
            except UnicodeDecodeError:
                good.append(None)
                problems[i] = f"the carried column {name} is not valid UTF-8"
        return pa.array(good, array.type)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # View, not cast: Arrow would refuse a whole batch for one string that is not UTF-8; Prepare rejects that row alone.
    plain = _decoded(column)
    return plain if plain.type == pa.string() else plain.cast(pa.string())


def _images(column: pa.ChunkedArray) -> pa.Array:
    cells = _flat(_decoded(column).combine_chunks())
    if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        items = _image_items(cells.flatten())
        lengths = cells.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return _listed_items(items, lengths, cells.is_valid())
    items = _image_items(cells)
    # A struct whose fields are both null is how some writers spell a missing image.
    there = items.is_valid().to_numpy(zero_copy_only=False)
    there = there & ~(
        items.field("bytes").is_null().to_numpy(zero_copy_only=False)
        & items.field("path").is_null().to_numpy(zero_copy_only=False)
    )
    return _listed_items(items.filter(pa.array(there)), there.astype(np.int64), pa.array(there))


def _listed_items(items: pa.StructArray, lengths: np.ndarray, valid: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    null_rows = np.concatenate([~valid.to_numpy(zero_copy_only=False), [False]])
    return pa.ListArray.from_arrays(pa.array(offsets, mask=null_rows), items).cast(pa.list_(IMAGE))


def _image_items(cells: pa.Array) -> pa.StructArray:
    kind, count = cells.type, len(cells)
    missing = cells.is_null()
    if pa.types.is_null(kind):
        return pa.nulls(count, IMAGE)
    if _is_string(kind):
        parts = [pa.nulls(count, pa.binary()), cells.cast(pa.string())]
    elif _is_bytes(kind):
        parts = [cells.cast(pa.binary()), pa.nulls(count, pa.string())]
    else:
        names = [field.name for field in kind]
        data = cells.field("bytes").cast(pa.binary()) if "bytes" in names else pa.nulls(count, pa.binary())
        path = cells.field("path").cast(pa.string()) if "path" in names else pa.nulls(count, pa.string())
        parts = [data, path]
    return pa.StructArray.from_arrays(parts, fields=list(IMAGE), mask=missing)


def _flat(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _must_be(url: str, name: str, schema: pa.Schema, test, kinds: str) -> None:
    kind = _plain(schema.field(name).type)
    if not (pa.types.is_null(kind) or test(kind)):
        raise SourceError(f"{url}: column {name!r} is {kind}; it must be {kinds}")


def _is_id(kind: pa.DataType) -> bool:
    return _is_string(kind) or pa.types.is_integer(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return bool({"bytes", "path"} & set(fields)) and all(
            test(fields[name]) or pa.types.is_null(fields[name])
            for name, test in (("bytes", _is_bytes), ("path", _is_string))
            if name in fields
        )
    return _is_string(kind) or _is_bytes(kind) or pa.types.is_null(kind)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:12]))
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
