"""vLLM's engine over a checkpoint: its environment, its settings, and what keeps it from starting, in one line."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig, TextConfig
from ..errors import ModelError
from ..folder import weight_files
from ..load import VLLM_MISSING
from ..memory import cpu_cache_bytes
from ..model import check_checkpoint, choose_device, choose_dtype
from ..types import EngineConfig

# Read by vLLM when it is imported. This process is the engine's own already: another one around the model would only
# copy documents between the two.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# A document's last N mod block_size rows are computed again for each of its decodes.
_BLOCK_SIZE = 32
# vLLM keeps one for itself.
_LEAST_BLOCKS = 3
_LOOK_SECONDS = 0.2
_COUNTED = re.compile(r"\d+ validation errors? for ")
# Nothing is compiled on a CPU: vLLM would have a C++ compiler make a rank that nobody reads, for ten seconds.
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}


def start_engine(config: EngineConfig, folder: Path, model: ModelConfig) -> Any:
    """vLLM's LLMEngine over `folder`; ModelError when vLLM is missing or cannot run this model here."""
    check_checkpoint(folder)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, folder, device)
    if device.index:
        raise ModelError(f"vLLM takes the first GPU that it sees: set CUDA_VISIBLE_DEVICES in place of {device}")
    _set_environment(device, config.threads)
    _import_vllm(device)
    if device.type == "cpu":
        _check_heads(model.decoder.head_dim)
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**_arguments(config, folder, model, device, dtype)))
    except ModelError:
        raise
    except Exception as error:  # whatever vLLM raises while it starts, a person reads one line
        raise ModelError(f"{folder} cannot be loaded by vLLM: {shown(error)}") from error
    if in_own_process(engine):
        core = engine.engine_core
        waited_for = (core.resources, core.outputs_queue, core.utility_results)
        threading.Thread(target=_tell_of_death, args=waited_for, name="vllm-death", daemon=True).start()
    engine.collective_rpc("t5gemma2_begin", args=(os.getpid(),))
    return engine


def in_own_process(engine: Any) -> bool:
    """Whether vLLM has put its scheduler and the model into another process (VLLM_ENABLE_V1_MULTIPROCESSING=1)."""
    return hasattr(engine.engine_core, "outputs_queue")


def made_so_far(engine: Any) -> list[int]:
    """Tokens made for each request that is not finished."""
    return [state.detokenizer.num_output_tokens() for state in engine.output_processor.request_states.values()]


def _tell_of_death(resources: Any, outputs: Any, calls: dict[Any, Any]) -> None:
    """vLLM notices the death of its engine process, and leaves whoever waits for outputs or an answer waiting."""
    from vllm.v1.engine.exceptions import EngineDeadError

    while not resources.engine_dead:
        time.sleep(_LOOK_SECONDS)
    outputs.put(EngineDeadError())
    for call in list(calls.values()):
        if not call.done():
            call.set_exception(EngineDeadError())


def stop_engine(engine: Any) -> None:
    """End its process, if it has one, and give the model's memory back."""
    engine.engine_core.shutdown()
    del engine
    gc.collect()


def _set_environment(device: torch.device, threads: int | None) -> None:
    wanted = dict(_ENVIRONMENT)
    if device.type == "cpu":
        wanted |= _CPU_ENVIRONMENT
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        # vLLM's CPU worker lets nobody change it afterwards; the variable is for workers in processes of their own.
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _import_vllm(device: torch.device) -> None:
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModelError(VLLM_MISSING) from error
    except Exception as error:
        raise ModelError(f"vLLM is here but cannot be imported: {shown(error)}") from error
    from vllm.platforms import current_platform

    from ..vllm_plugin import register
    from ..vllm_plugin.pins import check_pins, check_vllm

    if current_platform.device_type != device.type:
        raise ModelError(
            f"the vLLM that is installed runs on {current_platform.device_type or 'nothing here'}, not on {device.type}"
        )
    try:
        check_vllm()
        check_pins("registration", "engine")
        register()
    except (RuntimeError, ImportError) as error:
        raise ModelError(f"this vLLM does not suit the T5Gemma 2 plugin: {shown(error)}") from error


def _check_heads(size: int) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ModelError(f"vLLM's CPU attention has heads of {', '.join(map(str, sizes))}; this model's are of {size}")


def _arguments(
    config: EngineConfig, folder: Path, model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    from ..vllm_plugin import MODALITY
    from ..vllm_plugin.worker import EXTENSION

    rows = max(1, config.max_decodes >> config.halvings)
    cache_bytes = config.cache_bytes
    if device.type == "cpu":
        cache_bytes = _cpu_cache(cache_bytes, _weight_bytes(folder, dtype), model.decoder, dtype)
    return {
        "model": str(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "skip_tokenizer_init": True,
        # The sampling of each request is whole; a checkpoint's own defaults would only come between.
        "generation_config": "vllm",
        # Compiling takes minutes on a CPU, and gains little there.
        "enforce_eager": device.type == "cpu",
        # As long as both halves allow, or as the cache can hold.
        "max_model_len": -1,
        "max_num_seqs": rows,
        "max_num_batched_tokens": max(rows, config.max_batch_tokens >> config.halvings),
        "kv_cache_memory_bytes": cache_bytes,
        "block_size": _BLOCK_SIZE,
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {MODALITY: 1},
        # Ids and pixels come ready: keeping them a second time would save nothing.
        "mm_processor_cache_gb": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": EXTENSION,
    }


def _cpu_cache(wanted: int | None, weights: int, decoder: TextConfig, dtype: torch.dtype) -> int:
    """Bytes for keys and values: as asked, or a share of what is free where vLLM puts them, one memory node."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    if wanted is None:
        node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
        wanted = cpu_cache_bytes(weights, node.available_memory)
    token = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * dtype.itemsize
    if wanted < _LEAST_BLOCKS * _BLOCK_SIZE * token:
        raise ModelError(
            f"too little memory is free for vLLM's cache: {wanted >> 20:,} MiB, of which a document of 1,000 tokens "
            f"takes {1000 * token >> 20:,}; free some, or take a machine with more"
        )
    return wanted


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """An upper bound of the weights' size in memory."""
    stored = sum(path.stat().st_size for path in weight_files(folder))
    return stored * dtype.itemsize // 2


def shown(error: BaseException) -> str:
    """What an error of vLLM's says, in one line of at most 500 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and _COUNTED.match(lines[0]):  # pydantic's heading; what is wrong stands below it
        lines = [" ".join(lines[1:])]
    return lines[0][:500] if lines else type(error).__name__
