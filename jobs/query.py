"""`corpusmill query`: SQL over a table, shown as a table for people, or streamed as CSV or JSON lines."""

from __future__ import annotations

import base64
import csv
import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .choices import Format
from .render import plain, table
from .table_view import open_table, run_sql
from .text import count, escape

MAX_ROWS = 50
MAX_RECORDS = 10
_NARROWEST = 10
# characters of one value where rows are shown as blocks
_LONGEST = 400


def query(path: str, sql: str, form: Format, console: Console, out: TextIO | None = None) -> None:
    """Run `sql` on the table at `path` and show the result on `console`, or write it to `out` (standard output)."""
    stream = sys.stdout if out is None else out
    connection = open_table(path)
    try:
        with run_sql(connection, sql) as reader:
            match form:
                case Format.CSV:
                    _csv(reader, stream)
                case Format.JSON:
                    _json(reader, stream)
                case _:
                    _table(reader, console)
    finally:
        # Ctrl-C while DuckDB parses: it does not hear the interrupt, and does not let itself be closed meanwhile.
        with suppress(duckdb.Error):
            connection.close()


def _rows(reader: pa.RecordBatchReader) -> Iterator[list[Any]]:
    for batch in reader:
        columns = [_values(column) for column in batch.columns]
        yield from (list(row) for row in zip(*columns, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (OverflowError, ValueError):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    """A cell as Python has it; as text where it has no such value: the date `infinity`, a year above 9999."""
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        try:
            return cell.cast(pa.string()).as_py()
        except (OverflowError, ValueError, pa.ArrowException):
            return f"({cell.type})"


def _csv(reader: pa.RecordBatchReader, out: TextIO) -> None:
    """Data as it is; what would steer a terminal is spelled out only where `out` is one."""
    show = partial(escape, keep="\n\t") if out.isatty() else str
    plain_rows = csv.writer(out, lineterminator="\n")
    # Readers end a line at a bare carriage return too, and the writer above does not quote it.
    quoted_rows = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain_rows.writerow([show(name) for name in reader.schema.names])
    for row in _rows(reader):
        cells = ["" if value is None else show(_spell(value)) for value in row]
        (quoted_rows if any("\r" in cell for cell in cells) else plain_rows).writerow(cells)


def _json(reader: pa.RecordBatchReader, out: TextIO) -> None:
    names = reader.schema.names
    for row in _rows(reader):
        line = json.dumps(_finite(dict(zip(names, row, strict=True))), ensure_ascii=False, default=_spell)
        # What JSON leaves bare may still steer a terminal; its number as an escape reads back as the same character.
        out.write("".join(_json_character(c) for c in line) + "\n")


def _json_character(character: str) -> str:
    return character if escape(character) == character else f"\\u{ord(character):04x}"


def _table(reader: pa.RecordBatchReader, console: Console) -> None:
    names = reader.schema.names
    narrow = len(names) * (_NARROWEST + 2) > console.width
    limit = MAX_RECORDS if narrow else MAX_ROWS
    rows: list[list[Any]] = []
    more = False
    for row in _rows(reader):
        if len(rows) == limit:
            more = True
            break
        rows.append(row)
    if narrow:
        _records(names, rows, console)
    else:
        console.print(_grid(reader.schema, rows))
    if more:
        plain(console, f"The first {limit} rows; --format csv or --format json gives all.", "dim")
    elif not rows:
        plain(console, "No rows.", "dim")
    elif len(rows) > 10:
        plain(console, f"{count(len(rows), 'row')}.", "dim")


def _grid(schema: pa.Schema, rows: list[list[Any]]) -> Any:
    titles: list[str | tuple[str, str]] = [
        (escape(field.name), "right") if _is_number(field.type) else escape(field.name) for field in schema
    ]
    return table(titles, [[_cell(value) for value in row] for row in rows])


def _records(names: list[str], rows: list[list[Any]], console: Console) -> None:
    """One block per row: for results with more columns than the terminal has room for."""
    for number, row in enumerate(rows, start=1):
        console.print(Text(f"row {number}", style="bold"))
        block = Table.grid(padding=(0, 2, 0, 0))
        block.add_column(style="dim", no_wrap=True)
        block.add_column(overflow="fold")
        for name, value in zip(names, row, strict=True):
            block.add_row(Text(f"  {escape(name)}"), _cell(value, _LONGEST))
        console.print(block)
        console.print()


def _cell(value: Any, longest: int | None = None) -> Text:
    if value is None:
        return Text("null", style="dim")
    shown = escape(f"{value:.6g}" if isinstance(value, float) else _spell(value))
    return Text(shown if longest is None or len(shown) <= longest else shown[:longest] + "…")


def _spell(value: Any) -> str:
    """A value of any type as text, so that nothing is lost."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict | list):
        return json.dumps(_finite(value), ensure_ascii=False, default=_spell)
    return str(value)


def _finite(value: Any) -> Any:
    """`value` without what JSON has no word for: NaN and infinities become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
