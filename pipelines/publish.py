"""Work files → results/ and errors/: each key once for a reader that only globs, whenever the publisher is killed."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import FileInfo, Location, Problem, StorageError, scratch_folder

from .failures import Successes, current_errors, merge_errors, oldest
from .keys import KeySet, keys_of
from .results import ResultsLog
from .resume import check_rows
from .table import (
    GrowingFile,
    TableFile,
    check_file_schema,
    check_table_schema,
    clean_partial,
    conform,
    footer_keys,
    read_shares,
    reading,
    write_work,
)

__all__ = ["Publisher", "check_table_schema", "clean_partial", "write_work"]

_BUFFERED_BYTES = 256 << 20
_WINDOW_FILES, _WINDOW_BYTES = 64, 32 << 20
_PARALLEL = 16
# What stands for them where a work file's footer names tasks.
_ERRORS = ""
# Each try that fails means that another publisher got its errors in.
_TRIES = 1000


class Publisher:
    """Merges the table's work files, also those of runs that died; only the holder of the table's lease should.

    Results are uploaded first, then errors, then the work files go. Killed in between, the work files that are left
    are merged again and their rows found in results/ already. `check` is called before anything visible changes;
    it raises when the lease was lost. Where the store has conditional writes a publisher that lost it after the check
    does no harm: `ResultsLog` keeps each key single, errors are replaced only by who saw what it replaces.
    """

    def __init__(
        self,
        table: Location,
        run_id: str,
        job_hash: str,
        schema: pa.Schema,
        tasks: Sequence[str],
        target_bytes: int = 256 << 20,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._table = table
        self._run_id = run_id
        self._footer = footer_keys(run_id, job_hash)
        self._schema = schema
        self._tasks = tuple(tasks)
        self._target = target_bytes
        self._check = check
        self._log: ResultsLog | None = None
        self._shares: dict[str, dict[str, float]] = {}

    def publish(self, final: bool = False) -> dict[str, int]:
        """Publishes the tasks of which `target_bytes` or more wait, all of them and the rest when `final`.

        Returns counts: `rows` and `files` added to results/, `errors` rows now in the errors/ files rewritten,
        `duplicates` dropped, `work_files` removed.
        """
        counts: Counter[str] = Counter(rows=0, files=0, errors=0, duplicates=0, work_files=0)
        work = self._table.child("_work").list_files()
        chosen = None if final else self._ripe(work)
        if chosen is None or chosen:
            # Rows for errors/ always come along, so that none arrives there after a newer success.
            wanted = None if chosen is None else {*chosen, _ERRORS}
            mine = work if wanted is None else [file for file in work if wanted & self._waiting(file).keys()]
            if mine:
                self._merge(mine, chosen, counts)
            if final:
                self._fill_empty_zones()
                self._remove_empty_folders()
        return dict(counts)

    def _merge(self, work: list[FileInfo], chosen: set[str] | None, counts: Counter[str]) -> None:
        self._check()
        self.results.learn()
        with scratch_folder() as scratch:
            batch = _Batch(self, scratch, counts)
            finished: list[FileInfo] = []
            for window in _windows(work):
                with ThreadPoolExecutor(_PARALLEL) as pool:
                    read = list(pool.map(self._read, window))
                batch.route([rows for rows in read if rows is not None], chosen)
                for file, rows in zip(window, read):
                    if rows is None or chosen is None or _ok_tasks(rows) <= chosen:
                        finished.append(file)
            batch.finish()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            self._check()
            list(pool.map(lambda file: Location(file.url).delete(), finished))
        counts["work_files"] += len(finished)

    @property
    def results(self) -> ResultsLog:
        """The table's results as this publisher knows them; asks the store what it can when first used."""
        if self._log is None:
            self._log = ResultsLog(self._table, self._run_id, self._check)
        return self._log

    def _read(self, file: FileInfo) -> pa.Table | None:
        try:
            with reading(Location(file.url)) as opened:
                rows = opened.read(use_threads=False)
                check_file_schema(file.url, rows.schema, self._schema)
                rows = conform(rows, self._schema)
                check_rows(rows)
                return rows
        except StorageError as error:
            if error.problem is Problem.MISSING:
                return None
            raise

    def _ripe(self, work: list[FileInfo]) -> set[str]:
        if sum(file.size for file in work) < self._target:
            return set()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            waiting = Counter[str]()
            for sizes in pool.map(self._waiting, work):
                waiting.update(sizes)
        return {task for task, size in waiting.items() if task != _ERRORS and size >= self._target}

    def _waiting(self, file: FileInfo) -> dict[str, int]:
        """Bytes of each task's ok rows in a work file, from its footer; those of rows for errors/ under no name."""
        if file.url not in self._shares:
            try:
                with reading(Location(file.url)) as opened:
                    self._shares[file.url] = read_shares(opened.metadata.metadata)
            except StorageError as error:
                if error.problem is not Problem.MISSING:
                    raise
                self._shares[file.url] = {}
        return {task: int(share * file.size) for task, share in self._shares[file.url].items()}

    def upload_results(self, task: str, path: Path) -> str | None:
        """Makes a finished local file visible in results/<task>/ but for rows that are there; its URL, None if all are.

        `results.learn()` must have been called before. The local file may be rewritten.
        """
        return self.results.append(task, path, self._schema)[0]

    def _fill_empty_zones(self) -> None:
        """A zero-row file where a task has no file yet, so that a glob finds the columns."""
        with scratch_folder() as scratch:
            empty = scratch / "empty.parquet"
            TableFile(empty, self._schema, self._footer).close()
            for task in self._tasks:
                self._check()
                if not self._table.child("results", task).list_files():
                    # Never a second time: somebody may be reading the first.
                    self._table.child("results", task, "empty.parquet").create_exclusive(empty)
                current_errors(self._table, task).create_exclusive(empty)

    def _remove_empty_folders(self) -> None:
        work = self._table.child("_work")
        if work.is_local and work.is_dir():
            for name in os.listdir(work.url):
                with suppress(OSError):
                    os.rmdir(os.path.join(work.url, name))


class _Batch:
    """The files one publish is writing: results by task, and beside them the news for errors/."""

    def __init__(self, publisher: Publisher, scratch: Path, counts: Counter[str]) -> None:
        self._publisher = publisher
        self._scratch = scratch
        self._counts = counts
        self._taken = KeySet()
        self._results: dict[str, GrowingFile] = {}
        self._errors: dict[str, GrowingFile] = {}
        self._successes: defaultdict[str, Successes] = defaultdict(Successes)
        self._numbers = count()
        self._touched: set[str] = set()

    def route(self, tables: list[pa.Table], chosen: set[str] | None) -> None:
        """Takes in rows: ok ones of the chosen tasks whose key is new, and all that are not ok."""
        if not tables:
            return
        rows = pa.concat_tables(tables)
        ok = pc.equal(rows.column("status"), "ok")
        for task, part in _by_task(rows.filter(ok)):
            if chosen is None or task in chosen:
                self._touched.add(task)
                # Those that results/ has already count too: a publisher that died before errors/ put them there.
                self._successes[task].add(part)
                keys = keys_of(part.column("key"))
                new = self._publisher.results.keys.first_seen(keys) & self._taken.first_seen(keys)
                self._counts["duplicates"] += int(len(new) - new.sum())
                self._taken.add(keys[new])
                self._growing(self._results, task).add(part.filter(pa.array(new)))
        for task, part in _by_task(rows.filter(pc.invert(ok))):
            self._touched.add(task)
            self._growing(self._errors, task).add(part)
        self._relieve()

    def finish(self) -> None:
        """Uploads what is left of the results, then each touched task's errors."""
        for task in sorted(self._results):
            self._upload(task)
        for task in sorted(self._touched):
            news = self._errors.get(task)
            self._merge_errors(task, Location(str(news.close())) if news else None)

    def _merge_errors(self, task: str, news: Location | None) -> None:
        publisher, current = self._publisher, current_errors(self._publisher._table, task)
        out = self._scratch / f"{task}.errors.parquet"
        for _ in range(_TRIES):
            seen = current.version()
            # After the look: whoever took a row out of the errors seen made its success visible before.
            publisher.results.learn(task)
            if news is not None:
                for rows in publisher.results.documents_since(task, oldest(news)):
                    self._successes[task].add(rows)
            try:
                count = merge_errors(
                    current if seen else None,
                    news,
                    publisher.results.keys,
                    self._successes[task],
                    publisher._schema,
                    publisher._footer,
                    out,
                )
            except Exception:
                # Another publisher may have replaced it while it was read.
                if current.version() == seen:
                    raise
                continue
            if count is None or not (count or seen):
                return
            publisher._check()
            if current.replace_seen(out, seen):
                self._counts["errors"] += count
                return
        raise StorageError(current.url, "other publishers always come first; end them and run again")

    def _growing(self, zone: dict[str, GrowingFile], task: str) -> GrowingFile:
        if task not in zone:
            # Counted, not looked up: files that were uploaded leave the folder while others are open.
            path = self._scratch / f"{next(self._numbers)}.parquet"
            zone[task] = GrowingFile(path, self._publisher._schema, self._publisher._footer)
        return zone[task]

    def _relieve(self) -> None:
        """Writes out buffered rows until little enough is in memory, and uploads files that are large enough."""
        growing = [*self._results.values(), *self._errors.values()]
        while sum(each.buffered for each in growing) > _BUFFERED_BYTES:
            max(growing, key=lambda each: each.buffered).flush()
        for task in list(self._results):
            if self._results[task].path.stat().st_size >= self._publisher._target:
                self._upload(task)

    def _upload(self, task: str) -> None:
        growing = self._results.pop(task)
        path = growing.close()
        if growing.rows:
            url, rows = self._publisher.results.append(task, path, self._publisher._schema)
            self._counts["rows"] += rows
            self._counts["files"] += url is not None
            self._counts["duplicates"] += growing.rows - rows
        path.unlink()


def _windows(files: Iterable[FileInfo]) -> Iterator[list[FileInfo]]:
    window: list[FileInfo] = []
    size = 0
    for file in files:
        if window and (len(window) == _WINDOW_FILES or size + file.size > _WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append(file)
        size += file.size
    if window:
        yield window


def _by_task(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    for task in pc.unique(rows.column("task")).to_pylist():
        yield task, rows.filter(pc.equal(rows.column("task"), task))


def _ok_tasks(rows: pa.Table) -> set[str]:
    return set(pc.unique(rows.filter(pc.equal(rows.column("status"), "ok")).column("task")).to_pylist())
