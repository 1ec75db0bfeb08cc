"""The native backend: encode each document once, decode all its outputs, many documents in flight."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from .cache import EncodedKeys
from .encoder_pass import EncoderPass
from .errors import ErrorCode, RequestError
from .flights import Ending, Flight, Flights
from .folder import resolve_checkpoint
from .memory import cache_budget, engine_error, give_back
from .model import T5Gemma2
from .sampling import Sampler, non_finite
from .scheduler import Document, Scheduler
from .stopping import StopChecker, TextCodec
from .types import Decode, EngineConfig, EngineStats, Generation, Request
from .validate import check_decode, check_request, new_keys

# Documents that `generate` queues ahead, so that a lazy input is not read to its end at once: some, and as many more,
# up to a limit, as fill a pass of the encoder.
_READ_AHEAD, _READ_AHEAD_MOST = 64, 1024
# Failed decoder passes that a decode survives when no decode is found to be the reason.
_STRIKES = 3


class NativeBackend:
    """See `Backend`. Not thread-safe: one thread submits and steps.

    `lookahead`: launch a step before the last one's tokens are read (None: on CUDA). The results are the same.
    """

    def __init__(self, model: T5Gemma2, config: EngineConfig, folder: Path, lookahead: bool | None = None) -> None:
        self.model = model
        self._config = config
        self._folder = folder
        self._has_tokenizer = (folder / "tokenizer.json").exists()
        self._codec: TextCodec | None = None
        self._budget = cache_budget(model, config)
        self._scheduler = Scheduler(self._budget, config.halvings)
        self._flights = Flights(model, deferred=model.device.type == "cuda" if lookahead is None else lookahead)
        self._keys: dict[Document, EncodedKeys] = {}
        # Decodes that were in a row and wait for the next one.
        self._landed: dict[str, Flight] = {}
        self._pass: EncoderPass | None = None
        # Encoder tokens that may pass before the next decoder step; below 0 after a slice that was larger.
        self._credit = 0
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
        return self.model.precision

    @property
    def document_key_bytes(self) -> int:
        """Memory held by encoder keys and values right now: one copy per document in flight."""
        return sum(keys.bytes for keys in self._keys.values())

    def submit(self, request: Request) -> None:
        """Queue one document; what is wrong with it comes back from `step`. ValueError for a key in flight."""
        keys = new_keys(request, self._open)
        if any(decode.sampling.stop for decode in request.decodes) and self._has_tokenizer:
            # Now, and not with a row already taken: a tokenizer that cannot be read raises ModelError here.
            self._tokenizer()
        self._open.update(keys)
        config = self.model.config
        whole = check_request(request, config)
        errors = {d.key: whole or check_decode(d, config, self._has_tokenizer) for d in request.decodes}
        for decode in request.decodes:
            if error := errors[decode.key]:
                self._refused.append(self._end(decode, Ending(error=error)))
        possible = tuple(decode for decode in request.decodes if errors[decode.key] is None)
        if possible:
            self._scheduler.add(dataclasses.replace(request, decodes=possible))

    def step(self) -> list[Generation]:
        """Encode for a while where there is need, then advance every decode by one token; what finished."""
        done, self._refused = self._refused, []
        done += self._encode()
        done += self._decode()
        return done

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit all of `requests`, reading ahead a little, and yield what finishes."""
        for request in requests:
            self.submit(request)
            while self._has_read_ahead():
                yield from self.step()
        while self._scheduler.busy or self._flights.pending or self._refused:
            yield from self.step()

    def close(self) -> None:
        """Drop the model and everything in flight."""
        self._keys.clear()
        # The flights and a pass know the model too.
        self._pass = None
        del self.model, self._flights

    def _has_read_ahead(self) -> bool:
        queued = self._scheduler.queued
        enough = self._scheduler.queued_tokens >= self._budget.batch_tokens or queued >= _READ_AHEAD_MOST
        return queued >= _READ_AHEAD and enough

    # --- encoding ----------------------------------------------------------------------------------------------

    def _encode(self) -> list[Generation]:
        running = self._flights.pending
        self._credit = min(self._credit, 0) if running else 0
        self._credit += self._scheduler.allowance() if running else self._budget.step_tokens
        done: list[Generation] = []
        started = time.perf_counter()
        while self._credit > 0:
            if self._pass is None:
                documents = self._scheduler.next_pack()
                if not documents:
                    break
                self._pass = EncoderPass(self.model, documents)
            self._credit -= self._pass.slice_tokens
            done += self._run_slice(self._pass)
        self._encode_seconds += time.perf_counter() - started
        return done

    def _run_slice(self, encoding: EncoderPass) -> list[Generation]:
        failure: RequestError | None = None
        try:
            if not encoding.advance():
                return []
            for document, states_NE in encoding.finite():
                self._keys[document] = self.model.document_keys(states_NE)
        except Exception as error:
            failure = engine_error(error, "encoding")
        self._pass = None
        made = [document for document in encoding.documents if document in self._keys]
        rest = [document for document in encoding.documents if document not in self._keys]
        encoding.close()
        self._encodes += len(made)
        self._encoder_tokens += sum(document.tokens for document in made)
        self._scheduler.encoded(made)
        return self._encoding_failed(rest, failure or non_finite()) if rest else []

    def _encoding_failed(self, documents: Sequence[Document], failure: RequestError) -> list[Generation]:
        give_back(self.model.device)
        out_of_memory = failure.code is ErrorCode.OUT_OF_MEMORY
        lost = self._scheduler.encoding_failed(documents, out_of_memory)
        if lost is None:
            return []
        ending = Ending(error=failure)
        return [self._end(decode, ending) for decode in lost.waiting]

    # --- decoding ----------------------------------------------------------------------------------------------

    def _decode(self) -> list[Generation]:
        started = time.perf_counter()
        entering = [self._flight(document, decode) for document, decode in self._scheduler.start()]
        if not entering and not self._flights.pending:
            return []
        rows = len(self._flights) + len(entering)
        failure: RequestError | None = None
        try:
            if rows:
                self._flights.launch([(flight, self._keys[flight.document]) for flight in entering])
            self._flights.read()
        except Exception as error:
            failure = engine_error(error, "decoding")
        if failure is None:
            if rows:
                self._scheduler.stepped()
                self._steps += 1
                self._busy += rows
            done = self._collect()
        else:
            done = self._recover(failure, entering, rows)
        self._decode_seconds += time.perf_counter() - started
        return done

    def _recover(self, failure: RequestError, entering: list[Flight], rows: int) -> list[Generation]:
        """After a failed pass no row can be trusted: all start again from their tokens, but for those to blame."""
        landed = self._flights.land()
        landed += [flight for flight in entering if flight.ending is None and flight not in landed]
        # Those of an earlier pass, too, where it was that one which could not be read.
        rows = max(rows, len(landed))
        done = self._collect()
        give_back(self.model.device)
        if failure.code is ErrorCode.OUT_OF_MEMORY:
            lost = self._make_room(landed, rows, failure)
        else:
            lost = self._blame(landed, rows, failure)
        for flight, error in lost.items():
            done.append(self._end(flight.decode, Ending(error=error)))
            self._gone(flight)
        for flight in landed:
            if flight not in lost:
                self._landed[flight.decode.key] = flight
        for document in dict.fromkeys(flight.document for flight in landed):
            again = [f.decode for f in landed if f.document is document and f not in lost]
            self._scheduler.put_back(document, again)
        return done

    def _make_room(self, landed: list[Flight], rows: int, failure: RequestError) -> dict[Flight, RequestError]:
        """Fewer rows for a while; one that is alone already needs what documents beside it hold, or fails."""
        self._scheduler.rows_failed(rows)
        if rows > 1 or not landed:
            return {}
        encoding, self._pass = self._pass, None
        if encoding is not None:
            encoding.close()
            self._scheduler.encoding_failed(encoding.documents, out_of_memory=True)
        others = self._scheduler.evict_others(landed[0].document)
        for document in others:
            del self._keys[document]
        give_back(self.model.device)
        return {} if encoding is not None or others else {landed[0]: failure}

    def _blame(self, flights: list[Flight], rows: int, failure: RequestError) -> dict[Flight, RequestError]:
        """The decodes that break a pass all alone; when there are none, those that were in too many broken ones."""
        culprits = self._culprits(flights)
        if not culprits:
            self._scheduler.rows_failed(rows)
            for flight in flights:
                flight.strikes += 1
            culprits = {flight: failure for flight in flights if flight.strikes >= _STRIKES}
        return culprits

    def _culprits(self, flights: list[Flight]) -> dict[Flight, RequestError]:
        error = self._flights.probe([(flight, self._keys[flight.document]) for flight in flights]) if flights else None
        if error is None:
            return {}
        if len(flights) == 1:
            found = engine_error(error, "decoding")
            return {} if found.code is ErrorCode.OUT_OF_MEMORY else {flights[0]: found}
        half = len(flights) // 2
        return self._culprits(flights[:half]) | self._culprits(flights[half:])

    def _collect(self) -> list[Generation]:
        """What ended; documents that are complete give back their keys and values."""
        ended, self._flights.ended = self._flights.ended, []
        for flight in ended:
            self._gone(flight)
        return [self._end(flight.decode, flight.ending, flight.logprob) for flight in ended if flight.ending]

    def _gone(self, flight: Flight) -> None:
        if self._scheduler.finished(flight.document):
            del self._keys[flight.document]

    def _flight(self, document: Document, decode: Decode) -> Flight:
        if landed := self._landed.pop(decode.key, None):
            return landed
        prompt = (self.model.config.bos_id, *decode.prefix_ids)
        stop = StopChecker(decode.sampling.stop, self._tokenizer()) if decode.sampling.stop else None
        return Flight(document, decode, Sampler(decode.sampling, decode.key, prompt), stop)

    def _tokenizer(self) -> TextCodec:
        if self._codec is None:
            from .processing import Processor

            self._codec = Processor.load(self._folder)
        return self._codec

    def _end(self, decode: Decode, ending: Ending, logprob: float = 0.0) -> Generation:
        self._open.discard(decode.key)
        self._landed.pop(decode.key, None)
        if ending.error is not None:
            return Generation(key=decode.key, error=ending.error)
        self._decoded += ending.produced
        return Generation(
            key=decode.key,
            token_ids=tuple(ending.tokens),
            finish_reason=ending.reason,
            logprob=logprob,
            output_tokens=ending.produced,
        )
