"""What our backend asks of vLLM's workers, in its own process or in theirs: `worker_extension_cls`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

NAME = f"{__name__}.T5Gemma2Worker"
_LOOK_SECONDS = 0.5


class T5Gemma2Worker:
    """Methods that vLLM adds to its worker's class; called by name, so that nothing is pickled."""

    def t5gemma2_counted(self) -> dict[str, float]:
        """What the model has encoded, by name: see encode.Counts."""
        model: Any = self.get_model()  # type: ignore[attr-defined]
        return model.counted()

    def t5gemma2_end_with(self, owner: int) -> None:
        """End this process once the process `owner` is gone: vLLM's engine process would wait for it for ever."""
        if owner != os.getpid():
            threading.Thread(target=_watch, args=(owner,), name="owner-watch", daemon=True).start()


def _watch(owner: int) -> None:
    while True:
        try:
            os.kill(owner, 0)
        except OSError:
            os._exit(1)
        time.sleep(_LOOK_SECONDS)
