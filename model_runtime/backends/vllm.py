"""vLLM as a backend: its engine over our plugin's model, fed so that each document is encoded once."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import ErrorCode, RequestError
from ..folder import resolve_checkpoint
from ..memory import engine_error
from ..stopping import StopChecker, TextCodec
from ..types import Decode, EngineConfig, EngineStats, Generation, Request
from ..validate import check_decode, check_request, new_keys
from .vllm_engine import in_own_process, made_so_far, start_engine, stop_engine
from .vllm_requests import Document, Flight, check_sampling, sampling_params

# vLLM gets so many decodes for each that it runs together: rows never wait for us, and memory stays bounded.
_FED = 2
# Seconds that the counts of a busy engine in a process of its own may be old: each look at them waits for a step.
_COUNTS_SECONDS = 1.0


class VllmBackend:
    """`Backend` over vLLM's LLMEngine. Not thread-safe: one thread submits and steps.

    Decodes go in document by document, those of one document directly one after the other: the first one has it
    encoded and writes its keys, the others find both. An exception out of `step` means that the engine is lost.
    """

    def __init__(self, engine: Any, model: ModelConfig, folder: Path, config: EngineConfig) -> None:
        self._engine = engine
        self._model = model
        self._folder = folder
        self._has_tokenizer = (folder / "tokenizer.json").exists()
        settings = engine.vllm_config
        self._dtype = str(settings.model_config.dtype).removeprefix("torch.")
        self._longest: int = settings.model_config.max_model_len
        self._rows: int = settings.scheduler_config.max_num_seqs
        self._max_decodes = config.max_decodes
        self._queue: deque[Flight] = deque()
        self._inside: dict[str, Flight] = {}
        self._open: set[str] = set()
        self._refused: list[Generation] = []
        self._counts: dict[str, float] = {}
        self._counted = float("-inf")
        self._decoded = self._steps = 0
        self._busy_seconds = 0.0

    @classmethod
    def load(cls, config: EngineConfig) -> VllmBackend:
        """Load a folder or a hub id into vLLM; ModelError says in one line what cannot be used."""
        folder = resolve_checkpoint(config.model, config.revision)
        model = ModelConfig.load(folder)
        return cls(start_engine(config, folder, model), model, folder, config)

    @property
    def stats(self) -> EngineStats:
        """The counts so far; `occupancy` over all of vLLM's steps, those that wrote documents among them."""
        now = time.monotonic()
        may_be_old = self._inside and in_own_process(self._engine)
        if not may_be_old or now - self._counted > _COUNTS_SECONDS:
            [self._counts] = self._engine.collective_rpc("t5gemma2_counts")
            self._counted = now
        encode_seconds = self._counts["encode_seconds"]
        slots = self._steps * self._max_decodes
        # Those inside have made some of their tokens; vLLM keeps them until the end.
        advanced = self._decoded + sum(made_so_far(self._engine))
        return EngineStats(
            encodes=int(self._counts["encodes"]),
            encoder_tokens=int(self._counts["encoder_tokens"]),
            decoded_tokens=self._decoded,
            steps=self._steps,
            occupancy=min(1.0, advanced / slots) if slots else 0.0,
            encode_seconds=encode_seconds,
            decode_seconds=max(0.0, self._busy_seconds - encode_seconds),
        )

    @property
    def all_begun(self) -> bool:
        """Whether each decode that was submitted, and is not finished, has made a token."""
        return not self._queue and all(made_so_far(self._engine))

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self._dtype

    def submit(self, request: Request) -> None:
        """Queue one document; what is wrong with it comes back from `step`. ValueError for a key in flight."""
        keys = new_keys(request, self._open)
        if any(decode.sampling.stop for decode in request.decodes) and self._has_tokenizer:
            self._tokenizer  # noqa: B018 - one that cannot be read raises ModelError now
        whole = check_request(request, self._model)
        document = None if whole else Document(request)
        self._open.update(keys)
        for decode in request.decodes:
            error = whole or self._check(decode, len(request.input_ids))
            if error is not None or document is None:
                self._refused.append(Generation(key=decode.key, error=error))
            else:
                self._queue.append(Flight(decode, document, self._model.eos_ids, self._stop(decode)))

    def step(self) -> list[Generation]:
        """One step of vLLM's engine over what it has been fed; what finished."""
        self._feed()
        done, self._refused = self._refused, []
        if self._inside:
            started = time.perf_counter()
            outputs = self._engine.step()
            self._busy_seconds += time.perf_counter() - started
            self._steps += 1
            for output in outputs:
                done += self._take(output)
        for generation in done:
            self._open.discard(generation.key)
            self._decoded += generation.output_tokens
        return done

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit all of `requests`, reading ahead a little, and yield what finishes."""
        for request in requests:
            self.submit(request)
            while len(self._open) >= 2 * _FED * self._rows:
                yield from self.step()
        while self._open:
            yield from self.step()

    def close(self) -> None:
        """Drop the model and everything in flight, and end vLLM's processes."""
        self._queue.clear()
        self._inside.clear()
        engine, self._engine = self._engine, None
        if engine is not None:
            stop_engine(engine)

    def _check(self, decode: Decode, tokens: int) -> RequestError | None:
        error = check_decode(decode, self._model, self._has_tokenizer) or check_sampling(decode)
        if error is None and tokens + decode.positions > self._longest:
            # As where the native backend finds no room for one alone: with more memory it may work.
            return RequestError(
                ErrorCode.OUT_OF_MEMORY,
                f"{tokens} input tokens and {decode.positions} decoder tokens; "
                f"vLLM's cache has room for {self._longest} in all",
            )
        return error

    def _feed(self) -> None:
        """Give vLLM what it can hold ready; a request that it refuses has failed, and nothing else."""
        from vllm.v1.engine.exceptions import EngineDeadError

        while self._queue and len(self._inside) < _FED * self._rows:
            flight = self._queue.popleft()
            key = flight.decode.key
            try:
                prompt = flight.document.prompt(flight.decode, self._model.bos_id)
                self._engine.add_request(key, prompt, sampling_params(flight.decode, self._model))
            except EngineDeadError:
                raise
            except Exception as error:
                self._abort(key)
                self._refused.append(flight.failed(engine_error(error, "entering vLLM")))
            else:
                self._inside[key] = flight

    def _take(self, output: Any) -> list[Generation]:
        flight = self._inside.get(output.request_id)
        if flight is None:
            return []
        ended = flight.take(output)
        if ended is None:
            return []
        del self._inside[output.request_id]
        if not output.finished:
            self._abort(output.request_id)
        return [ended]

    def _abort(self, key: str) -> None:
        with contextlib.suppress(KeyError):
            self._engine.abort_request([key])

    def _stop(self, decode: Decode) -> StopChecker | None:
        return StopChecker(decode.sampling.stop, self._tokenizer) if decode.sampling.stop else None

    @cached_property
    def _tokenizer(self) -> TextCodec:
        from ..processing import Processor

        return Processor.load(self._folder)
