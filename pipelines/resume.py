"""What a table already holds: the keys that are done, read from its rows, because the output is the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import FileInfo, Location, Problem, StorageError

from .damage import printable
from .keys import KEY, find, keys_of, order_of
from .table import ZONES, reading

PENDING, OK, REJECTED, FAILED = 0, 1, 2, 3
STATUS_NAMES = ("pending", "ok", "rejected", "failed")

# What wins when a key stands in several places, weakest first.
_STRENGTH = np.array([0, 3, 2, 1], np.int32)
_OF_STRENGTH = np.array([PENDING, FAILED, REJECTED, OK], np.int8)
_TASK = re.compile(r"[a-z0-9_]{1,64}")
_ROWS = 1 << 18
_READERS = 16


@dataclass(frozen=True, slots=True)
class DoneIndex:
    """Sorted keys (S16) with their status (int8: 1 ok, 2 rejected, 3 failed) and attempts (int16); 19 bytes a key."""

    keys: np.ndarray
    status: np.ndarray
    attempts: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(status, attempts) of each of `keys` (S16), 0 and 0 for one that is not there."""
        found, at = find(self.keys, keys)
        if not len(self.keys):
            return np.zeros(len(keys), np.int8), np.zeros(len(keys), np.int16)
        return np.where(found, self.status[at], 0).astype(np.int8), np.where(found, self.attempts[at], 0).astype(
            np.int16
        )

    @classmethod
    def build(cls, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> DoneIndex:
        """From (keys, status, attempts) in any order: ok beats rejected beats failed, then the most attempts."""
        collected = list(parts)
        keys = _joined([part[0] for part in collected], KEY)
        status = _joined([part[1] for part in collected], np.dtype(np.int8))
        attempts = _joined([part[2] for part in collected], np.dtype(np.int16))
        collected.clear()
        order = order_of(keys)
        keys = keys[order]
        score = (_STRENGTH[status[order]] << 16) + attempts[order]
        if not len(keys):
            return cls(keys, status, attempts)
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        best = np.maximum.reduceat(score, np.flatnonzero(first))
        return cls(keys[first], _OF_STRENGTH[best >> 16], (best & 0xFFFF).astype(np.int16))


def read_done(table: Location, zones: Mapping[str, Sequence[FileInfo]] | None = None) -> DoneIndex:
    """Every key the table holds: `_work` ∪ results ∪ errors; only the columns key, status and attempt are read.

    `zones`: the table's files, when they were listed already.
    """
    return DoneIndex.build(_parts(table, zones))


def read_keys(files: list[FileInfo]) -> Iterator[np.ndarray]:
    """The keys of table files, some at a time."""
    for keys, _, _ in _read_all(files, True, []):
        yield keys


def _parts(
    table: Location, zones: Mapping[str, Sequence[FileInfo]] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    lost: list[str] = []
    for zone in ZONES:
        # A work file that is gone was published by somebody: what its rows moved to must be listed after that.
        files = zones[zone] if zones is not None and not lost else table.child(zone).list_files()
        yield from _read_all(files, zone == "results", lost)


def _read_all(
    files: Sequence[FileInfo], always_ok: bool, lost: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    with ThreadPoolExecutor(_READERS) as pool:
        # A bounded window, so that a table of many files is not in memory as futures.
        for start in range(0, len(files), 8 * _READERS):
            window = files[start : start + 8 * _READERS]
            for parts in pool.map(lambda file: _read(file, always_ok, lost), window):
                yield from parts


def _read(file: FileInfo, always_ok: bool, lost: list[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    columns = ["key"] if always_ok else ["key", "status", "attempt"]
    try:
        with reading(Location(file.url)) as opened:
            batches = opened.iter_batches(_ROWS, columns=columns, use_threads=False)
            return [_columns(batch, always_ok) for batch in batches]
    except StorageError as error:
        # A work file that a publisher merged and deleted between the listing and now.
        if error.problem is Problem.MISSING:
            lost.append(file.url)
            return []
        raise


def _columns(batch: pa.RecordBatch, always_ok: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = keys_of(batch.column("key"))
    if always_ok:
        return keys, np.full(len(keys), OK, np.int8), np.ones(len(keys), np.int16)
    return keys, status_codes(batch.column("status")), attempts_of(batch.column("attempt"))


def status_codes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A status column as int8 codes; ValueError for a status that is none."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if encoded.null_count or not set(names) <= set(STATUS_NAMES[1:]):
        raise ValueError("a status is not ok, rejected or failed")
    codes = np.array([STATUS_NAMES.index(name) for name in names], np.int8)
    return codes[encoded.indices.to_numpy(zero_copy_only=False)] if len(encoded) else np.empty(0, np.int8)


def attempts_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """An attempt column as int16; a missing attempt counts as the first."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    counts = column.fill_null(1).to_numpy(zero_copy_only=False)
    return np.clip(counts, 0, np.iinfo(np.int16).max).astype(np.int16)


def check_rows(rows: pa.Table) -> None:
    """ValueError, or Arrow's own error, for rows that no run made: a publisher would lose them, or break on them."""
    rows.validate(full=True)
    for field in rows.schema:
        if not field.nullable and rows.column(field.name).null_count:
            raise ValueError(f"it holds a row without {field.name}")
    keys_of(rows.column("key"))
    status_codes(rows.column("status"))
    attempts_of(rows.column("attempt"))
    for task in pc.unique(rows.column("task")).to_pylist():
        if task is None or not _TASK.fullmatch(task):
            raise ValueError(f"it holds a row of the task {printable(str(task))!r}, which is no task name")


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
