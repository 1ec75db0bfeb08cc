"""What enters next: documents to encode and decodes to start, under a token and a memory budget. Counts, no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .types import Decode, Request


@dataclass(slots=True, eq=False)
class Document:
    """One request's way through the engine: its decodes that wait and the number that run."""

    request: Request
    waiting: deque[Decode] = field(default_factory=deque)
    running: int = 0

    @property
    def tokens(self) -> int:
        """Encoder tokens."""
        return len(self.request.input_ids)


@dataclass(frozen=True, slots=True)
class Admission:
    """`encode`: documents that enter now. `start`: decodes to start, of these and of earlier documents."""

    encode: list[Document]
    start: list[tuple[Document, Decode]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be in flight. `row_bytes(rows, positions)`: memory of that many decodes' own keys and values."""

    batch_tokens: int
    decodes: int
    cache_bytes: int
    document_token_bytes: int
    row_bytes: Callable[[int, int], int]


class Scheduler:
    """First come, first served; a document stays until its last decode has finished."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._queue: deque[Document] = deque()
        self._resident: list[Document] = []
        self._running = 0
        self._positions = 0

    @property
    def queued(self) -> int:
        """Documents that have not been encoded yet."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything is queued, resident or running."""
        return bool(self._queue or self._resident)

    def add(self, request: Request) -> None:
        """Queue a document with all its decodes."""
        self._queue.append(Document(request, deque(request.decodes)))

    def admit(self) -> Admission:
        """Take in what fits now; at least one decode whenever nothing else runs."""
        start: list[tuple[Document, Decode]] = []
        for document in self._resident:
            self._start_waiting(document, start)
        encode: list[Document] = []
        while self._queue and self._may_encode(self._queue[0], encode):
            document = self._queue.popleft()
            encode.append(document)
            self._resident.append(document)
            self._start_waiting(document, start)
        return Admission(encode, start)

    def finished(self, document: Document) -> bool:
        """One running decode of `document` ended; True when the document itself is now complete."""
        document.running -= 1
        self._running -= 1
        if self._running == 0:
            self._positions = 0
        if document.running or document.waiting:
            return False
        self._resident.remove(document)
        return True

    def drop(self, document: Document) -> None:
        """A resident document leaves with everything it has waiting or running."""
        self._running -= document.running
        document.running = 0
        document.waiting.clear()
        self._resident.remove(document)
        if self._running == 0:
            self._positions = 0

    def _start_waiting(self, document: Document, start: list[tuple[Document, Decode]]) -> None:
        while document.waiting and self._may_start(document.waiting[0], self._document_bytes()):
            decode = document.waiting.popleft()
            document.running += 1
            self._running += 1
            self._positions = max(self._positions, decode.positions)
            start.append((document, decode))

    def _may_encode(self, document: Document, encode: list[Document]) -> bool:
        packed = sum(other.tokens for other in encode)
        if encode and packed + document.tokens > self._budget.batch_tokens:
            return False
        held = self._document_bytes() + document.tokens * self._budget.document_token_bytes
        return self._may_start(document.waiting[0], held) or not self._resident

    def _may_start(self, decode: Decode, document_bytes: int) -> bool:
        if self._running == 0:
            return True
        if self._running >= self._budget.decodes:
            return False
        rows = self._budget.row_bytes(self._running + 1, max(self._positions, decode.positions))
        return document_bytes + rows <= self._budget.cache_bytes

    def _document_bytes(self) -> int:
        return sum(document.tokens for document in self._resident) * self._budget.document_token_bytes
