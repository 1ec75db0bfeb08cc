"""Source columns of every type, from the Parquet file to prepared rows: each row a row, or its error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipelines.errors import SourceError
from pipelines.job import SourceSpec
from pipelines.read import Read, as_units
from pipelines.source import scan
from tests.pipelines.corpora import picture
from tests.tokenizers_tiny import model_folder
from workers.image_reader import ImageReader
from workers.inputs import Inputs
from workers.prepare import Prepare
from workers.tasks import LimitsSpec, TaskSpec, TaskTable, resolve_tasks

from .surface import Escaped, Surface, honest, line

_ROWS = 4
_LIMITS = LimitsSpec(max_image_pixels=1_000_000, max_images=4, max_input_tokens=512)
_TASKS = (
    TaskSpec(name="summary", kind="summarize", language="en"),
    TaskSpec(name="alt", kind="caption"),
    TaskSpec(name="ask", kind="answer", question="Which?", prompt_in="encoder"),
)
_PNG = picture(1)
_IMAGES = (_PNG, _PNG[:40], b"", b"GIF89a....", picture(2, "JPEG"), picture(3, "WEBP"), b"\x00" * 20)
_STRINGS = (
    b"the small fox",
    b"",
    b" \n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"a\x00b",
    b"<eos>",
    "日本 ▁".encode(),
    b"x" * 3000,
    b"d-1",
)
_PATHS = (b"a.png", b"../a.png", b"http://127.0.0.1:9/a", b"", b"\xff", b"/etc/hostname", b"sub\\a.png", b"a\nb")
# How a column may hold text, and how it is made of bytes that need not be UTF-8.
_TEXTS = ("string", "large_string", "string_view", "dictionary", "null", "binary", "int64", "list", "float")
_IDS = (
    "string",
    "string",
    "string",
    "large_string",
    "string_view",
    "dictionary",
    "int64",
    "uint64",
    "int8",
    "null",
    "float",
    "binary",
)
_PICTURES = (
    "binary",
    "large_binary",
    "binary_view",
    "string",
    "struct",
    "struct_bytes",
    "struct_path",
    "list<struct>",
    "list<binary>",
    "list<string>",
    "large_list<struct>",
    "dictionary",
    "null",
    "int64",
    "list<null>",
    "list<list>",
    "struct_odd",
    "list_view",
)
_CARRIED = (
    "string",
    "large_string",
    "string_view",
    "dictionary",
    "list<string>",
    "struct<string>",
    "map",
    "timestamp_ns",
    "decimal",
    "date",
    "time",
    "duration",
    "float16",
    "null",
    "binary",
    "bool",
    "int_dictionary",
    "fixed",
)


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    usual = draw(st.integers(0, 3)) > 0
    cells = st.one_of(st.none(), st.sampled_from(_STRINGS), st.sampled_from(_STRINGS))
    image = st.one_of(st.none(), st.sampled_from(_IMAGES))
    path = st.one_of(st.none(), st.sampled_from(_PATHS))
    rows = st.lists
    return {
        "id": {
            "type": "string" if usual else draw(st.sampled_from(_IDS)),
            "cells": draw(
                rows(st.one_of(cells, st.sampled_from((b"1", b"2", b"3", b"-4"))), min_size=_ROWS, max_size=_ROWS)
            ),
        },
        "text": {
            "type": draw(st.sampled_from(_TEXTS[:5] if usual else _TEXTS)),
            "cells": draw(rows(cells, min_size=_ROWS, max_size=_ROWS)),
        },
        "images": {
            "type": draw(st.sampled_from(_PICTURES[:13] if usual else _PICTURES)),
            "cells": draw(
                rows(
                    st.lists(st.tuples(image, path), max_size=draw(st.sampled_from((1, 2, 6)))),
                    min_size=_ROWS,
                    max_size=_ROWS,
                )
            ),
            "null": draw(st.lists(st.booleans(), min_size=_ROWS, max_size=_ROWS)),
        },
        "carry": {"type": draw(st.sampled_from(_CARRIED)), "cells": draw(rows(cells, min_size=_ROWS, max_size=_ROWS))},
        "filter": draw(
            st.sampled_from((None, None, None, [["id", "!=", "d-1"]], [["n", ">", 0]], [["carry", "=", "x"]]))
        ),
        "groups": draw(st.sampled_from((_ROWS, 1, 3))),
    }


def _strings(cells: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """A column of strings, of which Arrow is not asked whether they are UTF-8."""
    large = pa.types.is_large_string(kind)
    made = pa.array(cells, pa.large_binary() if large else pa.binary())
    plain = pa.Array.from_buffers(pa.large_string() if large else pa.string(), len(made), made.buffers())
    if not pa.types.is_string_view(kind):
        return plain
    return pa.array(cells, pa.binary_view()).view(pa.string_view())


def _dictionary(cells: list[bytes | None]) -> pa.Array:
    known = list(dict.fromkeys(cell for cell in cells if cell is not None)) or [b""]
    indices = pa.array([None if cell is None else known.index(cell) for cell in cells], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, _strings(list(known), pa.string()))


def _numbers(cells: list[bytes | None], kind: pa.DataType) -> pa.Array:
    return pa.array([None if cell is None else len(cell) % 100 for cell in cells], pa.int64()).cast(kind)


def _plain(kind: str, cells: list[bytes | None]) -> pa.Array:
    """A column for ids and texts."""
    match kind:
        case "string" | "large_string" | "string_view":
            return _strings(cells, getattr(pa, kind)())
        case "dictionary":
            return _dictionary(cells)
        case "null":
            return pa.nulls(len(cells))
        case "binary":
            return pa.array(cells, pa.binary())
        case "list":
            return pa.ListArray.from_arrays(pa.array(range(len(cells) + 1), pa.int32()), _strings(cells, pa.string()))
        case "float":
            return _numbers(cells, pa.float64())
    return _numbers(cells, getattr(pa, kind)())


def _carried(kind: str, cells: list[bytes | None]) -> pa.Array:
    numbers, texts = _numbers(cells, pa.int64()), _strings(cells, pa.string())
    offsets = pa.array(range(len(cells) + 1), pa.int32())
    match kind:
        case "list<string>":
            return pa.ListArray.from_arrays(offsets, texts)
        case "struct<string>":
            moments = numbers.cast(pa.timestamp("ns"))
            return pa.StructArray.from_arrays([texts, moments], ["a", "b"])
        case "map":
            return pa.MapArray.from_arrays(offsets, _strings([cell or b"" for cell in cells], pa.string()), texts)
        case "timestamp_ns":
            return numbers.cast(pa.timestamp("ns", "Europe/Berlin"))
        case "decimal":
            return numbers.cast(pa.decimal128(30, 2))
        case "date":
            return numbers.cast(pa.int32()).cast(pa.date32())
        case "time":
            return numbers.cast(pa.time64("ns"))
        case "duration":
            return numbers.cast(pa.duration("ms"))
        case "float16":
            return pa.array([None if cell is None else np.float16(len(cell)) for cell in cells], pa.float16())
        case "bool":
            return pa.array([None if cell is None else bool(cell) for cell in cells])
        case "int_dictionary":
            return numbers.dictionary_encode()
        case "fixed":
            return pa.array([None if cell is None else cell[:4].ljust(4) for cell in cells], pa.binary(4))
    return _plain(kind, cells)


def _items(kind: str, items: list[tuple[bytes | None, bytes | None]]) -> pa.Array:
    data, paths = [item[0] for item in items], [item[1] for item in items]
    match kind:
        case "binary" | "large_binary" | "binary_view":
            return pa.array(data, getattr(pa, kind)())
        case "string":
            return _strings(paths, pa.string())
        case "dictionary":
            return _dictionary(paths)
        case "null":
            return pa.nulls(len(items))
        case "int64":
            return _numbers(data, pa.int64())
        case "struct_bytes":
            return pa.StructArray.from_arrays([pa.array(data, pa.large_binary())], ["bytes"])
        case "struct_path":
            return pa.StructArray.from_arrays(
                [_strings(paths, pa.large_string()), pa.nulls(len(items))], ["path", "bytes"]
            )
        case "struct_odd":
            return pa.StructArray.from_arrays(
                [_numbers(data, pa.int64()), _strings(paths, pa.string())], ["bytes", "url"]
            )
    return pa.StructArray.from_arrays([pa.array(data, pa.binary()), _strings(paths, pa.string())], ["bytes", "path"])


def _pictures(case: dict[str, Any]) -> pa.Array:
    kind, cells = case["type"], [[tuple(item) for item in cell] for cell in case["cells"]]
    null = np.array([*case["null"], False])
    if kind in ("list_view", "list<list>") or "<" in kind:
        inner = _items(
            kind.removeprefix("large_")[5:-1] if "<" in kind else "struct", [i for cell in cells for i in cell]
        )
        offsets = np.cumsum([0, *map(len, cells)])
        if kind == "list_view":
            return pa.ListViewArray.from_arrays(
                pa.array(offsets[:-1], pa.int32()), pa.array(list(map(len, cells)), pa.int32()), inner
            )
        if kind == "list<list>":
            inner = pa.ListArray.from_arrays(pa.array(range(len(inner) + 1), pa.int32()), inner)
        large = kind.startswith("large_")
        made = pa.array(offsets, pa.int64() if large else pa.int32(), mask=null)
        return (pa.LargeListArray if large else pa.ListArray).from_arrays(made, inner)
    return _items(kind, [(cell or [(None, None)])[0] for cell in cells])


class _NothingDone:
    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(keys), np.int8), np.zeros(len(keys), np.int16)


@cache
def _prepare() -> Prepare:
    folder = model_folder(Path("model").absolute())
    Path("corpus").mkdir()
    Path("corpus/a.png").write_bytes(_PNG)
    tasks = resolve_tasks(_TASKS, TaskTable.parse(None), _LIMITS)
    reader = ImageReader(str(Path("corpus").absolute()))
    return Prepare(Inputs(str(folder), tasks, _LIMITS), tasks, _LIMITS, "rev", _NothingDone(), reader)


def through(path: Path, source: SourceSpec) -> bool:
    """Scan, read and prepare the file: True when a row came out for each, False when it was refused in one line."""
    prepare = _prepare()
    where = ((("text", "!=", "x"),), None)
    try:
        corpus = scan(source)
        read = Read(source, corpus.carry, where)
        pieces = list(read(as_units(corpus.row_groups, corpus.unreadable)))
    except SourceError as error:
        line(str(error))
        return False
    for file in corpus.unreadable:
        line(file.reason)
    made = 0
    for piece in pieces:
        for row in prepare(piece).to_pylist():
            made += 1
            for pair in row["pairs"]:
                if pair["error_code"] is not None:
                    honest(pair["error_code"], pair["error_message"])
    if made != corpus.documents + len(corpus.unreadable):
        raise Escaped(f"{made} rows of {corpus.documents} documents and {len(corpus.unreadable)} unreadable files")
    return True


def table_of(case: dict[str, Any]) -> pa.Table:
    """The case's source table."""
    return pa.table(
        {
            "id": _plain(case["id"]["type"], case["id"]["cells"]),
            "text": _plain(case["text"]["type"], case["text"]["cells"]),
            "images": _pictures(case["images"]),
            "carry": _carried(case["carry"]["type"], case["carry"]["cells"]),
            "n": pa.array(range(_ROWS)),
        }
    )


def spec(path: Path, conditions: Any = None) -> SourceSpec:
    """The source that `through` reads."""
    return SourceSpec(path=str(path), id="id", text="text", images="images", carry=("carry",), filter=conditions)


def _check(case: dict[str, Any]) -> bool:
    _prepare()
    path = Path("corpus/part.parquet")
    pq.write_table(table_of(case), path, row_group_size=case["groups"])
    return through(path, spec(path, case["filter"]))


SURFACE = Surface(name="rows", cases=_cases(), check=_check, share=25)
