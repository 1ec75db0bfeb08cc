"""The native backend: encode each document once, decode all its outputs, many documents in flight."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .cache import EncodedKeys
from .errors import ErrorCode, RequestError
from .folder import resolve_checkpoint
from .memory import cache_budget, is_out_of_memory
from .model import T5Gemma2
from .rows import Rows
from .sampling import Sampler, non_finite
from .scheduler import Document, Scheduler
from .stopping import StopChecker, TextCodec
from .types import Decode, EngineConfig, EngineStats, FinishReason, Generation, Request
from .validate import check_decode, check_request

# Documents queued ahead by `generate`, so that a lazy input is not read to its end at once.
_LOOKAHEAD = 64


@dataclass(slots=True)
class _Flight:
    """One decode in a row: what it has produced so far."""

    document: Document
    decode: Decode
    sampler: Sampler
    stop: StopChecker | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class NativeBackend:
    """See `Backend`. Not thread-safe: one thread submits and steps."""

    def __init__(self, model: T5Gemma2, config: EngineConfig, folder: Path) -> None:
        self.model = model
        self._config = config
        self._folder = folder
        self._has_tokenizer = (folder / "tokenizer.json").exists()
        self._codec: TextCodec | None = None
        self._scheduler = Scheduler(cache_budget(model, config))
        self._rows = Rows(model)
        self._flights: list[_Flight] = []
        self._keys: dict[Document, EncodedKeys] = {}
        self._open: set[str] = set()
        self._refused: list[Generation] = []
        self._encodes = self._encoder_tokens = self._decoded = self._steps = self._busy = 0
        self._encode_seconds = self._decode_seconds = 0.0

    @classmethod
    def load(cls, config: EngineConfig) -> NativeBackend:
        """Load the checkpoint that `config` names; ModelError when it cannot be used."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        folder = resolve_checkpoint(config.model, config.revision)
        return cls(T5Gemma2.load(folder, config.device, config.dtype), config, folder)

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the counts so far."""
        slots = self._steps * self._config.max_decodes
        return EngineStats(
            encodes=self._encodes,
            encoder_tokens=self._encoder_tokens,
            decoded_tokens=self._decoded,
            steps=self._steps,
            occupancy=self._busy / slots if slots else 0.0,
            encode_seconds=self._encode_seconds,
            decode_seconds=self._decode_seconds,
        )

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def document_key_bytes(self) -> int:
        """Memory held by encoder keys and values right now: one copy per document in flight."""
        return sum(keys.bytes for keys in self._keys.values())

    def submit(self, request: Request) -> None:
        """Queue one document; what is wrong with it comes back from `step`. ValueError for a key in flight."""
        keys = [decode.key for decode in request.decodes]
        taken = sorted(self._open.intersection(keys)) or sorted({key for key in keys if keys.count(key) > 1})
        if taken:
            raise ValueError(f"key {taken[0]} is already in flight")
        if any(decode.sampling.stop for decode in request.decodes) and self._has_tokenizer:
            # Now, and not with a row already taken: a tokenizer that cannot be read raises ModelError here.
            self._tokenizer()
        self._open.update(keys)
        config = self.model.config
        whole = check_request(request, config)
        errors = {d.key: whole or check_decode(d, config, self._has_tokenizer) for d in request.decodes}
        self._refused += [self._end(d, error=errors[d.key]) for d in request.decodes if errors[d.key]]
        possible = tuple(decode for decode in request.decodes if errors[decode.key] is None)
        if possible:
            self._scheduler.add(dataclasses.replace(request, decodes=possible))

    def step(self) -> list[Generation]:
        """Take in what fits, then advance every decode by one token; what finished."""
        done, self._refused = self._refused, []
        done += self._admit()
        if self._flights:
            done += self._advance()
        return done

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit all of `requests`, reading ahead a little, and yield what finishes."""
        for request in requests:
            self.submit(request)
            while self._scheduler.queued >= _LOOKAHEAD:
                yield from self.step()
        while self._scheduler.busy or self._refused:
            yield from self.step()

    def close(self) -> None:
        """Drop the model and everything in flight."""
        self._keys.clear()
        self._flights.clear()
        # The rows know the model too.
        del self.model, self._rows

    def _admit(self) -> list[Generation]:
        admission = self._scheduler.admit()
        if not admission.start:
            return []
        started = time.perf_counter()
        done = self._encode(admission.encode)
        self._encode_seconds += time.perf_counter() - started
        # A document whose encoding failed has been dropped, and its decodes with it.
        fresh = [(document, decode) for document, decode in admission.start if document in self._keys]
        return done + (self._enter(fresh) if fresh else [])

    def _encode(self, documents: Sequence[Document]) -> list[Generation]:
        if not documents:
            return []
        try:
            states = self.model.encode([document.request for document in documents])
            if not all(bool(torch.isfinite(states_NE).all()) for states_NE in states):
                raise non_finite()
            for document, states_NE in zip(documents, states, strict=True):
                self._keys[document] = self.model.document_keys(states_NE)
        except Exception as error:
            for document in documents:
                self._keys.pop(document, None)
            if len(documents) > 1:
                # One of them is too much, or too strange, for all that were packed with it: find out which, alone.
                return [generation for document in documents for generation in self._encode([document])]
            return self._drop(documents[0], _engine_error(error, "encoding"))
        self._encodes += len(documents)
        self._encoder_tokens += sum(document.tokens for document in documents)
        return []

    def _enter(self, fresh: list[tuple[Document, Decode]]) -> list[Generation]:
        started = time.perf_counter()
        capacity = max(decode.positions for _, decode in fresh)
        try:
            hidden_RE = self._rows.enter(
                [(self._keys[document], decode.prefix_ids) for document, decode in fresh], capacity
            )
        except Exception as error:
            return self._lose_everything(error, fresh)
        first = len(self._flights)
        self._flights += [self._flight(document, decode) for document, decode in fresh]
        done = self._take(hidden_RE, first)
        self._decode_seconds += time.perf_counter() - started
        return done

    def _advance(self) -> list[Generation]:
        started = time.perf_counter()
        self._steps += 1
        self._busy += len(self._flights)
        try:
            hidden_RE = self._rows.advance([flight.tokens[-1] for flight in self._flights])
        except Exception as error:
            return self._lose_everything(error, [])
        done = self._take(hidden_RE, 0)
        self._decode_seconds += time.perf_counter() - started
        return done

    def _take(self, hidden_RE: Tensor, first: int) -> list[Generation]:
        """Choose a token for each row from `first` on; rows that finish leave."""
        done = []
        choices = self._choose(hidden_RE, self._flights[first:])
        # From the last row down: a row that leaves is replaced by one that has been looked at already.
        for row in range(len(self._flights) - 1, first - 1, -1):
            generation = self._push(self._flights[row], choices[row - first])
            if generation is not None:
                done.append(generation)
                self._remove(row, wipe=generation.error is not None)
        return done

    def _choose(self, hidden_RE: Tensor, flights: Sequence[_Flight]) -> list[tuple[int, float] | RequestError]:
        best, chances = self.model.greedy(hidden_RE)
        choices: list[tuple[int, float] | RequestError] = []
        for row, (token, logprob) in enumerate(zip(best.tolist(), chances.tolist(), strict=True)):
            sampler = flights[row].sampler
            if logprob != logprob or logprob == float("-inf"):
                choices.append(non_finite())
            elif sampler.is_plain_greedy:
                choices.append((token, logprob))
            else:
                choices.append(sampler.next(self.model.logits(hidden_RE[row : row + 1])[0]))
        return choices

    def _push(self, flight: _Flight, choice: tuple[int, float] | RequestError) -> Generation | None:
        if isinstance(choice, RequestError):
            return self._end(flight.decode, error=choice)
        token, logprob = choice
        flight.logprob += logprob
        produced = len(flight.tokens) + 1
        if token in self.model.config.eos_ids:
            return self._end(flight.decode, flight.tokens, "stop", flight.logprob, produced)
        flight.tokens.append(token)
        trimmed = flight.stop.push(token) if flight.stop else None
        if trimmed is not None:
            return self._end(flight.decode, trimmed, "stop", flight.logprob, produced)
        if produced == flight.decode.sampling.max_tokens:
            return self._end(flight.decode, flight.tokens, "length", flight.logprob, produced)
        return None

    def _remove(self, row: int, wipe: bool) -> None:
        flight = self._flights[row]
        moved = self._rows.leave(row, wipe)
        self._flights[row] = self._flights[moved]
        self._flights.pop()
        if self._scheduler.finished(flight.document):
            del self._keys[flight.document]
        if not self._flights:
            # One long decode must not keep its room for ever.
            self._rows.clear()

    def _drop(self, document: Document, error: RequestError) -> list[Generation]:
        self._keys.pop(document, None)
        self._scheduler.drop(document)
        return [self._end(d, error=error) for d in document.request.decodes if d.key in self._open]

    def _lose_everything(self, error: Exception, fresh: list[tuple[Document, Decode]]) -> list[Generation]:
        """After a failed decoder pass no row can be trusted: all that is in flight fails, and may be retried."""
        reason = _engine_error(error, "decoding")
        documents = dict.fromkeys([f.document for f in self._flights] + [document for document, _ in fresh])
        self._flights.clear()
        self._rows.clear()
        return [generation for document in documents for generation in self._drop(document, reason)]

    def _flight(self, document: Document, decode: Decode) -> _Flight:
        prompt = (self.model.config.bos_id, *decode.prefix_ids)
        stop = StopChecker(decode.sampling.stop, self._tokenizer()) if decode.sampling.stop else None
        return _Flight(document, decode, Sampler(decode.sampling, decode.key, prompt), stop)

    def _tokenizer(self) -> TextCodec:
        if self._codec is None:
            from .processing import Processor

            self._codec = Processor.load(self._folder)
        return self._codec

    def _end(
        self,
        decode: Decode,
        tokens: Sequence[int] = (),
        reason: FinishReason | None = None,
        logprob: float = 0.0,
        produced: int = 0,
        *,
        error: RequestError | None = None,
    ) -> Generation:
        self._open.discard(decode.key)
        self._decoded += produced
        return Generation(
            key=decode.key,
            token_ids=tuple(tokens),
            finish_reason=reason,
            logprob=logprob,
            output_tokens=produced,
            error=error,
        )


def _engine_error(error: Exception, doing: str) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if is_out_of_memory(error):
        return RequestError(ErrorCode.OUT_OF_MEMORY, f"out of memory while {doing}")
    line = (str(error) or type(error).__name__).splitlines()[0]
    return RequestError(ErrorCode.ENGINE_CRASH, f"{type(error).__name__} while {doing}: {line}")
