"""CTranslate2 as a peer: converted from the same folder by its own converter; text only, a row for each task."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...config import ModelConfig
from .types import Ask, PeerConfig, PeerMissing, Produced

_MINIMUM = (4, 8)
_VOCABULARY = "shared_vocabulary.json"


class CTranslate2Peer:
    """See `Peer`. It keeps no encoding: every task encodes its document again."""

    def __init__(self, config: PeerConfig) -> None:
        self._config = config
        self._folder = _converted(config)
        self._vocabulary: list[str] = json.loads((self._folder / _VOCABULARY).read_text(encoding="utf-8"))
        self._ids = {token: i for i, token in enumerate(self._vocabulary)}
        # Never first: with the shortest output as long as the longest, ending is ruled out anyway.
        self._end = [ModelConfig.load(config.model).pad_id]
        self._states: tuple[Any, list[int]] | None = None
        self._held: np.ndarray | None = None

    @classmethod
    def prepare(cls, config: PeerConfig) -> None:
        """Convert the folder, whole and its encoder alone, unless that is done; PeerMissing."""
        _library()
        if not _converted(config).exists():
            _convert(config)

    @classmethod
    def load(cls, config: PeerConfig) -> CTranslate2Peer:
        """PeerMissing where the library or the dtype is not there. Weights are read when first needed."""
        library = _library()
        device = "cuda" if config.device.startswith("cuda") else "cpu"
        supported = library.get_supported_compute_types(device)
        if config.dtype not in supported:
            raise PeerMissing(f"ctranslate2 has no {config.dtype} on this {device}: {', '.join(sorted(supported))}")
        return cls(config)

    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """One padded call; its output stays on the device."""
        out = self._encoder.forward_batch([ids.tolist() for ids in documents]).last_hidden_state
        if self._config.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._config.device)  # the whole device, whoever gave it the work
        self._states = out, [len(ids) for ids in documents]

    def encoded(self) -> list[np.ndarray]:
        """See `Peer`."""
        library = _library()
        assert self._states is not None, "encode first"
        (out, lengths), self._states = self._states, None
        states_BTE = np.array(out.to(library.DataType.float32).to_device(library.Device.cpu))
        return [row[:length] for row, length in zip(states_BTE, lengths, strict=True)]

    def run(self, asks: Sequence[Ask], max_tokens: int) -> Produced:
        """A row for each document and task; the library sorts them and batches by tokens."""
        return self._translate(asks, max_tokens, {"max_batch_size": self._config.batch_tokens, "batch_type": "tokens"})

    def first_logits(self, ask: Ask) -> np.ndarray:
        """It gives scores of what it chose, and no more."""
        raise PeerMissing("ctranslate2 gives no logits of a translation")

    def hold(self, ids: np.ndarray) -> None:
        """Remembered only."""
        self._held = ids

    def decode(self, prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> Produced:
        """One batch of all tasks, however long the document is."""
        assert self._held is not None, "hold a document first"
        return self._translate([Ask(ids=self._held, prefixes=tuple(prefixes))], max_tokens, {})

    def _translate(self, asks: Sequence[Ask], max_tokens: int, batching: dict[str, Any]) -> Produced:
        rows = [(ask.ids, prefix) for ask in asks for prefix in ask.prefixes]
        prefix_length = len(rows[0][1])
        assert all(len(prefix) == prefix_length for _, prefix in rows), "prefixes of one run are equally long"
        clock = _Clock(prefix_length)
        # The prefix counts as output here, and comes back with it.
        length = prefix_length + max_tokens
        results = self._translator.translate_batch(
            [self._tokens(ids) for ids, _ in rows],
            target_prefix=[self._tokens(prefix) for _, prefix in rows],
            beam_size=1,
            max_input_length=0,
            max_decoding_length=length,
            min_decoding_length=length,
            end_token=self._end,
            callback=clock,
            **batching,
        )
        ended = time.perf_counter()
        produced = [tuple(self._ids[t] for t in result.hypotheses[0][prefix_length:]) for result in results]
        tokens, at = [], 0
        for ask in asks:
            tokens.append(produced[at : at + len(ask.prefixes)])
            at += len(ask.prefixes)
        later, seconds = clock.later(ended)
        return Produced(tokens=tokens, later_tokens=later, later_seconds=seconds, extra={})

    def _tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [self._vocabulary[i] for i in ids]

    @cached_property
    def _translator(self) -> Any:
        return _library().Translator(str(self._folder), **self._options())

    @cached_property
    def _encoder(self) -> Any:
        return _library().Encoder(str(self._folder / "encoder"), **self._options())

    def _options(self) -> dict[str, Any]:
        device, _, index = self._config.device.partition(":")
        return {
            "device": device,
            "device_index": int(index or 0),
            "compute_type": self._config.dtype,
            "inter_threads": 1,
            "intra_threads": self._config.threads,
        }


class _Clock:
    """The callback of each produced token, batch after batch: how many came after the first of their batch, and the
    time that took."""

    def __init__(self, prefix_length: int) -> None:
        self._first_step = prefix_length
        self._started: float | None = None
        self._now = 0.0
        self._tokens, self._seconds = 0, 0.0

    def __call__(self, result: Any) -> bool:
        self._now, before = time.perf_counter(), self._now
        if result.step <= self._first_step:
            if self._started is not None and result.step < self._first_step:
                # Another batch begins: the one before ended with its last token.
                self._close(before)
            if result.step == self._first_step:
                self._started = self._now
        else:
            self._tokens += 1
        return False

    def later(self, ended: float) -> tuple[int, float]:
        """(tokens, seconds) once all is done."""
        self._close(min(ended, self._now) if self._tokens else ended)
        return self._tokens, self._seconds

    def _close(self, at: float) -> None:
        if self._started is not None:
            self._seconds += at - self._started
        self._started = None


class _Words:
    """The tokenizer as the converter wants it: the folder's own vocabulary, cut to what the model embeds.

    transformers' tokenizer classes add tokens that are not in the checkpoint, which the library then refuses.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        from tokenizers import Tokenizer

        words = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
        self._words = {token: i for token, i in words.items() if i < config.decoder.vocab_size}
        by_id = {i: token for token, i in self._words.items()}
        self.bos_token, self.eos_token = by_id[config.bos_id], by_id[config.eos_ids[0]]
        self.unk_token = "<unk>"

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""
        return self._words


def _convert(config: PeerConfig) -> None:
    from ctranslate2.converters.transformers import TransformersConverter
    from ctranslate2.specs.transformer_spec import TransformerEncoderModelSpec

    words = _Words(ModelConfig.load(config.model), config.model)

    class Converter(TransformersConverter):
        """Its own, with the tokenizer of the folder."""

        def load_tokenizer(self, *given: Any, **named: Any) -> Any:
            return words

    class EncoderConverter(Converter):
        """The encoder alone: a translator gives no states."""

        def _load(self) -> Any:
            whole = super()._load()
            spec = TransformerEncoderModelSpec(whole.encoder)
            spec.register_vocabulary(sorted(words.get_vocab(), key=words.get_vocab().__getitem__))
            spec.config.bos_token, spec.config.eos_token = words.bos_token, words.eos_token
            spec.config.unk_token = words.unk_token
            spec.config.layer_norm_epsilon = whole.config.layer_norm_epsilon
            return spec

    from ..transformers import _quiet

    folder = _converted(config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _quiet():
            Converter(str(config.model)).convert(str(partial), quantization=config.dtype)
            EncoderConverter(str(config.model)).convert(str(partial / "encoder"), quantization=config.dtype)
    except Exception as error:  # whatever it dislikes about a folder
        shutil.rmtree(partial, ignore_errors=True)
        line = " ".join(str(error).split()) or type(error).__name__
        raise PeerMissing(f"ctranslate2 cannot convert {config.model.name}: {line}") from error
    partial.rename(folder)


def _converted(config: PeerConfig) -> Path:
    return config.cache / f"ctranslate2-{config.dtype}"


def _library() -> Any:
    try:
        import ctranslate2
    except ImportError as error:
        raise PeerMissing("ctranslate2 is not installed: pip install 'corpusmill[benchmark]'") from error
    found = tuple(int(part) for part in ctranslate2.__version__.split(".")[:2])
    if found < _MINIMUM:
        raise PeerMissing(f"ctranslate2 {ctranslate2.__version__} is too old; T5Gemma 2 needs 4.8")
    return ctranslate2
