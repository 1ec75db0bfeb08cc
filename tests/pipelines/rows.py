"""Rows of an output table for tests, with as little in them as the schema allows."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.schema import output_schema

SCHEMA = output_schema(pa.schema([("published_at", pa.timestamp("us"))]))


def key(number: int, task: str = "a") -> str:
    return hashlib.md5(f"{number}/{task}".encode()).hexdigest()


def row(number: int, task: str = "a", status: str = "ok", attempt: int = 1, run: str = "r1") -> dict[str, Any]:
    return {
        "key": key(number, task),
        "document_id": str(number),
        "task": task,
        "kind": "summarize",
        "status": status,
        "text": f"text {number} " * 5 if status == "ok" else None,
        "error_code": {"ok": None, "rejected": "empty_input", "failed": "engine_crash"}[status],
        "attempt": attempt,
        "run_id": run,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }


def rows(*given: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(given), schema=SCHEMA)


def visible(folder: Path | str, zone: str = "results") -> list[str]:
    """The keys a reader that only globs sees, with repetition."""
    files = sorted(Path(folder, zone).glob("**/*.parquet"))
    return [k for file in files for k in pq.ParquetFile(file).read(["key"]).column("key").to_pylist()]
