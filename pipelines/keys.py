"""Keys as arrays: 32 hex characters in a table, 16 bytes (numpy `S16`) in memory, never a Python object each."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa

KEY = np.dtype("S16")

_NIBBLES = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _value
_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="u2")


def keys_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A table's hex key column as S16; ValueError when a value is not 32 lower-case hex digits."""
    if isinstance(column, pa.ChunkedArray):
        parts = [keys_of(chunk) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.empty(0, KEY)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pa.large_string())
    if not len(column):
        return np.empty(0, KEY)
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    if column.null_count or (np.diff(offsets) != 32).any():
        raise ValueError("a key is not 32 hex digits")
    digits = _NIBBLES[np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]]
    if (digits > 15).any():
        raise ValueError("a key is not 32 hex digits")
    return (digits[0::2] << 4 | digits[1::2]).view(KEY)


def raw_keys(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """A column of 16 bytes a value as S16."""
    if not len(column):
        return np.empty(0, KEY)
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * 16 : (column.offset + len(column)) * 16].view(KEY)


def hex_of(keys: np.ndarray) -> pa.Array:
    """S16 keys as a string column of 32 hex digits."""
    data = _PAIRS[np.ascontiguousarray(keys, KEY).view(np.uint8)]
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(data))


def hashes_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """128-bit hashes (S16) of a string column's values, valid UTF-8 or not; sixteen zero bytes for a null."""
    if isinstance(column, pa.ChunkedArray):
        parts = [hashes_of(chunk) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.empty(0, KEY)
    column = column.cast(pa.large_string())
    if not len(column):
        return np.empty(0, KEY)
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    view = memoryview(data or b"")
    digests = [blake2b(view[a:b], digest_size=KEY.itemsize).digest() for a, b in pairwise(offsets)]
    hashes = np.frombuffer(b"".join(digests), KEY)
    return hashes if not column.null_count else np.where(column.is_null().to_numpy(zero_copy_only=False), b"", hashes)


def high_words(keys: np.ndarray) -> np.ndarray:
    """The first eight bytes of each key as a number (uint64): in the keys' order, and several times faster to sort."""
    return np.ascontiguousarray(keys, KEY).view(">u8")[::2].astype(np.uint64)


def order_of(keys: np.ndarray) -> np.ndarray:
    """The places of `keys` in sorted order; those of equal keys in theirs."""
    high = high_words(keys)
    order = np.argsort(high)
    ordered = high[order]
    tied = np.zeros(len(keys), bool)
    tied[1:] = ordered[1:] == ordered[:-1]
    tied[:-1] |= tied[1:]
    if tied.any():
        some = order[tied]
        low = np.ascontiguousarray(keys, KEY).view(">u8")[1::2][some].astype(np.uint64)
        order[tied] = some[np.lexsort((some, low, high[some]))]
    return order


def find(sorted_keys: np.ndarray, keys: np.ndarray, high: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """For each of `keys` whether it stands in `sorted_keys`, and where (0 when it does not).

    `high`, when given, are the high words of `sorted_keys`: worth their 8 bytes a key where many are looked for.
    """
    if not len(sorted_keys) or not len(keys):
        return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    if high is not None:
        return _find_by_words(sorted_keys, keys, high)
    # Searching in key order walks the array once instead of jumping about in it.
    order = np.argsort(keys, kind="stable")
    at = np.empty(len(keys), np.int64)
    at[order] = np.searchsorted(sorted_keys, keys[order])
    at[at == len(sorted_keys)] = 0
    found = sorted_keys[at] == keys
    return found, np.where(found, at, 0)


def _find_by_words(sorted_keys: np.ndarray, keys: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    words = high_words(keys)
    order = np.argsort(words)
    at = np.empty(len(keys), np.int64)
    at[order] = np.searchsorted(high, words[order])
    at[at == len(sorted_keys)] = 0
    found = sorted_keys[at] == keys
    # Keys that share their high word stand side by side: the one looked for may be a later one.
    open_ = np.flatnonzero(~found & (high[at] == words))
    while len(open_):
        at[open_] += 1
        open_ = open_[at[open_] < len(sorted_keys)]
        open_ = open_[high[at[open_]] == words[open_]]
        found[open_] = sorted_keys[at[open_]] == keys[open_]
        open_ = open_[~found[open_]]
    return found, np.where(found, at, 0)


class KeySet:
    """A growing set of keys: sorted runs of falling size, merged as they grow, 16 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys` whether it is in the set."""
        found = np.zeros(len(keys), bool)
        for run in self._runs:
            found |= find(run, keys)[0]
        return found

    def add(self, keys: np.ndarray) -> None:
        """Puts `keys` in; those already there, or twice among them, count once."""
        fresh = np.unique(keys)
        fresh = fresh[~self.contains(fresh)]
        while len(self._runs) and len(fresh) and len(self._runs[-1]) < 2 * len(fresh):
            fresh = np.sort(np.concatenate((self._runs.pop(), fresh)), kind="stable")
        if len(fresh):
            self._runs.append(fresh)

    def merge(self, other: KeySet) -> None:
        """Puts another set's keys in."""
        for run in other._runs:
            self.add(run)

    def first_seen(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys` whether it is neither in the set nor earlier among them."""
        new = ~self.contains(keys)
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        return new & first
