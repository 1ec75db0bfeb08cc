"""The errors/ zone: one file per task with the current state of every pair that is not ok."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Location

from .keys import KeySet, keys_of
from .resume import REJECTED, attempts_of, status_codes
from .table import TableFile, conform

_ROWS = 1 << 16


def current_errors(table: Location, task: str) -> Location:
    """The file of a task's rejected and failed rows."""
    return table.child("errors", task, "current.parquet")


def merge_errors(
    current: Location, news: Path | None, done: KeySet, schema: pa.Schema, footer: Mapping[bytes, bytes], out: Path
) -> int | None:
    """Writes to `out` the state that `current` becomes with the rows of `news`; its rows, or None when nothing changes.

    A key in `done` (it succeeded) leaves; of several rows of a key a rejected one stays, else that of the latest
    attempt, else the one that was there first. Two passes over the files: memory holds keys, not rows.
    """
    exists = current.exists()
    sources: list[Location | Path] = [*([current] if exists else []), *([news] if news else [])]
    masks = _winners([_state(source) for source in sources], done)
    changed = any(not mask.all() if source is current else mask.any() for source, mask in zip(sources, masks))
    if not changed and exists:
        return None
    with TableFile(out, schema, footer) as file:
        for source, mask in zip(sources, masks):
            at = 0
            for rows in _batches(source):
                file.write(conform(rows.filter(pa.array(mask[at : at + len(rows)])), schema))
                at += len(rows)
    return file.rows


def _state(source: Location | Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys, and how strong each row's claim is: rejected above failed, then the attempt."""
    keys, claims = [np.empty(0, "S16")], [np.empty(0, np.int32)]
    for rows in _batches(source, ["key", "status", "attempt"]):
        keys.append(keys_of(rows.column("key")))
        rejected = status_codes(rows.column("status")) == REJECTED
        claims.append((rejected.astype(np.int32) << 16) + attempts_of(rows.column("attempt")))
    return np.concatenate(keys), np.concatenate(claims)


def _winners(states: list[tuple[np.ndarray, np.ndarray]], done: KeySet) -> list[np.ndarray]:
    if not states:
        return []
    keys = np.concatenate([keys for keys, _ in states])
    claims = np.concatenate([claims for _, claims in states])
    # By key, the strongest claim first, and of equal ones the earliest row: lexsort is stable.
    order = np.lexsort((-claims, keys))
    wins = np.zeros(len(keys), bool)
    wins[order[np.unique(keys[order], return_index=True)[1]]] = True
    wins &= ~done.contains(keys)
    return np.split(wins, np.cumsum([len(keys) for keys, _ in states])[:-1])


def _batches(source: Location | Path, columns: list[str] | None = None):
    opened = source.open_input() if isinstance(source, Location) else pa.OSFile(str(source))
    with opened as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])
