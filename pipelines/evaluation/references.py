"""The references: one row for each document, in the order of their ids, whatever files they came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import FileInfo, Location
from pipelines.errors import SourceError

from .job import EvaluationSpec, ReferencesSpec, SliceSpec
from .parquet import as_text, batches, files_of, is_list

_MOST_VALUES = 100
_NO_VALUE = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Ids, sorted, and the columns that the evaluation names, row by row beside them."""

    ids: pa.Array
    columns: pa.Table
    files: list[FileInfo]

    def texts(self, key: str, names: Iterable[str]) -> list[list[str]]:
        """Each document's references from columns `names` (text, or lists of it); [] where it has none."""
        found: list[list[str]] = [[] for _ in range(len(self.ids))]
        for name in names:
            try:
                for row, cell in zip(found, _cells(key, self.columns.column(name)), strict=True):
                    row.extend(text for text in cell if text is not None)
            except UnicodeDecodeError as error:
                raise SourceError(f"{key}: column {name!r} is not valid UTF-8 ({error})") from error
        return found

    def slices(self, piece: SliceSpec) -> list[tuple[str, np.ndarray]]:
        """(value or range, which rows) for each that occurs; SourceError where a column cannot be broken down."""
        column = self.columns.column(piece.column)
        key = f"by {piece.column}"
        if piece.edges:
            return _ranges(key, column, piece.edges)
        values = pc.fill_null(as_text(key, column), _NO_VALUE).combine_chunks().dictionary_encode()
        if len(values.dictionary) > _MOST_VALUES:
            raise SourceError(
                f"{key}: {len(values.dictionary):,} different values are too many to break scores down by; give edges "
                f"for numbers, or another column (at most {_MOST_VALUES} values)"
            )
        codes = values.indices.to_numpy()
        named = sorted((str(value), code) for code, value in enumerate(values.dictionary.to_pylist()))
        return [(value, np.flatnonzero(codes == code)) for value, code in named]


def read_references(spec: EvaluationSpec) -> References:
    """All references; SourceError for a missing column, a null id, or an id that stands there twice."""
    assert spec.references is not None
    files = files_of("references.path", spec.references.path)
    wanted = _wanted(spec, spec.references)
    tables, places = [], []
    for number, file in enumerate(files):
        for table in batches("references.path", file, wanted):
            tables.append(table)
            places.append(np.full(len(table), number))
    try:
        rows = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    except pa.ArrowException as error:
        raise SourceError(f"references.path: the files' columns differ in type ({error})") from error
    if not len(rows):
        raise SourceError(f"references.path: no rows under {Location(spec.references.path)}")
    ids = as_text("references.id", rows.column(spec.references.id)).combine_chunks()
    order = pc.sort_indices(ids)
    _check_ids(spec.references, ids.take(order), order.to_numpy(), np.concatenate(places), files)
    return References(ids=ids.take(order), columns=rows.take(order), files=files)


def _wanted(spec: EvaluationSpec, references: ReferencesSpec) -> dict[str, str]:
    wanted = {references.id: "references.id"}
    for number, task in enumerate(spec.tasks):
        for name in task.reference:
            wanted.setdefault(name, f"tasks[{number}].reference")
        for piece in task.slices:
            wanted.setdefault(piece.column, f"tasks[{number}].slices")
    for number, piece in enumerate(spec.by):
        wanted.setdefault(piece.column, f"by[{number}]")
    return wanted


def _check_ids(
    spec: ReferencesSpec, ids: pa.Array, order: np.ndarray, places: np.ndarray, files: list[FileInfo]
) -> None:
    if ids.null_count:
        file = Location(files[places[order[-1]]].url)
        raise SourceError(f"references.id: {ids.null_count:,} null in column {spec.id!r}, such as in {file}")
    same = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    if not same.any():
        return
    first, others = int(np.flatnonzero(same)[0]), int(same.sum()) - 1
    where = sorted({str(Location(files[places[order[row]]].url)) for row in (first, first + 1)})
    more = f", and so {'do' if others > 1 else 'does'} {others:,} more" if others else ""
    raise SourceError(
        f"references.id: {ids[first].as_py()!r} stands there twice ({' and '.join(where)}){more}; each document needs "
        "one row: put several references into a list, or into several columns"
    )


def _cells(key: str, column: pa.ChunkedArray) -> Iterable[list[str | None]]:
    if not is_list(column.type):
        return ([text] for text in as_text(key, column).to_pylist())
    # A list's own text is checked as a column is.
    as_text(key, pa.chunked_array([pc.list_flatten(chunk) for chunk in column.chunks], column.type.value_type))
    return (
        [] if cell is None else [None if text is None else str(text) for text in cell] for cell in column.to_pylist()
    )


def _ranges(key: str, column: pa.ChunkedArray, edges: tuple[float, ...]) -> list[tuple[str, np.ndarray]]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise SourceError(f"{key}: edges need a column of numbers; it is {kind}")
    values = pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy()
    names = [f"below {edges[0]:,g}"]
    names += [f"{low:,g} to {high:,g}" for low, high in pairwise(edges)]
    names += [f"{edges[-1]:,g} or more", _NO_VALUE]
    places = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
    return [(name, rows) for place, name in enumerate(names) if len(rows := np.flatnonzero(places == place))]
