"""What the plugin sets in vLLM's configuration, and what it refuses there."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from .config import MODEL_TYPE
from .worker import EXTENSION

# Encoder states that are kept, in tokens: a document that is asked for once they are gone is encoded again.
# `--additional-config '{"t5gemma2_encoder_cache": 500000}'` changes it.
CACHE_OPTION = "t5gemma2_encoder_cache"
CACHED_TOKENS = 262_144
# A document's last N mod block_size rows are computed again for each of its decodes.
_BLOCK_SIZE = 32


class T5Gemma2Limits(VerifyAndUpdateConfig):
    """Hooks that vLLM calls by the model's architecture."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """The plugin's own way from prompts to documents; ValueError for float16, which activations go beyond."""
        if model_config.tokenizer_mode not in ("auto", "hf", MODEL_TYPE):
            raise ValueError(f"T5Gemma 2 has a tokenizer mode of its own; leave out {model_config.tokenizer_mode!r}")
        model_config.tokenizer_mode = MODEL_TYPE
        if model_config.dtype == torch.float16:
            raise ValueError(
                "T5Gemma 2 does not run in float16: its activations pass 65,504, the largest float16, and turn into "
                "infinities; choose bfloat16 or float32 (--dtype bfloat16)"
            )
        if model_config.quantization is not None:
            raise ValueError(f"T5Gemma 2 runs unquantized here; leave out quantization {model_config.quantization!r}")

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Room for documents in the encoder's cache and budget; ValueError for what the plugin cannot do."""
        parallel, scheduler, cache = vllm_config.parallel_config, vllm_config.scheduler_config, vllm_config.cache_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise ValueError("T5Gemma 2 runs on one device for each engine: start an engine on each device instead")
        if cache.cache_dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"T5Gemma 2 keeps keys and values in its own dtype, not in {cache.cache_dtype}")
        if vllm_config.speculative_config is not None:
            raise ValueError("T5Gemma 2 has no draft model: leave out speculative decoding")
        longest = vllm_config.model_config.max_model_len
        scheduler.encoder_cache_size = max(_cached_tokens(vllm_config), longest)
        scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_batched_tokens, longest)
        if not cache.user_specified_block_size:
            cache.block_size = _BLOCK_SIZE
            # Or a CPU's own 128 would take its place.
            cache.user_specified_block_size = True
        if not parallel.worker_extension_cls:
            parallel.worker_extension_cls = EXTENSION
        if vllm_config.load_config.load_format == "auto":
            # Or a folder without safetensors would have its pickles opened.
            vllm_config.load_config.load_format = "safetensors"


def _cached_tokens(vllm_config: VllmConfig) -> int:
    options = vllm_config.additional_config
    given = options.get(CACHE_OPTION, CACHED_TOKENS) if isinstance(options, dict) else CACHED_TOKENS
    if not isinstance(given, int) or given < 0:
        raise ValueError(f"{CACHE_OPTION} must be a number of tokens, not {given!r}")
    return given
