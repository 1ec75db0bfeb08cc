"""What the plugin sets in vLLM's configuration, and what it refuses there."""

from __future__ import annotations

from typing import Any

import torch
from vllm import envs
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.transformers_utils.runai_utils import is_runai_obj_uri

from .config import MODEL_TYPE
from .worker import CPU_WORKER, EXTENSION

# Encoder states that are kept, in tokens: a document that is asked for once they are gone is encoded again.
# `--additional-config '{"t5gemma2_encoder_cache": 500000}'` changes it.
CACHE_OPTION = "t5gemma2_encoder_cache"
CACHED_TOKENS = 262_144
# A document's last N mod block_size rows are computed again for each of its decodes.
_BLOCK_SIZE = 32
# What reads weights from safetensors alone, under the names that checkpoints give them, or reads none.
_LOAD_FORMATS = ("auto", "safetensors", "runai_streamer", "dummy")


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
        if model_config.hf_overrides:
            raise ValueError(
                "T5Gemma 2's sizes are read from its config.json as it stands: leave out --hf-overrides, and change "
                "a copy of the folder"
            )

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Room for documents in the encoder's cache and budget; ValueError for what the plugin cannot do."""
        parallel, scheduler, cache = vllm_config.parallel_config, vllm_config.scheduler_config, vllm_config.cache_config
        _refuse(vllm_config)
        longest = vllm_config.model_config.max_model_len
        scheduler.encoder_cache_size = max(_cached_tokens(vllm_config), longest)
        scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_batched_tokens, longest)
        if not cache.user_specified_block_size:
            cache.block_size = _BLOCK_SIZE
            # Or a CPU's own 128 would take its place.
            cache.user_specified_block_size = True
        if not parallel.worker_extension_cls:
            parallel.worker_extension_cls = EXTENSION
        if parallel.worker_cls == "auto" and current_platform.is_cpu():
            parallel.worker_cls = CPU_WORKER
        _choose_load_format(vllm_config)


def refuse_replays(vllm_config: VllmConfig) -> None:
    """ValueError when steps would be replayed without the model's own forward; once vLLM's configuration is final.

    Only that forward tells sliding layers, at each step, where their documents end.
    """
    replayed = vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
    if replayed and envs.VLLM_USE_BREAKABLE_CUDAGRAPH:
        raise ValueError(
            "T5Gemma 2 does not run in vLLM's breakable CUDA graphs, which VLLM_BATCH_INVARIANT may turn on too: "
            "set VLLM_USE_BREAKABLE_CUDAGRAPH=0"
        )


def _refuse(vllm_config: VllmConfig) -> None:
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    widths = (
        *(parallel.tensor_parallel_size, parallel.pipeline_parallel_size),
        *(parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size),
    )
    if max(widths) > 1:
        raise ValueError("T5Gemma 2 runs on one device for each engine: start an engine on each device instead")
    own = str(vllm_config.model_config.dtype).removeprefix("torch.")
    if cache.cache_dtype not in ("auto", own):
        # vLLM would make pages of that size, and the layers write their own into them.
        raise ValueError(f"T5Gemma 2 keeps keys and values in its own dtype, {own}, not in {cache.cache_dtype}")
    if vllm_config.speculative_config is not None:
        raise ValueError("T5Gemma 2 has no draft model: leave out speculative decoding")
    if vllm_config.kv_transfer_config is not None or cache.kv_offloading_size is not None:
        # A document's keys are written past the operator that tells connectors of new ones.
        raise ValueError(
            "T5Gemma 2's keys and values stay with their engine: leave out --kv-transfer-config and "
            "--kv-offloading-size"
        )


def _choose_load_format(vllm_config: VllmConfig) -> None:
    load = vllm_config.load_config
    if load.load_format not in _LOAD_FORMATS:
        raise ValueError(
            f"T5Gemma 2 is loaded from safetensors alone: leave out --load-format {load.load_format}, or say one of "
            f"{', '.join(_LOAD_FORMATS)}"
        )
    # From a bucket, vLLM itself makes the streamer of auto.
    if load.load_format == "auto" and not is_runai_obj_uri(vllm_config.model_config.model_weights):
        # Or a folder without safetensors would have its pickles opened.
        load.load_format = "safetensors"


def _cached_tokens(vllm_config: VllmConfig) -> int:
    options = vllm_config.additional_config
    given = options.get(CACHE_OPTION, CACHED_TOKENS) if isinstance(options, dict) else CACHED_TOKENS
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ValueError(f"{CACHE_OPTION} must be a number of tokens, not {given!r}")
    return given
