"""What vLLM's worker tells of the model and does for its owner, in whichever process it lives."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

EXTENSION = f"{__name__}.T5Gemma2Worker"
CPU_WORKER = f"{__package__}.cpu_worker.T5Gemma2CpuWorker"
_LOOK_SECONDS = 0.5


class T5Gemma2Worker:
    """Mixed into vLLM's worker class: `collective_rpc("t5gemma2_counts")` calls the method below."""

    model_runner: Any

    def t5gemma2_counts(self) -> dict[str, float]:
        """What was encoded since the model was loaded: see encode.Counts."""
        return self.model_runner.get_model().counted()

    def t5gemma2_begin(self, owner: int) -> None:
        """End this process once the process `owner` is gone: vLLM's engine process would wait for it for ever."""
        if owner != os.getpid():
            threading.Thread(target=_watch, args=(owner, os.getppid()), name="owner-watch", daemon=True).start()


def _watch(owner: int, parent: int) -> None:
    while True:
        try:
            os.kill(owner, 0)
        except OSError:
            # A worker beside the engine's process: that one goes first, or it would try to speak to the owner.
            if parent != owner and os.getppid() == parent:
                with contextlib.suppress(OSError):
                    os.kill(parent, signal.SIGKILL)
            os._exit(1)
        time.sleep(_LOOK_SECONDS)
