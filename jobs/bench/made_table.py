"""A source, and the table and the ledger that a finished run over it would have left, made without the model."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from infra.storage import Location
from pipelines.job import JobSpec
from pipelines.keys import KEY, hex_of
from pipelines.ledger import LedgerWriter
from pipelines.lineage import new_run_id, write_manifest
from pipelines.resolve import Resolved, resolve
from pipelines.resume import OK
from pipelines.schema import output_schema
from pipelines.source import RowGroup
from pipelines.stages import OUTCOME
from pipelines.table import TableFile, footer_keys

_GROUP_ROWS = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How much of everything: rows of a source file, of one of its row groups, and of a file of results."""

    documents: int
    tasks: int
    shard_rows: int = 1_000_000
    group_rows: int = _GROUP_ROWS
    file_rows: int = 1_000_000

    @property
    def keys(self) -> int:
        """Pairs in the table."""
        return self.documents * self.tasks


class CountedFiles(LocalFileSystem):
    """Local files under `counted://`, whose bytes read in this process are counted."""

    protocol = "counted"
    read = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(os.fspath(path).removeprefix("counted://"))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _Counted(self._strip_protocol(path), mode)

    @classmethod
    def register(cls) -> None:
        """Makes the scheme known to this process, and counts from nothing."""
        fsspec.register_implementation("counted", cls, clobber=True)
        CountedFiles.read = 0


class _Counted(io.FileIO):
    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        CountedFiles.read += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        CountedFiles.read += size
        return size


def make_job(model: Path, folder: Path, tasks: int, counted: bool) -> JobSpec:
    """The job over `folder`; `counted`: its source's bytes are counted as they are read."""
    source = f"counted://{folder / 'source'}" if counted else str(folder / "source")
    return JobSpec.model_validate(
        {
            "name": "bench-resume",
            "model": {"path": str(model), "device": "cpu"},
            "source": {"path": source, "id": "id", "text": "body"},
            "tasks": [{"name": f"t{i}", "kind": "prompt", "prompt": f"Task {i}:"} for i in range(tasks)],
            "output": {"path": str(folder / "table")},
        }
    )


def make_source(folder: Path, made: Made) -> int:
    """Shards of short documents below `folder`; their bytes."""
    source, size = folder / "source", 0
    source.mkdir(parents=True)
    old = time.time() - 60
    for start in range(0, made.documents, made.shard_rows):
        numbers = pa.array(np.arange(start, min(start + made.shard_rows, made.documents))).cast(pa.string())
        columns = {
            "id": pc.binary_join_element_wise("doc", numbers, "-"),
            "body": pc.binary_join_element_wise("The text of document", numbers, " "),
        }
        path = source / f"part-{start:09d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=made.group_rows)
        # A store that only tells times is not believed of files as young as these.
        os.utime(path, (old, old))
        size += path.stat().st_size
    return size


def make_table(job: JobSpec, made: Made) -> Resolved:
    """The results of every pair and the ledger of the run that made them; what the run had resolved.

    The keys are random, not hashes of their documents: were one row group read again, all its pairs would be to do.
    """
    resolved = resolve(job)
    table, run_id = Location(job.output.path), new_run_id()
    results = _Results(Path(job.output.path), resolved, made.file_rows)
    generator = np.random.default_rng(0)
    groups = resolved.corpus.row_groups
    with LedgerWriter(table, run_id, resolved.corpus, groups, resolved.decides) as ledger:
        ledger.refer([])
        for some in _blocks(groups):
            documents = sum(group.documents for group in some)
            keys_DT = np.frombuffer(generator.bytes(KEY.itemsize * documents * made.tasks), KEY)
            keys_DT = keys_DT.reshape(documents, made.tasks)
            ledger.add(_outcomes(some, keys_DT))
            results.add(keys_DT)
    results.close()
    write_manifest(table, run_id, {"run_id": run_id, "exit": 0})
    return resolved


def _blocks(groups: Sequence[RowGroup]) -> Iterator[list[RowGroup]]:
    """Row groups, so many together that they are a block of outcomes."""
    block: list[RowGroup] = []
    documents = 0
    for group in groups:
        block.append(group)
        documents += group.documents
        if documents >= _GROUP_ROWS:
            yield block
            block, documents = [], 0
    if block:
        yield block


def _outcomes(groups: Sequence[RowGroup], keys_DT: np.ndarray) -> pa.Table:
    """What the graph says of documents whose pairs were all made."""
    documents, tasks = keys_DT.shape
    pair = OUTCOME.field("pairs").type.value_type
    given = {
        "task": pa.array(np.tile(np.arange(tasks, dtype=np.int16), documents)),
        "key": pa.Array.from_buffers(pa.binary(16), keys_DT.size, [None, pa.py_buffer(keys_DT.tobytes())]),
        "state": pa.array(np.full(keys_DT.size, OK, np.int8)),
        "made": pa.array(np.ones(keys_DT.size, bool)),
    }
    pairs = pa.StructArray.from_arrays(
        [given.get(field.name, pa.nulls(keys_DT.size, field.type)) for field in pair], fields=list(pair)
    )
    urls = pa.array([group.url for group in groups])
    counts = [group.documents for group in groups]
    offsets = pa.array(np.arange(documents + 1, dtype=np.int32) * tasks)
    columns = {
        "pairs": pa.ListArray.from_arrays(offsets, pairs),
        "not_applicable": pa.array([()] * documents, pa.list_(pa.int16())),
        "source_path": urls.take(pa.array(np.repeat(np.arange(len(groups)), counts))),
        "source_row": pa.array(np.concatenate([np.arange(g.first_row, g.first_row + g.rows) for g in groups])),
        "identified": pa.array(np.ones(documents, bool)),
        "refers": pa.array(np.zeros(documents, bool)),
    }
    return pa.table(
        {field.name: columns.get(field.name, pa.nulls(documents, field.type)) for field in OUTCOME}, schema=OUTCOME
    )


class _Results:
    """The results files of each task, written as their rows come."""

    def __init__(self, table: Path, resolved: Resolved, file_rows: int) -> None:
        self._table = table
        self._tasks = resolved.tasks
        self._file_rows = file_rows
        self._keys: list[np.ndarray] = []
        self._rows = self._files = 0

    def add(self, keys_DT: np.ndarray) -> None:
        """Takes the keys of some documents."""
        while len(keys_DT):
            fits = keys_DT[: self._file_rows - self._rows]
            self._keys.append(fits)
            self._rows += len(fits)
            keys_DT = keys_DT[len(fits) :]
            if self._rows == self._file_rows:
                self.close()

    def close(self) -> None:
        """Writes what is there."""
        if self._rows:
            keys_DT = np.concatenate(self._keys)
            for t, task in enumerate(self._tasks):
                self._write(t, {"task": task.name, "kind": task.kind, "task_fingerprint": task.fingerprint}, keys_DT)
            self._files += 1
            self._keys, self._rows = [], 0

    def _write(self, t: int, named: dict[str, str], keys_DT: np.ndarray) -> None:
        schema, rows = output_schema(pa.schema([])), len(keys_DT)
        numbers = pa.array(np.arange(rows) + self._files * self._file_rows).cast(pa.string())
        given = {
            "key": hex_of(np.ascontiguousarray(keys_DT[:, t])),
            "document_id": pc.binary_join_element_wise("doc", numbers, "-"),
            "text": pc.binary_join_element_wise("An answer about document", numbers, " "),
            "attempt": pa.array(np.ones(rows, np.int32)),
        }
        same = {**named, "status": "ok"}
        columns = [
            given[field.name] if field.name in given else pa.repeat(pa.scalar(same.get(field.name), field.type), rows)
            for field in schema
        ]
        path = self._table / "results" / named["task"] / f"bench-{self._files:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = pa.Table.from_arrays(columns, schema=schema)
        with TableFile(path, schema, footer_keys("bench")) as file:
            for start in range(0, rows, _GROUP_ROWS):
                file.write(whole.slice(start, _GROUP_ROWS))
