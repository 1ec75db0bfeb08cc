"""Files of an output table, damaged or of another make: read as a checkpoint, published, queried; rows, or one line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from infra.storage import Location
from pipelines.publish import Publisher
from pipelines.resume import read_done
from pipelines.table import TableFile, check_table_schema, footer_keys
from tests.pipelines.rows import SCHEMA, row, rows

from .mutate import damaged
from .surface import Escaped, Surface, answered

_SHARES = b"corpusmill.shares"
_ZONES = ("_work/r1/a.parquet", "results/a/r1-00000.parquet", "errors/a/current.parquet")
_ROWS = {
    _ZONES[0]: [row(1), row(2, "b"), row(3, status="failed"), row(4, status="rejected")],
    _ZONES[1]: [row(5), row(6)],
    _ZONES[2]: [row(7, status="failed", attempt=2), row(8, status="rejected")],
}
_COLUMNS = (
    "key",
    "status",
    "attempt",
    "task",
    "created_at",
    "document_id",
    "text",
    "error_code",
    "published_at",
    "source_row",
)
_KEYS = ("0" * 32, "g" * 32, "", "0" * 31, "A" * 32, "é" * 16, "0" * 64)
_TASKS = ("a", "", "../x", "a/b", "A", "x" * 65, ".", "\n", "ü")
_TYPES = (
    "int64",
    "string",
    "large_string",
    "binary",
    "null",
    "list",
    "struct",
    "dictionary",
    "float64",
    "bool",
    "timestamp",
)
_FOOTERS = (
    b"",
    b"x",
    b"-1",
    b"0",
    b"2",
    b"1.5",
    b"\xff",
    b"[]",
    b"null",
    b"5",
    b'{"a": "x"}',
    b'{"a": null}',
    b'{"a": 1e999}',
    b'{"a": {}}',
    b'{"a": -5}',
    b"[" * 5000,
)


@cache
def _good() -> dict[str, bytes]:
    files = {}
    for zone, made in _ROWS.items():
        sink = pa.BufferOutputStream()
        with TableFile(sink, SCHEMA, {**footer_keys("r1"), _SHARES: b'{"a": 0.5, "b": 0.5}'}) as file:
            file.write(rows(*made))
        files[zone] = sink.getvalue().to_pybytes()
    return files


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    zone = draw(st.sampled_from((*_ZONES, _ZONES[0])))
    case: dict[str, Any] = {"zone": zone}
    if draw(st.integers(0, 2)) == 0:
        return {**case, "data": draw(damaged([_good()[zone]], 2))}
    match draw(st.integers(0, 5)):
        case 0:
            return {**case, "retype": [draw(st.sampled_from(_COLUMNS)), draw(st.sampled_from(_TYPES))]}
        case 1:
            return {**case, draw(st.sampled_from(("drop", "add", "nulls"))): draw(st.sampled_from(_COLUMNS))}
        case 2:
            name = draw(st.sampled_from(("corpusmill.schema_version", "corpusmill.shares", "corpusmill.run_id")))
            return {**case, "footer": [name, draw(st.sampled_from(_FOOTERS))]}
    column, values = draw(
        st.sampled_from(
            (
                ("key", (*_KEYS, row(1)["key"])),
                ("task", _TASKS),
                ("status", ("ok", "done", "", "OK", "rejected")),
                ("attempt", (0, -1, 1 << 30, 40_000, None)),
                ("document_id", (None, "", "\x00", "1")),
                ("error_code", (None, "bad_row", "x")),
            )
        )
    )
    return {**case, "set": [column, draw(st.integers(0, 3)), draw(st.sampled_from(values))]}


def _file(case: dict[str, Any]) -> bytes:
    if "data" in case:
        return case["data"]
    made = _ROWS[case["zone"]]
    if "set" in case:
        column, at, value = case["set"]
        made = [{**each, column: value} if n == at % len(made) else each for n, each in enumerate(made)]
    # Loosely, so that what the schema forbids can be written.
    loose = pa.schema([pa.field(field.name, field.type) for field in SCHEMA])
    table = pa.Table.from_pylist(made, schema=loose)
    footer = {**footer_keys("r1"), _SHARES: b'{"a": 1.0}'}
    if "footer" in case:
        footer[case["footer"][0].encode()] = case["footer"][1]
    if "drop" in case:
        table = table.drop_columns([case["drop"]])
    if "add" in case:
        table = table.append_column(f"{case['add']}\n2", table.column(case["add"]))
    if "nulls" in case:
        field = loose.field(case["nulls"])
        table = table.set_column(loose.get_field_index(field.name), field, pa.nulls(len(table), field.type))
    if "retype" in case:
        name, kind = case["retype"]
        table = table.set_column(loose.get_field_index(name), name, _column(kind, len(table)))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), sink)
    return sink.getvalue()


def _column(kind: str, count: int) -> pa.Array:
    match kind:
        case "null":
            return pa.nulls(count)
        case "list":
            return pa.array([["a"]] * count)
        case "struct":
            return pa.array([{"a": 1}] * count)
        case "dictionary":
            return pa.array(["a"] * count).dictionary_encode()
        case "timestamp":
            return pa.array(range(count), pa.timestamp("ns"))
        case "string" | "large_string" | "binary":
            return pa.array(["0" * 32] * count).cast(getattr(pa, kind)())
    return pa.array([1] * count).cast(pa.bool_() if kind == "bool" else getattr(pa, kind)())


def _check(case: dict[str, Any]) -> bool:
    folder = Path("table").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    for zone, data in (_good() | {case["zone"]: _file(case)}).items():
        (folder / zone).parent.mkdir(parents=True)
        (folder / zone).write_bytes(data)
    table = Location(str(folder))
    steps: tuple[Callable[[], Any], ...] = (
        lambda: check_table_schema(table, SCHEMA),
        lambda: read_done(table),
        # Below any file's size: everything is ripe, by what the footers say.
        lambda: Publisher(table, "r2", "hash", SCHEMA, ["a", "b"], target_bytes=1).publish(),
        lambda: Publisher(table, "r2", "hash", SCHEMA, ["a", "b"]).publish(final=True),
    )
    worked = [answered(step) for step in steps]
    if worked[-1]:
        _nothing_lost(folder, case)
    return all(worked)


def _nothing_lost(folder: Path, case: dict[str, Any]) -> None:
    """After publishing, every key of the good work file stands in the table."""
    if case["zone"] == _ZONES[0]:
        return
    there = {
        key
        for zone in ("results", "errors")
        for file in (folder / zone).rglob("*.parquet")
        for key in pq.read_table(file, columns=["key"]).column("key").to_pylist()
    }
    lost = {each["key"] for each in _ROWS[_ZONES[0]]} - there
    # A damaged file may spell another document's id or a later time, so only results are sure to stay.
    if lost & {each["key"] for each in _ROWS[_ZONES[0]] if each["status"] == "ok"}:
        raise Escaped(f"published, and {sorted(lost)} are nowhere")


SURFACE = Surface(name="tables", cases=_cases(), check=_check, share=5)
