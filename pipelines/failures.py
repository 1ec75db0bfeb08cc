"""The errors/ zone: one file per task with the current state of every pair that is not ok."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Location
from model_runtime import ErrorCode

from .keys import KEY, KeySet, find, keys_of
from .resume import REJECTED, attempts_of, check_rows, status_codes
from .table import TableFile, conform, reading

# Rows known by their place in the source, not by a document: a repeated id names a good document too.
_BY_PLACE = pa.array([ErrorCode.NULL_ID.value, ErrorCode.DUPLICATE_ID.value, ErrorCode.BAD_ROW.value])
_COLUMNS = ["key", "document_id", "status", "error_code", "attempt", "created_at"]
_NEVER = np.iinfo(np.int64).min
_ROWS = 1 << 16


def current_errors(table: Location, task: str) -> Location:
    """The file of a task's rejected and failed rows."""
    return table.child("errors", task, "current.parquet")


class Successes:
    """When a task's documents succeeded, as one publish sees it: 24 bytes a row, whatever the ids are."""

    def __init__(self) -> None:
        self._documents = [np.empty(0, KEY)]
        self._times = [np.empty(0, np.int64)]

    def add(self, rows: pa.Table) -> None:
        """Takes ok rows in."""
        self._documents.append(_hashes(rows.column("document_id")))
        self._times.append(_times(rows.column("created_at")))

    def cover(self, documents: np.ndarray, times: np.ndarray) -> np.ndarray:
        """For each of `documents` (hashes) whether it succeeded at its time or later."""
        if not len(documents):
            return np.zeros(0, bool)
        known, when = np.concatenate(self._documents), np.concatenate(self._times)
        last = _first_of(known, ~when)
        known, when = known[last], when[last]
        found, at = find(known, documents)
        return found & (when[at] >= times) if len(known) else found


def oldest(news: Location) -> int:
    """When the first of the rows in a file was made (µs since 1970); the largest int64 when it has none."""
    with reading(news) as opened:
        times = [_times(batch.column("created_at")) for batch in opened.iter_batches(_ROWS, columns=["created_at"])]
        return int(min((each.min() for each in times if len(each)), default=np.iinfo(np.int64).max))


def merge_errors(
    current: Location | None,
    news: Location | None,
    done: KeySet,
    successes: Successes,
    schema: pa.Schema,
    footer: Mapping[bytes, bytes],
    out: Path,
) -> int | None:
    """Writes to `out` the state that `current` becomes with the rows of `news`; its rows, or None when nothing changes.

    None for `current` is a zone without a file, for `news` nothing new.

    A row leaves when its key is in `done` (it succeeded) or its document is in `successes`, then or later. Of several
    rows of a key a rejected one stays, else that of the latest attempt, else the one that was there first. Of several
    keys of a document, as a repaired text or another prompt makes them, the newest stays. Two passes over the files:
    memory holds keys, hashes and times, not rows.
    """
    sources = [each for each in (current, news) if each is not None]
    states = [_State.read(source) for source in sources]
    masks = _winners(states, done, successes)
    changed = any(not mask.all() if source is current else mask.any() for source, mask in zip(sources, masks))
    if not changed and current is not None:
        return None
    with TableFile(out, schema, footer) as file:
        for source, mask in zip(sources, masks):
            at = 0
            for rows in _batches(source, schema):
                file.write(rows.filter(pa.array(mask[at : at + len(rows)])))
                at += len(rows)
    return file.rows


@dataclass(frozen=True, slots=True)
class _State:
    """What decides between rows, 44 bytes each. `documents`: hashes of the ids, of a row known by its place its key.

    `claims`: how strong a row is among those of its key, rejected above failed, then the attempt. `times`: µs.
    """

    keys: np.ndarray
    documents: np.ndarray
    claims: np.ndarray
    times: np.ndarray

    @classmethod
    def read(cls, source: Location) -> _State:
        """The state of a file's rows, in their order."""
        with reading(source) as opened:
            batches = opened.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False)
            return cls.joined([cls.of(pa.Table.from_batches([batch])) for batch in batches])

    @classmethod
    def of(cls, rows: pa.Table) -> _State:
        """The state of some rows."""
        keys, ids = keys_of(rows.column("key")), rows.column("document_id")
        by_place = pc.or_(pc.is_null(ids), pc.is_in(rows.column("error_code"), value_set=_BY_PLACE))
        rejected = status_codes(rows.column("status")) == REJECTED
        return cls(
            keys,
            np.where(by_place.to_numpy(), keys, _hashes(ids)),
            (rejected.astype(np.int32) << 16) + attempts_of(rows.column("attempt")),
            _times(rows.column("created_at")),
        )

    @classmethod
    def joined(cls, states: list[_State]) -> _State:
        """Several states, one after the other."""
        empty = cls(np.empty(0, KEY), np.empty(0, KEY), np.empty(0, np.int32), np.empty(0, np.int64))
        states = [empty, *states]
        return cls(
            np.concatenate([state.keys for state in states]),
            np.concatenate([state.documents for state in states]),
            np.concatenate([state.claims for state in states]),
            np.concatenate([state.times for state in states]),
        )


def _winners(states: list[_State], done: KeySet, successes: Successes) -> list[np.ndarray]:
    """For each row of each file whether it stays."""
    state = _State.joined(states)
    left = np.flatnonzero(~done.contains(state.keys) & ~successes.cover(state.documents, state.times))
    left = left[_first_of(state.keys[left], -state.claims[left])]
    attempts = state.claims[left] & 0xFFFF
    left = left[_first_of(state.documents[left], ~state.times[left], -attempts, left)]
    wins = np.zeros(len(state.keys), bool)
    wins[left] = True
    return np.split(wins, np.cumsum([len(each.keys) for each in states])[:-1]) if states else []


def _first_of(names: np.ndarray, *orders: np.ndarray) -> np.ndarray:
    """Where each name's first row is, the names sorted: by the first of `orders`, then the next, then the place."""
    order = np.lexsort((*reversed(orders), names))
    return order[np.unique(names[order], return_index=True)[1]]


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """128-bit hashes of document ids (S16)."""
    digests = [blake2b((value or "").encode(), digest_size=KEY.itemsize).digest() for value in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), KEY)


def _times(created_at: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Times as µs since 1970; a missing one is before all others."""
    return pc.fill_null(created_at.cast(pa.int64()), _NEVER).to_numpy()


def _batches(source: Location, schema: pa.Schema) -> Iterator[pa.Table]:
    with reading(source) as opened:
        for batch in opened.iter_batches(_ROWS, use_threads=False):
            rows = conform(pa.Table.from_batches([batch]), schema)
            check_rows(rows)
            yield rows
