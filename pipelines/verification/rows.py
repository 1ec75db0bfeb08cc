"""What must hold for every row of a table by itself: its status, its codes, its key, its numbers and its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_runtime import ErrorCode
from workers.tasks import location_key, row_key

from ..resume import STATUS_NAMES

_STATUSES = {"results": ["ok"], "errors": ["rejected", "failed"], "_work": list(STATUS_NAMES[1:])}
_IDENTITY = ["key", "document_id", "document_sha256", "source_path", "source_row", "task_fingerprint", "model_revision"]
# Clocks of a cluster's machines differ; nobody's clock is a day ahead.
_SLACK = timedelta(hours=1)
_AHEAD = timedelta(days=1)
# What stands for credentials in a recorded path (infra.storage.redact_url).
_HIDDEN = "***"
_HEX_KEY, _HEX_SHA = "^[0-9a-f]{32}$", "^[0-9a-f]{64}$"

Span = tuple[datetime | None, datetime | None]


def whole_keys(rows: pa.Table) -> np.ndarray:
    """For each row whether its key is 32 hex digits."""
    return _true(pc.match_substring_regex(rows.column("key"), _HEX_KEY))


def row_problems(
    rows: pa.Table, zone: str, task: str | None, spans: Mapping[str, Span]
) -> Iterator[tuple[str, np.ndarray]]:
    """(what is wrong, for each row whether it is) for rows of a zone's file; `task`: the file's folder, None in _work.

    `spans`: when each run started and ended. Keys are made again from what they name.
    """
    status = rows.column("status")
    ok = _true(pc.equal(status, "ok"))
    yield (
        f"status in {zone}/ is not {' or '.join(_STATUSES[zone])}",
        ~_true(pc.is_in(status, pa.array(_STATUSES[zone]))),
    )
    if task is not None:
        yield "the row stands in another task's folder", ~_true(pc.equal(rows.column("task"), task))
    code = rows.column("error_code")
    has_code, has_text = _valid(code), _valid(rows.column("text"))
    yield "an ok row has an error code", ok & has_code
    yield "an ok row has no text", ok & ~has_text
    finish = _true(pc.is_in(rows.column("finish_reason"), pa.array(["stop", "length"])))
    yield "an ok row has another finish_reason than stop or length", ok & ~finish
    yield "a row that is not ok has a text", ~ok & has_text
    yield "error_code does not belong to the status", ~ok & ~_codes_fit(code, status)
    sha = rows.column("document_sha256")
    yield "document_sha256 is not 64 hex digits", _valid(sha) & ~_true(pc.match_substring_regex(sha, _HEX_SHA))
    yield (
        "an ok row has no document id, content hash or place",
        ok & ~(_valid(sha) & _valid(rows.column("document_id")) & _valid(rows.column("source_path"))),
    )
    yield "the attempt is not 1 or more", ~_true(pc.greater_equal(rows.column("attempt"), 1))
    counts = [_true(pc.less(rows.column(name), 0)) for name in ("input_tokens", "output_tokens", "image_count")]
    yield "a count is negative", np.logical_or.reduce(counts)
    yield "created_at is missing, in the future or outside its run", _odd_times(rows, spans)
    yield "the key is not that of its document, task and model", _other_keys(rows)


def keys_left_out(rows: pa.Table) -> int:
    """Rows whose key names a place that the table holds without its credentials: nobody can make it again."""
    return sum(_key(row) is None for row in rows.select(_IDENTITY).to_pylist()) if _hidden(rows) else 0


def _codes_fit(codes: pa.ChunkedArray, statuses: pa.ChunkedArray) -> np.ndarray:
    fits = np.zeros(len(codes), bool)
    for status in ("rejected", "failed"):
        own = pa.array([code.value for code in ErrorCode if code.status == status])
        fits |= _true(pc.and_(pc.equal(statuses, status), pc.is_in(codes, own)))
    return fits


def _odd_times(rows: pa.Table, spans: Mapping[str, Span]) -> np.ndarray:
    times = pc.fill_null(rows.column("created_at").cast(pa.int64()), 0).to_numpy()
    odd = (times <= 0) | (times > _micros(datetime.now(UTC) + _AHEAD))
    runs = rows.column("run_id")
    for run in pc.unique(runs).to_pylist():
        started, ended = spans.get(run, (None, None))
        first = 0 if started is None else _micros(started - _SLACK)
        last = np.iinfo(np.int64).max if ended is None else _micros(ended + _SLACK)
        odd |= _true(pc.equal(runs, run)) & ((times < first) | (times > last))
    return odd


def _other_keys(rows: pa.Table) -> np.ndarray:
    names = rows.select(_IDENTITY).to_pylist()
    return np.fromiter((_key(row) not in (row["key"], None) for row in names), bool, len(names))


def _key(row: Mapping[str, object]) -> str | None:
    """The key that a row's own columns make; None where its source path lost a password or signature."""
    fingerprint, revision = str(row["task_fingerprint"]), str(row["model_revision"])
    document, sha, path = row["document_id"], row["document_sha256"], str(row["source_path"])
    if document is not None and sha is not None:
        return row_key(str(document), str(sha), fingerprint, revision).hex()
    if _HIDDEN in path:
        return None
    return location_key(path, int(str(row["source_row"] or 0)), fingerprint, revision).hex()


def _hidden(rows: pa.Table) -> bool:
    return bool(pc.any(pc.match_substring(pc.fill_null(rows.column("source_path"), ""), _HIDDEN)).as_py())


def _true(mask: pa.ChunkedArray) -> np.ndarray:
    """A mask as numpy; unknown is no."""
    return pc.fill_null(mask, False).to_numpy()


def _valid(column: pa.ChunkedArray) -> np.ndarray:
    return _true(pc.is_valid(column))


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)
