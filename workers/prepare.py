"""Documents → encoder requests, on the CPU: what is done drops out, what cannot work is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from .documents import Document, ImageReader, read_document
from .inputs import Work, Worker
from .tasks import LimitsSpec, Task, applies, location_key, row_key

__all__ = ["FAILED", "OK", "PENDING", "REJECTED", "DoneLookup", "ImageReader", "Prepare", "prepared_schema"]

# A pair's state in the output table, as DoneLookup reports it.
PENDING, OK, REJECTED, FAILED = 0, 1, 2, 3

# A failed pair is tried so often, then it is final.
MAX_ATTEMPTS = 3

# Image bytes held while the keys of several documents are looked up together.
_HELD_BYTES = 64 << 20

_PASSED_ON = ("source_path", "source_row", "carry")

_PAIR = pa.struct(
    [
        ("task", pa.int16()),
        ("key", pa.binary(16)),
        ("state", pa.int8()),
        ("attempt", pa.int32()),
        ("request", pa.int16()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
_REQUEST = pa.struct(
    [
        ("input_ids", pa.binary()),
        ("truncated", pa.bool_()),
        ("input_tokens", pa.int32()),
        ("tasks", pa.list_(pa.int16())),
    ]
)


class DoneLookup(Protocol):
    """What the output table already holds."""

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For keys (dtype S16): their states (int8: PENDING, OK, REJECTED, FAILED) and attempts so far (int16)."""
        ...


def prepared_schema(carry: pa.DataType) -> pa.Schema:
    """What Prepare yields: one row per document; `carry` is the struct type of the carried columns.

    pairs: one per task that applies. `state` PENDING with an `error_code`: this run rejects or fails it. PENDING
    without: `request` is its place in `requests`. Other states: already there, nothing to do. `attempt` is the one
    that this run makes, from 1; for a pair already there, the last one made.
    requests: `input_ids` are int32, little endian; `tasks` are the tasks that decode from this encoding.
    pixels: uint8 [images, 3, S, S], null when there is no image or nothing to do.
    """
    return pa.schema(
        [
            ("document_id", pa.string()),
            ("source_path", pa.string()),
            ("source_row", pa.int64()),
            ("document_sha256", pa.string()),
            ("image_count", pa.int32()),
            ("carry", carry),
            ("pairs", pa.list_(_PAIR)),
            ("not_applicable", pa.list_(pa.int16())),
            ("requests", pa.list_(_REQUEST)),
            ("pixels", pa.large_binary()),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A task that applies to a document: its index, its key, and what the table says of it."""

    task: int
    key: bytes
    state: int = PENDING
    attempts: int = 0


class Prepare:
    """A batch of source rows (pipelines.schema.source_schema) → a batch of `prepared_schema`.

    Never raises for a document: what goes wrong with one becomes its pairs' error. `work` opens images and tokenizes,
    here or in a process of its own (workers.inputs, workers.inputs_client).
    """

    def __init__(
        self,
        work: Worker,
        tasks: tuple[Task, ...],
        limits: LimitsSpec,
        model_revision: str,
        done: DoneLookup,
        image_reader: ImageReader,
        retry_failed: bool = False,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._work = work
        self._tasks = tasks
        self._limits = limits
        self._revision = model_revision
        self._done = done
        self._read_image = image_reader
        self._retry_failed = retry_failed
        self._max_attempts = max_attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        """One output row per row of `table`, in its order; ModelError when the model folder cannot be used."""
        schema = prepared_schema(table.schema.field("carry").type)
        rows = [row for group in self._groups(table) for row in self._finish(group)]
        columns = {
            name: table.column(name).cast(schema.field(name).type)
            if name in _PASSED_ON
            else pa.array([row[name] for row in rows], schema.field(name).type)
            for name in schema.names
        }
        return pa.table(columns, schema=schema)

    def _groups(self, table: pa.Table) -> Iterator[list[Document]]:
        """All documents in order, in groups that hold a bounded amount of image bytes (or are one document)."""
        group: list[Document] = []
        held = 0
        for batch in table.to_batches():
            for i in range(batch.num_rows):
                document = read_document(batch, i, self._read_image, self._limits.max_images)
                group.append(document)
                held += sum(len(image.data or b"") for image in document.images)
                if held > _HELD_BYTES:
                    yield group
                    group, held = [], 0
        if group:
            yield group

    def _finish(self, group: list[Document]) -> Iterator[dict[str, Any]]:
        looked_up = self._looked_up([self._pairs(document) for document in group])
        todo = [[pair.task for pair in pairs if self._is_todo(pair)] for pairs in looked_up]
        works = self._worked(group, todo)
        for document in group:
            document.images = []  # not needed any more, and not small
        for parts in zip(group, looked_up, todo, works, strict=True):
            yield self._row(*parts)

    def _worked(self, group: list[Document], todo: list[list[int]]) -> list[Work]:
        """Each document's work; those with nothing to do, or known for an error, are not asked for."""
        works = [Work(errors=dict.fromkeys(tasks, d.error) if d.error else {}) for d, tasks in zip(group, todo)]
        asked = [i for i, document in enumerate(group) if todo[i] and document.error is None]
        for i, work in zip(asked, self._work([(group[i], todo[i]) for i in asked]), strict=True):
            works[i] = work
        return works

    def _pairs(self, document: Document) -> list[_Pair]:
        has = {"has_text": document.has_text, "has_image": document.image_count > 0}
        return [
            _Pair(task=t, key=self._key(document, task))
            for t, task in enumerate(self._tasks)
            if t not in document.not_asked and (document.unread or applies(task.kind, **has))
        ]

    def _key(self, document: Document, task: Task) -> bytes:
        if document.id is None or document.sha256 is None:
            return location_key(document.source_path, document.source_row, task.fingerprint, self._revision)
        return row_key(document.id, document.sha256, task.fingerprint, self._revision)

    def _looked_up(self, documents: list[list[_Pair]]) -> list[list[_Pair]]:
        # frombuffer, because numpy strips a key's trailing zero bytes when it makes an array of Python objects.
        keys = np.frombuffer(b"".join(pair.key for pairs in documents for pair in pairs), dtype="S16")
        states, attempts = self._done.lookup(keys)
        found = zip(states.tolist(), attempts.tolist(), strict=True)
        return [
            [
                _Pair(task=pair.task, key=pair.key, state=state, attempts=made)
                for pair, (state, made) in zip(pairs, found)
            ]
            for pairs in documents
        ]

    def _row(self, document: Document, pairs: list[_Pair], todo: list[int], work: Work) -> dict[str, Any]:
        errors = work.errors
        place = {t: r for r, request in enumerate(work.requests) for t in request["tasks"]}
        return {
            "document_id": document.id,
            "document_sha256": document.sha256,
            "image_count": document.image_count,
            "pairs": [
                {
                    "task": pair.task,
                    "key": pair.key,
                    "state": PENDING if pair.task in todo else pair.state,
                    "attempt": pair.attempts + (pair.task in todo),
                    "request": place.get(pair.task, -1),
                    "error_code": str(errors[pair.task].code) if pair.task in errors else None,
                    "error_message": errors[pair.task].message if pair.task in errors else None,
                }
                for pair in pairs
            ],
            "not_applicable": sorted(set(range(len(self._tasks))) - {pair.task for pair in pairs}),
            "requests": work.requests,
            "pixels": work.pixels,
        }

    def _is_todo(self, pair: _Pair) -> bool:
        may_retry = self._retry_failed or pair.attempts < self._max_attempts
        return pair.state == PENDING or (pair.state == FAILED and may_retry)
