"""The decodes in rows: feed each its newest token, choose the next, and tell which have finished.

`launch` runs a pass and `read` learns what it chose. In between the choices stay on the device, where they are the
next pass's input already: with `deferred` a pass is read after the following one has been launched, so that the device
never waits for the host. A decode that ended in the meantime has then run one pass too many, which is discarded.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import EncodedKeys
from .errors import RequestError
from .memory import engine_error, is_out_of_memory
from .model import T5Gemma2
from .rows import Rows
from .sampling import Sampler, non_finite
from .scheduler import Document
from .stopping import StopChecker
from .types import Decode, FinishReason

_NOT_IN_A_ROW = -1


@dataclass(slots=True, eq=False)
class Flight:
    """One decode: what it has produced so far, and the row it is in."""

    document: Document
    decode: Decode
    sampler: Sampler
    stop: StopChecker | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    row: int = _NOT_IN_A_ROW
    # Tokens asked for: those in `tokens` and those of passes that have not been read.
    asked: int = 0
    # Decoder passes it was in that failed for no reason found in it.
    strikes: int = 0
    ending: Ending | None = None

    def push(self, token: int, logprob: float, eos_ids: Sequence[int]) -> Ending | None:
        """Take the next token; how it ended, when it did."""
        self.logprob += logprob
        produced = len(self.tokens) + 1
        if token in eos_ids:
            return Ending(self.tokens, "stop", produced)
        self.tokens.append(token)
        trimmed = self.stop.push(token) if self.stop else None
        if trimmed is not None:
            return Ending(trimmed, "stop", produced)
        if produced == self.decode.sampling.max_tokens:
            return Ending(self.tokens, "length", produced)
        return None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a decode ended: the tokens it keeps and why, or the error."""

    tokens: Sequence[int] = ()
    reason: FinishReason | None = None
    produced: int = 0
    error: RequestError | None = None


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a launched pass chose, in row order: tokens [R] and their log-probabilities [R], on the way to the host."""

    flights: list[Flight]
    tokens: Tensor
    logprobs: Tensor
    hidden_RE: Tensor | None
    arrived: torch.cuda.Event | None

    def choices(self) -> list[tuple[int, float]]:
        """Wait for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return list(zip(self.tokens.tolist(), self.logprobs.tolist(), strict=True))


class Flights:
    """Flight i is in row i. For the caller to take out: `ended`, those with an `ending`."""

    def __init__(self, model: T5Gemma2, deferred: bool) -> None:
        self._model = model
        self._rows = Rows(model)
        self._deferred = deferred
        self._flights: list[Flight] = []
        self._unread: deque[_Pass] = deque()
        # Those of passes that could not be read.
        self._stranded: list[Flight] = []
        # The next pass's input, one token per row, while passes are unread.
        self._ids_R: Tensor | None = None
        self.ended: list[Flight] = []

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def pending(self) -> bool:
        """Whether there is something to launch or to read."""
        return bool(self._flights or self._unread)

    @torch.inference_mode()
    def launch(self, fresh: Sequence[tuple[Flight, EncodedKeys]]) -> None:
        """Advance all rows by a token and let `fresh` decodes enter, each with its first.

        After an exception no row can be trusted: `land` is the only way on.
        """
        parts = []
        if self._flights:
            ids = self._ids_R if self._ids_R is not None else [flight.tokens[-1] for flight in self._flights]
            parts.append(self._rows.advance(ids))
        if fresh:
            entering = [(keys, (*flight.decode.prefix_ids, *flight.tokens)) for flight, keys in fresh]
            parts.append(self._rows.enter(entering, max(flight.decode.positions for flight, _ in fresh)))
            for flight, _ in fresh:
                flight.row = len(self._flights)
                self._flights.append(flight)
        hidden_RE = torch.cat(parts) if len(parts) > 1 else parts[0]
        best_R, logprobs_R = self._model.greedy(hidden_RE)
        flights = list(self._flights)
        if self._deferred and all(flight.sampler.is_plain_greedy for flight in flights):
            self._defer(flights, best_R, logprobs_R)
        else:
            self._unread.append(_Pass(flights, best_R, logprobs_R, hidden_RE, None))
            self._ids_R = None
        for flight in flights:
            flight.asked += 1
            # Its last token needs no further pass, whatever it is.
            if self._ids_R is not None and flight.asked == flight.decode.sampling.max_tokens:
                self._vacate(flight, wipe=True)

    def read(self) -> None:
        """Take the choices of every pass that need not wait."""
        ahead = 1 if self._ids_R is not None and self._flights else 0
        try:
            while len(self._unread) > ahead:
                self._read(self._unread[0])
                self._unread.popleft()
        except BaseException:
            # Later passes went on from what has not been read, and some decodes have left their rows already.
            self._stranded += [flight for made in self._unread for flight in made.flights]
            self._unread.clear()
            raise

    def land(self) -> list[Flight]:
        """Empty all rows: the decodes that go on from their tokens when they enter again.

        What unread passes chose is kept as far as it can be read.
        """
        unread = [flight for made in self._unread for flight in made.flights]
        # Each once, in order.
        landed = list(dict.fromkeys([*self._flights, *self._stranded, *unread]))
        self._flights, self._ids_R = [], None
        for flight in landed:
            flight.row = _NOT_IN_A_ROW
        self._rows.clear()
        with contextlib.suppress(Exception):
            self.read()
        self._stranded = []
        for flight in landed:
            flight.asked = len(flight.tokens)
        return [flight for flight in landed if flight.ending is None]

    @torch.inference_mode()
    def probe(self, flights: Sequence[tuple[Flight, EncodedKeys]]) -> Exception | None:
        """What two passes over these decodes alone raise; nothing of the decodes changes. Needs all rows empty."""
        assert not self._flights
        try:
            entering = [(keys, (*flight.decode.prefix_ids, *flight.tokens)) for flight, keys in flights]
            hidden_RE = self._rows.enter(entering, max(flight.decode.positions for flight, _ in flights))
            self._model.greedy(self._rows.advance(self._model.greedy(hidden_RE)[0]))
        except Exception as error:
            return error.with_traceback(None)
        finally:
            self._rows.clear()
        return None

    def clear(self) -> None:
        """Drop everything."""
        self._flights, self._ids_R = [], None
        self._unread.clear()
        self._rows.clear()

    def _defer(self, flights: list[Flight], best_R: Tensor, logprobs_R: Tensor) -> None:
        self._ids_R = best_R
        arrived = None
        if best_R.is_cuda:
            # The copies land in pinned memory; the event tells when.
            tokens, logprobs = best_R.to("cpu", non_blocking=True), logprobs_R.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            # Of its own device, which need not be this thread's current one.
            arrived.record(torch.cuda.current_stream(best_R.device))
        else:
            tokens, logprobs = best_R, logprobs_R
        self._unread.append(_Pass(flights, tokens, logprobs, None, arrived))

    def _read(self, made: _Pass) -> None:
        choices = made.choices()
        sampled = self._sampled_logits(made)
        eos_ids = self._model.config.eos_ids
        for place, (flight, (token, logprob)) in enumerate(zip(made.flights, choices, strict=True)):
            if flight.ending is not None:
                continue
            try:
                if not math.isfinite(logprob):
                    raise non_finite()
                if place in sampled:
                    token, logprob = flight.sampler.next(sampled[place])
                flight.ending = flight.push(token, logprob, eos_ids)
            except Exception as error:
                # One decode's choice is nobody else's business.
                if is_out_of_memory(error):
                    raise
                flight.ending = Ending(error=engine_error(error, "choosing a token"))
            if flight.ending is not None:
                self.ended.append(flight)
                if flight.row != _NOT_IN_A_ROW:
                    self._vacate(flight, wipe=flight.ending.error is not None)

    def _sampled_logits(self, made: _Pass) -> dict[int, Tensor]:
        """Float32 logits [vocabulary] of the places whose choice is not the argmax."""
        places = [
            place
            for place, flight in enumerate(made.flights)
            if flight.ending is None and not flight.sampler.is_plain_greedy
        ]
        if not places or made.hidden_RE is None:
            return {}
        return dict(zip(places, self._model.logits(made.hidden_RE[places]), strict=True))

    def _vacate(self, flight: Flight, wipe: bool) -> None:
        row, last = flight.row, len(self._flights) - 1
        self._rows.leave(row, wipe)
        moved = self._flights.pop()
        if row != last:
            self._flights[row] = moved
            moved.row = row
        flight.row = _NOT_IN_A_ROW
        if self._ids_R is not None:
            ids = self._ids_R
            self._ids_R = torch.cat((ids[:row], ids[last:], ids[row + 1 : last])) if row != last else ids[:last]
        if not self._flights:
            # One long decode must not keep its room for ever.
            self._rows.clear()
            self._ids_R = None
