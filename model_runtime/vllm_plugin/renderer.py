"""Requests in text → documents: what vLLM calls between its API and its engine, offline and under `vllm serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientError
from vllm import envs
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.utils.async_utils import make_async

from ..config import ModelConfig
from .chat import Chat, ImageBytes
from .pins import check_pins
from .prompts import DECODER_PROMPT, IMAGE, Prompts
from .tokenizer import processor_of


class T5Gemma2Renderer(BaseRenderer):
    """All text of a prompt and its images are the document; `decoder_prompt` is what the decoder starts with."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        check_pins("renderer")
        super().__init__(config, tokenizer)
        settings = config.model_config
        model: ModelConfig = settings.hf_config.model
        processor = None if tokenizer is None else processor_of(settings.tokenizer, settings.tokenizer_revision)
        self._prompts = Prompts(model, processor)
        self._with_document_async = make_async(self._prompts.with_document, executor=self._executor)

    def render_completion_suffix(self, prompt: str, suffix: str) -> Any:
        """A completion's `suffix` is what the decoder starts with: it stands behind the document."""
        return {"prompt": prompt, DECODER_PROMPT: suffix}

    # --- prompts -----------------------------------------------------------------------------------------------------

    def tokenize_prompt(self, prompt: Any, params: TokenizeParams) -> Any:
        """The decoder's ids with the document beside them; ValueError in one line for what cannot be one."""
        return self._checked(super().tokenize_prompt(self._prompts.with_document(prompt, params), params))

    async def tokenize_prompt_async(self, prompt: Any, params: TokenizeParams) -> Any:
        """As `tokenize_prompt`, in a thread: a long text and large images take a while."""
        with_document = await self._with_document_async(prompt, params)
        return self._checked(await super().tokenize_prompt_async(with_document, params))

    def _checked(self, prompt: Any) -> Any:
        self._prompts.check_decoder(prompt["prompt_token_ids"])
        return prompt

    # --- conversations -----------------------------------------------------------------------------------------------

    def render_messages(self, messages: Sequence[Mapping[str, Any]], params: ChatParams) -> tuple[list[Any], Any]:
        """The conversation, as texts, and its prompt; ValueError names what T5Gemma 2 has no place for."""
        chat = self._chat(messages, params)
        connector = self._connector() if chat.images else None
        loaded = [self._load(connector, n, image) for n, image in enumerate(chat.images, 1)]
        return _rendered(chat, loaded)

    async def render_messages_async(
        self, messages: Sequence[Mapping[str, Any]], params: ChatParams
    ) -> tuple[list[Any], Any]:
        """As `render_messages`; images are fetched together."""
        chat = self._chat(messages, params)
        connector = self._connector() if chat.images else None
        loading = (self._load_async(connector, n, image) for n, image in enumerate(chat.images, 1))
        return _rendered(chat, await asyncio.gather(*loading))

    def _chat(self, messages: Sequence[Mapping[str, Any]], params: ChatParams) -> Chat:
        chat = Chat.of(messages, params.chat_template_kwargs)
        # Before any is fetched.
        most = self._prompts.most_images(self.default_chat_tok_params)
        if len(chat.images) > most:
            raise ValueError(f"the document is too long: {len(chat.images)} images; there is room for {most}")
        return chat

    def _connector(self) -> MediaConnector:
        """vLLM's own, with its rules of what may be fetched."""
        settings = self.model_config
        return MEDIA_CONNECTOR_REGISTRY.load(
            envs.VLLM_MEDIA_CONNECTOR,
            media_io_kwargs=None,
            allowed_local_media_path=settings.allowed_local_media_path,
            allowed_media_domains=settings.allowed_media_domains,
        )

    def _load(self, connector: Any, number: int, image: Any) -> Any:
        if not isinstance(image, str):
            return image
        with _image_named(number):
            return connector.load_from_url(image, ImageBytes(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def _load_async(self, connector: Any, number: int, image: Any) -> Any:
        if not isinstance(image, str):
            return image
        with _image_named(number):
            return await connector.load_from_url_async(image, ImageBytes(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)


def _rendered(chat: Chat, images: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    prompt: dict[str, Any] = {"prompt": chat.text, DECODER_PROMPT: chat.decoder}
    if images:
        prompt["multi_modal_data"] = {IMAGE: list(images)}
    conversation = [{"role": "user", "content": chat.text}]
    return conversation, prompt


@contextmanager
def _image_named(number: int) -> Iterator[None]:
    try:
        yield
    # The others are what vLLM's connector raises for a URL that it does not read: as they are, it would answer 5xx.
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"image {number}: {' '.join(str(error).split())}") from error
    except (ClientError, OSError) as error:  # of requests too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {number} cannot be fetched: {reason}") from error
