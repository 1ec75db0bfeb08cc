"""Documents as vLLM's multimodal items: ids and pixels in, N placeholder rows in front of the decoder's prompt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptIndexTargets,
    PromptInsertion,
    PromptUpdate,
)
from vllm.platforms import current_platform

from ..config import ModelConfig
from ..types import Request
from ..validate import check_request
from . import MODALITY

IDS, PIXELS = "doc_ids", "doc_pixels"
# What vLLM warms up with on a CPU, where no peak of memory is measured and the longest document would take minutes.
_WARM_UP_TOKENS = 8192


def stored(pixels: Tensor) -> Tensor:
    """Pixels [images, 3, S, S] as bytes: uint8 as they are, normalised ones as float32's bytes, [images, 3, S, 4 · S].

    vLLM stacks the fields of items that are encoded together where their shapes agree, and would make floats of bytes.
    """
    return pixels if pixels.dtype == torch.uint8 else pixels.to(torch.float32).contiguous().view(torch.uint8)


def restored(pixels: Tensor) -> Tensor:
    """What `stored` was given."""
    return pixels if pixels.shape[-1] == pixels.shape[-2] else pixels.contiguous().view(torch.float32)


class DocumentItems(ProcessorBatchItems[Mapping[str, Any]]):
    """Documents of one prompt: {"input_ids": [tokens], "pixel_values": [images, 3, S, S] or nothing}."""

    def __init__(self, data: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(data, MODALITY)

    def get_item_for_hash(self, index: int) -> Any:
        """What tells two documents apart: their ids and pixels."""
        item = self.data[index]
        pixels = item.get("pixel_values")
        ids = np.asarray(item["input_ids"], dtype=np.int64)
        return {"ids": ids, "pixels": None if pixels is None else torch.as_tensor(pixels)}


class DocumentParser(MultiModalDataParser):
    """Knows documents and nothing else."""

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: self._documents}

    @staticmethod
    def _documents(data: Any) -> DocumentItems | None:
        if data is None:
            return None
        items = [data] if isinstance(data, Mapping) else list(data)
        for item in items:
            if not isinstance(item, Mapping) or "input_ids" not in item:
                raise ValueError('a doc must be a dict with "input_ids" and, if it has images, "pixel_values"')
            _check_ids(item["input_ids"])
            _check_pixels(item.get("pixel_values"))
        return DocumentItems(items)


def _check_ids(ids: Any) -> None:
    # As integers they would be cut off, and another document read.
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError) as error:
        raise ValueError("input_ids of a doc must be one row of token ids") from error
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"input_ids of a doc must be whole numbers, not {array.dtype}")


def _check_pixels(pixels: Any) -> None:
    if pixels is None:
        return
    if not isinstance(pixels, np.ndarray | Tensor):
        raise ValueError(f"pixel_values of a doc must be an array or a tensor, not {type(pixels).__name__}")
    kind = str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8" and "float" not in kind:
        raise ValueError(f"pixel_values of a doc must be uint8 or normalised floats, not {kind}")


class DocumentInfo(BaseProcessingInfo):
    """What vLLM asks about documents before there is one."""

    @cached_property
    def model(self) -> ModelConfig:
        """The model's sizes and special tokens."""
        return self.get_hf_config().model  # type: ignore[attr-defined]

    def get_data_parser(self) -> MultiModalDataParser:
        """The parser of `multi_modal_data`."""
        return DocumentParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """A prompt has one document."""
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of the longest document that fits beside BOS and one token of output."""
        return {MODALITY: max(1, min(seq_len - 2, self.model.max_input_tokens))}


class DummyDocuments(BaseDummyInputsBuilder[DocumentInfo]):
    """The document that memory is measured with: the longest that a step may encode."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """The decoder's prompt beside it: BOS, which the processor adds."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Mapping[str, Any]:
        """Text alone: the tower takes images a few at a time, in less memory than a long text's layers take."""
        if not mm_counts.get(MODALITY):
            return {}
        longest = self.info.get_mm_max_tokens_per_item(seq_len, mm_counts)[MODALITY]
        tokens = min(longest, _WARM_UP_TOKENS) if current_platform.is_cpu() else longest
        ids = np.full(tokens, self.info.model.bos_id, dtype=np.int64)
        return {MODALITY: [{"input_ids": ids}]}


class DocumentProcessor(BaseMultiModalProcessor[DocumentInfo]):
    """Puts N placeholders in front of the decoder's prompt; ids and pixels come as they are."""

    requires_tokenizer = False

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        documents = mm_items[MODALITY].get_all() if MODALITY in mm_items else []
        pairs = [self._tensors(document) for document in documents]
        if not pairs:
            return BatchFeature({})
        return BatchFeature({IDS: [ids for ids, _ in pairs], PIXELS: [pixels for _, pixels in pairs]})

    def _tensors(self, document: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """int64 [tokens] and [images, 3, S, S]; ValueError for what the model cannot take."""
        ids = np.array(document["input_ids"], dtype=np.int64).reshape(-1)
        pixels = document.get("pixel_values")
        request = Request(id="", input_ids=ids, pixel_values=pixels, decodes=())
        if (error := check_request(request, self.info.model)) is not None:
            raise ValueError(error.message)
        vision = self.info.model.vision
        none = torch.empty(0, vision.channels, vision.image_size, vision.image_size, dtype=torch.uint8)
        return torch.from_numpy(ids), none if pixels is None else stored(torch.as_tensor(pixels))

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        # The ids' count is needed where the encoder is called from.
        return {
            IDS: MultiModalFieldConfig.batched(MODALITY, keep_on_cpu=True),
            PIXELS: MultiModalFieldConfig.batched(MODALITY),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        items = out_mm_kwargs.get(MODALITY, [])

        def rows(index: int) -> list[int]:
            # BOS is in every decoder prompt: a repetition penalty over the prompt counts nothing that is not there.
            return [self.info.model.bos_id] * len(items[index][IDS].data)

        return [PromptInsertion(modality=MODALITY, target=PromptIndexTargets.start(), insertion=rows)]

    def _postprocess_prompt(self, prompt: list[int]) -> list[int]:
        """The decoder starts with BOS, whoever wrote the prompt."""
        bos = self.info.model.bos_id
        return prompt if prompt[:1] == [bos] else [bos, *prompt]
