"""Stock transformers as the parity tests' oracle, one document at a time, and the documents they are asked about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_runtime import Decode, Request, Sampling
from model_runtime.types import FinishReason
from tests.checkpoints import BOS, Shape, cached_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What transformers' generate makes of one decode; `gap` is the smallest lead of a token over the second best."""

    key: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float
    gap: float


class Oracle:
    """transformers' model, called as its documentation calls it."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import T5Gemma2ForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model: Any = T5Gemma2ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self.model.eval()

    @torch.inference_mode()
    def states(self, request: Request) -> Any:
        """The encoder's output object for one document."""
        ids = torch.as_tensor(np.asarray(request.input_ids, dtype=np.int64))[None]
        return self.model.get_encoder()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=None if request.pixel_values is None else self._pixels(request.pixel_values),
        )

    def encode(self, request: Request) -> Tensor:
        """Encoder states [tokens, hidden]."""
        return self.states(request).last_hidden_state[0]

    @torch.inference_mode()
    def first_logits(self, request: Request, states: Any = None) -> list[Tensor]:
        """Float32 logits [vocabulary] after BOS and prefix, for each decode."""
        states = self.states(request) if states is None else states
        return [
            self.model(encoder_outputs=states, decoder_input_ids=_prompt(decode)).logits[0, -1].float()
            for decode in request.decodes
        ]

    def greedy(self, request: Request, states: Any = None, **settings: Any) -> list[Expected]:
        """`model.generate` for each decode, greedy but for what `settings` say."""
        states = self.states(request) if states is None else states
        return [self._generate(request, decode, states, settings) for decode in request.decodes]

    @torch.inference_mode()
    def _generate(self, request: Request, decode: Decode, states: Any, settings: dict[str, Any]) -> Expected:
        prompt = _prompt(decode)
        out = self.model.generate(
            encoder_outputs=states,
            attention_mask=torch.ones(1, len(request.input_ids), dtype=torch.long),
            decoder_input_ids=prompt,
            do_sample=False,
            max_new_tokens=decode.sampling.max_tokens,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **settings,
        )
        tokens = out.sequences[0, prompt.shape[1] :].tolist()
        logits = torch.cat(out.logits).float()
        best = torch.cat(out.scores).float().topk(2, dim=-1).values
        eos = self.model.generation_config.eos_token_id
        stopped = tokens[-1] in (eos if isinstance(eos, list) else [eos])
        return Expected(
            key=decode.key,
            token_ids=tuple(tokens[:-1] if stopped else tokens),
            finish_reason="stop" if stopped else "length",
            logprob=float(logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum()),
            gap=float((best[:, 0] - best[:, 1]).min()),
        )

    def _pixels(self, pixels: Any) -> Tensor:
        tensor = torch.as_tensor(pixels)
        if tensor.dtype == torch.uint8:
            tensor = (tensor.float() / 255 - 0.5) / 0.5
        return tensor.to(self.model.dtype)


@cache
def oracle_for(shape: Shape, dtype: torch.dtype = torch.float32, stored: torch.dtype = torch.float32) -> Oracle:
    """The oracle on a cached checkpoint of `shape`, computing in `dtype`."""
    return Oracle(cached_checkpoint(shape, dtype=stored), dtype)


def _prompt(decode: Decode) -> Tensor:
    return torch.tensor([[BOS, *decode.prefix_ids]])


# --- documents -----------------------------------------------------------------------------------------------------


def text_ids(shape: Shape, count: int, rng: random.Random) -> list[int]:
    """Random ids of ordinary tokens."""
    return [rng.randrange(4, shape.boi) for _ in range(count)]


def make_request(
    shape: Shape,
    rng: random.Random,
    name: str,
    *,
    tokens: int,
    images: int = 0,
    prefixes: Sequence[int] = (0,),
    sampling: Sequence[Sampling] = (Sampling(max_tokens=8),),
) -> Request:
    """A document of `tokens` ordinary tokens with images strewn in, and a decode per prefix length."""
    decodes = tuple(
        Decode(key=f"{name}/{i}", prefix_ids=tuple(text_ids(shape, length, rng)), sampling=one)
        for i, (length, one) in enumerate(zip(prefixes, sampling, strict=True))
    )
    return Request(
        id=name,
        input_ids=_with_images(shape, text_ids(shape, tokens, rng), images, rng),
        pixel_values=_random_pixels(shape, images, rng),
        decodes=decodes,
    )


def corpus(shape: Shape, count: int, *, seed: int = 0) -> list[Request]:
    """`count` documents of every kind: 1 token to many windows, 0 to 3 images, 1 to 5 decodes, 0 to 20 prefix tokens.

    Lengths around the window come first, and the first document's first decode may run past the window.
    """
    rng = random.Random(f"{shape.name}/{count}/{seed}")
    window = shape.window
    special = [1, window, window + 1, 2, 3 * window + 5, window - 1, 2 * window, 130]
    requests = []
    for i in range(count):
        tokens = special[i] if i < len(special) else rng.choice([rng.randint(1, 12), rng.randint(13, 160)])
        decodes = 5 if i == 1 else rng.choice([1, 1, 1, 2, 3])
        limits = [rng.choice([1, 2, 3, 5, 8, 13, 24, 48]) for _ in range(decodes)]
        if i == 0:
            limits[0] = max(48, window + 18)
        requests.append(
            make_request(
                shape,
                rng,
                f"doc{i}",
                tokens=max(tokens, 1),
                images=rng.choice([0, 0, 1, 2, 3]),
                prefixes=[rng.choice([0, 0, 1, 5, 20, rng.randint(1, 20)]) for _ in limits],
                sampling=[Sampling(max_tokens=limit) for limit in limits],
            )
        )
    return requests


def _with_images(shape: Shape, text: list[int], images: int, rng: random.Random) -> list[int]:
    """Put each image's placeholders at a random place, mostly between its markers."""
    ids = list(text)
    for at in sorted((rng.randint(0, len(text)) for _ in range(images)), reverse=True):
        placeholders = [shape.image_token] * shape.image_tokens
        marked = [shape.boi, *placeholders, shape.eoi] if rng.random() < 0.8 else placeholders
        ids[at:at] = marked
    return ids


def _random_pixels(shape: Shape, images: int, rng: random.Random) -> Any:
    """Blocks of colour with noise: uint8 as a worker sends it, sometimes float32 already normalised."""
    if images == 0:
        return None
    noise = np.random.default_rng(rng.randrange(2**32))
    blocks = noise.integers(0, 216, (images, 3, 4, 4)).repeat(shape.image_size // 4, 2).repeat(shape.image_size // 4, 3)
    pixels = (blocks + noise.integers(0, 40, blocks.shape)).astype(np.uint8)
    if rng.random() < 0.75:
        return pixels
    return torch.from_numpy(pixels).float() / 127.5 - 1


@torch.inference_mode()
def long_states(oracle: Oracle, request: Request) -> Any:
    """`oracle.states` for a document whose masks transformers itself cannot afford: 19 GB at 32,768 tokens.

    The mask comes from transformers' own window function, evaluated some rows at a time; full layers need none.
    """
    from transformers.models.t5gemma2.modeling_t5gemma2 import sliding_window_mask_function

    length, window = len(request.input_ids), oracle.model.config.encoder.text_config.sliding_window
    visible = sliding_window_mask_function(window, is_causal=False)
    keys = torch.arange(length, dtype=torch.int32)
    mask = torch.zeros(1, 1, length, length)
    for start in range(0, length, 1024):
        rows = mask[0, 0, start : start + 1024]
        queries = torch.arange(start, start + len(rows), dtype=torch.int32)[:, None]
        rows.masked_fill_(~visible(0, 0, queries, keys), float("-inf"))
    return oracle.model.get_encoder()(
        input_ids=torch.as_tensor(np.asarray(request.input_ids, dtype=np.int64))[None],
        attention_mask={"full_attention": None, "sliding_attention": mask},
        pixel_values=None if request.pixel_values is None else oracle._pixels(request.pixel_values),
    )
