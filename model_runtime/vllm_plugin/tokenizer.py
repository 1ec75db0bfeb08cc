"""The tokenizer that vLLM holds: the runtime's own, which reads tokens that a text spells as plain characters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from vllm.tokenizers.hf import get_cached_tokenizer

from ..folder import resolve_checkpoint
from ..processing import Processor


@lru_cache(maxsize=2)
def processor_of(model: str, revision: str | None) -> Processor:
    """The processor of a folder or a hub id; ModelError names what is missing."""
    return Processor.load(resolve_checkpoint(model, revision))


class T5Gemma2Tokenizer:
    """What vLLM asks for a tokenizer by its mode."""

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | Path, *_: Any, revision: str | None = None, **__: Any
    ) -> PreTrainedTokenizerFast:
        """The tokenizer of a model's folder, from its tokenizer.json alone."""
        processor = processor_of(str(path_or_repo_id), revision)
        return get_cached_tokenizer(  # type: ignore[return-value]
            PreTrainedTokenizerFast(
                tokenizer_object=processor.tokenizer,
                # Without this, transformers would have special tokens in a text read as themselves again.
                split_special_tokens=True,
                # A cut document loses its end.
                truncation_side="right",
                bos_token=processor.token(processor.bos_id),
                eos_token=processor.token(processor.eos_ids[0]),
                pad_token=processor.token(processor.pad_id),
            )
        )
