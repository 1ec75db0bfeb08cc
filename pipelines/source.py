"""The source: which Parquet row groups there are, and which documents they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from infra.storage import FileInfo, StorageError, expand

from .columns import carried_schema, check_columns
from .errors import SourceError
from .job import SourceSpec
from .keys import KEY, order_of
from .known import KnownFile, Record
from .schema import OUTPUT
from .shards import Shard, UnreadableFile, open_shards, read_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of one file. `documents`: its rows that pass the filter, of which `duplicates` (by their ordinal
    among them) repeat an id that stands earlier in the source; `only`, when given, are the ordinals to read.
    `problem`: why even its ids cannot be read; all its rows are documents then. `start`: its first document's place in
    the corpus."""

    url: str
    index: int
    first_row: int
    rows: int
    documents: int
    duplicates: Sequence[int] = ()
    only: Sequence[int] | None = None
    problem: str | None = None
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A readable file, for the manifest and the ledger."""

    url: str
    size: int
    etag: str
    rows: int
    version: str = ""
    row_groups: int = 0
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A source as one run sees it. `ids`: a hash (S16) of every document's id in order, zeros for a null; `asked`: of
    row groups, by (url, index), the record of an earlier run that asked for all that this one asks for."""

    files: list[SourceFile]
    unreadable: list[UnreadableFile]
    row_groups: list[RowGroup]
    carry: pa.Schema
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, KEY))
    asked: Mapping[tuple[str, int], Record] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Documents that pass the filter, duplicates included."""
        return sum(group.documents for group in self.row_groups)

    @property
    def bytes(self) -> int:
        """Size of the readable files."""
        return sum(file.size for file in self.files)

    def ids_of(self, group: RowGroup) -> np.ndarray:
        """The hashes of one row group's ids."""
        return self.ids[group.start : group.start + group.documents]


def scan(
    source: SourceSpec,
    also: Iterable[str] = (),
    key: str = "source",
    reserved: Iterable[str] = OUTPUT.names,
    recall: Callable[[Sequence[FileInfo]], Mapping[str, KnownFile]] = lambda listed: {},
) -> Corpus:
    """List the source, read its footers and its ids; SourceError names what does not fit the job.

    `also`: columns that must be there besides the source's own; `key`: what the job file calls this source; `reserved`:
    names that a carried column may not have; `recall`: what is known already of the listed files.
    Costs one listing and, of what is not known, a footer per file and the id (and filter) columns. A file that is no
    Parquet is reported, not raised, as long as another one is.
    """
    try:
        listed = expand(source.path)
    except StorageError as error:
        raise SourceError(f"{key}.path: {error}") from error
    if not listed:
        raise SourceError(f"{key}.path: no Parquet file (.parquet, .parq, .pq) under {source.path}")
    known = recall(listed)
    shards, unreadable = open_shards(source, listed, known)
    if not shards:
        raise SourceError(f"{unreadable[0].url}: {unreadable[0].reason}")
    # A corpus of many files has few schemas: each is looked at once, in its first file.
    schemas = list({id(shard.schema): (shard.file.url, shard.schema) for shard in reversed(shards)}.values())[::-1]
    check_columns(source, schemas, tuple(also))
    carry = carried_schema(source, schemas, reserved)
    read_ids(source, shards)
    row_groups, ids = _with_duplicates(shards)
    return Corpus(
        files=[
            SourceFile(
                url=shard.file.url,
                size=shard.file.size,
                etag=shard.file.etag,
                rows=sum(shard.rows),
                version=shard.file.version,
                row_groups=len(shard.rows),
                schema=shard.schema,
            )
            for shard in shards
        ],
        unreadable=unreadable,
        row_groups=row_groups,
        carry=carry,
        ids=ids,
        asked={(url, index): record for url, file in known.items() for index, record in file.asked.items()},
    )


def sample(corpus: Corpus, count: int) -> list[RowGroup]:
    """`count` documents spread evenly over the corpus, as row groups that read only these."""
    total = corpus.documents
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)) if total else np.empty(0)
    groups, start = [], 0
    for group in corpus.row_groups:
        inside = chosen[(chosen >= start) & (chosen < start + group.documents)] - start
        if len(inside):
            groups.append(replace(group, only=tuple(inside.tolist())))
        start += group.documents
    return groups


def _with_duplicates(shards: Sequence[Shard]) -> tuple[list[RowGroup], np.ndarray]:
    """Every row group with its document count and its repeated ids, in the source's order, and all ids."""
    groups, start = [], 0
    for shard in shards:
        first = 0
        for index, rows in enumerate(shard.rows):
            documents, problem = len(shard.ids[index]), shard.problems.get(index)
            groups.append(
                RowGroup(
                    url=shard.file.url,
                    index=index,
                    first_row=first,
                    rows=rows,
                    documents=documents,
                    problem=problem,
                    start=start,
                )
            )
            first, start = first + rows, start + documents
    ids = np.concatenate([np.empty(0, KEY), *(shard.ids.pop(i) for shard in shards for i in range(len(shard.rows)))])
    repeated = np.flatnonzero(_repeated(ids))
    bounds = np.searchsorted(repeated, [group.start for group in groups] + [len(ids)])
    for n in np.flatnonzero(np.diff(bounds)).tolist():
        inside = repeated[bounds[n] : bounds[n + 1]] - groups[n].start
        groups[n] = replace(groups[n], duplicates=tuple(inside.tolist()))
    return groups, ids


def _repeated(ids: np.ndarray) -> np.ndarray:
    """For every id in order: whether it stood earlier. Null ids are no repetition: each is rejected by itself."""
    order = order_of(ids)
    ordered = ids[order]
    repeated = np.zeros(len(ids), bool)
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != b"")
    return repeated
