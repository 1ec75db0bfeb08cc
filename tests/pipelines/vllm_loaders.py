"""What an engine's process loads in place of `load_backend` in tests of whole runs: vLLM, and a file of what it did."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from model_runtime import Backend, EngineConfig, Generation, load_backend


class Counting:
    """The real backend; after each step that ends something its counts stand in a file of its process."""

    def __init__(self, config: EngineConfig, folder: Path, kill_at: int | None) -> None:
        self._backend = load_backend(config)
        self._folder = folder
        self._kill_at = kill_at
        self._steps = 0

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def step(self) -> list[Generation]:
        """As the real one; at the chosen step, the first process to come there is killed."""
        self._steps += 1
        done = self._backend.step()
        if done:
            stats = self._backend.stats
            (self._folder / str(os.getpid())).write_text(f"{stats.encodes} {stats.encoder_tokens}")
        if self._steps == self._kill_at and not (self._folder / "killed").exists():
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def _load(folder: Path, kill_at: int | None, config: EngineConfig) -> Backend:
    return Counting(config, folder, kill_at)


def counting(folder: Path, kill_at: int | None = None) -> partial[Backend]:
    """A loader whose backends write into `folder`."""
    return partial(_load, folder, kill_at)
