"""What the machine can do at best, measured beside everything else: multiplying matrices and copying memory."""

from __future__ import annotations

import time
from typing import Any

import torch

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Roofline:
    """The measured bounds of one device."""

    def __init__(self, device: str, threads: int) -> None:
        self._device = torch.device(device)
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        self._side = 8192 if self._device.type == "cuda" else 2048
        self._copied = 2**30 if self._device.type == "cuda" else 2**28

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s of a square matrix product in `dtype`; of bfloat16 where torch multiplies no such matrices."""
        kind = _TORCH.get(dtype, torch.bfloat16)
        a, b = (torch.randn(self._side, self._side, device=self._device).to(kind) for _ in range(2))
        return 2 * self._side**3 / self._seconds(lambda: torch.mm(a, b))

    def copy_rate(self) -> float:
        """Bytes/s of a large copy, read and written counted."""
        source = torch.ones(self._copied, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        return 2 * self._copied / self._seconds(lambda: target.copy_(source))

    def _seconds(self, work: Any, enough: float = 0.4) -> float:
        """The fastest of the calls that fit into `enough` seconds, three at least, after two that warm up."""
        fastest, total, calls = float("inf"), 0.0, 0
        with torch.inference_mode():
            work()
            work()
            while calls < 3 or total < enough:
                self._wait()
                started = time.perf_counter()
                work()
                self._wait()
                took = time.perf_counter() - started
                fastest, total, calls = min(fastest, took), total + took, calls + 1
        return fastest

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
