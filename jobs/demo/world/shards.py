"""Writes a world as Parquet shards: the kinds mixed evenly, the same bytes for the same seed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .documents import KINDS, MAX_WORDS, MIN_WORDS, SCHEMA, Document, documents

ROWS_PER_GROUP = 512
ROWS_PER_SHARD = 16 * ROWS_PER_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What to write: how many documents of each kind, of which seed and split."""

    seed: int
    split: str
    reports: int
    notes: int
    scenes: int
    start: int = 0  # number of the first document of each kind
    min_words: int = MIN_WORDS
    max_words: int = MAX_WORDS
    most_groups: int = 2

    @property
    def total(self) -> int:
        """Documents of all kinds."""
        return self.reports + self.notes + self.scenes

    def counts(self, part: int, parts: int) -> dict[str, tuple[int, int]]:
        """Where part number `part` of `parts` starts in each kind, and how many of it are in there."""
        shares = {}
        for kind, count in zip(KINDS, (self.reports, self.notes, self.scenes)):
            first, end = count * part // parts, count * (part + 1) // parts
            shares[kind] = (self.start + first, end - first)
        return shares


def write_shards(folder: Path, world: World, *, processes: int = 1) -> list[Path]:
    """Write the world's shards into `folder` and return their paths; the number of processes changes no byte.

    Raises ValueError as `documents` does, for a world of nothing, and where the folder holds this split's shards of a
    world of another size, which a reader of the folder would take in as well.
    """
    if world.total < 1:
        raise ValueError("a world needs at least one report, note or scene")
    folder.mkdir(parents=True, exist_ok=True)
    parts = -(-world.total // ROWS_PER_SHARD)
    jobs = [(folder, world, part, parts) for part in range(parts)]
    mine = {_shard(*job) for job in jobs}
    if others := sorted(path.name for path in folder.glob(f"{world.split}-*-of-*.parquet") if path not in mine):
        raise ValueError(f"{folder} holds shards of another world, such as {others[0]}: remove them or take another")
    if processes == 1 or parts == 1:
        return [_write_shard(*job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.starmap(_write_shard, jobs, chunksize=1)


def _shard(folder: Path, world: World, part: int, parts: int) -> Path:
    return folder / f"{world.split}-{part:05d}-of-{parts:05d}.parquet"


def _write_shard(folder: Path, world: World, part: int, parts: int) -> Path:
    path = _shard(folder, world, part, parts)
    partial = path.with_name(path.name + ".partial")
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            rows: list[dict[str, str | bytes | int | None]] = []
            for document in _mixed(world, part, parts):
                rows.append(document.row())
                if len(rows) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.rename(path)
    return path


def _mixed(world: World, part: int, parts: int) -> Iterator[Document]:
    """The part's documents, each kind spread evenly over it."""
    streams = {}
    due = []
    for rank, (kind, (start, count)) in enumerate(world.counts(part, parts).items()):
        streams[kind] = documents(
            kind,
            seed=world.seed,
            split=world.split,
            start=start,
            count=count,
            min_words=world.min_words,
            max_words=world.max_words,
            most_groups=world.most_groups,
        )
        due += [((place + 0.5) / count, rank, kind) for place in range(count)]
    for _, _, kind in sorted(due):
        yield next(streams[kind])
