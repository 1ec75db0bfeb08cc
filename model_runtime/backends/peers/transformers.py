"""transformers as a peer, twice: `generate` per task as a user writes it first, and what an expert makes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import ModelConfig
from ...errors import ModelError
from .types import Ask, PeerConfig, PeerMissing, Produced, length_sorted_batches

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Clock:
    """A stopping criterion that stops nothing: notes when the first token of a `generate` call is there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.first: float | None = None

    def __call__(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.first is None:
            _synchronize(self._device)
            self.first = time.perf_counter()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class _TransformersPeer:
    """The model, padded batches, and `generate` with a fixed length."""

    def __init__(self, model: Any, config: ModelConfig, batch_tokens: int) -> None:
        self._model = model
        self._config = config
        self._batch_tokens = batch_tokens
        self._states: list[Tensor] = []
        self._held: Tensor | None = None

    @classmethod
    def prepare(cls, config: PeerConfig) -> None:
        """Nothing to make."""

    @classmethod
    def load(cls, config: PeerConfig) -> Any:
        """SDPA, weights in `config.dtype`; PeerMissing when transformers or the dtype is not there."""
        from ..transformers import load_model

        dtype = _DTYPES.get(config.dtype)
        if dtype is None:
            raise PeerMissing(f"transformers has no {config.dtype}; choose from {', '.join(_DTYPES)}")
        if config.device == "cpu":
            torch.set_num_threads(config.threads)
        try:
            model = load_model(config.model, torch.device(config.device), dtype)
        except ModelError as error:
            raise PeerMissing(str(error)) from error
        model.generation_config.eos_token_id = None
        return cls(model, ModelConfig.load(config.model), config.batch_tokens)

    @torch.inference_mode()
    def encode(self, documents: Sequence[np.ndarray]) -> None:
        """In length-sorted padded batches."""
        states: dict[int, Tensor] = {}
        for batch in self._batches([len(ids) for ids in documents]):
            states_BTE = self._encode(*self._pad([documents[i] for i in batch]))
            states |= {i: row[: len(documents[i])] for i, row in zip(batch, states_BTE, strict=True)}
        _synchronize(self._model.device)
        self._states = [states[i] for i in range(len(documents))]

    def encoded(self) -> list[np.ndarray]:
        """See `Peer`."""
        states, self._states = self._states, []
        return [states_NE.float().cpu().numpy() for states_NE in states]

    @torch.inference_mode()
    def hold(self, ids: np.ndarray) -> None:
        """Encode it and keep the states."""
        self._held = None
        self._held = self._encode(*self._pad([ids]))

    @torch.inference_mode()
    def first_logits(self, ask: Ask) -> np.ndarray:
        """See `Peer`; prefixes of one call are equally long."""
        states_RTE = self._encode(*self._pad([ask.ids])).expand(len(ask.prefixes), -1, -1)
        prompt_RP = torch.tensor([[self._config.bos_id, *p] for p in ask.prefixes], device=self._model.device)
        out = self._model(
            encoder_outputs=_encoder_outputs(states_RTE), decoder_input_ids=prompt_RP, use_cache=False, logits_to_keep=1
        )
        return out.logits[:, -1].float().cpu().numpy()

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return length_sorted_batches(lengths, self._batch_tokens)

    def _encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self._model.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state

    def _pad(self, documents: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(ids, mask), [documents, longest], padded on the right."""
        longest = max(len(ids) for ids in documents)
        ids_BT = torch.full((len(documents), longest), self._config.pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(documents):
            ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask_BT[row, : len(ids)] = 1
        return ids_BT.to(self._model.device), mask_BT.to(self._model.device)

    def _generate(
        self, prefixes: Sequence[tuple[int, ...]], max_tokens: int, mask_BT: Tensor | None, **given: Any
    ) -> tuple[list[tuple[int, ...]], float]:
        """Produced ids of each row, and the seconds after the first token. Prefixes of one call are equally long."""
        from transformers import StoppingCriteriaList

        clock = _Clock(self._model.device)
        prompt_BP = torch.tensor([[self._config.bos_id, *prefix] for prefix in prefixes], device=self._model.device)
        out_BP = self._model.generate(
            **given,
            attention_mask=mask_BT,
            decoder_input_ids=prompt_BP,
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        _synchronize(self._model.device)
        ended = time.perf_counter()
        assert clock.first is not None
        return [tuple(row) for row in out_BP[:, prompt_BP.shape[1] :].tolist()], ended - clock.first


class PlainPeer(_TransformersPeer):
    """`generate` task by task over length-sorted padded batches: every task encodes its document again."""

    @torch.inference_mode()
    def run(self, asks: Sequence[Ask], max_tokens: int) -> Produced:
        """See `Peer`."""
        collected = _Collected([len(ask.prefixes) for ask in asks], max_tokens)
        for task in range(max(len(ask.prefixes) for ask in asks)):
            documents = [d for d, ask in enumerate(asks) if task < len(ask.prefixes)]
            for batch in self._batches([len(asks[d].ids) for d in documents]):
                chosen = [documents[i] for i in batch]
                ids_BT, mask_BT = self._pad([asks[d].ids for d in chosen])
                places = [(d, task) for d in chosen]
                prefixes = [asks[d].prefixes[task] for d in chosen]
                collected.add(places, *self._generate(prefixes, max_tokens, mask_BT, input_ids=ids_BT))
        return collected.produced()

    @torch.inference_mode()
    def decode(self, prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> Produced:
        """One task after the other."""
        collected = _Collected([len(prefixes)], max_tokens)
        for task, prefix in enumerate(prefixes):
            outputs = _encoder_outputs(self._held)
            collected.add([(0, task)], *self._generate([prefix], max_tokens, None, encoder_outputs=outputs))
        return collected.produced()


class ExpertPeer(_TransformersPeer):
    """Each document encoded once in length-sorted padded batches; all tasks of a batch decoded together, the
    encoder's states expanded to one row for each task."""

    @torch.inference_mode()
    def run(self, asks: Sequence[Ask], max_tokens: int) -> Produced:
        """See `Peer`."""
        collected = _Collected([len(ask.prefixes) for ask in asks], max_tokens)
        for batch in self._batches([len(ask.ids) for ask in asks]):
            ids_BT, mask_BT = self._pad([asks[d].ids for d in batch])
            rows = torch.tensor([row for row, d in enumerate(batch) for _ in asks[d].prefixes], device=ids_BT.device)
            states_RTE = self._encode(ids_BT, mask_BT)[rows]
            places = [(d, task) for d in batch for task in range(len(asks[d].prefixes))]
            prefixes = [asks[d].prefixes[task] for d, task in places]
            outputs = _encoder_outputs(states_RTE)
            collected.add(places, *self._generate(prefixes, max_tokens, mask_BT[rows], encoder_outputs=outputs))
        return collected.produced()

    @torch.inference_mode()
    def decode(self, prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> Produced:
        """All tasks together."""
        assert self._held is not None, "hold a document first"
        collected = _Collected([len(prefixes)], max_tokens)
        outputs = _encoder_outputs(self._held.expand(len(prefixes), -1, -1))
        places = [(0, task) for task in range(len(prefixes))]
        collected.add(places, *self._generate(prefixes, max_tokens, None, encoder_outputs=outputs))
        return collected.produced()


class _Collected:
    """What `generate` calls produced, put where it belongs."""

    def __init__(self, tasks: Sequence[int], max_tokens: int) -> None:
        self._tokens: list[list[tuple[int, ...]]] = [[()] * number for number in tasks]
        self._later = (max_tokens - 1, 0, 0.0)

    def add(self, places: Sequence[tuple[int, int]], rows: Sequence[tuple[int, ...]], later_seconds: float) -> None:
        """The rows of one call and the seconds after its first token."""
        for (document, task), row in zip(places, rows, strict=True):
            self._tokens[document][task] = row
        each, tokens, seconds = self._later
        self._later = (each, tokens + each * len(rows), seconds + later_seconds)

    def produced(self) -> Produced:
        """Everything so far."""
        _, tokens, seconds = self._later
        return Produced(tokens=self._tokens, later_tokens=tokens, later_seconds=seconds, extra={})


def _encoder_outputs(states: Tensor | None) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    assert states is not None, "hold a document first"
    return BaseModelOutput(last_hidden_state=states)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
