"""Trouble that passes is waited out: exponential back-off with full jitter, for a bounded time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar

from .storage_errors import Problem, StorageError, explain

_T = TypeVar("_T")
# What the next try may find better. Not: a file that is missing, forbidden, badly named, or a full disk.
PASSING = frozenset({Problem.BUSY, Problem.UNREACHABLE})
# The pause before try n + 1 is drawn evenly from 0 to FIRST * 2^n seconds, at most MOST.
_FIRST_SECONDS, _MOST_SECONDS = 0.1, 20.0
# Slower than this on average is as good as stalled: a try that moves bytes gets its time for them.
_SLOWEST_BYTES = 64 << 10
# An address that never answered is rather misspelt than down for a moment.
_STRANGER_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request is tried again (`seconds`), and how long one try may bring nothing (`stall`)."""

    seconds: float = 120.0
    stall: float = 30.0

    @classmethod
    def current(cls) -> Patience:
        """What holds here: `impatient`, or $CORPUSMILL_STORAGE_RETRY_SECONDS and $CORPUSMILL_STORAGE_STALL_SECONDS."""
        own = _IMPATIENT.get()
        standard = cls(_setting("RETRY_SECONDS", cls().seconds, 0.0), _setting("STALL_SECONDS", cls().stall, 0.05))
        return standard if own is None else standard.at_most(own)

    def at_most(self, seconds: float) -> Patience:
        """The same with a shorter time to try again in, and no try longer than that."""
        return replace(self, seconds=min(self.seconds, seconds), stall=min(self.stall, max(seconds, 1.0)))

    def allowed(self, size: int) -> float:
        """The seconds that one try at moving `size` bytes may take."""
        return self.stall + size / _SLOWEST_BYTES


_IMPATIENT: ContextVar[float | None] = ContextVar("impatient", default=None)


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Inside the block storage is tried again for no more than so many seconds: for what can wait, or be missed."""
    before = _IMPATIENT.get()
    token = _IMPATIENT.set(seconds if before is None else min(before, seconds))
    try:
        yield
    finally:
        _IMPATIENT.reset(token)


class Tries:
    """The tries at one request. `stranger`: the store has not answered this process yet."""

    def __init__(self, patience: Patience, stranger: bool = False) -> None:
        self.count = 0
        self._patience = patience
        self._stranger = stranger
        self._started = time.monotonic()

    def pause(self, error: StorageError) -> float:
        """The seconds to wait before the next try; raises `error`, with how long it was tried, when there is none."""
        self.count += 1
        if error.problem not in PASSING:
            raise error
        seconds = self._patience.seconds
        if self._stranger and error.problem is Problem.UNREACHABLE:
            seconds = min(seconds, _STRANGER_SECONDS)
        passed = time.monotonic() - self._started
        if passed >= seconds:
            raise StorageError(error.url, f"{error.reason} ({_said(self.count, passed)})", error.problem)
        pause = random.uniform(0, min(_MOST_SECONDS, _FIRST_SECONDS * 2 ** min(self.count, 30)))
        return min(pause, seconds - passed)


def retried(operation: Callable[[], _T], patience: Patience | None = None) -> _T:
    """What `operation` returns, tried again while it raises a StorageError that may pass; then that error.

    `operation` must be harmless when it is done twice. Other errors go on their way at once.
    """
    tries = Tries(patience or Patience.current())
    while True:
        try:
            return operation()
        except StorageError as error:
            time.sleep(tries.pause(error))


async def retried_async(operation: Callable[[], Awaitable[_T]], url: str, tries: Tries) -> _T:
    """As `retried`, for a coroutine; trouble that may pass ends as a StorageError, other errors stay as they are."""
    while True:
        try:
            return await operation()
        except Exception as error:
            found = error if isinstance(error, StorageError) else explain(error, url)
            if found.problem not in PASSING:
                raise
            try:
                pause = tries.pause(found)
            except StorageError as last:
                raise last from error
        await asyncio.sleep(pause)


def _said(count: int, seconds: float) -> str:
    return f"{count} {'try' if count == 1 else 'tries'} in {seconds:.0f} s"


def _setting(name: str, otherwise: float, least: float) -> float:
    text = os.environ.get(f"CORPUSMILL_STORAGE_{name}", "")
    try:
        value = float(text) if text.strip() else otherwise
    except ValueError:
        value = -1.0
    # Written so that a NaN is refused too.
    if not least <= value <= 86_400:
        raise StorageError(f"CORPUSMILL_STORAGE_{name}", f"{text!r} is no number of seconds from {least:g} to 86400")
    return value
