"""Text and images → the encoder's ids; ids → text. The `tokenizers` library alone: transformers starts too slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer

from .config import ModelConfig
from .errors import ErrorCode, ModelError, RequestError
from .settings import image_settings_of, is_number, read_json, shown

Overflow = Literal["truncate", "reject"]

# Text this much longer than the budget is tokenized up to a newline instead of whole.
_CHARS_PER_TOKEN = 16
_LONG_TEXT = 65_536
# Gemma 3's has 33 million bytes; read, it takes ten times as much.
_MOST_TOKENIZER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInput:
    """What the encoder reads for one document: `ids` int32, BOS first; `truncated` when text was cut off."""

    ids: np.ndarray
    truncated: bool


class Processor:
    """A model folder's tokenizer and image settings."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, tasks_document: dict[str, Any] | None) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._reserved = _reserve(config, tokenizer)
        self._splits_at_newlines = _splits_at_newlines(tokenizer)
        self.tasks_document = tasks_document

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read config.json, tokenizer.json, the image settings and tasks.json; ModelError says what is wrong."""
        config = ModelConfig.load(folder)
        _check_image_settings(folder, config)
        return cls(config, _load_tokenizer(folder, config), read_json(folder / "tasks.json"))

    @property
    def tokens_per_image(self) -> int:
        """Placeholders that stand for one image in the encoder's ids."""
        return self._config.tokens_per_image

    @property
    def image_size(self) -> int:
        """Side of the square that every image is resized to."""
        return self._config.vision.image_size

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Per channel, subtracted after scaling to [0, 1]."""
        return self._config.image_mean

    @property
    def image_std(self) -> tuple[float, ...]:
        """Per channel, divided by after the mean is subtracted."""
        return self._config.image_std

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself; special tokens that a text spells are characters to it."""
        return self._tokenizer

    @property
    def bos_id(self) -> int:
        """First token of the encoder's and of the decoder's ids."""
        return self._config.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an output."""
        return self._config.eos_ids

    @property
    def pad_id(self) -> int:
        """Fills up what is shorter than the rest of its batch."""
        return self._config.pad_id

    @property
    def max_positions(self) -> int:
        """Longest encoder input that the model was built for, in tokens."""
        return self._config.max_input_tokens

    def token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token; None when it has none of that id."""
        return self._tokenizer.id_to_token(token_id)

    def encode_text(self, text: str) -> list[int]:
        """`text` as plain characters: no BOS or EOS, and never a reserved id, whatever the text spells.

        Reserved: pad, BOS, EOS, the image tokens and every special added token, but for the tokenizer's own unknown
        token. Lone surrogates count as U+FFFD.
        """
        return self._encode(_without_lone_surrogates(text))

    def prefix_ids(self, prompt: str) -> tuple[int, ...]:
        """An instruction as the decoder's tokens after BOS."""
        return tuple(self.encode_text(prompt))

    def encoder_input(
        self,
        *,
        text: str | None,
        images: int,
        instruction: str | None = None,
        max_tokens: int,
        overflow: Overflow,
    ) -> EncoderInput:
        """BOS, the instruction and a blank line, the images, the text: as transformers' Gemma3Processor lays them out.

        Longer than `max_tokens`: the text's tail is cut (truncate), or RequestError `too_long` (reject, and always
        when the images and the instruction alone do not fit).
        """
        head, lead = self._head(images, instruction)
        room = max_tokens - len(head)
        fixed = len(head) + len(self._encode(lead))
        # Text alone must keep at least one token of it; beside an image it may go entirely.
        if fixed + (1 if text and not images else 0) > max_tokens:
            raise RequestError(
                ErrorCode.TOO_LONG,
                f"the images and the instruction alone take {fixed:,} tokens; the limit is {max_tokens:,}",
            )
        # The text follows the blank line in one segment: a newline that begins it joins that line's token.
        ids, whole = self._encode_beyond(lead + _without_lone_surrogates(text or ""), room)
        if len(ids) > room and overflow == "reject":
            count = f"{len(head) + len(ids):,}"
            raise RequestError(
                ErrorCode.TOO_LONG,
                f"the input has {count if whole else f'more than {count}'} tokens; the limit is {max_tokens:,}",
            )
        return EncoderInput(ids=np.array(head + ids[:room], dtype=np.int32), truncated=len(ids) > room)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`: reserved tokens left out, bytes that are not UTF-8 replaced by U+FFFD."""
        return self._tokenizer.decode([i for i in ids if i not in self._reserved], skip_special_tokens=True)

    def _head(self, images: int, instruction: str | None) -> tuple[list[int], str]:
        """The ids up to the last image's end, and the literal text that leads the segment after them."""
        ids = [self.bos_id]
        lead = "" if instruction is None else _without_lone_surrogates(instruction) + "\n\n"
        image = [self._config.boi_id, *[self._config.image_id] * self.tokens_per_image, self._config.eoi_id]
        for _ in range(images):
            ids += self._encode(lead + "\n\n") + image
            lead = "\n\n"
        return ids, lead

    def _encode(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._reserved.isdisjoint(ids):
            return ids
        # A vocabulary may spell a reserved token without marking it special: cut such a piece in two.
        spans = [span for i, span in zip(ids, encoding.offsets) if i in self._reserved]
        cuts = sorted({(start + end) // 2 for start, end in spans if end - start > 1 and end <= len(text)})
        if not cuts:  # a single character is the reserved token: nothing else can stand for it
            return [i for i in ids if i not in self._reserved]
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
        return [i for piece in pieces for i in self._encode(piece)]

    def _encode_beyond(self, text: str, budget: int) -> tuple[list[int], bool]:
        """The ids of `text`, or, for a very long one, of a prefix that takes more than `budget`; whether it is all.

        Exact: a newline token ends the segments that the tokenizer works on, so what stands before a run of
        newlines is encoded the same whatever follows it.
        """
        end = _CHARS_PER_TOKEN * budget + _LONG_TEXT
        while self._splits_at_newlines and (cut := text.find("\n", end)) >= 0:
            prefix = text[:cut].rstrip("\n")
            ids = self._encode(prefix)
            if len(ids) > budget:
                return ids, False
            end = 2 * cut
        return self._encode(text), True


def _load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json: copy the one that belongs to the checkpoint into the folder")
    if path.stat().st_size > _MOST_TOKENIZER_BYTES:
        raise ModelError(f"{path} has more than {_MOST_TOKENIZER_BYTES >> 20} MiB: it belongs to no T5Gemma 2")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read as a tokenizer: {' '.join(str(error).split())}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > config.encoder.vocab_size:
        raise ModelError(
            f"{path} has {size} tokens, the model only {config.encoder.vocab_size}: it belongs to another checkpoint"
        )
    return tokenizer


def _reserve(config: ModelConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Make the tokenizer read special tokens in a text as characters; the ids that a text must not yield."""
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    never = {config.pad_id, config.bos_id, *config.eos_ids, config.boi_id, config.eoi_id, config.image_id}
    # Gemma 3's tokenizer.json ends with a token for which a T5Gemma 2 has no embedding.
    never |= {i for i in added if i >= config.encoder.vocab_size}
    # What is not marked special there: T5Gemma 2's image placeholder, for one, is an <unused…> token of Gemma 3.
    plain = [token for i, token in added.items() if i in never and not token.special]
    for token in plain:
        token.special = True
    tokenizer.add_special_tokens(plain)
    tokenizer.encode_special_tokens = True
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    special = {i for i, token in added.items() if token.special}
    return frozenset(never | (special - {unknown}))


def _splits_at_newlines(tokenizer: Tokenizer) -> bool:
    """Whether a newline after another character always ends one piece of text and begins the next."""
    added = list(tokenizer.get_added_tokens_decoder().values())
    is_token = any(t.content == "\n" and not t.normalized and not t.special for t in added)
    reaches_over = any(t.lstrip or t.rstrip or t.single_word or "\n" in t.content.lstrip("\n") for t in added)
    return is_token and not reaches_over


def _check_image_settings(folder: Path, config: ModelConfig) -> None:
    side = config.vision.image_size
    with image_settings_of(folder) as settings:
        found = settings.values
        rescale = found.get("rescale_factor")
        good = {
            "size": found.get("size") in (None, {"height": side, "width": side}),
            "resample": found.get("resample") in (None, 2),
            "rescale_factor": rescale is None or (is_number(rescale) and abs(rescale - 1 / 255) < 1e-6),
            "do_pan_and_scan": not found.get("do_pan_and_scan"),
        }
        good |= {name: found.get(name) in (None, True) for name in ("do_resize", "do_rescale", "do_normalize")}
        for name, fits in good.items():
            if not fits:
                how = f"images are resized to {side}×{side}, bilinear, scaled by 1/255, without pan and scan"
                raise ValueError(f"{settings.name(name)} = {shown(found[name])} is not supported; {how}")


def _without_lone_surrogates(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
