"""T5Gemma 2 as a model of vLLM: what its plugin entry point calls.

A request is a decoder-only prompt: N rows for the document's N encoder tokens, whose keys and values come from the
encoder's output, then BOS and the decoder's prefix. Merged attention then is vLLM's own causal attention.
"""

from __future__ import annotations

import logging

ARCHITECTURE = "T5Gemma2ForConditionalGeneration"
# The one kind of multimodal item: a document, {"input_ids": ..., "pixel_values": ... or None}.
MODALITY = "doc"


def register() -> None:
    """Make vLLM know T5Gemma 2: its config, its limits and its class; called in each of vLLM's processes.

    For a vLLM that it does not fit: one line in the log, and T5Gemma 2 stays unknown to vLLM.
    """
    from .pins import VllmMismatch, check_pins, check_vllm

    try:
        check_vllm()
        check_pins("registration")
    except VllmMismatch as mismatch:
        # vLLM lets what a plugin raises through: every other model would fail in this environment too.
        logging.getLogger(__name__).error("%s", mismatch)
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from .config import MODEL_TYPE, T5Gemma2VllmConfig
    from .limits import T5Gemma2Limits

    _CONFIG_REGISTRY[MODEL_TYPE] = T5Gemma2VllmConfig
    MODELS_CONFIG_MAP[ARCHITECTURE] = T5Gemma2Limits
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    TokenizerRegistry.tokenizers[MODEL_TYPE] = (f"{__name__}.tokenizer", "T5Gemma2Tokenizer")
    RENDERER_REGISTRY.renderers[MODEL_TYPE] = (f"{__name__}.renderer", "T5Gemma2Renderer")
