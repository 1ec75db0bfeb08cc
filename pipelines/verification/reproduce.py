"""Some ok rows made again from their lineage (model, task, source row), and their texts compared."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.storage import Location, Problem, StorageError, stage_model
from model_runtime import EngineConfig, ModelError
from model_runtime.folder import model_revision, resolve_checkpoint
from model_runtime.processing import Processor
from workers.collect import RunContext, collect
from workers.generate import Generate
from workers.image_reader import ImageReader
from workers.inputs import Inputs
from workers.prepare import OK, PENDING, Prepare
from workers.tasks import Task, resolve_tasks

from ..job import JobSpec
from ..keys import KEY, find, keys_of
from ..resolve import task_table
from ..schema import OUTPUT
from .documents import SourceReader, only_row
from .report import Check

# What a row of float32 must have in common with its twin; int8 and bfloat16 depend on what was computed together.
_EXACT = "float32"
_COMPARED = ("text", "finish_reason", "output_tokens", "input_tokens", "truncated")


class Sample:
    """N of the ok rows that go by, always the same for one seed, however the table's files are cut."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._turn = np.uint64(seed * 0x9E3779B97F4A7C15 % (1 << 64))
        self._scores = np.empty(0, np.uint64)
        self.rows: list[dict[str, Any]] = []

    def take(self, rows: pa.Table, keys: pa.ChunkedArray, zone: str, file: int) -> None:
        """Rows of the table."""
        if zone != "results" or not len(rows):
            return
        scores = self._score(keys_of(keys))
        best = np.argsort(scores, kind="stable")[: self._count]
        if len(self.rows) == self._count:
            best = best[scores[best] < self._scores[-1]]
        if not len(best):
            return
        joined = np.concatenate((self._scores, scores[best]))
        order = np.argsort(joined, kind="stable")[: self._count]
        both = self.rows + rows.select(OUTPUT.names).take(pa.array(best)).to_pylist()
        self._scores, self.rows = joined[order], [both[i] for i in order]

    def _score(self, keys: np.ndarray) -> np.ndarray:
        # The keys are hashes; multiplied with what the seed says, they give another order for each seed.
        halves = np.frombuffer(np.ascontiguousarray(keys).tobytes(), np.uint64).reshape(-1, 2)
        mixed = (halves[:, 0] ^ self._turn) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB) ^ halves[:, 1]


@dataclass(frozen=True, slots=True)
class _Only:
    """A table that holds everything but the keys to make again."""

    wanted: np.ndarray = field(default_factory=lambda: np.empty(0, KEY))

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As workers.prepare.DoneLookup."""
        states = np.where(find(self.wanted, keys)[0], PENDING, OK)
        return states.astype(np.int8), np.zeros(len(keys), np.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """A run's model and tasks, found again."""

    job: JobSpec
    folder: Path
    revision: str
    tasks: tuple[Task, ...]

    @classmethod
    def of(cls, job: JobSpec) -> _Maker:
        folder = resolve_checkpoint(stage_model(job.model.path, job.model.revision), job.model.revision)
        tasks = resolve_tasks(job.tasks, task_table(folder, Processor.load(folder)), job.limits)
        return cls(job=job, folder=folder, revision=model_revision(folder), tasks=tasks)

    def make(self, rows: Sequence[Mapping[str, Any]], table: pa.Table) -> dict[str, dict[str, Any]]:
        """By key: `rows` (of one backend and dtype) made again from their source rows, `table`."""
        keys = np.sort(np.frombuffer(b"".join(bytes.fromhex(row["key"]) for row in rows), KEY))
        job, tasks = self.job, self.tasks
        prepare = Prepare(
            Inputs(str(self.folder), tasks, job.limits),
            tasks,
            job.limits,
            self.revision,
            _Only(keys),
            ImageReader(job.source.path, job.source.image_roots),
        )
        backend, dtype = str(rows[0]["backend"]), str(rows[0]["dtype"])
        engine = EngineConfig(
            model=str(self.folder),
            backend=backend,
            device=job.model.device,
            dtype=dtype,
            max_batch_tokens=job.model.max_batch_tokens,
            max_decodes=job.model.max_decodes,
            shares_cores=True,  # with whatever else this machine does
        )
        context = RunContext(
            run_id="", job=job.name, model=job.model.path, model_revision=self.revision, backend=backend,
            runtime_version="", tasks=tasks,
        )  # fmt: skip
        generate = Generate(engine, tasks)
        try:
            with warnings.catch_warnings():
                # Pixels are read where they lie, and nobody writes to them.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                made = collect(generate(prepare(table)), context, Processor.load(self.folder), OUTPUT)
        finally:
            generate.close()
        return {row["key"]: row for row in made.to_pylist()}


def check_again(rows: Sequence[dict[str, Any]], jobs: Mapping[str, JobSpec | str], check: Check, say: Callable) -> None:
    """Makes sampled rows again, run by run, in this process, and compares; only float32 rows must be equal."""
    check.saw("rows sampled", len(rows))
    likenesses: list[float] = []
    for n, (run, mine) in enumerate(_by(rows, "run_id"), start=1):
        say(f"making {len(mine)} rows of run {run} again ({n})")
        job = jobs.get(run, "its run has no manifest")
        if isinstance(job, str):
            check.left_out(f"{len(mine):,} sampled rows of run {run} were not made again: {job}")
            continue
        try:
            for row, again in _pairs(_Maker.of(job), mine, check):
                likenesses.append(_compare(row, again, check))
        except (ModelError, StorageError) as error:
            if isinstance(error, StorageError) and error.problem is not Problem.MISSING:
                raise
            check.left_out(f"{len(mine):,} sampled rows of run {run} were not made again: {error}")
    if rows and not likenesses:
        check.left_out("none of the sampled rows could be made again")
    others = [likeness for likeness in likenesses if likeness < 1]
    if others:
        mean = sum(others) / len(others)
        check.note(f"texts that differ are alike by {mean:.0%} on average", (), len(others))


def _pairs(maker: _Maker, rows: list[dict[str, Any]], check: Check) -> Iterator[tuple[dict, dict]]:
    fitting = []
    fingerprints = {task.fingerprint for task in maker.tasks}
    for row in rows:
        if row["model_revision"] != maker.revision:
            check.note("not made again: the model at its path is another now", row["key"])
        elif row["task_fingerprint"] not in fingerprints:
            check.note("not made again: the job file makes another task of it now", row["key"])
        else:
            fitting.append(row)
    reader = SourceReader.of(maker.job.source)
    for _, same in _by(fitting, "backend", "dtype"):
        sources = [_source_of(reader, row) for row in same]
        tables = [table for table in sources if table is not None]
        # Each document once: two tasks of it may be in the sample.
        places = {(t.column("source_path")[0].as_py(), t.column("source_row")[0].as_py()): t for t in tables}
        made = maker.make(same, pa.concat_tables(places.values())) if places else {}
        for row in same:
            if row["key"] in made:
                yield row, made[row["key"]]
            else:
                check.note("not made again: the source has changed since", row["key"])


def _source_of(reader: SourceReader, row: Mapping[str, Any]) -> pa.Table | None:
    file = reader.listed().get(row["source_path"]) or Location(row["source_path"]).info()
    groups = None if file is None else reader.row_groups(file.url)
    tables = [table for table in reader.tables(only_row(groups or (), row["source_row"])) if len(table)]
    return tables[0] if tables else None


def _compare(row: Mapping[str, Any], again: Mapping[str, Any], check: Check) -> float:
    """How alike the two texts are, from 0 to 1; what differs goes into the check."""
    check.saw("rows made again")
    differing = [name for name in _COMPARED if row[name] != again[name]]
    if again["status"] != "ok":
        differing = ["status"]
    if not differing:
        check.saw("rows equal")
        return 1.0
    line = f"{row['key']}: {', '.join(differing)} of {row['task']} of document {row['document_id']}"
    if row["dtype"] == _EXACT:
        check.wrong("a float32 row comes out otherwise", line)
    else:
        check.note(f"{row['dtype']} rows may differ by what they were computed with, and do", line)
    return SequenceMatcher(None, row["text"] or "", again["text"] or "", autojunk=False).ratio()


def _by(rows: Sequence[dict[str, Any]], *names: str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    def key(row: dict[str, Any]) -> Any:
        values = tuple(str(row[name]) for name in names)
        return values if len(values) > 1 else values[0]

    for value, group in itertools.groupby(sorted(rows, key=key), key):
        yield value, list(group)
