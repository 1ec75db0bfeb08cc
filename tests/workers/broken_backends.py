"""Backends that break in earnest, named by import path: the engine's process loads one in place of `load_backend`."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from model_runtime import Backend, Decode, EngineConfig, EngineStats, Generation, Request, load_backend

POISON = 77
# As a decoder prefix: that decode alone is poison.
POISON_PREFIX = 78


def segfault() -> None:
    """A native crash."""
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def run_out_of_memory() -> None:
    """What Python's own allocator raises."""
    raise MemoryError


def raise_error() -> None:
    """An exception from inside the engine."""
    raise RuntimeError("the kernel has died\nwith a second line")


def leave() -> None:
    """What a library that calls exit does."""
    os._exit(7)


def sleep_for_ever() -> None:
    """A step that never ends."""
    time.sleep(3600)


class Toy:
    """A backend without a model, whose process starts in a blink: a decode's tokens follow from what it reads."""

    dtype = "float32"

    def __init__(self) -> None:
        self._steps = 0
        self._running: dict[str, tuple[int, Decode, list[int]]] = {}

    @property
    def stats(self) -> EngineStats:
        """Steps only."""
        return EngineStats(steps=self._steps)

    def submit(self, request: Request) -> None:
        """Every decode starts at once."""
        for decode in request.decodes:
            seed = zlib.crc32(bytes(str([*request.input_ids, decode.prefix_ids]), "ascii"))
            self._running[decode.key] = (seed, decode, [])

    def step(self) -> list[Generation]:
        """One more token of each."""
        self._steps += 1
        time.sleep(0.001)
        for seed, _, tokens in self._running.values():
            tokens.append(zlib.crc32(bytes([len(tokens) % 256]), seed) % 500)
        full = [key for key, (_, decode, tokens) in self._running.items() if len(tokens) == decode.sampling.max_tokens]
        ended = {key: self._running.pop(key) for key in full}
        return [Generation(key=key, token_ids=tuple(tokens)) for key, (_, _, tokens) in ended.items()]

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """All of them."""
        for request in requests:
            self.submit(request)
        while self._running:
            yield from self.step()

    def close(self) -> None:
        """Nothing to give back."""


def load_toy(config: EngineConfig) -> Backend:
    """See Toy."""
    return Toy()


class Broken:
    """A backend, but a step does `harm` while a poisoned document is in flight, or more than `most` decodes are.

    `config.model` "toy" is a Toy.
    """

    def __init__(
        self, config: EngineConfig, harm: Callable[[], None], log: Path, most: int | None = None, token: int = POISON
    ) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {config.halvings}\n")
        self._backend = load_toy(config) if config.model == "toy" else load_backend(config)
        self._harm = harm
        self._most = most
        self._token = token
        self._poisoned = False
        self._open: set[str] = set()

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def submit(self, request: Request) -> None:
        """As the real one; poison is noticed."""
        ids = [*request.input_ids, *(token + 1000 for decode in request.decodes for token in decode.prefix_ids)]
        self._poisoned |= self._token in ids or POISON_PREFIX + 1000 in ids
        self._open.update(decode.key for decode in request.decodes)
        self._backend.submit(request)

    def step(self) -> list[Generation]:
        """As the real one, unless there is harm to do."""
        if self._poisoned or (self._most and len(self._open) > self._most):
            self._harm()
        done = self._backend.step()
        self._open.difference_update(generation.key for generation in done)
        return done


def load_broken(harm: Callable[[], None], log: Path, most: int | None, token: int, config: EngineConfig) -> Backend:
    """See Broken."""
    return Broken(config, harm, log, most, token)


def broken(
    harm: Callable[[], None], log: Path, most: int | None = None, token: int = POISON
) -> Callable[[EngineConfig], Backend]:
    """A `load` that can be sent to another process."""
    return partial(load_broken, harm, log, most, token)


def load_never(harm: Callable[[], None], log: Path, config: EngineConfig) -> Backend:
    """Loading itself does harm."""
    with log.open("a") as file:
        file.write(f"{os.getpid()} {config.halvings}\n")
    harm()
    raise AssertionError("no harm was done")


class Useless(Broken):
    """Every step of every document does harm."""

    def generate(self, requests):
        """As `submit` and `step` would."""
        self._harm()
        return iter(())

    def step(self) -> list[Generation]:
        """Never ends well."""
        self._harm()
        return []


def load_useless(harm: Callable[[], None], log: Path, config: EngineConfig) -> Backend:
    """See Useless."""
    return Useless(config, harm, log)
