"""`corpusmill status`: what a table holds, its newest runs, and who is writing to it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.text import Text

from infra.storage import FileInfo, Location, Problem, StorageError, redact
from pipelines.errors import TableError
from pipelines.lease import current_holder
from pipelines.lineage import read_manifests
from pipelines.table import reading

from .render import Column, consoles, errors_as_json, heading, plain, show_errors, table
from .text import count, duration, one_line, short_path, size

SHOWN_RUNS = 5
_READERS = 16
_INTERRUPTED = 130


@dataclass(slots=True, kw_only=True)
class TaskRows:
    """Rows of one task that readers of the table see."""

    ok: int = 0
    rejected: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """What `status` shows. `work_rows` are made and safe, and not published yet."""

    table: str
    tasks: dict[str, TaskRows]
    files: int
    bytes: int
    work_files: int
    work_rows: int
    errors: dict[str, tuple[int, str]]
    holder: dict[str, Any] | None
    runs: list[dict[str, Any]]


def show_status(path: str, *, as_json: bool) -> None:
    """Print the status of the table at `path`; TableError when there is none."""
    status = read_status(path)
    if as_json:
        document = {**dataclasses.asdict(status), "errors": errors_as_json(status.errors)}
        print(json.dumps(document, ensure_ascii=False, indent=2, default=str))
    else:
        _render(consoles()[0], status)


def read_status(path: str) -> TableStatus:
    """Look at a table: footers for the counts of results/, a few columns of errors/, the runs' manifests."""
    folder = Location(path)
    results, errors, work = (folder.child(zone).list_files() for zone in ("results", "errors", "_work"))
    runs = read_manifests(folder)
    if not (results or errors or work or runs):
        raise TableError(f"{folder}: there is no table here; name the folder that the job file's output.path names")
    tasks: dict[str, TaskRows] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for file, rows in zip(results, pool.map(_rows, results), strict=True):
            tasks.setdefault(_task(folder, file), TaskRows()).ok += rows
        work_rows = sum(pool.map(_rows, work))
        codes, examples = _count_errors(folder, tasks, zip(errors, pool.map(_error_rows, errors), strict=True))
    holder = current_holder(folder)
    return TableStatus(
        table=str(folder),
        tasks=dict(sorted(tasks.items())),
        files=len(results) + len(errors),
        bytes=sum(file.size for file in (*results, *errors)),
        work_files=len(work),
        work_rows=work_rows,
        errors={code: (number, examples[code]) for code, number in codes.most_common()},
        holder=None if holder is None else _public(dataclasses.asdict(holder)),
        runs=[_summary(manifest, holder.run_id if holder else None) for manifest in runs[:SHOWN_RUNS]],
    )


def _task(folder: Location, file: FileInfo) -> str:
    # results/<task>/…: the folder is the task, also where a file has no rows
    return file.url[len(folder.url) :].lstrip("/").split("/")[1]


def _rows(file: FileInfo) -> int:
    try:
        with reading(Location(file.url)) as opened:
            return opened.metadata.num_rows
    except StorageError as error:
        # A work file that a publisher merged and deleted between the listing and now.
        if error.problem is Problem.MISSING:
            return 0
        raise


def _error_rows(file: FileInfo) -> pa.Table:
    with reading(Location(file.url)) as opened:
        return opened.read(["task", "status", "error_code", "error_message"])


def _count_errors(folder: Location, tasks: dict[str, TaskRows], read: Any) -> tuple[Counter[str], dict[str, str]]:
    codes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for file, rows in read:
        tasks.setdefault(_task(folder, file), TaskRows())
        grouped = rows.group_by(["task", "status", "error_code"]).aggregate(
            [("error_message", "min"), ([], "count_all")]
        )
        for row in grouped.to_pylist():
            of_task = tasks.setdefault(row["task"], TaskRows())
            if row["status"] == "failed":
                of_task.failed += row["count_all"]
            else:
                of_task.rejected += row["count_all"]
            code = row["error_code"] or "?"
            codes[code] += row["count_all"]
            examples.setdefault(code, row["error_message_min"] or "")
    return codes, examples


def _public(holder: dict[str, Any]) -> dict[str, Any]:
    """What concerns a person: not the lease's token."""
    return {name: holder[name] for name in ("run_id", "job", "host", "pid", "started")}


def _summary(manifest: dict[str, Any], holding: str | None) -> dict[str, Any]:
    counts = [task for task in _block(manifest.get("counts")).values() if isinstance(task, dict)]
    made = {name: sum(_whole(task.get(name)) for task in counts) for name in ("ok", "rejected", "failed")}
    run_id, code = str(manifest.get("run_id", "")), manifest.get("exit")
    if code is None:
        state = "running" if run_id == holding else "killed"
    else:
        state = "done" if code == 0 else "interrupted" if code == _INTERRUPTED else f"exit {code}"
    # Who interrupted a run knows why it ended.
    error = None if code == _INTERRUPTED else manifest.get("error")
    return {
        "run_id": run_id,
        "job": _block(manifest.get("job")).get("name"),
        "state": state,
        "started": manifest.get("started"),
        "ended": manifest.get("ended"),
        **made,
        "error": None if error is None else redact(str(error)),
    }


def _block(value: Any) -> dict[str, Any]:
    """A block of a manifest, which is a file that anything may have been done to; empty for what is none."""
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    # Below what a count can be; a JSON file may hold numbers too long to print.
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _render(console: Console, status: TableStatus) -> None:
    rows = sum(task.ok + task.rejected + task.failed for task in status.tasks.values())
    console.print(Text(short_path(status.table), style="bold"), soft_wrap=True)
    plain(console, f"{count(rows, 'row')} in {count(status.files, 'file')}, {size(status.bytes)}.")
    if status.work_files:
        made = f"{count(status.work_rows, 'row')} in {count(status.work_files, 'work file')}"
        plain(console, f"{made} are safe and not published yet: a running or the next run publishes them.", "yellow")
    if status.holder:
        held = status.holder
        plain(
            console,
            f"Run {held['run_id']} of job {held['job']} is writing to it (host {held['host']}, pid {held['pid']}, "
            f"since {held['started']}).",
            "green",
        )
    else:
        plain(console, "No run is writing to it.", "dim")
    if status.tasks:
        console.print()
        columns: list[Column] = ["task", ("ok", "right"), ("rejected", "right"), ("failed", "right")]
        console.print(
            table(columns, [(n, f"{t.ok:,}", f"{t.rejected:,}", f"{t.failed:,}") for n, t in status.tasks.items()])
        )
    show_errors(console, status.errors, "Rows in errors/")
    if status.runs:
        _render_runs(console, status.runs)


def _render_runs(console: Console, runs: list[dict[str, Any]]) -> None:
    heading(console, "Newest runs")
    columns: list[Column] = ["run", "state", "took", ("ok", "right"), ("rejected", "right"), ("failed", "right")]
    rows = [
        (run["run_id"], run["state"], _took(run), *(f"{run[name]:,}" for name in ("ok", "rejected", "failed")))
        for run in runs
    ]
    console.print(table(columns, rows))
    for run in runs:
        if run["error"]:
            plain(console, f"{run['run_id']}: {one_line(run['error'])}", "red")


def _took(run: dict[str, Any]) -> str:
    try:
        started, ended = (datetime.fromisoformat(run[name]) for name in ("started", "ended"))
    except (TypeError, ValueError):
        return ""
    return duration((ended - started).total_seconds())
