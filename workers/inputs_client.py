"""Preparing in a process of its own: bytes that crash a decoder or the tokenizer cost their own document only."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from typing import Any

from model_runtime import ErrorCode, ModelError, RequestError

from .child_process import ChildProcess, Death, hang_seconds
from .documents import Document
from .inputs import Inputs, Work
from .inputs_process import Ready, Unusable
from .suspects import is_guilty, is_hopeless, weight

_MODULE = "workers.inputs_process"


class InputsClient:
    """A Worker whose process may die. Not for several threads.

    Documents are answered one by one in their order, so the first without an answer is the one that a death is
    about: it runs alone, again if need be, and its tasks fail when it is found guilty (workers.suspects).
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._child: ChildProcess | None = None
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return self._child.pid if self._child else None

    def __call__(self, documents: Sequence[tuple[Document, list[int]]]) -> list[Work]:
        """See Worker; `engine_crash`, `engine_hang` or `out_of_memory` for a document that ends the process."""
        left = deque(documents)
        made: list[Work] = []
        weights = 0
        while left:
            group = [left[0]] if weights else list(left)
            child = self._ready()
            child.send(group)
            for _ in group:
                answer = self._next()
                if isinstance(answer, Death):
                    weights += weight(answer)
                    break
                weights = 0
                made.append(answer)
                left.popleft()
            if isinstance(answer, Death) and is_guilty(weights):
                _, todo = left.popleft()
                line = f"the process that prepares documents {answer.what} while it worked on this alone"
                made.append(Work(errors=dict.fromkeys(todo, RequestError(answer.code, line))))
                weights = 0
        return made

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()

    def _ready(self) -> ChildProcess:
        """A process that has read the model folder; ModelError when none does."""
        weights = 0
        while self._child is None:
            self._child = ChildProcess(_MODULE, self._events)
            self._child.send(self._inputs)
            answer = self._next()
            if isinstance(answer, Unusable):
                self._child.close()
                self._child = None
                raise ModelError(answer.line)
            if isinstance(answer, Death):
                weights += weight(answer)
                if is_hopeless(weights):
                    raise ModelError(f"no document can be prepared: the process that does it {answer.what}, every time")
            else:
                assert isinstance(answer, Ready)
        return self._child

    def _next(self) -> Any:
        """What the process says next; a Death is its last word, and takes its place."""
        while True:
            try:
                child, answer = self._events.get(timeout=hang_seconds())
            except queue.Empty:
                assert self._child is not None
                self._child.end(Death(ErrorCode.ENGINE_HANG, f"made no progress for {hang_seconds():,.0f} seconds"))
                child, answer = self._events.get()
            if child is not self._child:
                continue  # the end of one that was closed
            if isinstance(answer, Death):
                self._child = None
                self.deaths += 1
            return answer
