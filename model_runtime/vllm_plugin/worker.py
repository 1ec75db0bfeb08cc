"""What vLLM's worker tells of the model and does for its owner, in whichever process it lives."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import torch

EXTENSION = f"{__name__}.T5Gemma2Worker"
_LOOK_SECONDS = 0.5


class T5Gemma2Worker:
    """Mixed into vLLM's worker class: `collective_rpc("t5gemma2_counts")` calls the method below."""

    model_runner: Any

    def t5gemma2_counts(self) -> dict[str, float]:
        """What was encoded since the model was loaded: see encode.Counts."""
        return self.model_runner.get_model().counted()

    def t5gemma2_begin(self, owner: int) -> None:
        """End this process once the process `owner` is gone: vLLM's engine process would wait for it for ever.

        And let seeded requests be computed in chunks on a CPU, see SeededStreams.
        """
        if owner != os.getpid():
            threading.Thread(target=_watch, args=(owner, os.getppid()), name="owner-watch", daemon=True).start()
        batch: Any = getattr(self.model_runner, "input_batch", None)
        if self.model_runner.device.type == "cpu" and isinstance(getattr(batch, "generators", None), dict):
            batch.generators = SeededStreams(batch)


class SeededStreams(dict[int, Any]):
    """vLLM's generators of seeded requests by row, such that a CPU's can be set back.

    After a chunk that does not end a prompt vLLM takes back the number that was drawn for nothing, by the generator's
    offset, which a CPU's has not: the engine would end. Here the stream is begun anew and drawn to where it was.
    """

    def __init__(self, batch: Any) -> None:
        super().__init__(batch.generators)
        self._batch = batch

    def get(self, row: int, default: Any = None) -> Any:
        """The generator of a row, as one that can be set back."""
        found = super().get(row)
        return default if found is None else _Stream(found, len(self._batch.req_output_token_ids[row] or ()))

    def __setitem__(self, row: int, generator: Any) -> None:
        super().__setitem__(row, generator.generator if isinstance(generator, _Stream) else generator)


class _Stream:
    """A CPU generator from which `tokens` numbers are used, and one has been drawn too many."""

    def __init__(self, generator: torch.Generator, tokens: int) -> None:
        self.generator = generator
        self._tokens = tokens

    def get_offset(self) -> int:
        """Of no meaning here."""
        return 0

    def set_offset(self, _: int) -> None:
        """To behind the last number that is used; the CPU's sampler draws one for each token."""
        self.generator.manual_seed(self.generator.initial_seed())
        for _token in range(self._tokens):
            torch.randint(0, 2**31, (1,), generator=self.generator)


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
