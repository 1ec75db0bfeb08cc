"""A peer in a process of its own: takes work from a pipe, times the work and nothing else, answers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from model_runtime.backends.peers.load import peer_class
from model_runtime.backends.peers.types import Peer, PeerConfig, PeerMissing

from . import memory

ROOFLINE = "roofline"
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One piece of work: seconds, the most memory above rest while it ran (None: not known), and its result."""

    seconds: float
    peak_bytes: int | None
    result: Any


def serve(connection: Connection, name: str, config: PeerConfig, environment: Mapping[str, str | None]) -> None:
    """Answer (operation, arguments) with ("ok", result), ("missing", reason) or ("error", reason) until the pipe ends.

    `environment`: variables as they stood when the suite began, so that no figure's own settings reach a peer.
    """
    # Ctrl-C is for the parent, which ends its children; a parent that is gone has ended them too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # standard output is the parent's, for figures only
    for variable, value in environment.items():
        os.environ.pop(variable, None) if value is None else os.environ.update({variable: value})
    os.environ.update(_QUIET)
    memory.die_first()
    served: _Served | None = None
    while True:
        try:
            operation, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if served is None:
                served = _Served(name, config)
            connection.send(("ok", getattr(served, operation)(*arguments)))
        except PeerMissing as missing:
            connection.send(("missing", str(missing)))
        except Exception as error:  # whatever a peer does not survive, the suite names and goes on
            connection.send(("error", _reason(error)))


class _Served:
    """The operations, by name."""

    def __init__(self, name: str, config: PeerConfig) -> None:
        self._name = name
        self._config = config
        self._peer: Peer
        self._rest = 0

    def prepare(self) -> None:
        """What the peer makes of the model's folder, once."""
        peer_class(self._name).prepare(self._config)

    def load(self) -> None:
        """Load the peer, or the roofline."""
        if self._name == ROOFLINE:
            from .roofline import Roofline

            self._roofline = Roofline(self._config.device, self._config.threads)
        else:
            self._peer = peer_class(self._name).load(self._config)

    def rest(self) -> None:
        """From here on memory counts above what the process holds now."""
        self._rest = memory.rest()

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s."""
        return self._roofline.matrix_rate(dtype)

    def copy_rate(self) -> float:
        """Bytes/s."""
        return self._roofline.copy_rate()

    def encode(self, documents: list[np.ndarray]) -> Timed:
        """Encode; the result is the states' widths, None where something in them is not finite or not there."""
        timed = self._timed(lambda: self._peer.encode(documents))
        states = self._peer.encoded()
        good = [len(s) == len(ids) and bool(np.isfinite(s).all()) for s, ids in zip(states, documents, strict=True)]
        widths = [s.shape[1] if fine else None for s, fine in zip(states, good, strict=True)]
        return Timed(seconds=timed.seconds, peak_bytes=timed.peak_bytes, result=widths)

    def states(self, ids: np.ndarray) -> np.ndarray:
        """One document's states."""
        self._peer.encode([ids])
        return self._peer.encoded()[0]

    def first_logits(self, ask: Any) -> np.ndarray:
        """Logits after each of one document's prefixes."""
        return self._peer.first_logits(ask)

    def run(self, asks: list[Any], max_tokens: int) -> Timed:
        """Encode and decode."""
        return self._timed(lambda: self._peer.run(asks, max_tokens))

    def hold(self, ids: np.ndarray) -> None:
        """The document of the next `decode`."""
        if self._config.device == "cpu":
            memory.limit()
        self._peer.hold(ids)

    def decode(self, prefixes: list[tuple[int, ...]], max_tokens: int) -> Timed:
        """Decode over the held document."""
        return self._timed(lambda: self._peer.decode(prefixes, max_tokens))

    def _timed(self, work: Callable[[], Any]) -> Timed:
        if self._config.device == "cpu":
            memory.limit()
            memory.mark()
            started = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - started
            return Timed(seconds=seconds, peak_bytes=max(0, memory.peak() - self._rest), result=result)
        import torch

        device = torch.device(self._config.device)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        started = time.perf_counter()
        result = work()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        # A peer with an allocator of its own leaves nothing here.
        peak = torch.cuda.max_memory_allocated(device) - before if before else None
        return Timed(seconds=seconds, peak_bytes=peak, result=result)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return "out of memory"
    from model_runtime.memory import is_out_of_memory

    if is_out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {text[:300]}"
