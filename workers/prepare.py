"""Documents → encoder requests, on the CPU: what is done drops out, what cannot work is rejected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.processing import Processor

from .documents import Document, ImageReader, open_images, read_document, request_error
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

    Never raises for a document: what goes wrong with one becomes its pairs' error. `pixels=False` leaves images
    undecoded, for counting tokens. Pickles as its arguments; the model folder is read at the first call.
    """

    def __init__(
        self,
        model_folder: str,
        tasks: tuple[Task, ...],
        limits: LimitsSpec,
        model_revision: str,
        done: DoneLookup,
        image_reader: ImageReader,
        pixels: bool = True,
        retry_failed: bool = False,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._model_folder = model_folder
        self._tasks = tasks
        self._limits = limits
        self._revision = model_revision
        self._done = done
        self._read_image = image_reader
        self._pixels = pixels
        self._retry_failed = retry_failed
        self._max_attempts = max_attempts
        self._loaded: Processor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    def __call__(self, table: pa.Table) -> pa.Table:
        """One output row per row of `table`, in its order; ModelError when the model folder cannot be used."""
        self._processor()
        schema = prepared_schema(table.schema.field("carry").type)
        rows = [row for group in self._groups(table) for row in self._finish(group)]
        columns = {
            name: table.column(name).cast(schema.field(name).type)
            if name in _PASSED_ON
            else pa.array([row[name] for row in rows], schema.field(name).type)
            for name in schema.names
        }
        return pa.table(columns, schema=schema)

    def _processor(self) -> Processor:
        if self._loaded is None:
            self._loaded = Processor.load(Path(self._model_folder))
        return self._loaded

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
        for document, pairs in zip(group, self._looked_up([self._pairs(document) for document in group])):
            yield self._row(document, pairs)
            document.images = []  # not needed any more, and not small

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

    def _row(self, document: Document, pairs: list[_Pair]) -> dict[str, Any]:
        todo = [pair.task for pair in pairs if self._is_todo(pair)]
        requests, pixels, errors = self._work(document, todo)
        place = {t: r for r, request in enumerate(requests) for t in request["tasks"]}
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
            "requests": requests,
            "pixels": pixels,
        }

    def _is_todo(self, pair: _Pair) -> bool:
        may_retry = self._retry_failed or pair.attempts < self._max_attempts
        return pair.state == PENDING or (pair.state == FAILED and may_retry)

    def _work(
        self, document: Document, todo: list[int]
    ) -> tuple[list[dict[str, Any]], bytes | None, dict[int, RequestError]]:
        """The encoder requests of the tasks `todo`, the pixels, and the error of each task that cannot be done."""
        errors: dict[int, RequestError] = {}
        try:
            if document.error is not None:
                raise document.error
            errors = _blank_errors(document, {t: self._tasks[t] for t in todo})
            requests = self._requests(document, [t for t in todo if t not in errors], errors)
            open_them = self._pixels and requests and document.images
            return requests, self._pixels_of(document) if open_them else None, errors
        except BaseException as error:
            whole = request_error(error)
            return [], None, {t: errors.get(t, whole) for t in todo}

    def _requests(
        self, document: Document, todo: Iterable[int], errors: dict[int, RequestError]
    ) -> list[dict[str, Any]]:
        """One request per encoder input among the tasks `todo`; those whose input does not fit go into `errors`."""
        sharing: dict[str | None, list[int]] = {}
        for t in todo:
            task = self._tasks[t]
            sharing.setdefault(task.prompt if task.prompt_in == "encoder" else None, []).append(t)
        processor = self._processor()
        requests = []
        for instruction, tasks in sharing.items():
            try:
                encoded = processor.encoder_input(
                    text=document.text,
                    images=document.image_count,
                    instruction=instruction,
                    max_tokens=min(self._limits.max_input_tokens, processor.max_positions),
                    overflow=self._limits.overflow,
                )
            except RequestError as error:
                errors |= dict.fromkeys(tasks, error)
                continue
            requests.append(
                {
                    "input_ids": encoded.ids.astype("<i4").tobytes(),
                    "truncated": encoded.truncated,
                    "input_tokens": len(encoded.ids),
                    "tasks": tasks,
                }
            )
        return requests

    def _pixels_of(self, document: Document) -> bytes:
        size = self._processor().image_size
        return open_images(document.images, size, self._limits.max_image_pixels).tobytes()


def _blank_errors(document: Document, tasks: dict[int, Task]) -> dict[int, RequestError]:
    """An error for each task that would have nothing to read, by its index."""
    if document.text is not None and document.text.strip():
        return {}
    error = RequestError(
        ErrorCode.EMPTY_INPUT, "the text is only white space" if document.text else "the text is empty"
    )
    # Where an image alone does not make a task apply, the text is what it works on.
    return {
        t: error
        for t, task in tasks.items()
        if not document.image_count or not applies(task.kind, has_text=False, has_image=True)
    }
