"""A document's text and images → its encoder requests and pixels: what runs native code over other people's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.processing import Processor

from .documents import Document, open_images, request_error
from .tasks import LimitsSpec, Task, applies


@dataclass(slots=True, kw_only=True)
class Work:
    """What became of a document: requests as in `prepared_schema`, its pixels, and the errors of tasks by index."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    pixels: bytes | None = None
    errors: dict[int, RequestError] = field(default_factory=dict)


class Worker(Protocol):
    """Makes the work of some documents, each with the tasks that are to be done of it."""

    def __call__(self, documents: Sequence[tuple[Document, list[int]]]) -> list[Work]:
        """One for each document, in order; ModelError when the model folder cannot be used."""
        ...


class Inputs:
    """Makes them in this process. Pickles as its arguments; the model folder is read at the first call."""

    def __init__(self, model_folder: str, tasks: tuple[Task, ...], limits: LimitsSpec, pixels: bool = True) -> None:
        self._model_folder = model_folder
        self._tasks = tasks
        self._limits = limits
        self._pixels = pixels
        self._loaded: Processor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    def __call__(self, documents: Sequence[tuple[Document, list[int]]]) -> list[Work]:
        """See Worker."""
        self.load()
        return [self.work(document, todo) for document, todo in documents]

    def load(self) -> Processor:
        """The model's tokenizer and image settings; ModelError when the folder cannot be used."""
        if self._loaded is None:
            self._loaded = Processor.load(Path(self._model_folder))
        return self._loaded

    def work(self, document: Document, todo: list[int]) -> Work:
        """One document's; never raises for what it holds."""
        errors: dict[int, RequestError] = {}
        try:
            if document.error is not None:
                raise document.error
            errors = _blank_errors(document, {t: self._tasks[t] for t in todo})
            requests = self._requests(document, [t for t in todo if t not in errors], errors)
            open_them = self._pixels and requests and document.images
            return Work(requests=requests, pixels=self._pixels_of(document) if open_them else None, errors=errors)
        except BaseException as error:
            whole = request_error(error)
            return Work(errors={t: errors.get(t, whole) for t in todo})

    def _requests(
        self, document: Document, todo: Iterable[int], errors: dict[int, RequestError]
    ) -> list[dict[str, Any]]:
        """One request per encoder input among the tasks `todo`; those whose input does not fit go into `errors`."""
        sharing: dict[str | None, list[int]] = {}
        for t in todo:
            task = self._tasks[t]
            sharing.setdefault(task.prompt if task.prompt_in == "encoder" else None, []).append(t)
        processor = self.load()
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
        size = self.load().image_size
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
