"""Whole Parquet files with damaged bytes, through the scan, the reader and Prepare: rows, or one line."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tests.pipelines.corpora import picture

from .mutate import damaged
from .rows import spec, through
from .surface import Surface

_TABLE = pa.table(
    {
        "id": [f"d-{n}" for n in range(6)],
        "text": ["the small fox", None, "", "über", "x" * 300, "a b"],
        "images": [
            [{"bytes": picture(1, size=(8, 8)), "path": None}],
            [],
            None,
            [{"bytes": None, "path": "a.png"}],
            [],
            [],
        ],
        "carry": [1, 2, None, 4, 5, 6],
    }
)
_SMALL = pa.table({"id": ["1", "2"], "text": ["a", None], "images": pa.nulls(2, pa.string()), "carry": ["x", "y"]})


@cache
def _seeds() -> list[bytes]:
    options: tuple[dict[str, Any], ...] = (
        {}, {"compression": "none"}, {"compression": "zstd", "row_group_size": 2}, {"data_page_version": "2.0"},
        {"use_dictionary": False, "compression": "gzip"}, {"write_page_index": True, "store_schema": False},
        {"write_page_checksum": True}, {"column_encoding": {"id": "DELTA_BYTE_ARRAY"}, "use_dictionary": False},
        {"compression": "none", "data_page_size": 16, "use_dictionary": False},
    )  # fmt: skip
    return [_written(table, **chosen) for table in (_TABLE, _SMALL) for chosen in options]


def _written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@st.composite
def _cases(draw: Any) -> bytes:
    seeds = _seeds()
    if draw(st.booleans()):
        return draw(damaged(seeds, 3))
    # The footer, which everything hangs on, is a small part of a file: damage in it alone.
    data = bytearray(draw(st.sampled_from(seeds)))
    size = int.from_bytes(data[-8:-4], "little")
    for _ in range(draw(st.integers(1, 2))):
        at = len(data) - 8 - size + draw(st.integers(0, size - 1))
        data[at] = draw(st.one_of(st.integers(0, 255), st.just(data[at] ^ 1), st.just((data[at] + 1) % 256)))
    return bytes(data)


def _check(case: bytes) -> bool:
    Path("damaged").mkdir(exist_ok=True)
    path = Path("damaged/part.parquet")
    path.write_bytes(case)
    return through(path, spec(path))


SURFACE = Surface(name="parquet", cases=_cases(), check=_check, share=33)
