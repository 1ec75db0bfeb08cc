"""Stop strings: when one appears in what was produced, everything from its first character on goes."""

from __future__ import annotations

from typing import Protocol


class TextCodec(Protocol):
    """What stop strings need of a tokenizer."""

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, without BOS or EOS."""
        ...

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """The text of token ids, special tokens left out."""
        ...


class StopChecker:
    """Watches one decode's tokens for any of `stop`."""

    def __init__(self, stop: tuple[str, ...], tokenizer: TextCodec) -> None:
        self._stop = stop
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # A token spells at least one byte, so a stop string spans at most as many tokens as it has bytes;
        # the slack covers a character that began before it.
        self._reach = max(len(text.encode()) for text in stop) + 8

    def push(self, token_id: int) -> tuple[int, ...] | None:
        """Add a token; None to go on, or the trimmed token ids once a stop string stands in the text."""
        self._ids.append(token_id)
        tail = self._tokenizer.decode(self._ids[-self._reach :])
        if not any(text in tail for text in self._stop):
            return None
        text = self._tokenizer.decode(self._ids)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        return self._ids_of(text[: min(found)]) if found else None

    def _ids_of(self, text: str) -> tuple[int, ...]:
        # Keep the tokens that spell a prefix of the trimmed text; re-encode the rest of a token cut in the middle.
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high + 1) // 2
            if text.startswith(self._tokenizer.decode(self._ids[:middle])):
                low = middle
            else:
                high = middle - 1
        kept = self._ids[:low]
        rest = text[len(self._tokenizer.decode(kept)) :]
        return (*kept, *self._tokenizer.encode_text(rest)) if rest else tuple(kept)
