"""One row followed back to its document, model, prompt and run, and forward to what took its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from infra.storage import FileInfo, Location, Problem, StorageError
from model_runtime import ErrorCode

from .asked import asked_keys
from .errors import RunError, TableError
from .job import JobSpec
from .lineage import read_manifests
from .lookup import Place, find_document, find_keys, read_row
from .verification.documents import SourceReader, only_row

_PREFIX = re.compile(r"[0-9a-f]{6,32}")
_LISTED = 20
# Runs that are searched for earlier attempts on a row.
_EARLIER_RUNS = 10
# Rows known by their place in the source: a document of the same id is another one.
_BY_PLACE = {ErrorCode.NULL_ID.value, ErrorCode.DUPLICATE_ID.value, ErrorCode.BAD_ROW.value}


class TraceError(RunError):
    """The key is none, or names several rows."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNow:
    """The source row of a row as it is now. `same`: whether its content hash is the row's, None when it was not read.

    `then`, `now`: etags of the file, None where nobody knows or the file is gone; `unread`: why the row was not read.
    """

    path: str | None
    row: int | None
    then: str | None = None
    now: str | None = None
    same: bool | None = None
    text: str | None = None
    images: int = 0
    unread: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """Another row of the same document and task. `changed`: what made its key another one."""

    key: str
    zone: str
    status: str
    run_id: str
    created_at: Any
    changed: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What is known of one row. `file`: below the table; `run` and `task`: from its run's manifest, None without one.

    `attempts`: (run, status) of runs that asked for the key before. `asked`: whether the newest complete run,
    `newest`, asks for it; None when there is no such run.
    """

    zone: str
    file: str
    row: dict[str, Any]
    run: dict[str, Any] | None
    task: dict[str, Any] | None
    source: SourceNow
    attempts: list[tuple[str, str]] = field(default_factory=list)
    newer: list[Relative] = field(default_factory=list)
    older: list[Relative] = field(default_factory=list)
    newest: str | None = None
    asked: bool | None = None


def trace_row(path: str, key: str, read_job: Callable[[Mapping[str, Any]], JobSpec | str]) -> Traced:
    """The row of a key, or of the first six or more digits of one; TraceError or TableError says why there is none.

    `read_job`: a run's job by its manifest, or in a few words why it cannot be read.
    """
    table = Location(path)
    place = _place(table, key)
    row = read_row(place)
    manifests = read_manifests(table)
    runs = {str(manifest.get("run_id")): manifest for manifest in manifests}
    run = runs.get(row["run_id"])
    job = "its run has no manifest" if run is None else read_job(run)
    relatives = list(_relatives(table, row, runs))
    newest = next((str(m["run_id"]) for m in manifests if m.get("exit") == 0), None)
    return Traced(
        zone=place.zone,
        file=table.below(place.file),
        row=row,
        run=None if run is None else {name: value for name, value in run.items() if name not in ("inputs", "counts")},
        task=_task(row, runs),
        source=_source_now(row, run or {}, job),
        attempts=_attempts(table, row, list(runs)),
        newer=[relative for relative, is_newer in relatives if is_newer],
        older=[relative for relative, is_newer in relatives if not is_newer],
        newest=newest,
        asked=None if newest is None else _asked(table, newest, row["key"]) is not None,
    )


def _place(table: Location, key: str) -> Place:
    prefix = key.strip().lower()
    if not _PREFIX.fullmatch(prefix):
        raise TraceError(f"{key!r} is not a key: give 6 to 32 of its hex digits (0-9, a-f), as the column key has them")
    places = find_keys(table, prefix)
    keys = list(dict.fromkeys(place.value for place in places))
    if not keys:
        raise TableError(f"{table}: no row has a key that begins with {prefix}, in results/, errors/ or _work/")
    if len(keys) > 1:
        listed = "\n".join(sorted(keys)[:_LISTED])
        more = f"\nand {len(keys) - _LISTED:,} more" if len(keys) > _LISTED else ""
        raise TraceError(f"{len(keys):,} keys begin with {prefix}; give more digits:\n{listed}{more}")
    return places[0]


def _task(row: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    tasks = (runs.get(str(row["run_id"])) or {}).get("tasks") or ()
    return next((task for task in tasks if task.get("fingerprint") == row["task_fingerprint"]), None)


def _source_now(row: Mapping[str, Any], run: Mapping[str, Any], job: JobSpec | str) -> SourceNow:
    path, number = row["source_path"], row["source_row"]
    then = next((e.get("etag") for e in run.get("inputs") or () if e.get("path") == path), None)
    if path is None or number is None:
        return SourceNow(path=path, row=number, unread="the row names no place in a source")
    try:
        return _read_source(row, SourceNow(path=path, row=number, then=then), job)
    except (StorageError, RunError) as error:
        # The rest of the row's story stands, whatever has become of its source.
        return SourceNow(path=path, row=number, then=then, unread=str(error))


def _read_source(row: Mapping[str, Any], known: SourceNow, job: JobSpec | str) -> SourceNow:
    path, number = str(known.path), int(known.row or 0)
    reader = None if isinstance(job, str) else SourceReader.of(job.source)
    file = _file(path, reader)
    known = replace(known, now=None if file is None else file.etag)
    if reader is None:
        return replace(known, unread=str(job))
    if file is None:
        return replace(known, unread="the file is gone")
    groups = reader.row_groups(file.url)
    if groups is None:
        return replace(known, unread="the file can no longer be read as the job describes it")
    document = next(reader.documents(only_row(groups, number)), None)
    if document is None:
        return replace(known, unread="the file has no such row any more")
    same = None if row["document_sha256"] is None else document.sha256 == row["document_sha256"]
    return replace(known, same=same, text=document.text, images=document.image_count)


def _file(path: str, reader: SourceReader | None) -> FileInfo | None:
    # A path without its credentials is none that a store knows: the job's own listing has it whole.
    if "***" in path:
        return reader.listed().get(path) if reader else None
    return Location(path).info()


def _relatives(
    table: Location, row: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Relative, bool]]:
    """Other rows of the row's document and task, oldest first, each with whether it is newer."""
    if row["document_id"] is None or row["error_code"] in _BY_PLACE:
        return
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place in find_document(table, row["task"], row["document_id"]):
        other = read_row(place)
        if other["key"] != row["key"] and other["task"] == row["task"] and other["error_code"] not in _BY_PLACE:
            found.setdefault(other["key"], (place.zone, other))
    for zone, other in sorted(found.values(), key=lambda entry: _when(entry[1])):
        is_newer = _when(other) > _when(row)
        before, after = (row, other) if is_newer else (other, row)
        relative = Relative(
            key=other["key"],
            zone=zone,
            status=other["status"],
            run_id=other["run_id"],
            created_at=other["created_at"],
            changed=_changes(before, after, runs),
        )
        yield relative, is_newer


def _when(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["created_at"] or ""), str(row["run_id"] or "")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the key of `after` another one than that of `before`, each in a few words."""
    changed = []
    if before["document_sha256"] != after["document_sha256"]:
        changed.append("the document's text or images")
    if before["task_fingerprint"] != after["task_fingerprint"]:
        changed += _task_changes(_task(before, runs) or {}, _task(after, runs) or {})
    if before["model_revision"] != after["model_revision"]:
        changed.append(f"the model: {str(before['model_revision'])[:12]} → {str(after['model_revision'])[:12]}")
    return changed


def _task_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    flat = [{**task, **(task.get("sampling") or {})} for task in (before, after)]
    names = [n for n in dict.fromkeys([*flat[0], *flat[1]]) if n not in ("sampling", "fingerprint", "name")]
    changed = [f"{n}: {flat[0].get(n)!r} → {flat[1].get(n)!r}" for n in names if flat[0].get(n) != flat[1].get(n)]
    return changed if changed and before and after else ["the task's settings or the job's limits"]


def _attempts(table: Location, row: Mapping[str, Any], runs: list[str]) -> list[tuple[str, str]]:
    """What became of the key in the runs before its own, oldest first; none for a first attempt."""
    if (row["attempt"] or 1) <= 1:
        return []
    before = sorted((run for run in runs if run < str(row["run_id"])), reverse=True)[:_EARLIER_RUNS]
    asked = [(run, _asked(table, run, row["key"])) for run in reversed(before)]
    return [(run, status) for run, status in asked if status is not None]


def _asked(table: Location, run_id: str, key: str) -> str | None:
    """The status with which a run came out for a key; None when it did not ask for it or wrote down no keys."""
    try:
        for batch in asked_keys(table, run_id):
            at = pc.index(batch.column("key"), key).as_py()
            if at >= 0:
                return batch.column("status")[at].as_py()
    except StorageError as error:
        if error.problem is not Problem.MISSING:
            raise
    return None
