"""A run's ledger: the pairs it asks for and what each source row group gives, in durable parts while the run goes on.

It never says that something is done: only the table's rows do. It says which keys a row group of an unchanged file
gives, so that a later run can look these up instead of reading the row group again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Location, StorageError
from workers.conditions import Condition
from workers.tasks import Task

from .job import SourceSpec
from .keys import raw_keys
from .known import GROUPS, KNOWN, PAIRS, Decides, Record, hash_of, known_file, part_file
from .resume import STATUS_NAMES
from .source import Corpus, RowGroup
from .table import footer_keys

# Another number when the same source would give other keys, or the files' columns mean something else.
_VERSION = 1
_PART_PAIRS = 1 << 20
_PART_SECONDS = 300.0
_ROWS = 1 << 17
_PARALLEL = 16
_REPEATING = ("file", "version", "schema", "run_id", "task", "status", "group")


def decides(
    source: SourceSpec, tasks: Sequence[Task], where: Sequence[Sequence[Condition] | None], revision: str
) -> Decides:
    """Hashes of everything that decides which keys a file's row groups give."""
    scan = {"version": _VERSION, "id": source.id, "filter": _plain(source.filter)}
    # A carried column counts: a row whose carried cell cannot be kept is known by its place.
    common = {**scan, "text": source.text, "images": source.images, "carry": source.carry, "revision": revision}
    return Decides(
        scan=_hash(scan),
        common=_hash(common),
        tasks={t.name: _hash([t.fingerprint, _plain(w)]) for t, w in zip(tasks, where, strict=True)},
    )


@dataclass(slots=True)
class _Open:
    """A row group whose outcomes are coming in: the rows seen so far, and whether its file alone decides its keys."""

    rows: list[np.ndarray] = field(default_factory=list)
    documents: int = 0
    nameless: int = 0
    fixed: bool = True


class LedgerWriter:
    """Writes `_runs/<run_id>/asked/`: every pair in `part-*`, and in `groups-*` the row groups that came out whole.

    `groups` are those the run reads. Leaving the block writes what is there, also after an error: all of it is true.
    """

    def __init__(
        self,
        table: Location,
        run_id: str,
        corpus: Corpus,
        groups: Sequence[RowGroup],
        decided_by: Decides,
        part_pairs: int = _PART_PAIRS,
        part_seconds: float = _PART_SECONDS,
    ) -> None:
        self.pairs = 0
        self._table = table
        self._run_id = run_id
        self._corpus = corpus
        self._files = {file.url: file for file in corpus.files}
        self._groups = groups
        self._decides = decided_by
        self._tasks = pa.array(list(decided_by.tasks), pa.string())
        self._part_pairs, self._part_seconds = part_pairs, part_seconds
        self._places = _Places(groups)
        self._open: dict[int, _Open] = {}
        # Row groups without a document are whole without an outcome.
        empty = [n for n, group in enumerate(groups) if not group.documents and group.problem is None]
        self._whole: list[tuple[int, bool]] = [(number, True) for number in empty]
        self._counts = np.zeros((2, len(groups), len(self._tasks)), np.int64)  # pairs, not applicable
        self._parts: defaultdict[int, list[int]] = defaultdict(list)
        self._buffer: list[tuple[np.ndarray, ...]] = []
        self._buffered = self._part = self._record = 0
        self._written = time.monotonic()

    def refer(self, records: Sequence[Record]) -> None:
        """Takes over row groups that this run does not read: their pairs stand in older runs' parts. Call it once,
        first, also without any: from then on the run has a ledger."""
        rows = {
            "run_id": pa.array([record.run_id for record in records]).dictionary_encode(),
            "group": pa.array([record.group for record in records], pa.int32()),
            "parts": pa.array([record.parts for record in records], pa.list_(pa.int32())),
        }
        self._write(pa.table(rows, schema=KNOWN), known_file(self._table, self._run_id))

    def add(self, outcome: pa.Table) -> None:
        """Takes in a block of outcomes (pipelines.stages.OUTCOME)."""
        rows = outcome.column("source_row").to_numpy()
        groups = self._places.find(outcome.column("source_path"), rows)
        self._count_pairs(outcome, groups)
        identified, refers = (outcome.column(name).to_numpy() for name in ("identified", "refers"))
        order = np.argsort(groups, kind="stable")
        numbers, starts = np.unique(groups[order], return_index=True)
        for number, here in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number >= 0:
                self._see(number, rows[here], int((~identified[here]).sum()), bool(refers[here].any()))
        due = time.monotonic() - self._written > self._part_seconds and (self._whole or self._buffered)
        if self._buffered >= self._part_pairs or due:
            self.flush()

    def flush(self) -> None:
        """Makes durable what came in since the last time: the pairs first, then the row groups that are whole."""
        if self._buffered:
            keys, tasks, states, groups = (np.concatenate(part) for part in zip(*self._buffer))
            order = np.argsort(groups, kind="stable")
            columns = [
                pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys[order].tobytes())]),
                pa.DictionaryArray.from_arrays(pa.array(tasks[order], pa.int32()), self._tasks),
                pa.DictionaryArray.from_arrays(pa.array(states[order], pa.int32()), pa.array(STATUS_NAMES)),
                pa.array(groups[order], pa.int32()),
            ]
            self._write(pa.Table.from_arrays(columns, schema=PAIRS), part_file(self._table, self._run_id, self._part))
            for group in np.unique(groups).tolist():
                self._parts[group].append(self._part)
            self._part += 1
            self._buffer, self._buffered = [], 0
        if self._whole:
            self._write_groups()
        self._written = time.monotonic()

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        else:
            # The error that ends the run may stop this too; without it the next run reads more, no more than that.
            with suppress(StorageError):
                self.flush()

    def _count_pairs(self, outcome: pa.Table, groups: np.ndarray) -> None:
        for which, name in enumerate(("pairs", "not_applicable")):
            lists = outcome.column(name).combine_chunks()
            parents = groups[lists.value_parent_indices().to_numpy()]
            values = lists.flatten()
            tasks = (values.field("task") if name == "pairs" else values).to_numpy()
            inside = parents >= 0
            np.add.at(self._counts[which], (parents[inside], tasks[inside]), 1)
            if name == "pairs" and len(values):
                keys = raw_keys(values.field("key")).copy()
                self._buffer.append((keys, tasks, values.field("state").to_numpy(), parents.astype(np.int32)))
                self._buffered += len(keys)
                self.pairs += len(keys)

    def _see(self, number: int, rows: np.ndarray, nameless: int, refers: bool) -> None:
        group = self._groups[number]
        seen = self._open.setdefault(number, _Open())
        seen.rows.append(rows)
        seen.documents += len(rows)
        seen.nameless += nameless
        seen.fixed &= not refers
        if seen.documents < group.documents or group.only is not None or group.problem is not None:
            return
        del self._open[number]
        # A task that Ray ran twice might give one document twice and another not at all.
        whole = seen.documents == group.documents == len(np.unique(np.concatenate(seen.rows)))
        # What else has no identity was damaged, or seemed to be: such a row group is read again each time.
        expected = len(group.duplicates) + int((self._corpus.ids_of(group) == b"").sum())
        if whole:
            self._whole.append((number, seen.fixed and seen.nameless == expected))

    def _write_groups(self) -> None:
        urls = list(dict.fromkeys(self._groups[number].url for number, _ in self._whole))
        with ThreadPoolExecutor(_PARALLEL) as pool:
            # Read after it was listed: only a file that is still the same now was the listed one in between.
            now = dict(zip(urls, pool.map(lambda url: Location(url).info(), urls), strict=True))
        rows: list[dict[str, Any]] = []
        for number, fixed in self._whole:
            group = self._groups[number]
            file, found = self._files[group.url], now[group.url]
            if not file.version or found is None or found.version != file.version:
                continue
            rows.append(
                {
                    "file": hash_of(file.url),
                    "version": file.version,
                    "size": file.size,
                    "schema": file.schema.serialize().to_pybytes(),
                    "row_groups": file.row_groups,
                    "index": group.index,
                    "first_row": group.first_row,
                    "rows": group.rows,
                    "documents": group.documents,
                    "duplicates": list(group.duplicates),
                    "ids": self._corpus.ids_of(group).tobytes(),
                    "fixed": fixed,
                    "group": number,
                    "parts": self._parts[number],
                    "pairs": self._counts[0, number].tolist(),
                    "not_applicable": self._counts[1, number].tolist(),
                }
            )
            self._parts.pop(number, None)
        self._whole = []
        if rows:
            target = part_file(self._table, self._run_id, self._record, "groups")
            self._write(pa.Table.from_pylist(rows, schema=GROUPS), target)
            self._record += 1

    def _write(self, rows: pa.Table, target: Location) -> None:
        sink = pa.BufferOutputStream()
        footer = {**footer_keys(self._run_id), **self._decides.footer()}
        schema = rows.schema.with_metadata(footer)
        repeating = [name for name in _REPEATING if name in schema.names]
        compression = {field.name: "none" if field.name in ("key", "ids") else "zstd" for field in schema}
        # Statistics of the large columns would only swell the footer.
        with pq.ParquetWriter(
            sink, schema, compression=_paths(schema, compression), use_dictionary=repeating, write_statistics=False
        ) as file:
            file.write_table(rows, row_group_size=_ROWS)
        target.write_bytes(sink.getvalue().to_pybytes())


class _Places:
    """Where each row group's rows stand: (file, physical row) → the row group's number."""

    def __init__(self, groups: Sequence[RowGroup]) -> None:
        self._files: defaultdict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for number, group in enumerate(groups):
            if group.rows:
                first, numbers = self._files[group.url]
                first.append(group.first_row)
                numbers.append(number)

    def find(self, urls: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
        """The number of each row's group; -1 where it is in none, as the row of a file that cannot be read."""
        encoded = urls.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        found = np.full(len(rows), -1, np.int64)
        for code, url in enumerate(encoded.dictionary.to_pylist()):
            if url in self._files:
                first, numbers = self._files[url]
                here = np.flatnonzero((codes == code) & (rows >= 0))
                found[here] = np.array(numbers)[np.searchsorted(first, rows[here], side="right") - 1]
        return found


def _paths(schema: pa.Schema, compression: dict[str, str]) -> dict[str, str]:
    # Parquet names the leaves: a list's values stand below it.
    return {
        f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name: codec
        for name, codec in compression.items()
    }


def _plain(conditions: Iterable[Condition] | None) -> Any:
    """Conditions as JSON keeps them apart: a date is not the text that spells it."""
    if conditions is None:
        return None
    return [[column, operator, _typed(value)] for column, operator, value in conditions]


def _typed(value: Any) -> Any:
    return [_typed(entry) for entry in value] if isinstance(value, list | tuple) else [type(value).__name__, str(value)]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
