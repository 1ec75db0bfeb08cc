"""Manifests and the lease of a table, damaged, through `corpusmill status`: what stands there, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.jobs.tables import write_table

from .mutate import damaged, damaged_tree
from .queries import shown
from .surface import Surface

_MANIFEST = {
    "schema_version": 1,
    "run_id": "20260101T000000000-00000000",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:10:00+00:00",
    "exit": 0,
    "error": None,
    "job": {"name": "nightly", "hash": "0" * 64, "text": "name: nightly\n"},
    "counts": {"summary": {"ok": 5, "rejected": 1, "failed": 1, "not_applicable": 0}},
    "inputs": [{"url": "s3://corpus/part-0.parquet", "size": 10, "etag": "x", "rows": 7}],
    "packages": {"ray": "2.60.0"},
}
_LEASE = {
    "run_id": "20260101T000000000-00000000", "token": "t" * 32, "job": "nightly", "host": "h", "pid": 5,
    "started": "2026-01-01T00:00:00+00:00", "heartbeat": 1.0, "place": "h:b:n", "born": "1",
}  # fmt: skip
_KEYS = ("ok", "run_id", "exit", "error", "counts", "host", "x\ny")


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    which = draw(st.sampled_from(("run.json", "run.json", "lease.json")))
    seed = _LEASE if which == "lease.json" else _MANIFEST
    if draw(st.integers(0, 3)):
        data = json.dumps(draw(damaged_tree([seed], keys=_KEYS))).encode()
    else:
        data = draw(damaged([json.dumps(seed).encode()], 2))
    return {"file": which, "data": data, "json": draw(st.booleans())}


def _check(case: dict[str, Any]) -> bool:
    folder = Path("table").absolute()
    if not folder.exists():
        write_table(folder, 5)
    shutil.rmtree(folder / "_runs", ignore_errors=True)
    path = folder / "_runs" / ("lease.json" if case["file"] == "lease.json" else "r1/run.json")
    path.parent.mkdir(parents=True)
    path.write_bytes(case["data"])
    return shown("status", str(folder), *(["--json"] if case["json"] else []))


SURFACE = Surface(name="manifests", cases=_cases(), check=_check, share=3)
