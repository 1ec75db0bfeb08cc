"""How much memory keys and values may take, and what running out of it looks like."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cache import rounded
from .cuda.own import rounded_capacity
from .errors import ErrorCode, RequestError
from .scheduler import Budget
from .types import Decode, EngineConfig, Request

if TYPE_CHECKING:
    from .model import T5Gemma2

# On a CPU of what is free after loading: the rest is for activations, and for everybody else. On CUDA of what is free
# while a full batch runs: the rest is for what the allocator cannot use.
_CPU_SHARE, _CUDA_SHARE = 0.4, 0.9
# Encoder tokens that are worth a decoder step: so that the steps of few rows cost a few percent of the time at most.
# A step of a few rows of the 270M costs 50 ms on two cores, which encode 1,500 tokens a second meanwhile.
_CPU_STEP_TOKENS, _CUDA_STEP_TOKENS = 4096, 65536
# What allocators say that have no error type of their own: torch's for the CPU, C++'s, cuBLAS and the CUDA driver.
_MARKS = ("DefaultCPUAllocator", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cache_budget(model: T5Gemma2, config: EngineConfig) -> Budget:
    """The scheduler's budget for this model on this machine; `config.cache_bytes` overrides the measured share."""
    decoder = model.config.decoder
    position_bytes = 2 * decoder.num_kv_heads * decoder.head_dim * model.dtype.itemsize
    sliding = sum(decoder.sliding)

    on_cuda = model.device.type == "cuda"

    def row_bytes(rows: int, positions: int) -> int:
        rows, room = rounded(rows, positions)
        positions = rounded_capacity(positions) if on_cuda else room
        windowed = min(positions, decoder.window)
        return rows * position_bytes * (sliding * windowed + (decoder.num_layers - sliding) * positions)

    cache_bytes, pass_token_bytes = config.cache_bytes, 0
    if on_cuda:
        free, pass_token_bytes = _measure(model, config)
        cache_bytes = free if cache_bytes is None else cache_bytes
    elif cache_bytes is None:
        cache_bytes = cpu_cache_bytes()
    return Budget(
        batch_tokens=config.max_batch_tokens,
        decodes=config.max_decodes,
        cache_bytes=cache_bytes,
        document_token_bytes=decoder.num_layers * position_bytes,
        row_bytes=row_bytes,
        step_tokens=_CUDA_STEP_TOKENS if on_cuda else _CPU_STEP_TOKENS,
        pass_token_bytes=pass_token_bytes,
    )


def cpu_cache_bytes(not_loaded: int = 0, most: int | None = None) -> int:
    """The share of free memory for keys and values on a CPU; `not_loaded`: bytes of weights that will come beside.

    `most`: bytes that can be had at all, as of one memory node.
    """
    free = available_bytes() if most is None else min(most, available_bytes())
    return max(0, int((free - not_loaded) * _CPU_SHARE))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the allocator gave up; some raise a plain RuntimeError that only its text tells apart."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)


def engine_error(error: Exception, doing: str) -> RequestError:
    """What to tell of an exception that was raised while `doing` something."""
    if isinstance(error, RequestError):
        return error
    if is_out_of_memory(error):
        return RequestError(ErrorCode.OUT_OF_MEMORY, f"out of memory while {doing}")
    line = (str(error) or type(error).__name__).splitlines()[0]
    return RequestError(ErrorCode.ENGINE_CRASH, f"{type(error).__name__} while {doing}: {line}")


def give_back(device: torch.device) -> None:
    """Return what torch has cached and nobody uses."""
    if device.type == "cuda":
        # A device that is past saving fails here too; what was wrong has been reported by then.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Memory that this process may still take: what the machine has, or a container's limit leaves, if that is less."""
    machine = _machine_available(meminfo)
    return max(0, min([machine, *_left_in_cgroups(cgroups, own)]))


def _machine_available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Not Linux: half of what is built in is a cautious guess at what is free.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_cgroups(cgroups: Path, own: Path) -> Iterator[int]:
    """For each memory limit on this process, of its control group and of those around it: what is left of it."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, files = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's, which is not mounted: the folders that are there count.
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            left = _left_in(folder, *files)
            if left is not None:
                yield left
            if folder == root:
                break


def _left_in(folder: Path, limit_file: str, usage_file: str, cached: str) -> int | None:
    """None without a limit. Cached files that nobody uses are counted as used, and go when memory is needed."""
    try:
        limit = (folder / limit_file).read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        usage = int((folder / usage_file).read_text(encoding="ascii"))
        stat = dict(line.split()[:2] for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return int(limit) - usage + int(stat.get(cached, 0))
    except (OSError, ValueError):
        return None


@torch.inference_mode()
def _measure(model: T5Gemma2, config: EngineConfig) -> tuple[int, int]:
    """Bytes for keys and values beside a full batch on this device, and what a pass needs for each of its tokens.

    Runs the largest packed batch, images among it, and a decoder step over all rows; a batch that does not fit is
    halved, as it will be in earnest.
    """
    from .rows import Rows

    tokens, rows_wanted = min(config.max_batch_tokens, model.config.max_input_tokens), config.max_decodes
    device = model.device
    while True:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            states = model.encode([_warm_up_request(model, tokens)])
            pass_bytes = torch.cuda.max_memory_allocated(device) - before
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
            keys = model.document_keys(states[0][:16])
            rows = Rows(model)
            hidden_RE = rows.enter([(keys, (model.config.bos_id,) * 15)] * rows_wanted, 64)
            model.greedy(rows.advance(model.greedy(hidden_RE)[0]))
            model.logits(hidden_RE)
            step_bytes = torch.cuda.max_memory_allocated(device) - held
            break
        except Exception as error:
            if not is_out_of_memory(error) or tokens <= 16:
                raise
        tokens, rows_wanted = tokens // 2, max(1, rows_wanted // 2)
    del states, keys, rows, hidden_RE
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    # A suspended pass keeps its activations while decoder steps run.
    return max(0, int((free - pass_bytes - step_bytes) * _CUDA_SHARE)), pass_bytes // tokens


def _warm_up_request(model: T5Gemma2, tokens: int) -> Request:
    config = model.config
    ids = np.full(tokens, config.bos_id, dtype=np.int64)
    pixels = None
    images = min(4, tokens // max(1, config.tokens_per_image))
    if images:
        ids[: images * config.tokens_per_image] = config.image_id
        side = config.vision.image_size
        pixels = np.zeros((images, config.vision.channels, side, side), dtype=np.uint8)
    return Request(id="warm-up", input_ids=ids, pixel_values=pixels, decodes=(Decode(key="warm-up"),))
