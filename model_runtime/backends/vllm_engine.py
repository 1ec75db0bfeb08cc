"""vLLM's engine over a checkpoint: its environment, its settings, and what keeps it from starting, in one line."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
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
_LOOK_SECONDS = 0.2
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
        engine = LLMEngine.from_engine_args(EngineArgs(**_arguments(config, folder, device, dtype)))
    except ModelError:
        raise
    except Exception as error:  # whatever vLLM raises while it starts, a person reads one line
        raise ModelError(f"{folder} cannot be loaded by vLLM: {_last_line(error)}") from error
    if engine.vllm_config.model_config.max_model_len <= 2:
        raise ModelError("vLLM's cache holds not even one token: give it more memory (cache_bytes)")
    core = engine.engine_core
    if hasattr(core, "outputs_queue"):  # in a process of its own
        waited_for = (core.resources, core.outputs_queue, core.utility_results)
        threading.Thread(target=_tell_of_death, args=waited_for, name="vllm-death", daemon=True).start()
    engine.collective_rpc("t5gemma2_begin", args=(os.getpid(),))
    return engine


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
        raise ModelError(f"vLLM is here but cannot be imported: {_last_line(error)}") from error
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
        raise ModelError(f"this vLLM does not suit the T5Gemma 2 plugin: {_last_line(error)}") from error


def _check_heads(size: int) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ModelError(f"vLLM's CPU attention has heads of {', '.join(map(str, sizes))}; this model's are of {size}")


def _arguments(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    from ..vllm_plugin import MODALITY
    from ..vllm_plugin.worker import EXTENSION

    rows = max(1, config.max_decodes >> config.halvings)
    cache_bytes = config.cache_bytes
    if cache_bytes is None and device.type == "cpu":
        cache_bytes = cpu_cache_bytes(_weight_bytes(folder, dtype))
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


def _weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """An upper bound of the weights' size in memory."""
    stored = sum(path.stat().st_size for path in weight_files(folder))
    return stored * dtype.itemsize // 2


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
