"""What may be taken: the machine's free memory or what a container's limits leave; and the many names of too much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_runtime import EngineConfig
from model_runtime.memory import available_bytes, cache_budget, is_out_of_memory
from model_runtime.model import T5Gemma2
from tests.checkpoints import SHAPES, cached_checkpoint

MB = 1 << 20


class Machine:
    """A machine's /proc/meminfo, /proc/self/cgroup and /sys/fs/cgroup in a folder."""

    def __init__(self, folder: Path, own: str, available: int = 1000 * MB) -> None:
        self.cgroups = folder / "cgroup"
        self._meminfo, self._own = folder / "meminfo", folder / "own"
        self._meminfo.write_text(f"MemTotal: 9999999 kB\nMemAvailable:   {available // 1024} kB\n")
        self._own.write_text(own)

    def group(self, path: str, **files: str) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def available(self) -> int:
        return available_bytes(self._meminfo, self.cgroups, self._own)


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    machine = Machine(tmp_path, "0::/user/session\n")
    machine.group("user/session", memory__max="max\n", memory__current="5\n", memory__stat="anon 5\n")
    assert machine.available() == 1000 * MB


@pytest.mark.parametrize("limited", ["", "pod", "pod/worker"])
def test_a_limit_of_its_group_or_one_around_it_counts(tmp_path, limited):
    machine = Machine(tmp_path, "0::/pod/worker\n")
    machine.group("pod/worker", memory__max="max\n", memory__current="1\n", memory__stat="inactive_file 0\n")
    machine.group("pod", memory__max=f"{900 * MB}\n", memory__current="0\n", memory__stat="inactive_file 0\n")
    machine.group(
        limited,
        memory__max=f"{500 * MB}\n",
        memory__current=f"{300 * MB}\n",
        memory__stat=f"anon {200 * MB}\ninactive_file {100 * MB}\n",
    )
    assert machine.available() == 300 * MB, "files that are only cached can go"


def test_inside_a_container_the_group_has_the_hosts_name(tmp_path):
    machine = Machine(tmp_path, "0::/kubepods/pod1/container2\n")
    machine.group("", memory__max=f"{64 * MB}\n", memory__current=f"{4 * MB}\n", memory__stat="")
    assert machine.available() == 60 * MB


def test_limits_of_the_first_version_count(tmp_path):
    machine = Machine(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    machine.group(
        "memory/docker/abc",
        memory__limit_in_bytes=f"{100 * MB}\n",
        memory__usage_in_bytes=f"{70 * MB}\n",
        memory__stat=f"inactive_file 1\ntotal_inactive_file {20 * MB}\n",
    )
    machine.group(
        "memory",
        memory__limit_in_bytes="9223372036854771712\n",
        memory__usage_in_bytes="1\n",
        memory__stat="total_inactive_file 0\n",
    )
    assert machine.available() == 50 * MB


def test_a_limit_that_is_passed_leaves_nothing(tmp_path):
    machine = Machine(tmp_path, "0::/\n")
    machine.group("", memory__max="10\n", memory__current="20\n", memory__stat="")
    assert machine.available() == 0


def test_this_machine_has_memory():
    assert available_bytes() > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_what_out_of_memory_looks_like(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_configured_budget_is_taken_as_it_is():
    folder = cached_checkpoint(SHAPES[0])
    model = T5Gemma2.load(folder, "cpu", "float32")
    config = EngineConfig(model=str(folder), cache_bytes=12345, max_batch_tokens=77, max_decodes=3)
    budget = cache_budget(model, config)
    assert (budget.cache_bytes, budget.batch_tokens, budget.decodes) == (12345, 77, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_budget_is_what_a_full_batch_leaves():
    folder = cached_checkpoint(SHAPES[0])
    model = T5Gemma2.load(folder, "cuda", "float32")
    small = cache_budget(model, EngineConfig(model=str(folder), max_batch_tokens=512, max_decodes=8))
    free = torch.cuda.mem_get_info()[0]
    large = cache_budget(model, EngineConfig(model=str(folder), max_batch_tokens=65_536, max_decodes=64))
    assert 0 < large.cache_bytes < small.cache_bytes < free
    assert large.pass_token_bytes > 0
    # The warm-up leaves nothing behind.
    assert torch.cuda.mem_get_info()[0] >= free - 64 * MB
