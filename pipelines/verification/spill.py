"""Records in partitions on this machine's disk, to join more of them than fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

_PARTS = 256
_BUFFER = 1 << 16


class Spill:
    """Fixed-size records, scattered over 256 files by a byte of each; memory holds one partition at a time.

    Use it in a `with` block: first `add`, then `partitions`, once. `folder` is the caller's to remove.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        folder.mkdir()
        self.rows = 0
        self._folder = folder
        self._dtype = dtype
        self._stack = ExitStack()
        self._files: dict[int, BinaryIO] = {}

    def add(self, places: np.ndarray, records: np.ndarray) -> None:
        """Takes records in; `places` (uint8) says of each which partition it belongs to: equal things, equal places."""
        if not len(records):
            return
        order = np.argsort(places, kind="stable")
        sorted_places = places[order]
        starts = np.flatnonzero(np.diff(sorted_places, prepend=-1))
        for part in np.split(order, starts[1:]):
            self._file(int(places[part[0]])).write(records[part].tobytes())
        self.rows += len(records)

    def partitions(self) -> Iterator[np.ndarray]:
        """Each partition's records, in the order in which they were added."""
        for file in self._files.values():
            file.flush()
        for number in sorted(self._files):
            yield np.fromfile(self._folder / f"{number}", self._dtype)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _file(self, number: int) -> BinaryIO:
        if number not in self._files:
            path = self._folder / f"{number}"
            self._files[number] = self._stack.enter_context(path.open("wb", buffering=_BUFFER))
        return self._files[number]


def key_places(keys: np.ndarray) -> np.ndarray:
    """The partition of each key (S16): its first byte, because keys are hashes."""
    return np.ascontiguousarray(keys).view(np.uint8).reshape(-1, keys.dtype.itemsize)[:, 0]


def row_places(files: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The partition of each row of a file, by the file's number and the row's."""
    mixed = files.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + rows.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(56)).astype(np.uint8)
