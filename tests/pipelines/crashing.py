"""A backend that ends its process when it works on a certain text, as a kernel with a bug would.

Imports little: the engine's process does it anew after each crash.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from model_runtime import Backend, EngineConfig, Generation, Request, load_backend
from model_runtime.processing import Processor

CRASH = "qqq zzz xxx qqq zzz xxx qqq zzz xxx"


class Crashing:
    """The real backend, but a step while a document with CRASH in it is in flight is a segmentation fault."""

    def __init__(self, config: EngineConfig) -> None:
        self._backend = load_backend(config)
        encoded = Processor.load(Path(config.model)).encoder_input(
            text=CRASH, images=0, instruction=None, max_tokens=1000, overflow="reject"
        )
        # Without what stands around a text, and the ends that may grow together with their neighbours.
        self._mark = np.asarray(encoded.ids)[3:-3].astype(np.int32).tobytes()
        self._armed = False

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def submit(self, request: Request) -> None:
        """As the real one; the text is noticed."""
        self._armed |= self._mark in np.asarray(request.input_ids).astype(np.int32).tobytes()
        self._backend.submit(request)

    def step(self) -> list[Generation]:
        """As the real one, unless it is the end."""
        if self._armed:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        return self._backend.step()


def load_crashing(config: EngineConfig) -> Backend:
    """What an engine's process loads in place of `load_backend`."""
    return Crashing(config)
