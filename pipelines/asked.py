"""The pairs that a run asked for, from its ledger: in its own parts, in those of older runs, or in an older version's
keys.parquet."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra.storage import FileInfo, Location, Problem, StorageError

from .errors import TableError
from .keys import hex_of, raw_keys
from .known import Decides
from .table import reading

_ROWS = 1 << 18
_NAMES = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema([("key", pa.string()), ("task", _NAMES), ("status", _NAMES)])
_FILE = re.compile(r"/_runs/([^/]+)/(?:run\.json|keys\.parquet|asked/(?:known|part-\d+)\.parquet)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFile:
    """A file with pairs that a run asked for. `groups`: only those of these row groups (their numbers in run `run_id`);
    None for all. `tasks`: only those of these tasks; None for all. `hexadecimal`: a keys.parquet, whose keys are text.
    """

    file: Location
    run_id: str
    groups: tuple[int, ...] | None = None
    tasks: tuple[str, ...] | None = None
    hexadecimal: bool = False


def asked_keys(table: Location, run_id: str) -> Iterator[pa.RecordBatch]:
    """Every pair that a run asked for, made by it or there before: key (string, 32 hex), task and status (dictionaries
    of strings), the status as it was when the run was done with it.

    Some rows at a time. Of a run that was killed or goes on, what it has written down so far. StorageError with
    Problem.MISSING for a run that wrote nothing; TableError for a file that is damaged or went away.
    """
    for asked in asked_files(table, run_id):
        yield from _pairs(asked)


def asked_files(table: Location, run_id: str, listed: list[FileInfo] | None = None) -> list[AskedFile]:
    """The files that `asked_keys` reads, each once; `listed`: the run's files, when they were listed already."""
    folder = table.child("_runs", run_id)
    files = {folder.below(file): Location(file.url) for file in listed or folder.list_files()}
    if "keys.parquet" in files:
        return [AskedFile(file=files["keys.parquet"], run_id=run_id, hexadecimal=True)]
    own = [
        AskedFile(file=file, run_id=run_id) for name, file in sorted(files.items()) if name.startswith("asked/part-")
    ]
    known = files.get("asked/known.parquet")
    if known is None and not own:
        raise StorageError(folder.url, "this run wrote down no pairs that it asked for", Problem.MISSING)
    return own + (_taken_over(table, known) if known else [])


def newest_asked(table: Location) -> tuple[list[AskedFile], Location | None]:
    """The files with the pairs that the newest complete run (exit 0) asked for, [] when no run was; and the first of
    them that is not there any more. One listing."""
    by_run: defaultdict[str, list[FileInfo]] = defaultdict(list)
    there: set[str] = set()
    for file in table.child("_runs").list_files(""):
        if match := _FILE.search(file.url):
            by_run[match[1]].append(file)
            there.add(file.url)
    for run_id in sorted(by_run, reverse=True):
        manifest = table.child("_runs", run_id, "run.json")
        if manifest.url in there and _ended_well(manifest):
            asked = asked_files(table, run_id, by_run[run_id])
            return asked, next((each.file for each in asked if each.file.url not in there), None)
    return [], None


def _ended_well(manifest: Location) -> bool:
    try:
        read = json.loads(manifest.read_bytes())
    except ValueError:
        return False
    except StorageError as error:
        if error.problem is Problem.MISSING:
            return False
        raise
    return isinstance(read, dict) and read.get("exit") == 0


def _taken_over(table: Location, known: Location) -> list[AskedFile]:
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    with reading(known) as opened:
        tasks = tuple(Decides.read(opened.metadata.metadata).tasks)
        for row in opened.read(use_threads=False).to_pylist():
            for part in row["parts"]:
                groups[row["run_id"], part].append(row["group"])
    return [
        AskedFile(
            file=table.child("_runs", run_id, "asked", f"part-{part:05d}.parquet"),
            run_id=run_id,
            groups=tuple(numbers),
            tasks=tasks,
        )
        for (run_id, part), numbers in groups.items()
    ]


def _pairs(asked: AskedFile) -> Iterator[pa.RecordBatch]:
    columns = _SCHEMA.names if asked.hexadecimal else [*_SCHEMA.names, "group"]
    try:
        with reading(asked.file) as opened:
            for batch in opened.iter_batches(_ROWS, columns=columns, use_threads=False):
                if not asked.hexadecimal:
                    batch = _chosen(batch, asked)
                if batch.num_rows:
                    yield pa.RecordBatch.from_arrays(
                        [batch.column(name).cast(_SCHEMA.field(name).type) for name in _SCHEMA.names], schema=_SCHEMA
                    )
    except StorageError as error:
        if error.problem is Problem.MISSING and asked.groups is not None:
            raise gone(asked.file) from error
        raise


def gone(file: Location) -> TableError:
    """What to say when a newer run counts on a ledger file that is not there any more."""
    return TableError(f"{file}: a newer run counts on this file of the ledger, and it is gone; run the job again")


def _chosen(batch: pa.RecordBatch, asked: AskedFile) -> pa.RecordBatch:
    wanted = np.ones(batch.num_rows, bool)
    if asked.groups is not None:
        wanted &= np.isin(batch.column("group").to_numpy(), asked.groups)
    if asked.tasks is not None:
        task = batch.column("task")
        names = [name in asked.tasks for name in task.dictionary.to_pylist()]
        wanted &= np.array(names, bool)[task.indices.to_numpy()]
    batch = batch if wanted.all() else batch.filter(pa.array(wanted))
    columns = [hex_of(raw_keys(batch.column("key"))), batch.column("task"), batch.column("status")]
    return pa.RecordBatch.from_arrays(columns, names=_SCHEMA.names)
