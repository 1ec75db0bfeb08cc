"""T5Gemma 2 for vLLM: the encoder behind `embed_multimodal`, the decoder over [document's keys | own keys]."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from ..config import ModelConfig
from ..decoder import lm_logits
from ..folder import resolve_checkpoint
from ..types import Request
from .encode import EncoderHalf
from .limits import refuse_replays
from .pins import check_pins
from .processor import IDS, PIXELS, DocumentInfo, DocumentProcessor, DummyDocuments, restored
from .rows import Split, mark_prefixes, split_rows
from .stack import DecoderStack, StackLayer
from .weights import load


@MULTIMODAL_REGISTRY.register_processor(DocumentProcessor, info=DocumentInfo, dummy_inputs=DummyDocuments)
class T5Gemma2ForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsMRoPE):
    """The model as vLLM's runner calls it."""

    supports_multimodal: ClassVar[Literal[True]] = True
    supports_mrope: ClassVar[Literal[True]] = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_pins("model", "cpu" if current_platform.is_cpu() else "cuda")
        refuse_replays(vllm_config)
        super().__init__()
        settings = vllm_config.model_config
        self._folder = resolve_checkpoint(settings.model, settings.revision)
        self.model = ModelConfig.load(self._folder)
        self.encoder_half = EncoderHalf(self.model)
        self.decoder = DecoderStack(vllm_config=vllm_config, model=self.model, prefix=f"{prefix}decoder")

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """A document is not named in the prompt: its rows go in front of it."""
        return None

    def get_language_model(self) -> nn.Module:
        """The part that runs at every step."""
        return self.decoder

    # --- documents ---------------------------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Encoder states [tokens, hidden] of each document of this step, many in one pass."""
        documents = [
            Request(id="", input_ids=ids.cpu(), pixel_values=restored(pixels) if len(pixels) else None, decodes=())
            for ids, pixels in zip(kwargs[IDS], kwargs[PIXELS], strict=True)
        ]
        return self.encoder_half.encode(documents)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3, tokens] and what later tokens are shifted by.

        Row 0: the decoder's position, from 0 behind the document. Row 1: -1 on the document's rows, else 0. Row 2: 0.
        """
        document = sum(feature.mm_position.length for feature in mm_features)
        positions = torch.zeros(3, len(input_tokens), dtype=torch.int64)
        positions[0, document:] = torch.arange(len(input_tokens) - document)
        positions[1, :document] = -1
        return positions, -document

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """[T] tokens → [T, hidden]; a document's rows hold its encoder states."""
        x_TE = self.encoder_half.encoder.embed_tokens(input_ids)
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            states = torch.cat(list(multimodal_embeddings))
            x_TE[is_multimodal] = states.to(x_TE.dtype)
        return x_TE

    # --- steps -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """[T] tokens, or [T, hidden] of what `embed_input_ids` made of them → hidden states [T, hidden]."""
        x_TE = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds  # type: ignore[arg-type]
        # Views of the runner's own buffer: a captured piece of the stack reads its inputs again where they once were.
        positions_T, marks_T = positions[0], positions[1]
        context = get_forward_context()
        if context.attn_metadata is None:
            return self.decoder(x_TE, positions_T, marks_T)
        split = split_rows(context, marks_T)
        if split is None:
            mark_prefixes(context, positions_T)
            return self.decoder(x_TE, positions_T, marks_T)
        return self._forward_split(context, split, x_TE, positions_T, marks_T)

    def _forward_split(
        self, context: ForwardContext, split: Split, x_TE: Tensor, positions_T: Tensor, marks_T: Tensor
    ) -> Tensor:
        states_NE = x_TE[split.document_rows]
        for layer in cast(Iterable[StackLayer], self.decoder.layers):
            layer.write_document(states_NE, context.slot_mapping[layer.attn.layer_name][split.document_rows])
        hidden_TE = torch.zeros_like(x_TE)
        if split.context is None:
            return hidden_TE
        rows = split.decoder_rows
        with override_forward_context(split.context):
            mark_prefixes(split.context, positions_T[rows])
            hidden_TE[rows] = self.decoder(x_TE[rows], positions_T[rows], marks_T[rows])
        return hidden_TE

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Next-token logits, float32 [R, vocabulary]."""
        embedding = self.encoder_half.encoder.embed_tokens.weight
        return lm_logits(hidden_states, embedding, self.model.decoder.logit_softcap)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copy a checkpoint's tensors in; ModelError names one that does not belong or is missing."""
        load(weights, self.model, self.encoder_half, self.decoder, str(self._folder))
        loaded = {name for name, _ in self.named_parameters()}
        self.encoder_half.choose_kernels()
        return loaded

    def counted(self) -> dict[str, float]:
        """What this model has encoded, by name: see encode.Counts."""
        return self.encoder_half.counted()
