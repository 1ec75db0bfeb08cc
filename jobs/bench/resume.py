"""Figure `resume`: seconds and peak driver memory of planning a run over a table where every key is already done."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import usable_cores
from infra.storage import Location
from pipelines.job import JobSpec
from workers.tasks import Task, row_key

from .machine import describe, today, versions
from .memory import peak
from .types import Figure, Settings, Value

KEYS = (1_000_000, 10_000_000)
DEMO_KEYS = (20_000,)
_FILE_ROWS = 1_000_000
_GROUP_ROWS = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One way of finding out that nothing is left to do: how long it took, what its process held, what it found."""

    seconds: float
    peak_bytes: int
    done: int
    todo: int


def measure_resume(settings: Settings) -> Iterator[Figure]:
    """For each number of keys: the index of what is done read back by itself, and a whole plan of the job, which reads
    the source and looks up every pair.

    Each runs in a new process whose peak of memory counts, the interpreter's and its libraries' own included.
    ValueError when not every key is found.
    """
    tasks = settings.tasks[0] if settings.tasks else 4
    for keys in KEYS if settings.size != "demo" else DEMO_KEYS:
        with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
            documents = -(-keys // tasks)
            job = make_table(settings.model, Path(scratch), documents, tasks)
            settings.say(f"resume: a table of {documents * tasks:,} keys is made")
            found: dict[str, list[Planned]] = {"index": [], "plan": []}
            for _ in range(settings.repeat):
                for way, results in found.items():
                    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                        planned = pool.submit(_WAYS[way], job).result()
                    if (planned.done, planned.todo) != (documents * tasks, 0):
                        raise ValueError(
                            f"{way} found {planned.done:,} of {documents * tasks:,} keys and {planned.todo:,} to do"
                        )
                    results.append(planned)
                    settings.say(f"resume: {way} {planned.seconds:.1f} s, {planned.peak_bytes >> 20:,} MiB")
        yield Figure(
            name="resume",
            work={"keys": documents * tasks, "documents": documents},
            unit="s",
            better="lower",
            values=tuple(
                Value(
                    peer=way,
                    samples=tuple(planned.seconds for planned in results),
                    extra={"peak_mib": max(planned.peak_bytes for planned in results) / 2**20},
                )
                for way, results in found.items()
            ),
            checks={"keys_found": found["plan"][0].done, "to_do": found["plan"][0].todo},
            device=describe("cpu", usable_cores()),
            date=today(),
            versions=versions(),
        )


def make_table(model: Path, folder: Path, documents: int, tasks: int) -> JobSpec:
    """A source of short documents, and the table that a finished run of the job over it would have left."""
    from pipelines.read import Read, as_units
    from pipelines.resolve import resolve
    from workers.documents import read_document

    source = folder / "source"
    source.mkdir(parents=True)
    for start in range(0, documents, _FILE_ROWS):
        numbers = range(start, min(start + _FILE_ROWS, documents))
        table = pa.table(
            {"id": [f"doc-{n:09d}" for n in numbers], "body": [f"The text of document {n}." for n in numbers]}
        )
        pq.write_table(table, source / f"part-{start:09d}.parquet", row_group_size=_GROUP_ROWS)
    job = JobSpec.model_validate(
        {
            "name": "bench-resume",
            "model": {"path": str(model), "device": "cpu"},
            "source": {"path": str(source), "id": "id", "text": "body"},
            "tasks": [{"name": f"t{i}", "kind": "prompt", "prompt": f"Task {i}:"} for i in range(tasks)],
            "output": {"path": str(folder / "table")},
        }
    )
    resolved = resolve(job)
    writer = _Results(Path(job.output.path), resolved.tasks, resolved.revision)
    for rows in Read(job.source, resolved.carry)(as_units(resolved.corpus.row_groups)):
        for batch in rows.to_batches():
            for i in range(batch.num_rows):
                document = read_document(batch, i, _no_image, 0)
                assert document.id is not None and document.sha256 is not None
                writer.add(document.id, document.sha256)
    writer.close()
    return job


class _Results:
    """The results files of each task, written as their rows come."""

    def __init__(self, table: Path, tasks: Sequence[Task], revision: str) -> None:
        self._table = table
        self._tasks = tasks
        self._revision = revision
        self._ids: list[str] = []
        self._sums: list[str] = []
        self._files = 0

    def add(self, document_id: str, sha256: str) -> None:
        self._ids.append(document_id)
        self._sums.append(sha256)
        if len(self._ids) == _FILE_ROWS:
            self.close()

    def close(self) -> None:
        from pipelines.keys import KEY, hex_of
        from pipelines.schema import output_schema
        from pipelines.table import TableFile, footer_keys

        schema = output_schema(pa.schema([]))
        for task in self._tasks:
            keys = [row_key(i, s, task.fingerprint, self._revision) for i, s in zip(self._ids, self._sums, strict=True)]
            given = {
                "key": hex_of(np.frombuffer(b"".join(keys), KEY)),
                "document_id": pa.array(self._ids),
                "document_sha256": pa.array(self._sums),
                "text": pa.array([f"An answer about {i}." for i in self._ids]),
                "attempt": pa.array(np.ones(len(keys), np.int32)),
            }
            same = {"task": task.name, "kind": task.kind, "status": "ok", "task_fingerprint": task.fingerprint}
            columns = [
                given[field.name]
                if field.name in given
                else pa.repeat(pa.scalar(same.get(field.name), field.type), len(keys))
                for field in schema
            ]
            path = self._table / "results" / task.name / f"bench-{self._files:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = pa.Table.from_arrays(columns, schema=schema)
            with TableFile(path, schema, footer_keys("bench")) as file:
                for start in range(0, len(rows), _GROUP_ROWS):
                    file.write(rows.slice(start, _GROUP_ROWS))
        self._files += 1
        self._ids, self._sums = [], []


def _no_image(path: str, source_path: str) -> tuple[bytes, str]:
    raise AssertionError("these documents have no images")


def _read_index(job: JobSpec) -> Planned:
    from pipelines.resume import read_done

    started = time.perf_counter()
    done = read_done(Location(job.output.path))
    return Planned(seconds=time.perf_counter() - started, peak_bytes=peak(), done=len(done), todo=0)


def _plan(job: JobSpec) -> Planned:
    from pipelines.plan import plan_job

    started = time.perf_counter()
    report = plan_job(job)
    seconds = time.perf_counter() - started
    done = sum(counts.already_ok for counts in report.tasks.values())
    return Planned(seconds=seconds, peak_bytes=peak(), done=done, todo=sum(report.todo.values()))


_WAYS = {"index": _read_index, "plan": _plan}
