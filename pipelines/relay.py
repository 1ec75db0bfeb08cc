"""Errors on their way from Ray's workers to the driver, where they are raised as what they were.

Ray Data keeps of an error in a stage its traceback as text, adds words to what is left of it, and takes one in an
actor's constructor for the death of the actor. So a stage gives it an error that carries the one that was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from infra.storage import StorageError
from model_runtime import ModelError

from .errors import RunError

MEANT_FOR_A_PERSON = (RunError, ModelError, StorageError)
_BROKEN = "_relayed_broken"

Stage = TypeVar("Stage", bound=type)
Made: TypeAlias = pa.Table | Iterator[pa.Table]


class RelayedError(Exception):
    """Carries `meant`, whatever is done to this error's own arguments."""

    def __init__(self, meant: Exception) -> None:
        super().__init__(str(meant))
        self.meant = meant

    def __reduce__(self) -> tuple[type, tuple[Exception]]:
        return RelayedError, (self.meant,)


@dataclass(frozen=True, slots=True)
class Relaying:
    """A stage of tasks, `stage`, whose errors reach the driver."""

    stage: Callable[[pa.Table], Made]

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """What the stage makes of a block; RelayedError instead of what is meant for a person."""
        try:
            made = self.stage(block)
            if isinstance(made, pa.Table):
                yield made
            else:
                yield from made
        except MEANT_FOR_A_PERSON as error:
            raise RelayedError(error) from error


def relaying_actor(stage: Stage) -> Stage:
    """Decorates a stage of actors: its errors reach the driver, those of its constructor with its first block."""
    start, call = stage.__init__, stage.__call__  # type: ignore[misc]

    @wraps(start)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            start(self, *args, **kwargs)
        except MEANT_FOR_A_PERSON as error:
            setattr(self, _BROKEN, error)

    @wraps(call)
    def __call__(self: Any, block: pa.Table) -> Iterator[pa.Table]:
        if broken := getattr(self, _BROKEN, None):
            raise RelayedError(broken)
        yield from Relaying(lambda block: call(self, block))(block)

    stage.__init__ = __init__  # type: ignore[misc]
    stage.__call__ = __call__  # type: ignore[method-assign]
    return stage


def meant(error: BaseException) -> Exception | None:
    """The error of ours that `error` is, or that stands inside Ray's; None when there is none."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        candidate = pending.pop()
        if candidate is None or any(candidate is other for other in seen):
            continue
        if isinstance(candidate, RelayedError):
            return candidate.meant
        # Ray's dual classes print a traceback; the original is inside.
        inner = getattr(candidate, "cause", None)
        if isinstance(candidate, MEANT_FOR_A_PERSON):
            return inner if isinstance(inner, Exception) else candidate
        seen.append(candidate)
        pending += [candidate.__cause__, candidate.__context__, inner]
    return None
