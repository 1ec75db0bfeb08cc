"""A small output table, written as a run would leave it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.schema import output_schema

SCHEMA = output_schema(pa.schema([("lang", pa.string())]))
TEXT = "Ein Text mit \x1b[31mFarbe\nund \u202eZeile"


def row(number: int, task: str = "summary", status: str = "ok", **values: Any) -> dict[str, Any]:
    """One row of the table; `values` replace the defaults."""
    defaults = {
        "key": f"{number:032x}",
        "document_id": f"doc-{number}",
        "task": task,
        "kind": "summarize",
        "language": "en",
        "status": status,
        "text": TEXT if status == "ok" else None,
        "finish_reason": "stop",
        "truncated": False,
        "input_tokens": 100 + number,
        "image_count": 0,
        "output_tokens": 20,
        "logprob": -3.123456789,
        "document_sha256": "a" * 64,
        "source_path": "s3://corpus/part-0.parquet",
        "source_row": number,
        "task_fingerprint": "f" * 32,
        "model": "demo",
        "model_revision": "b" * 32,
        "backend": "native",
        "dtype": "float32",
        "runtime_version": "0.1.0",
        "seed": 0,
        "run_id": "run-1",
        "attempt": 1,
        "job": "test",
        "created_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "lang": "de",
    }
    return {**defaults, **values}


def write_table(folder: Path, ok: int) -> Path:
    """`ok` summaries, one rejected and one failed row."""
    bad = [
        row(10_001, status="rejected", error_code="empty_input", error_message="the document is empty"),
        row(10_002, status="failed", error_code="engine_crash", error_message="the engine died"),
    ]
    for zone, rows in (("results", [row(number) for number in range(ok)]), ("errors", bad)):
        path = folder / zone / "summary" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return folder
