"""Is a request something the model can run? Checked once, before it takes any room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import ModelConfig
from .errors import ErrorCode, RequestError
from .types import Decode, Request


def new_keys(request: Request, open_keys: set[str]) -> list[str]:
    """The keys of a request's decodes; ValueError for one that is in `open_keys` or stands twice."""
    keys = [decode.key for decode in request.decodes]
    taken = sorted(open_keys.intersection(keys)) or sorted({key for key in keys if keys.count(key) > 1})
    if taken:
        raise ValueError(f"key {taken[0]} is already in flight")
    return keys


def check_request(request: Request, config: ModelConfig) -> RequestError | None:
    """The first thing that makes the document impossible, and with it all its decodes, or None."""
    ids = np.asarray(request.input_ids)
    if ids.size == 0:
        return _bad("the encoder input is empty")
    if len(ids) > config.max_input_tokens:
        return RequestError(
            ErrorCode.TOO_LONG, f"{len(ids)} input tokens; the model takes at most {config.max_input_tokens}"
        )
    if not _in_vocabulary(ids, config.encoder.vocab_size):
        return _bad(f"the encoder input holds a token outside the vocabulary of {config.encoder.vocab_size}")
    return _check_images(request, ids, config)


def check_decode(decode: Decode, config: ModelConfig, has_tokenizer: bool) -> RequestError | None:
    """What makes this one decode impossible, or None."""
    if not _in_vocabulary(np.asarray(decode.prefix_ids, dtype=np.int64), config.decoder.vocab_size):
        return _bad(f"a decoder prefix holds a token outside the vocabulary of {config.decoder.vocab_size}")
    limit = config.decoder.max_positions
    if decode.positions > limit:
        return RequestError(
            ErrorCode.TOO_LONG,
            f"prefix and max_tokens make {decode.positions} decoder tokens; the model takes {limit}",
        )
    if decode.sampling.stop and not has_tokenizer:
        return _bad("stop strings need a tokenizer, and this checkpoint has none")
    return None


def _check_images(request: Request, ids: np.ndarray, config: ModelConfig) -> RequestError | None:
    images = 0
    if request.pixel_values is not None:
        side = config.vision.image_size
        shape = tuple(request.pixel_values.shape)
        if len(shape) != 4 or shape[1:] != (config.vision.channels, side, side):
            return _bad(f"pixel_values have shape {shape}; expected [images, {config.vision.channels}, {side}, {side}]")
        images = shape[0]
    placeholders = int((ids == config.image_id).sum())
    if placeholders != images * config.tokens_per_image:
        return _bad(f"{placeholders} image placeholders for {images} images of {config.tokens_per_image} tokens each")
    return None


def _in_vocabulary(ids: Sequence[int] | np.ndarray, size: int) -> bool:
    array = np.asarray(ids)
    return array.size == 0 or bool((array >= 0).all() and (array < size).all())


def _bad(message: str) -> RequestError:
    return RequestError(ErrorCode.BAD_ROW, message)
