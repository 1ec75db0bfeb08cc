"""How much memory keys and values may take, and what running out of it looks like."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from .cache import rounded
from .scheduler import Budget
from .types import EngineConfig

if TYPE_CHECKING:
    from .model import T5Gemma2

# Of what is free after loading: the rest is for activations, and on a CPU for everybody else.
_CUDA_SHARE, _CPU_SHARE = 0.7, 0.4


def cache_budget(model: T5Gemma2, config: EngineConfig) -> Budget:
    """The scheduler's budget for this model on this machine; `config.cache_bytes` overrides the measured share."""
    decoder = model.config.decoder
    position_bytes = 2 * decoder.num_kv_heads * decoder.head_dim * model.dtype.itemsize
    sliding = sum(decoder.sliding)

    def row_bytes(rows: int, positions: int) -> int:
        rows, positions = rounded(rows, positions)
        windowed = min(positions, decoder.window)
        return rows * position_bytes * (sliding * windowed + (decoder.num_layers - sliding) * positions)

    return Budget(
        batch_tokens=config.max_batch_tokens,
        decodes=config.max_decodes,
        cache_bytes=config.cache_bytes if config.cache_bytes is not None else _free_share(model.device),
        document_token_bytes=decoder.num_layers * position_bytes,
        row_bytes=row_bytes,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the allocator gave up; the CPU's raises a plain RuntimeError that only its text tells apart."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _free_share(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _CUDA_SHARE)
    return int(_available_bytes() * _CPU_SHARE)


def _available_bytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Not Linux: half of what is built in is a cautious guess at what is free.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
