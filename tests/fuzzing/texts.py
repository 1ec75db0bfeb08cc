"""Texts for the tokenizer: special tokens spelled out, controls; never a reserved id, never too long."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.processing import Processor
from tests.tokenizers_tiny import IMAGE_TOKENS, SPECIAL, model_folder, word_level_json
from workers.tasks import fill_prompt

from .surface import Escaped, Surface, honest

_DEMO = Path(__file__).parents[2] / "jobs" / "demo" / "model"
_PIECES = (
    *SPECIAL,
    *IMAGE_TOKENS,
    "<e os>",
    "<eo",
    "s>",
    "<b",
    "<0x0A>",
    "<0xFF>",
    "<0x",
    "▁",
    "▁▁▁▁",
    "\n",
    "\n\n\n\n\n\n",
    "\r\n",
    " ",
    "    ",
    "\t",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "\udc00",
    "\ud83d\ude00",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "ß",
    "İ",
    "日本語",
    "مرحبا",
    "\u202e",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "The small fox",
    "Summarize in French:",
    "a" * 400,
    "\n" * 300,
    "{language}",
    "{question}",
    "{}",
    "<unused0>",
    "<start_of_turn>",
    "</s>",
    "[CLS]",
    "fi",
    "１２３",
    "\u0600" * 50,
)
_texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.sampled_from(_PIECES), st.text(max_size=8)), max_size=8).map(
    "".join
)


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    return {
        "tokenizer": draw(st.sampled_from(("tiny", "tiny", "demo", "words"))),
        "text": draw(st.one_of(st.none(), _texts, _texts, _texts)),
        "instruction": draw(st.one_of(st.none(), _texts)),
        "images": draw(st.sampled_from((0, 0, 0, 1, 3))),
        "max_tokens": draw(st.sampled_from((4096, 4096, 64, 17, 5, 1))),
        "overflow": draw(st.sampled_from(("truncate", "truncate", "reject"))),
        "repeat": draw(st.sampled_from((1, 1, 1, 1, 1, 1, 400))),
    }


@cache
def _processor(name: str) -> tuple[Processor, frozenset[int], int]:
    folder = _DEMO if name == "demo" else Path(name)
    if name != "demo":
        model_folder(folder, tokenizer=word_level_json() if name == "words" else None)
    processor = Processor.load(folder)
    config = processor._config
    never = {config.pad_id, config.bos_id, *config.eos_ids, config.boi_id, config.eoi_id, config.image_id}
    return processor, frozenset(never), config.encoder.vocab_size


def _check(case: dict[str, Any]) -> bool:
    processor, never, vocabulary = _processor(case["tokenizer"])
    text = None if case["text"] is None else case["text"] * case["repeat"]
    instruction = case["instruction"]
    if instruction is not None:
        instruction = fill_prompt(instruction, "fr", case["text"])
        if not never.isdisjoint(processor.prefix_ids(instruction)):
            raise Escaped("a prompt spelled a reserved token")
    try:
        made = processor.encoder_input(
            text=text,
            images=case["images"],
            instruction=instruction,
            max_tokens=case["max_tokens"],
            overflow=case["overflow"],
        )
    except RequestError as error:
        honest(error.code, error.message)
        if error.code is not ErrorCode.TOO_LONG:
            raise Escaped(f"{error.code}: {error.message}") from error
        return False
    ids = made.ids.tolist()
    if len(ids) > case["max_tokens"] or (ids and not 0 <= min(ids) <= max(ids) < vocabulary):
        raise Escaped(f"{len(ids)} ids up to {max(ids)}")
    placed = 1 + case["images"] * (processor.tokens_per_image + 2)
    if ids[0] != processor.bos_id or sum(i in never for i in ids) != placed:
        raise Escaped(f"the text spelled a reserved token: {ids[:50]}")
    processor.decode(ids).encode()
    return True


SURFACE = Surface(name="texts", cases=_cases(), check=_check, share=110)
