"""What enters next: documents to encode and decodes to start, under token, row and memory budgets. Counts, no tensors.

Rows never wait for the encoder while something is ready, and the encoder works ahead of them in packs:

- A document that is encoded is `ready` until its last decode has started. Rows are filled from what is ready, several
  at a time, for each entry costs a decoder pass of its own.
- A pack is begun when fewer than half of the rows' worth of decodes is ready, and takes documents up to the token
  budget; a small one is begun only when a row would otherwise stand empty.
- While decodes run, the encoder gets so many tokens between two steps (`allowance`): all that a step is worth when
  rows are empty, little when they are full and the next ones are ready. Neither ever waits for ever.
- Documents go in the order they came, but one that does not fit now is passed by others, up to a pack of tokens.
- Running out of memory halves what failed; the limits grow back as passes succeed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from .types import Decode, Request

# A pack smaller than this is not worth a pass, unless a row has nothing else to do.
_WORTH_A_PASS = 2048
# Documents that one pack looks at.
_SCAN = 256
# Passes that succeed before a limit that running out of memory has lowered is raised again.
_GOOD_STEPS, _GOOD_PACKS = 64, 16


@dataclass(slots=True, eq=False)
class Document:
    """One request's way through the engine: its decodes that wait and the number that run."""

    request: Request
    waiting: deque[Decode] = field(default_factory=deque)
    running: int = 0
    # Encoder tokens of later documents that were encoded before it.
    overtaken: int = 0
    # It broke a pack: alone in a pass from now on. It ran out of memory so: it enters when nothing else is held.
    solo: bool = False
    drained: bool = False

    @property
    def tokens(self) -> int:
        """Encoder tokens."""
        return len(self.request.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be in flight. `row_bytes(rows, positions)`: memory of that many decodes' own keys and values.

    `batch_tokens`: encoder tokens of one pass. `step_tokens`: encoder tokens that are worth a decoder step.
    `pass_token_bytes`: what a pass needs for each token beyond `batch_tokens`, while it runs.
    """

    batch_tokens: int
    decodes: int
    cache_bytes: int
    document_token_bytes: int
    row_bytes: Callable[[int, int], int]
    step_tokens: int = 2048
    pass_token_bytes: int = 0


class Scheduler:
    """Queued → being encoded (one pack at a time) → resident, until a document's last decode has finished."""

    def __init__(self, budget: Budget, halvings: int = 0) -> None:
        self._budget = budget
        self._queue: deque[Document] = deque()
        self._queued_tokens = 0
        self._encoding: list[Document] = []
        self._resident: dict[Document, None] = {}
        self._held_tokens = 0
        # Of resident documents: decodes that wait, and decodes in rows with the most positions one of them may use.
        self._waiting = self._running = self._positions = 0
        self._blocked = False
        # What running out of memory has lowered, and the passes since.
        self._pack_tokens = max(1, budget.batch_tokens >> halvings)
        self._row_limit = max(1, budget.decodes >> halvings)
        self._ahead_bytes = budget.cache_bytes >> halvings
        self._good_steps = self._good_packs = 0

    @property
    def queued(self) -> int:
        """Documents that have not been encoded yet."""
        return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        """Encoder tokens of the documents that have not been encoded yet."""
        return self._queued_tokens

    @property
    def busy(self) -> bool:
        """Whether anything is queued, being encoded, ready or running."""
        return bool(self._queue or self._encoding or self._resident)

    @property
    def row_limit(self) -> int:
        """Decodes that may run together now."""
        return self._row_limit

    def add(self, request: Request) -> None:
        """Queue a document with all its decodes."""
        self._enqueue([Document(request, deque(request.decodes))], front=False)

    # --- encoding ----------------------------------------------------------------------------------------------

    def next_pack(self) -> Sequence[Document]:
        """Documents to encode together now; none when there is no need, no room, or a pass is under way."""
        if self._encoding or not self._queue or self._blocked:
            return ()
        if self._waiting >= self._wanted_ready:
            return ()
        starving = self._waiting < self._row_limit - self._running
        if not starving and self._queued_tokens < min(_WORTH_A_PASS, self._pack_tokens):
            return ()
        pack = self._pick(starving)
        # Until something leaves or comes, looking again finds the same.
        self._blocked = not pack
        if pack:
            taken = set(pack)
            self._queue = deque(document for document in self._queue if document not in taken)
            self._queued_tokens -= sum(document.tokens for document in pack)
            self._held_tokens += sum(document.tokens for document in pack)
            self._encoding = pack
        return tuple(pack)

    def allowance(self) -> int:
        """Encoder tokens that may pass before the next decoder step: the fewer decodes run or wait, the more."""
        most = self._budget.step_tokens
        wanted = self._row_limit + self._wanted_ready
        missing = wanted - self._running - self._waiting
        return min(most, max(1, most // 16, most * missing // self._row_limit))

    def encoded(self, documents: Iterable[Document]) -> None:
        """Their keys and values are there: their decodes may start."""
        for document in documents:
            self._encoding.remove(document)
            self._resident[document] = None
            self._waiting += len(document.waiting)
        if self._pack_tokens < self._budget.batch_tokens and not self._encoding:
            self._good_packs += 1
            if self._good_packs % _GOOD_PACKS == 0:
                self._pack_tokens = min(self._budget.batch_tokens, self._pack_tokens * 2)

    def encoding_failed(self, documents: Sequence[Document], out_of_memory: bool) -> Document | None:
        """Try again with less: half the tokens, or a document alone. The one that cannot be done, or None."""
        for document in documents:
            self._encoding.remove(document)
            self._held_tokens -= document.tokens
        self._blocked = False
        if len(documents) == 1:
            [document] = documents
            alone = not self._resident and not self._encoding
            if alone or not out_of_memory:
                return document
            document.solo = document.drained = True
        elif out_of_memory:
            self._pack_tokens = max(1, sum(document.tokens for document in documents) // 2)
            self._good_packs = 0
        else:
            for document in documents:
                document.solo = True
        self._enqueue(documents, front=True)
        return None

    # --- decoding ----------------------------------------------------------------------------------------------

    def start(self) -> list[tuple[Document, Decode]]:
        """Decodes to put into rows now, of ready documents; at least one when none runs and one is ready."""
        if not self._waiting:
            return []
        free = self._row_limit - self._running
        # Rows are filled some at a time; the last decodes, or all of a few rows, need not wait for that.
        if self._running and free < min(max(1, self._row_limit // 8), self._waiting):
            return []
        started: list[tuple[Document, Decode]] = []
        for document in self._resident:
            while document.waiting and self._may_start(document.waiting[0]):
                decode = document.waiting.popleft()
                document.running += 1
                self._running += 1
                self._waiting -= 1
                self._positions = max(self._positions, decode.positions)
                started.append((document, decode))
            if self._running >= self._row_limit or not self._waiting:
                break
        return started

    def finished(self, document: Document) -> bool:
        """One running decode of `document` ended; True when the document itself is now complete."""
        self._left(document)
        if document.running or document.waiting:
            return False
        self._release(document)
        return True

    def put_back(self, document: Document, decodes: Sequence[Decode]) -> None:
        """Running decodes of `document` wait again, before its other ones."""
        for decode in reversed(decodes):
            self._left(document)
            document.waiting.appendleft(decode)
            self._waiting += 1

    def rows_failed(self, rows: int) -> None:
        """A decoder pass over `rows` rows ran out of memory: for a while fewer, and less encoded ahead."""
        held = self._held_tokens * self._budget.document_token_bytes
        held += self._budget.row_bytes(rows, max(1, self._positions))
        self._row_limit = max(1, rows // 2)
        self._ahead_bytes = min(self._ahead_bytes, held * 3 // 4)
        self._good_steps = 0

    def stepped(self) -> None:
        """A decoder pass succeeded: limits that running out of memory lowered grow back from time to time."""
        budget = self._budget
        if self._row_limit == budget.decodes and self._ahead_bytes == budget.cache_bytes:
            return
        self._good_steps += 1
        if self._good_steps % _GOOD_STEPS == 0:
            self._row_limit = min(budget.decodes, self._row_limit * 2)
            self._ahead_bytes = min(budget.cache_bytes, self._ahead_bytes * 2)
            self._blocked = False

    def evict_others(self, document: Document) -> list[Document]:
        """Every other resident document goes back to the queue, to be encoded again; none of them may be running."""
        others = [other for other in self._resident if other is not document]
        for other in others:
            assert not other.running
            self._waiting -= len(other.waiting)
            self._release(other)
        self._enqueue(others, front=True)
        return others

    # --- inside ------------------------------------------------------------------------------------------------

    @property
    def _wanted_ready(self) -> int:
        return max(1, self._row_limit // 2)

    def _enqueue(self, documents: Sequence[Document], front: bool) -> None:
        if front:
            self._queue.extendleft(reversed(documents))
        else:
            self._queue.extend(documents)
        self._queued_tokens += sum(document.tokens for document in documents)
        self._blocked = False

    def _pick(self, starving: bool) -> list[Document]:
        pack: list[Document] = []
        passed: list[Document] = []
        tokens = decodes = 0
        for document in islice(self._queue, _SCAN):
            full = tokens * 4 >= self._pack_tokens * 3
            if passed and (full or passed[0].overtaken + document.tokens > self._budget.batch_tokens):
                break
            # A document longer than a pass lets shorter ones go first, once: rows work on them while it is encoded.
            its_turn = document.tokens <= self._budget.batch_tokens or document.overtaken or passed
            joins = not pack or (not document.solo and tokens + document.tokens <= self._pack_tokens)
            if its_turn and joins and self._has_room(document, tokens, decodes, starving and not pack):
                pack.append(document)
                tokens += document.tokens
                decodes += len(document.waiting)
                for other in passed:
                    other.overtaken += document.tokens
                if document.solo or tokens >= self._pack_tokens:
                    break
            else:
                passed.append(document)
        if not pack and passed and self._has_room(passed[0], 0, 0, starving):
            return passed[:1]
        return pack

    def _has_room(self, document: Document, tokens: int, decodes: int, needed: bool) -> bool:
        """Whether it may join a pack of `tokens` with `decodes`; `needed`: a row would otherwise stand empty."""
        if not self._resident and not tokens:
            return True
        if document.drained:
            return False
        budget = self._budget
        tokens += document.tokens
        held = (self._held_tokens + tokens) * budget.document_token_bytes
        held += max(0, tokens - budget.batch_tokens) * budget.pass_token_bytes
        # Room for every row that these and the ready ones would fill, or at least for one of them.
        rows = min(self._row_limit, self._running + self._waiting + decodes + len(document.waiting))
        if needed:
            rows = self._running + 1
        positions = max(self._positions, max(decode.positions for decode in document.waiting))
        return held + budget.row_bytes(rows, positions) <= self._ahead_bytes

    def _may_start(self, decode: Decode) -> bool:
        if self._running == 0:
            return True
        if self._running >= self._row_limit:
            return False
        rows = self._budget.row_bytes(self._running + 1, max(self._positions, decode.positions))
        return self._held_tokens * self._budget.document_token_bytes + rows <= self._budget.cache_bytes

    def _left(self, document: Document) -> None:
        document.running -= 1
        self._running -= 1
        if self._running == 0:
            self._positions = 0
        self._blocked = False

    def _release(self, document: Document) -> None:
        del self._resident[document]
        self._held_tokens -= document.tokens
        self._blocked = False
