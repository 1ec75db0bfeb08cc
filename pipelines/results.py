"""results/ as a log: a publisher adds a file only when it knows every key that stands there, or it does not get in.

Where the store has conditional writes, a task's files are numbered over all runs (`part-000000.parquet`, ...), and each
is made only if nobody made that number before. Who makes number N has read all below N, so no two publishers, not even
one that lost its lease and does not know it yet, can make the same key visible twice. Elsewhere files carry the run's
id, and only the lease keeps publishers apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import Location, Problem, StorageError

from .errors import TableError
from .keys import KEY, KeySet, keys_of
from .table import TableFile, reading

_TASK = re.compile(r"^[a-z0-9_]{1,64}$")
_PART = re.compile(r"^part-(\d{6,})\.parquet$")
_NEVER = np.iinfo(np.int64).min
_EVER = np.iinfo(np.int64).max
_ROWS = 1 << 16
_READERS = 16
# Each try that fails means that another publisher got a file in: this many in a row is no coincidence.
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class _Seen:
    """A results file whose keys are known; `newest`: its rows' latest created_at (µs), or ever when it does not say."""

    url: str
    newest: int


class ResultsLog:
    """The results files of one table and the keys in them, as one publisher knows them.

    `check` is called before a file is made; it raises when the publisher may not go on.
    """

    def __init__(self, table: Location, run_id: str, check: Callable[[], None]) -> None:
        self._folder = table.child("results")
        self._run_id = run_id
        self._check = check
        # A memory file system is one process's own and needs nothing; the others are asked.
        self._numbered = table.conditional
        self._keys = KeySet()
        self._seen: defaultdict[str, dict[str, _Seen]] = defaultdict(dict)

    @property
    def keys(self) -> KeySet:
        """The keys of all files that were seen."""
        return self._keys

    def learn(self, task: str | None = None) -> None:
        """Takes in files (of one task) that were not seen: all at first, later those of others."""
        folder = self._folder if task is None else self._folder.child(task)
        listed = [(self._folder.below(file).partition("/")[0], file.url) for file in folder.list_files()]
        new = [(name, url) for name, url in listed if url not in self._seen[name]]
        self._take_in(new)
        for name in {name for name, _ in new}:
            self._take_in([(name, url) for url in self._left_out(name)])

    def _take_in(self, files: list[tuple[str, str]]) -> None:
        with ThreadPoolExecutor(_READERS) as pool:
            # A bounded window, so that a large table's keys are not held twice.
            for start in range(0, len(files), 8 * _READERS):
                window = files[start : start + 8 * _READERS]
                for (task, url), (keys, newest) in zip(window, pool.map(lambda each: _read_keys(each[1]), window)):
                    self._keys.add(keys)
                    self._seen[task][url] = _Seen(url, newest)

    def _left_out(self, task: str) -> list[str]:
        """Numbers below the highest that the listing lacks: it may be older at its beginning than at its end.

        Asked for one by one, which no store answers from the past; those that were removed by hand are not there, and
        are taken in as files without keys.
        """
        numbers = self._numbers(task)
        lacking = set(range(max(numbers, default=-1) + 1)) - numbers
        return [self._part(task, number).url for number in sorted(lacking)]

    def append(self, task: str, path: Path, schema: pa.Schema) -> tuple[str | None, int]:
        """Makes a local file's rows visible but for those that others made visible meanwhile; the file's URL, its rows.

        None and 0 when nothing is left of it. The local file may be rewritten. `learn` must have been called before.
        """
        if not _TASK.match(task):
            raise TableError(
                f"{self._folder.parent}: a work file holds a row of the task {task!r}, which is no task name"
            )
        for _ in range(_TRIES):
            if not self._numbered:
                self.learn(task)
            keys, newest = _read_keys(str(path))
            known = self._keys.contains(keys)
            if known.all():
                return None, 0
            if known.any():
                _filter(path, ~known, schema)
                keys = keys[~known]
            target = self._next(task)
            self._check()
            if self._make(target, path):
                self._keys.add(keys)
                self._seen[task][target.url] = _Seen(target.url, newest)
                return target.url, len(keys)
            self.learn(task)
            if target.url not in self._seen[task]:
                raise StorageError(target.url, "this file is there and is not listed; run the same command again later")
        raise StorageError(self._folder.child(task).url, "other publishers always come first; end them and run again")

    def documents_since(self, task: str, time: int) -> Iterator[pa.Table]:
        """document_id and created_at of the rows made at `time` (µs since 1970) or later, in files seen so far."""
        for file in list(self._seen[task].values()):
            if file.newest < time:
                continue
            with reading(Location(file.url)) as opened:
                names = ["document_id", "created_at"]
                for batch in opened.iter_batches(_ROWS, columns=names, use_threads=False):
                    # Select: a column that is not there is told here, where it names the file.
                    rows = pa.Table.from_batches([batch]).select(names)
                    yield rows.filter(pc.greater_equal(rows.column("created_at").cast(pa.int64()), time))

    def _next(self, task: str) -> Location:
        if self._numbered:
            return self._part(task, max(self._numbers(task), default=-1) + 1)
        names = {url.rsplit("/", 1)[-1] for url in self._seen[task]}
        number = next(n for n in range(len(names) + 1) if f"{self._run_id}-{n:05d}.parquet" not in names)
        return self._folder.child(task, f"{self._run_id}-{number:05d}.parquet")

    def _numbers(self, task: str) -> set[int]:
        names = (url.rsplit("/", 1)[-1] for url in self._seen[task])
        return {int(found[1]) for name in names if (found := _PART.match(name))}

    def _part(self, task: str, number: int) -> Location:
        return self._folder.child(task, f"part-{number:06d}.parquet")

    def _make(self, target: Location, path: Path) -> bool:
        if self._numbered:
            return target.create_exclusive(path)
        target.upload(path)
        return True


def _read_keys(url: str) -> tuple[np.ndarray, int]:
    """A file's keys, and the latest created_at that its footer tells; of a file that is not there, none."""
    try:
        with reading(Location(url)) as opened:
            batches = opened.iter_batches(_ROWS, columns=["key"], use_threads=False)
            parts = [keys_of(batch.column("key")) for batch in batches]
            return np.concatenate([np.empty(0, KEY), *parts]), _newest(opened.metadata)
    except StorageError as error:
        if error.problem is Problem.MISSING:
            return np.empty(0, KEY), _NEVER
        raise


def _newest(footer: pq.FileMetaData) -> int:
    newest = _NEVER
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = (group.column(each) for each in range(group.num_columns))
        times = next((each for each in columns if each.path_in_schema == "created_at"), None)
        if times is None or times.statistics is None or not times.statistics.has_min_max:
            return _EVER
        newest = max(newest, pa.scalar(times.statistics.max, pa.timestamp("us", tz="UTC")).value)
    return newest


def _filter(path: Path, keep: np.ndarray, schema: pa.Schema) -> None:
    """Leaves only the rows to `keep` in a local file."""
    smaller = path.with_name(f"{path.name}.smaller")
    with pq.ParquetFile(path) as file:
        footer = {key: value for key, value in (file.metadata.metadata or {}).items() if key.startswith(b"corpusmill.")}
        with TableFile(smaller, schema, footer) as out:
            at = 0
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, use_threads=False)
                out.write(rows.filter(pa.array(keep[at : at + len(rows)])))
                at += len(rows)
    smaller.replace(path)
