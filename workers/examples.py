"""Source rows with targets → training documents; what cannot be learned from is left out with its reason."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from model_runtime.batches import Example, TrainingDocument
from model_runtime.errors import ErrorCode, RequestError
from model_runtime.processing import Processor

from .documents import Document, ImageReader, open_images, read_document, request_error
from .tasks import Kind, LimitsSpec, Placement, applies, fill_prompt

_IMAGE_MARKER = "<start_of_image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """One task to learn. `prompt` may hold {language} and {question}; `target` and `question_column` name columns."""

    name: str
    kind: Kind
    language: str | None
    prompt: str
    question: str | None
    question_column: str | None
    target: str


class Skipped(NamedTuple):
    """A row, or one task of it (else None), that nothing is learned from, and why."""

    source_path: str
    source_row: int
    task: str | None
    code: str
    message: str


class _Skip(Exception):
    """One example that cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Examples:
    """Callable over a table of source rows (pipelines.schema.source_schema) whose `carry` holds targets and questions.

    Yields a TrainingDocument for each encoder input (with the prompt in the encoder: one for each prompt), and a
    Skipped for each row or target that is left out. A task whose target is null is not asked of that row: no loss.
    `most`: at most so many of a row's targets, drawn from `chance`. The model folder is read at the first call.
    """

    def __init__(
        self,
        model_folder: str,
        tasks: tuple[TrainingTask, ...],
        limits: LimitsSpec,
        max_target_tokens: int,
        prompt_in: Placement,
        image_reader: ImageReader,
        most: int | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._model_folder = model_folder
        self._tasks = tasks
        self._limits = limits
        self._max_target_tokens = max_target_tokens
        self._prompt_in = prompt_in
        self._read_image = image_reader
        self._most = most
        self._chance = chance or random.Random(0)

    def __call__(self, table: pa.Table) -> Iterator[TrainingDocument | Skipped]:
        """In the rows' order; ModelError when the model folder cannot be used."""
        processor = _processor(self._model_folder)
        for batch in table.to_batches():
            carried = batch.column("carry")
            for i in range(batch.num_rows):
                document = read_document(batch, i, self._read_image, self._limits.max_images)
                yield from self._row(processor, document, carried[i].as_py())

    def _row(
        self, processor: Processor, document: Document, columns: dict[str, Any]
    ) -> Iterator[TrainingDocument | Skipped]:
        def skipped(task: str | None, code: str, message: str) -> Skipped:
            return Skipped(document.source_path, document.source_row, task, code, message)

        try:
            _check(document)
            made: list[tuple[str | None, Example]] = []
            for t, task in enumerate(self._tasks):
                if columns[task.target] is None:
                    continue
                try:
                    prompt, example = self._example(processor, t, document, columns)
                except _Skip as skip:
                    yield skipped(task.name, skip.code, skip.message)
                else:
                    made.append((prompt if self._prompt_in == "encoder" else None, example))
            if all(columns[task.target] is None for task in self._tasks):
                names = ", ".join(task.target for task in self._tasks)
                raise _Skip("missing_target", f"no target: {names} {'are' if len(self._tasks) > 1 else 'is'} null")
            pixels = self._pixels(processor, document) if made else None
            for instruction, examples in _grouped(self._drawn(made)).items():
                yield TrainingDocument(
                    input_ids=self._input(processor, document, instruction), pixels=pixels, examples=tuple(examples)
                )
        except _Skip as skip:
            yield skipped(None, skip.code, skip.message)
        except BaseException as error:
            failed = request_error(error)
            yield skipped(None, str(failed.code), failed.message)

    def _drawn(self, made: list[tuple[str | None, Example]]) -> list[tuple[str | None, Example]]:
        return made if self._most is None or len(made) <= self._most else self._chance.sample(made, self._most)

    def _example(
        self, processor: Processor, t: int, document: Document, columns: dict[str, Any]
    ) -> tuple[str, Example]:
        task = self._tasks[t]
        target = columns[task.target]
        if not applies(task.kind, has_text=document.has_text, has_image=document.image_count > 0):
            raise _Skip("not_applicable", f"{task.kind} has nothing to read in this row")
        if not target.strip():
            raise _Skip("empty_target", f"the target in column {task.target} is empty")
        question = columns[task.question_column] if task.question_column else task.question
        if task.question_column and not (question or "").strip():
            raise _Skip("missing_question", f"column {task.question_column} holds no question")
        target_ids = processor.encode_text(target)
        if len(target_ids) > self._max_target_tokens:
            raise _Skip(
                "target_too_long",
                f"the target has {len(target_ids):,} tokens; the limit is {self._max_target_tokens:,}",
            )
        prompt = fill_prompt(task.prompt, task.language, question)
        prefix = processor.prefix_ids(prompt) if self._prompt_in == "decoder" else ()
        return prompt, Example(task=t, prefix_ids=np.array(prefix, np.int32), target_ids=np.array(target_ids, np.int32))

    def _input(self, processor: Processor, document: Document, instruction: str | None) -> np.ndarray:
        return processor.encoder_input(
            text=document.text,
            images=document.image_count,
            instruction=instruction,
            max_tokens=min(self._limits.max_input_tokens, processor.max_positions),
            overflow=self._limits.overflow,
        ).ids

    def _pixels(self, processor: Processor, document: Document) -> np.ndarray | None:
        if not document.images:
            return None
        return open_images(document.images, processor.image_size, self._limits.max_image_pixels)


def _grouped(made: list[tuple[str | None, Example]]) -> dict[str | None, list[Example]]:
    groups: dict[str | None, list[Example]] = {}
    for instruction, example in made:
        groups.setdefault(instruction, []).append(example)
    return groups


def _check(document: Document) -> None:
    if document.error is not None:
        if document.error.code is ErrorCode.BAD_ROW and any(i.data is None for i in document.images):
            raise _Skip("image_count_mismatch", document.error.message)
        raise document.error
    if not (document.text or "").strip() and not document.image_count:
        raise RequestError(ErrorCode.EMPTY_INPUT, "neither text nor an image: there is nothing to encode")
    # Data made for other trainers marks each image's place in the text; here images come first, unmarked.
    markers = (document.text or "").count(_IMAGE_MARKER)
    if markers and markers != document.image_count:
        raise _Skip("image_count_mismatch", f"the text marks {markers} images, the row has {document.image_count}")


@cache
def _processor(folder: str) -> Processor:
    return Processor.load(Path(folder))
