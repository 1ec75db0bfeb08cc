"""A conversation → one document and the decoder's prompt: T5Gemma 2 knows no turns, and needs no chat template."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.multimodal.media import MediaIO

# Encoded; what vLLM fetches is cut off there.
_MOST_IMAGE_BYTES = 64 << 20
_DECODER_ROLES = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image", "image_pil")


@dataclass(frozen=True, slots=True)
class Chat:
    """The user's message and what the decoder starts with; `images` are URLs and opened images, in order."""

    text: str
    images: tuple[Any, ...]
    decoder: str

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Chat:
        """By the request's template options, of which `continue_final_message` is read; ValueError names what is wrong.

        One user message is the document. The decoder starts with the text of a system message, and goes on with that
        of a final assistant message when the request continues one.
        """
        if options.get("tools"):
            raise ValueError("T5Gemma 2 calls no tools: leave out tools")
        by_role: dict[str, Mapping[str, Any]] = {}
        for message in messages:
            role = "system" if message["role"] in _DECODER_ROLES else message["role"]
            if role not in ("system", "user", "assistant"):
                raise ValueError(f"T5Gemma 2 reads system, user and assistant messages, not {role}")
            if role in by_role:
                raise ValueError(f"there is more than one {role} message; a request is one document, in one of each")
            by_role[role] = message
        if "user" not in by_role:
            raise ValueError("there is no user message, which is the document")
        _check_final(messages, by_role, bool(options.get("continue_final_message")))
        text, images = _content(by_role["user"])
        decoder = "".join(_text_of(by_role[role]) for role in ("system", "assistant") if role in by_role)
        return cls(text=text, images=tuple(images), decoder=decoder)


class ImageBytes(MediaIO[bytes]):
    """An image's bytes as they are: the runtime decodes them, and knows three formats."""

    def get_max_bytes(self) -> int:
        """Most that is fetched of an image."""
        return _MOST_IMAGE_BYTES

    def load_bytes(self, data: bytes) -> bytes:
        """`data`; ValueError when there is too much of it."""
        if len(data) > _MOST_IMAGE_BYTES:
            raise ValueError(f"{len(data):,} bytes; the limit is {_MOST_IMAGE_BYTES:,}")
        return data

    def load_base64(self, media_type: str, data: str) -> bytes:
        """Of a data URL."""
        return self.load_bytes(base64.b64decode(data, validate=True))

    def load_file(self, filepath: Path) -> bytes:
        """Of a file in the folder that the server was allowed to read."""
        if not filepath.is_file():
            raise ValueError("there is no such file")
        if filepath.stat().st_size > _MOST_IMAGE_BYTES:
            raise ValueError(f"the file has more than {_MOST_IMAGE_BYTES:,} bytes")
        return filepath.read_bytes()


def _check_final(messages: Sequence[Mapping[str, Any]], by_role: Mapping[str, Any], continues: bool) -> None:
    final = messages[-1]["role"] == "assistant"
    if continues and not final:
        raise ValueError("continue_final_message needs an assistant message at the end")
    if "assistant" in by_role and not (final and continues):
        raise ValueError("an assistant message is read at the end only, with continue_final_message")


def _text_of(message: Mapping[str, Any]) -> str:
    text, images = _content(message)
    if images:
        raise ValueError(f"images belong into the user message, not into that of {message['role']}")
    return text


def _content(message: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The text, its parts on a line each, and the images."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, Iterable):
        raise ValueError(f"the content of the {message['role']} message must be text or a list of parts")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        kind, value = ("text", part) if isinstance(part, str) else _part(part)
        (texts if kind == "text" else images).append(value)
    return "\n".join(texts), images


def _part(part: Any) -> tuple[str, Any]:
    known = (*_TEXT_PARTS, *_IMAGE_PARTS)
    if not isinstance(part, Mapping):
        raise ValueError("a part of a message's content must be text or an object")
    kind = part.get("type") or next((name for name in known if name in part), None)
    if kind not in known:
        raise ValueError(f"T5Gemma 2 reads parts of text and images (text, image_url), not {kind}")
    if kind in _TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError("a text part must have text")
        return "text", text
    value = part.get("image_pil" if kind == "image_pil" else "image_url")
    if isinstance(value, Mapping):
        value = value.get("url")
    if not value or (kind != "image_pil" and not isinstance(value, str)):
        raise ValueError("an image part must have an image_url with a url")
    return "image", value
