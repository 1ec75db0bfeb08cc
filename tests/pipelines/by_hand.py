"""A run's bookkeeping without Ray and without a model: the same scan, keys, rows, ledger and publisher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.storage import Location
from pipelines import lineage
from pipelines.job import SourceSpec
from pipelines.known import Decides, recall
from pipelines.ledger import LedgerWriter, decides
from pipelines.publish import Publisher, write_work
from pipelines.read import Read, as_units
from pipelines.resume import FAILED, OK, REJECTED, STATUS_NAMES, read_done
from pipelines.schema import output_schema
from pipelines.skip import Skip, skip_done
from pipelines.source import Corpus, scan
from pipelines.stages import OUTCOME, refers
from pipelines.tally import Tally
from workers.documents import read_document
from workers.prepare import MAX_ATTEMPTS
from workers.tasks import LimitsSpec, Task, TaskSpec, TaskTable, applies, location_key, resolve_tasks, row_key

SUMMARY = {"name": "summary", "kind": "summarize"}
CAPTION = {"name": "alt", "kind": "caption"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job file says, as far as the bookkeeping goes."""

    table: Location
    source: SourceSpec
    specs: tuple[TaskSpec, ...]
    revision: str = "r1"

    @classmethod
    def make(cls, folder: Path, tasks: Sequence[dict] = (SUMMARY,), revision: str = "r1", **source: Any) -> Job:
        given = {"path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photos", **source}
        return cls(
            table=Location(str(folder / "table")),
            source=SourceSpec.model_validate(given),
            specs=tuple(TaskSpec.model_validate(task) for task in tasks),
            revision=revision,
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        return resolve_tasks(self.specs, TaskTable.parse(None), LimitsSpec())

    @property
    def decides(self) -> Decides:
        return decides(self.source, self.tasks, [spec.where for spec in self.specs], self.revision)

    def scan(self) -> Corpus:
        return scan(self.source, recall=lambda listed: recall(self.table, self.decides, listed))

    def skip(self, corpus: Corpus, retry_failed: bool = False) -> Skip:
        names = [task.name for task in self.tasks]
        return skip_done(self.table, corpus, corpus.row_groups, names, read_done(self.table), retry_failed)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a run did: `made` are the (document id, task) pairs it ended, `read` the files' row groups it read."""

    run_id: str
    tally: Tally
    made: list[tuple[str | None, str]]
    read: list[tuple[str, int]]


def run(
    job: Job,
    *,
    status: Callable[[str | None, str], int] = lambda document, task: OK,
    retry_failed: bool = False,
    piece: int = 2,
    end: bool = True,
    part_pairs: int = 5,
    meanwhile: Callable[[], object] = lambda: None,
) -> Ran:
    """One run; `meanwhile` is called before the ledger is closed. Not `end`: killed then, its rows in `_work/`."""
    run_id = lineage.new_run_id()
    lineage.write_manifest(job.table, run_id, {"run_id": run_id, "exit": None})
    corpus = job.scan()
    skip = job.skip(corpus, retry_failed)
    tally = Tally(tasks=[task.name for task in job.tasks], documents_total=corpus.documents)
    tally.skip(skip)
    made: list[tuple[str | None, str]] = []
    ledger = LedgerWriter(job.table, run_id, corpus, skip.groups, job.decides, part_pairs=part_pairs)
    ledger.refer(skip.records)
    reader = Read(job.source, corpus.carry, [spec.where for spec in job.specs])
    pieces = [t.slice(i, piece) for t in reader(as_units(skip.groups)) for i in range(0, t.num_rows, piece)]
    # Every other piece first: blocks of several row groups come in between each other.
    for rows in [*pieces[::2], *pieces[1::2]]:
        outcomes, written = outcomes_of(job, rows, skip, run_id, status, retry_failed)
        made += [(row["document_id"], row["task"]) for row in written]
        if written:
            write_work(job.table, run_id, pa.Table.from_pylist(written, schema=output_schema(corpus.carry)))
        tally.add(outcomes)
        ledger.add(outcomes)
    meanwhile()
    if end:
        ledger.flush()
        publisher = Publisher(job.table, run_id, "h", output_schema(corpus.carry), tally.tasks)
        publisher.publish(final=True)
        lineage.write_manifest(job.table, run_id, {"run_id": run_id, "exit": 0})
    read = [(Path(group.url).name, group.index) for group in skip.groups]
    return Ran(run_id=run_id, tally=tally, made=made, read=read)


def outcomes_of(
    job: Job, rows: pa.Table, skip: Skip, run_id: str, status: Callable, retry_failed: bool
) -> tuple[pa.Table, list[dict]]:
    """What becomes of some source rows, as the graph would say it, and the rows that it would make durable."""
    away = refers(rows.column("images")).to_pylist()
    outcomes, written = [], []
    (batch,) = rows.combine_chunks().to_batches()
    for i in range(batch.num_rows):
        document = read_document(batch, i, lambda path, source: (path.encode(), "etag"), 8)
        pairs = list(_pairs(job, document, skip, status, retry_failed))
        outcomes.append(
            {
                "pairs": [pair for pair, _ in pairs],
                "not_applicable": [t for t in range(len(job.tasks)) if t not in {p["task"] for p, _ in pairs}],
                "source_path": document.source_path,
                "source_row": document.source_row,
                "identified": document.sha256 is not None,
                "refers": away[i],
                "input_tokens": 0,
                "output_tokens": 0,
            }
        )
        written += [
            {
                "key": pair["key"].hex(),
                "document_id": document.id,
                "task": job.tasks[pair["task"]].name,
                "kind": "summarize",
                "status": STATUS_NAMES[pair["state"]],
                "text": "made" if pair["state"] == OK else None,
                "error_code": pair["error_code"],
                "source_path": document.source_path,
                "source_row": document.source_row,
                "attempt": attempt,
                "run_id": run_id,
                "created_at": datetime.now(UTC),
            }
            for pair, attempt in pairs
            if pair["made"]
        ]
    return pa.Table.from_pylist(outcomes, schema=OUTCOME), written


def _pairs(job: Job, document: Any, skip: Skip, status: Callable, retry_failed: bool) -> Iterator[tuple[dict, int]]:
    has = {"has_text": document.has_text, "has_image": document.image_count > 0}
    for t, task in enumerate(job.tasks):
        if t in document.not_asked or not (document.unread or applies(task.kind, **has)):
            continue
        if document.id is None or document.sha256 is None:
            key = location_key(document.source_path, document.source_row, task.fingerprint, job.revision)
        else:
            key = row_key(document.id, document.sha256, task.fingerprint, job.revision)
        found, attempts = skip.done.lookup(pa.array([key]).to_numpy(zero_copy_only=False).astype("S16"))
        state, tried = int(found[0]), int(attempts[0])
        made = state == 0 or (state == FAILED and (retry_failed or tried < MAX_ATTEMPTS))
        code = None
        if made:
            state = REJECTED if document.error is not None else status(document.id, task.name)
            code = {OK: None, FAILED: "engine_crash"}.get(state, document.error and str(document.error.code))
        yield {"task": t, "key": key, "state": state, "made": made, "error_code": code}, tried + made
