"""A prompt's text, ids and images → the document that the encoder reads, and the decoder's first tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from vllm import envs
from vllm.multimodal.media import MediaWithBytes
from vllm.renderers.params import TokenizeParams

from ..config import ModelConfig
from ..errors import RequestError
from ..images import image_array, open_image, upright_rgb
from ..processing import Processor
from . import MODALITY

DECODER_PROMPT = "decoder_prompt"
IMAGE = "image"
# Keys of a prompt that are read here; vLLM gets the others as they are.
_READ = ("prompt_token_ids", "multi_modal_data", "multi_modal_uuids", DECODER_PROMPT)


class Prompts:
    """Makes prompts into documents, by a model's sizes and its processor; None for a model that has only ids."""

    def __init__(self, model: ModelConfig, processor: Processor | None) -> None:
        self._model = model
        self._processor = processor

    def with_document(self, prompt: Mapping[str, Any], params: TokenizeParams) -> dict[str, Any]:
        """The decoder's ids, BOS first, and {"doc": ...} of what `prompt` has; ValueError says what is wrong with it.

        A prompt that has a document already is the decoder's, and stays as it is.
        """
        data = prompt.get("multi_modal_data") or {}
        if MODALITY in data:
            if prompt.get(DECODER_PROMPT) is not None:
                raise ValueError(f"beside a {MODALITY}, the prompt is the decoder's: leave out {DECODER_PROMPT}")
            return dict(prompt)
        images = _images(data)
        decoder = self._decoder_ids(prompt.get(DECODER_PROMPT))
        ids = self._document_ids(prompt, len(images), decoder, params)
        document: dict[str, Any] = {"input_ids": ids}
        if images:
            document["pixel_values"] = self._pixels(images)
        kept = {key: value for key, value in prompt.items() if key not in _READ}
        if params.needs_detokenization and "prompt" not in kept and self._processor is not None:
            kept["prompt"] = self._processor.decode(ids.tolist())
        return {**kept, "prompt_token_ids": decoder, "multi_modal_data": {MODALITY: document}}

    def check_decoder(self, ids: Sequence[int]) -> None:
        """ValueError when the decoder has no embedding for one of `ids`."""
        size = self._model.decoder.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise ValueError(f"the decoder's prompt holds the token {wrong}, outside the vocabulary of {size}")

    def most_images(self, params: TokenizeParams | None = None) -> int:
        """How many images the longest document has room for."""
        longest = self._model.max_input_tokens
        if params is not None and params.max_total_tokens is not None:
            longest = min(longest, params.max_total_tokens)
        return longest // (self._model.tokens_per_image + 2)

    def _decoder_ids(self, prompt: Any) -> list[int]:
        bos = self._model.bos_id
        if prompt is None:
            return [bos]
        if isinstance(prompt, str):
            return [bos, *self._text_processor().prefix_ids(prompt)]
        if not _is_ids(prompt):
            raise ValueError(f"{DECODER_PROMPT} must be text or a list of token ids")
        return list(prompt) if list(prompt[:1]) == [bos] else [bos, *prompt]

    def _document_ids(
        self, prompt: Mapping[str, Any], images: int, decoder: Sequence[int], params: TokenizeParams
    ) -> np.ndarray:
        room, why = self._room(len(decoder), params)
        cut = params.truncate_prompt_tokens is not None
        if (given := prompt.get("prompt_token_ids")) is not None:
            return self._given_ids(given, room, why, cut)
        text = prompt.get("prompt")
        if not isinstance(text, str):
            raise ValueError("a prompt must have text (prompt) or token ids (prompt_token_ids)")
        if not text and not images:
            raise ValueError("the document is empty: give text or an image")
        try:
            return (
                self._text_processor()
                .encoder_input(text=text, images=images, max_tokens=room, overflow="truncate" if cut else "reject")
                .ids
            )
        except RequestError as error:
            raise ValueError(f"the document is too long: {error.message} ({why})") from error

    def _given_ids(self, given: Any, room: int, why: str, cut: bool) -> np.ndarray:
        if not _is_ids(given) or len(given) == 0:
            raise ValueError("a document's prompt_token_ids must be a list of token ids")
        bos = self._model.bos_id
        ids = list(given) if given[0] == bos else [bos, *given]
        if len(ids) > room and not cut:
            raise ValueError(f"the document is too long: {len(ids):,} tokens; the limit is {room:,} ({why})")
        return np.array(ids[:room], dtype=np.int64)

    def _room(self, decoder: int, params: TokenizeParams) -> tuple[int, str]:
        """Tokens that the document may have, and why no more."""
        room, why = self._model.max_input_tokens, "the longest input of the model"
        if params.max_total_tokens is not None:
            left = params.max_total_tokens - decoder - 1
            if left < room:
                room = left
                why = f"max_model_len {params.max_total_tokens:,} less {decoder} of the decoder and one of output"
        wanted = params.truncate_prompt_tokens
        if wanted is not None and params.truncation_side == "left":
            raise ValueError("a document that is too long loses its end: truncation_side left is not supported")
        if wanted is not None and 0 <= wanted < room + decoder:
            room, why = wanted - decoder, f"truncate_prompt_tokens {wanted:,} less {decoder} of the decoder"
        if room < 1:
            raise ValueError(f"the decoder's prompt leaves no room for a document ({why})")
        return room, why

    def _text_processor(self) -> Processor:
        if self._processor is None:
            raise ValueError("text needs the tokenizer, which skip_tokenizer_init leaves out: give token ids")
        return self._processor

    def _pixels(self, images: Sequence[Any]) -> np.ndarray:
        """uint8 [images, 3, size, size]."""
        size = self._model.vision.image_size
        pixels_N3SS = np.empty((len(images), 3, size, size), dtype=np.uint8)
        for n, image in enumerate(images):
            try:
                pixels_N3SS[n] = image_array(_opened(image), size)
            except RequestError as error:
                raise ValueError(f"image {n + 1}: {error.message}") from error
            except (OSError, TypeError) as error:
                raise ValueError(f"image {n + 1} cannot be read: {' '.join(str(error).split())}") from error
        return pixels_N3SS


def _opened(image: Any) -> Image.Image:
    limit = envs.VLLM_MAX_IMAGE_PIXELS or 1 << 62
    if isinstance(image, MediaWithBytes):
        image = image.original_bytes
    if isinstance(image, bytes | bytearray | memoryview):
        return open_image(bytes(image), max_pixels=limit)
    if not isinstance(image, Image.Image):
        raise TypeError(f"bytes or a PIL image are needed, not {type(image).__name__}")
    if image.width * image.height > limit:
        raise TypeError(f"{image.width}×{image.height} pixels; the limit is {limit:,}")
    return upright_rgb(image)


def _images(data: Mapping[str, Any]) -> list[Any]:
    others = sorted(data.keys() - {IMAGE})
    if others:
        raise ValueError(f"T5Gemma 2 reads text and images (image), not {', '.join(others)}")
    given = data.get(IMAGE)
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_ids(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
