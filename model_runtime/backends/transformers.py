"""The reference backend: transformers' own T5Gemma 2, one document at a time, correct and simple rather than fast."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import ErrorCode, ModelError, RequestError
from ..folder import resolve_checkpoint
from ..memory import is_out_of_memory
from ..model import choose_device, choose_dtype
from ..sampling import Sampler
from ..stopping import StopChecker
from ..types import Decode, EngineConfig, EngineStats, FinishReason, Generation, Request
from ..validate import check_decode, check_request
from ..vision import normalise_pixels

_TOKENIZER_FILE = "tokenizer.json"


class TransformersBackend:
    """`Backend` over transformers' T5Gemma2ForConditionalGeneration, attention by SDPA.

    Each request is encoded once; its decodes run one after the other over that encoding, each with its own keys.
    `step` does one request.
    """

    def __init__(self, model: Any, config: ModelConfig, folder: Path, max_decodes: int) -> None:
        self._model = model
        self._config = config
        self._folder = folder
        self._max_decodes = max_decodes
        self._queue: deque[Request] = deque()
        self._stats = EngineStats()

    @classmethod
    def load(cls, config: EngineConfig) -> TransformersBackend:
        """Load a folder or a hub id, safetensors only; ModelError says in one line what cannot be used."""
        folder = resolve_checkpoint(config.model, config.revision)
        model_config = ModelConfig.load(folder)
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, folder, device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return cls(load_model(folder, device, dtype), model_config, folder, config.max_decodes)

    @property
    def stats(self) -> EngineStats:
        """The counts so far; one decode is in flight at a time."""
        occupancy = 1 / self._max_decodes if self._stats.steps else 0.0
        return dataclasses.replace(self._stats, occupancy=occupancy)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return str(self._model.dtype).removeprefix("torch.")

    def submit(self, request: Request) -> None:
        """Queue one document. ValueError for a key that is queued already."""
        taken = [decode.key for queued in (*self._queue, request) for decode in queued.decodes]
        for decode in request.decodes:
            if taken.count(decode.key) > 1:
                raise ValueError(f"key {decode.key} is already in flight")
        self._queue.append(request)

    def step(self) -> list[Generation]:
        """Do one request: a Generation for each of its decodes, with the error where there was one."""
        return self._run(self._queue.popleft()) if self._queue else []

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit one request after the other and yield what it makes."""
        for request in requests:
            self.submit(request)
            while self._queue:
                yield from self.step()

    def close(self) -> None:
        """Drop the model and whatever is queued."""
        self._queue.clear()
        self._model = None

    @cached_property
    def _tokenizer(self) -> Any:
        from ..processing import Processor

        return Processor.load(self._folder)

    @torch.inference_mode()
    def _run(self, request: Request) -> list[Generation]:
        whole = check_request(request, self._config)
        has_tokenizer = (self._folder / _TOKENIZER_FILE).exists()
        errors = {d.key: whole or check_decode(d, self._config, has_tokenizer) for d in request.decodes}
        states = None
        try:
            if any(error is None for error in errors.values()):
                with _typed_errors("encoding"):
                    states = self._encode(request)
        except RequestError as failed:
            errors = {key: error or failed for key, error in errors.items()}
        return [
            Generation(key=decode.key, error=error) if (error := errors[decode.key]) else self._try(states, decode)
            for decode in request.decodes
        ]

    def _encode(self, request: Request) -> Any:
        """The encoder's output for one document, [1, tokens, hidden]."""
        started = time.perf_counter()
        ids_1T = torch.from_numpy(np.asarray(request.input_ids, dtype=np.int64))[None].to(self._model.device)
        states = self._model.get_encoder()(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), pixel_values=self._pixels(request)
        )
        self._count(encodes=1, encoder_tokens=ids_1T.shape[1], encode_seconds=time.perf_counter() - started)
        return states

    def _pixels(self, request: Request) -> Tensor | None:
        if request.pixel_values is None or len(request.pixel_values) == 0:
            return None
        pixels = torch.as_tensor(request.pixel_values).to(self._model.device)
        return normalise_pixels(pixels, self._config.image_mean, self._config.image_std, self._model.dtype)

    def _try(self, states: Any, decode: Decode) -> Generation:
        try:
            with _typed_errors("decoding"):
                return self._decode(states, decode)
        except RequestError as error:
            return Generation(key=decode.key, error=error)

    def _decode(self, states: Any, decode: Decode) -> Generation:
        started = time.perf_counter()
        sampling = decode.sampling
        prompt = [self._config.bos_id, *decode.prefix_ids]
        sampler = Sampler(sampling, decode.key, prompt)
        stop = StopChecker(sampling.stop, self._tokenizer) if sampling.stop else None
        produced: list[int] = []
        kept: Sequence[int] = produced
        reason: FinishReason = "length"
        logprob = 0.0
        cache, fed = None, prompt
        while len(produced) < sampling.max_tokens:
            logits_V, cache = self._forward(states, fed, cache)
            token, token_logprob = sampler.next(logits_V)
            produced.append(token)
            logprob += token_logprob
            fed = [token]
            if token in self._config.eos_ids:
                kept, reason = produced[:-1], "stop"
                break
            trimmed = stop.push(token) if stop else None
            if trimmed is not None:
                kept, reason = trimmed, "stop"
                break
        self._count(decoded_tokens=len(produced), steps=len(produced), decode_seconds=time.perf_counter() - started)
        return Generation(
            key=decode.key,
            token_ids=tuple(kept),
            finish_reason=reason,
            logprob=logprob,
            output_tokens=len(produced),
        )

    def _forward(self, states: Any, ids: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        """Float32 logits [vocabulary] after `ids`, and the keys and values so far."""
        out = self._model(
            encoder_outputs=states,
            decoder_input_ids=torch.tensor([list(ids)], device=self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[0, -1].float(), out.past_key_values

    def _count(self, **increments: float) -> None:
        totals = {name: getattr(self._stats, name) + more for name, more in increments.items()}
        self._stats = dataclasses.replace(self._stats, **totals)


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' T5Gemma2ForConditionalGeneration from a folder; ModelError when a tensor is missing or unknown."""
    model_class = _model_class()
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that the report names them; refused below
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers raises on a bad folder, a person reads one line
        raise ModelError(f"{folder} cannot be loaded by transformers: {_one_line(error)}") from error
    _check_report(folder, report)
    return model.to(device).eval()


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    # transformers only warns, and leaves random numbers where a tensor does not come from the file.
    if report["missing_keys"]:
        raise ModelError(f"{folder} lacks the tensor {min(report['missing_keys'])}")
    if report["unexpected_keys"]:
        raise ModelError(f"{folder} holds the unknown tensor {min(report['unexpected_keys'])}")
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise ModelError(f"{folder}: tensor {name} has shape {list(stored)}, the config says {list(expected)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load report: what matters of it becomes a ModelError."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _model_class() -> Any:
    try:
        from transformers import T5Gemma2ForConditionalGeneration
    except ImportError as error:
        raise ModelError(
            "the transformers backend needs transformers 5: pip install 'corpusmill[transformers]'"
        ) from error
    return T5Gemma2ForConditionalGeneration


@contextlib.contextmanager
def _typed_errors(doing: str) -> Iterator[None]:
    """Whatever goes wrong with one input becomes its RequestError; the next input gets its chance."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise RequestError(ErrorCode.OUT_OF_MEMORY, f"out of memory while {doing}") from error
        line = f"{type(error).__name__} while {doing}: {_one_line(error)}"
        raise RequestError(ErrorCode.ENGINE_CRASH, line) from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
