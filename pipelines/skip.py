"""Row groups that need not be read: all that they would ask for is known from a ledger, and stands in the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infra.storage import Location, Problem, StorageError
from workers.prepare import MAX_ATTEMPTS

from .errors import TableError
from .keys import find, high_words, raw_keys
from .known import PAIRS, Record, part_file
from .reports import TaskCounts
from .resume import FAILED, OK, PENDING, REJECTED, STATUS_NAMES, DoneIndex
from .source import Corpus, RowGroup
from .table import reading

_ROWS = 1 << 18
# Parts read ahead, each some 20 MB.
_PARALLEL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """`groups` are to be read. The others are done: their `records`, documents and counts by task; `done` is what the
    table holds without their keys."""

    groups: list[RowGroup]
    done: DoneIndex
    records: list[Record] = field(default_factory=list)
    documents: int = 0
    counts: dict[str, TaskCounts] = field(default_factory=dict)


def skip_done(
    table: Location,
    corpus: Corpus,
    groups: Sequence[RowGroup],
    tasks: Sequence[str],
    done: DoneIndex,
    retry_failed: bool = False,
) -> Skip:
    """Parts `groups` into those to read, and those of which every pair of `tasks` is final in `done`.

    Whether a pair is done, `done` alone says; a ledger only tells which keys a row group has.
    """
    chosen = [(group, record) for group in groups if (record := _same(corpus, group)) is not None]
    if not chosen:
        return Skip(groups=list(groups), done=done)
    matching = _Matching([record for _, record in chosen], tasks, done, retry_failed)
    matching.read(table)
    complete = matching.complete()
    skipped = {(group.url, group.index) for (group, _), whole in zip(chosen, complete, strict=True) if whole}
    records = [record for (_, record), whole in zip(chosen, complete, strict=True) if whole]
    return Skip(
        groups=[group for group in groups if (group.url, group.index) not in skipped],
        done=matching.rest(complete),
        records=records,
        documents=sum(record.documents for record in records),
        counts=matching.counts(complete),
    )


def _same(corpus: Corpus, group: RowGroup) -> Record | None:
    """The record of a row group whose documents, and which of them repeat an id, are what they were."""
    record = corpus.asked.get((group.url, group.index))
    if (
        record is None
        or group.only is not None
        or record.documents != group.documents
        or record.duplicates != tuple(group.duplicates)
    ):
        return None
    return record


class _Matching:
    """Looks up the pairs that some records stand for."""

    def __init__(self, records: list[Record], tasks: Sequence[str], done: DoneIndex, retry_failed: bool) -> None:
        self._records = records
        self._tasks = list(tasks)
        self._done = done
        self._high = high_words(done.keys)
        self._retry_failed = retry_failed
        self._bad = np.zeros(len(records), bool)
        self._counts = np.zeros((len(records), len(self._tasks), len(STATUS_NAMES)), np.int64)
        # Of each key in `done`, the record that asks for it.
        self._owner = np.full(len(done), -1, np.int32)

    def read(self, table: Location) -> None:
        """Reads every part that holds pairs of the records. One that is damaged or went away leaves its row groups
        short of pairs."""
        by_part: defaultdict[tuple[str, int], dict[int, int]] = defaultdict(dict)
        for n, record in enumerate(self._records):
            for part in record.parts:
                by_part[record.run_id, part][record.group] = n
        parts = list(by_part.items())
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for start in range(0, len(parts), _PARALLEL):
                window = parts[start : start + _PARALLEL]
                read = pool.map(lambda each: list(_batches(part_file(table, *each[0]))), window)
                for (_, groups), batches in zip(window, read):
                    place = np.full(max(groups) + 1, -1, np.int64)
                    place[list(groups)] = list(groups.values())
                    for batch in batches:
                        self._match(batch, place)

    def complete(self) -> np.ndarray:
        """Of each record whether all its pairs were found, each as final as the run left it."""
        pairs = [[record.pairs[task] for task in self._tasks] for record in self._records]
        wanted = np.array(pairs, np.int64).reshape(len(self._records), len(self._tasks))
        return ~self._bad & (self._counts.sum(axis=2) == wanted).all(axis=1)

    def counts(self, complete: np.ndarray) -> dict[str, TaskCounts]:
        """What the complete records stand for, by task."""
        sums = self._counts[complete].sum(axis=0)
        records = [record for record, whole in zip(self._records, complete, strict=True) if whole]
        return {
            task: TaskCounts(
                already_ok=int(sums[t, OK]),
                already_rejected=int(sums[t, REJECTED]),
                already_failed=int(sums[t, FAILED]),
                not_applicable=sum(record.not_applicable[task] for record in records),
            )
            for t, task in enumerate(self._tasks)
        }

    def rest(self, complete: np.ndarray) -> DoneIndex:
        """What is done without the keys of complete records: nothing else asks for these."""
        left = ~(complete[self._owner] & (self._owner >= 0))
        done = self._done
        return done if left.all() else DoneIndex(done.keys[left], done.status[left], done.attempts[left])

    def _match(self, batch: pa.RecordBatch, place: np.ndarray) -> None:
        groups = batch.column("group").to_numpy()
        inside = (groups >= 0) & (groups < len(place))
        records = np.where(inside, place[np.where(inside, groups, 0)], -1)
        tasks, states = _codes(batch.column("task"), self._tasks), _codes(batch.column("status"), STATUS_NAMES)
        wanted = np.flatnonzero((records >= 0) & (tasks >= 0))
        records, tasks, states = records[wanted], tasks[wanted], states[wanted]
        found, at = find(self._done.keys, raw_keys(batch.column("key"))[wanted], self._high)
        now = np.where(found, self._done.status[at], PENDING) if len(self._done) else np.zeros(len(at), np.int8)
        final = (now == OK) | (now == REJECTED)
        if len(self._done) and not self._retry_failed:
            final |= (now == FAILED) & (self._done.attempts[at] >= MAX_ATTEMPTS)
        # Another status than the run left: some run made it meanwhile, and ended before it wrote that down.
        self._bad[records[~(final & (now == states))]] = True
        np.add.at(self._counts, (records, tasks, np.maximum(states, 0)), 1)
        self._owner[at[found]] = records[found]


def _batches(part: Location) -> Iterator[pa.RecordBatch]:
    try:
        with reading(part) as opened:
            if opened.schema_arrow.remove_metadata().equals(PAIRS):
                yield from opened.iter_batches(_ROWS, use_threads=False)
    except (TableError, StorageError) as error:
        if isinstance(error, StorageError) and error.problem is not Problem.MISSING:
            raise


def _codes(column: pa.DictionaryArray, names: Sequence[str]) -> np.ndarray:
    """A dictionary column as places in `names`; -1 for what is not there."""
    place = {name: n for n, name in enumerate(names)}
    codes = np.array([place.get(name, -1) for name in column.dictionary.to_pylist()], np.int64)
    return codes[column.indices.to_numpy()] if len(column) else np.empty(0, np.int64)
