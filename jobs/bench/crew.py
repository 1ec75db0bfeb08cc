"""The peers' processes: started when needed, one at work at a time, ended with the suite; a lost one is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from model_runtime.backends.peers.types import BATCH_TOKENS, PeerConfig

from .child import ROOFLINE, serve
from .types import PeerSpec, Settings

# What decides how OpenMP's threads wait and how many there are: each peer gets what the user had.
_VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
_HERE = {variable: os.environ.get(variable) for variable in _VARIABLES}


class PeerLost(Exception):
    """This peer has no answer; the text says why."""


class Crew:
    """Processes by label. A context: leaving it ends them all, however it is left."""

    def __init__(
        self, settings: Settings, *, model: Path | None = None, batch_tokens: int = BATCH_TOKENS, max_decodes: int = 0
    ) -> None:
        self._settings = settings
        self._model = model or settings.model
        self._batch_tokens = batch_tokens
        self._max_decodes = max_decodes or None
        self._children: dict[str, _Child] = {}
        self._prepared: set[str] = set()
        self._gone: dict[str, str] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def gone(self) -> dict[str, str]:
        """Peers that take no part in anything, and why."""
        return dict(self._gone)

    def ask(self, peer: PeerSpec, operation: str, *arguments: Any) -> Any:
        """What the peer's process answers; PeerLost when it does not, its process ended then."""
        child = self._child(peer)
        try:
            return child.ask(operation, arguments, self._settings.limit_seconds)
        except PeerLost:
            self.end([peer.label])
            raise

    def roofline(self, operation: str, *arguments: Any) -> float:
        """A measured bound of the device."""
        return self.ask(PeerSpec(name=ROOFLINE, dtype=""), operation, *arguments)

    def only(self, peer: PeerSpec) -> None:
        """End every process but this peer's: for work that wants all the memory."""
        self.end([label for label in self._children if label != peer.label])

    def fresh(self, peer: PeerSpec, kind: str) -> bool:
        """Whether the peer's process has not done this kind of work yet; asked once, then it has."""
        done = self._child(peer).done
        new = kind not in done
        done.add(kind)
        return new

    def pid(self, peer: PeerSpec) -> int:
        """The process behind a peer, started if need be."""
        return self._child(peer).pid

    def end(self, labels: Iterable[str] | None = None) -> None:
        """End these processes, or all."""
        for label in list(self._children if labels is None else labels):
            child = self._children.pop(label, None)
            if child is not None:
                child.end()

    def _child(self, peer: PeerSpec) -> _Child:
        child = self._children.get(peer.label)
        if child is None:
            if peer.label in self._gone:
                raise PeerLost(self._gone[peer.label])
            config = self._config(peer)
            try:
                self._prepare(peer, config)
                child = self._children[peer.label] = _Child(peer.name, config)
                child.ask("load", (), self._settings.limit_seconds)
            except PeerLost as lost:
                self.end([peer.label])
                self._gone[peer.label] = str(lost)
                raise
        return child

    def _prepare(self, peer: PeerSpec, config: PeerConfig) -> None:
        if peer.name == ROOFLINE or peer.label in self._prepared:
            return
        # In a process of its own: what is made here once is not in the peer's memory.
        once = _Child(peer.name, config)
        try:
            once.ask("prepare", (), self._settings.limit_seconds)
        finally:
            once.end()
        self._prepared.add(peer.label)

    def _config(self, peer: PeerSpec) -> PeerConfig:
        return PeerConfig(
            model=self._model,
            cache=self._settings.folder,
            dtype=peer.dtype,
            device=self._settings.device,
            threads=self._settings.threads,
            batch_tokens=self._batch_tokens,
            max_decodes=self._max_decodes,
        )


class _Child:
    """One process and the pipe to it."""

    def __init__(self, name: str, config: PeerConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, name, config, _HERE), daemon=True)
        self._process.start()
        theirs.close()
        self.done: set[str] = set()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, operation: str, arguments: tuple[Any, ...], limit_seconds: float) -> Any:
        """The answer; PeerLost."""
        try:
            self._pipe.send((operation, arguments))
            if not self._pipe.poll(limit_seconds):
                raise PeerLost(f"no answer in {limit_seconds:,.0f} s")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise PeerLost(self._death()) from error
        if kind == "ok":
            return answer
        raise PeerLost(
            answer,
        )

    def end(self) -> None:
        self._pipe.close()
        # It may be deep in a long call: nothing in it needs an orderly end.
        self._process.kill()
        self._process.join()
        self._process.close()

    def _death(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed ({name}{', often out of memory' if name == 'SIGKILL' else ''})"
        return f"its process ended (exit code {code})"


def settle(settings: Settings) -> None:
    """A pause between two peers: OpenMP's threads go on spinning for a while after their work."""
    time.sleep(settings.settle_seconds)
