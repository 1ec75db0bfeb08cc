"""Attention over the documents' encoder keys as one packed call: which stretch of which document's keys is read by
which queries. Numbers only: what is computed here on the host goes to the device in one copy.

A document's keys are cut into chunks that different multiprocessors read at the same time; each chunk is a sequence
of its own, read by all queries of its document, and a query's results over its chunks are merged afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .pages import Run

# Query rows of one block of the attention kernel at head size 256.
_QUERY_BLOCK = 64
# Pages of a chunk at least: smaller ones cost more in merging than they gain.
_SMALLEST_CHUNK = 4
BUCKETS = tuple(1 << n for n in range(10))


@dataclass(frozen=True, slots=True)
class Readers:
    """One document in a pass: its pages, its encoder tokens, and the indices of the query tokens that read it."""

    runs: tuple[Run, ...]
    tokens: int
    queries: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossPlan:
    """Arrays of one pass over T query tokens, all int32; partial p is one query token over one chunk.

    `cu_q`, `cu_k`: the packed sequences, [2 · chunks + 1], a query token counting as one row for each head of a group.
    `gather`: the query token of each partial [P]. `offsets`, `index`: token t's partials are
    index[offsets[t]:offsets[t + 1]]. `max_q`, `max_k`: the most query rows and keys of a chunk. `width`: the most
    chunks of a token.
    """

    cu_q: np.ndarray
    cu_k: np.ndarray
    gather: np.ndarray
    offsets: np.ndarray
    index: np.ndarray
    max_q: int
    max_k: int
    width: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the five arrays, in the order of `flat`."""
        return tuple(map(len, (self.cu_q, self.cu_k, self.gather, self.offsets, self.index)))

    def flat(self) -> np.ndarray:
        """All arrays in one."""
        return np.concatenate((self.cu_q, self.cu_k, self.gather, self.offsets, self.index))


def plan_cross(readers: Sequence[Readers], tokens: int, page: int, group: int, kv_heads: int, blocks: int) -> CrossPlan:
    """The plan for `tokens` query tokens; `page`: tokens per page, `blocks`: kernel blocks that fill the device."""
    size = chunk_pages(readers, page, group, kv_heads, blocks)
    chunks = sorted(
        (start, length, reader) for reader, r in enumerate(readers) for start, length in _cut(r, page, size)
    )
    counts = np.array([len(readers[reader].queries) * group for _, _, reader in chunks])
    cu_q, cu_k = np.zeros(2 * len(chunks) + 1, np.int32), np.zeros(2 * len(chunks) + 1, np.int32)
    # Sequence 2c is what lies before chunk c and is read by nobody; sequence 2c + 1 is the chunk.
    cu_q[2::2], cu_q[3::2] = np.cumsum(counts), np.cumsum(counts)[:-1]
    cu_k[1::2], cu_k[2::2] = [start for start, _, _ in chunks], [start + length for start, length, _ in chunks]
    gather = np.concatenate([readers[reader].queries for _, _, reader in chunks]).astype(np.int32)
    per_token = np.bincount(gather, minlength=tokens)
    return CrossPlan(
        cu_q=cu_q,
        cu_k=cu_k,
        gather=gather,
        offsets=np.concatenate(([0], np.cumsum(per_token))).astype(np.int32),
        index=np.argsort(gather, kind="stable").astype(np.int32),
        max_q=int(counts.max()),
        max_k=max(length for _, length, _ in chunks),
        width=int(per_token.max()),
    )


def chunk_pages(readers: Sequence[Readers], page: int, group: int, kv_heads: int, blocks: int) -> int:
    """Pages per chunk, a power of two, so that the chunks of all documents make about `blocks` kernel blocks."""
    work = sum(
        -(-reader.tokens // page) * -(-len(reader.queries) * group // _QUERY_BLOCK) * kv_heads for reader in readers
    )
    return max(_SMALLEST_CHUNK, _power_of_two(-(-work // blocks)))


def padded(plan: CrossPlan, tokens: int, page: int) -> CrossPlan:
    """The same plan with its sizes rounded up, so that few different ones occur; for `tokens` query tokens.

    What is added are sequences without queries and keys, partials that nobody looks at, and tokens without partials.
    """
    chunks, partials = _power_of_two(len(plan.cu_q) // 2, 8), _power_of_two(len(plan.gather), 8)
    return CrossPlan(
        cu_q=_stretched(plan.cu_q, 2 * chunks + 1, int(plan.cu_q[-1])),
        cu_k=_stretched(plan.cu_k, 2 * chunks + 1, int(plan.cu_k[-1])),
        gather=_stretched(plan.gather, partials, 0),
        offsets=_stretched(plan.offsets, tokens + 1, int(plan.offsets[-1])),
        index=_stretched(plan.index, partials, 0),
        max_q=_power_of_two(plan.max_q, 8),
        max_k=_power_of_two(plan.max_k, page),
        width=_power_of_two(plan.width, 2),
    )


def bucket(rows: int) -> int | None:
    """The smallest of `BUCKETS` that holds `rows`, or None."""
    return next((size for size in BUCKETS if size >= rows), None)


def _cut(reader: Readers, page: int, size: int) -> Iterator[tuple[int, int]]:
    """First key and length of each chunk of a document; only its last page may be partly filled."""
    left = reader.tokens
    for run in reader.runs:
        for first in range(run.first, run.first + run.length, size):
            length = min(left, page * min(size, run.first + run.length - first))
            yield first * page, length
            left -= length


def _power_of_two(count: int, least: int = 1) -> int:
    return max(least, 1 << max(0, count - 1).bit_length())


def _stretched(array: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.concatenate((array, np.full(length - len(array), value, np.int32)))
