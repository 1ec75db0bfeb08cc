"""What went wrong, in the words and with the exit code of the command line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import NamedTuple

from infra.cluster import ClusterError
from infra.storage import StorageError, redact
from model_runtime.errors import ModelError
from pipelines.errors import RunError

from .text import one_line

INTERRUPTED = "interrupted; what is made is kept, and the same command goes on from there"


class Failure(NamedTuple):
    """One line or more for standard error, and the process's exit code."""

    lines: list[str]
    exit_code: int


def explain(error: BaseException) -> Failure:
    """The failure that `error`, or one of ours that caused it, means to a person; no line holds a secret."""
    if isinstance(error, KeyboardInterrupt):
        return Failure([INTERRUPTED], 130)
    for cause in _causes(error):
        if isinstance(cause, RunError):
            return Failure([one_line(line) for line in redact(str(cause)).splitlines()], cause.exit_code)
        if isinstance(cause, ModelError | StorageError | ClusterError):
            return Failure([one_line(redact(str(cause)))], 3)
    # Typer's own errors: a missing argument, an unknown command.
    if callable(said := getattr(error, "format_message", None)):
        text = one_line(redact(said())).replace("Value error, ", "")
        return Failure([f"{text} (corpusmill --help)"] if text else [], 2)
    origin = _origin(error)
    said, name = one_line(redact(str(origin))), type(origin).__name__
    return Failure([f"unexpected {name}{f': {_clip(said)}' if said else ''} (--debug shows where)"], 1)


def traceback_of(error: BaseException) -> str:
    """The traceback that --debug shows, without secrets."""
    return redact("".join(traceback.format_exception(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Ray wraps what a task raised and keeps it as `cause`; the wrapper's own text is a traceback.
        inner = getattr(error, "cause", None)
        if isinstance(inner, BaseException):
            yield from _causes(inner)
        yield error
        error = error.__cause__ or error.__context__


def _origin(error: BaseException) -> BaseException:
    """What happened first: wrappers of Ray print whole tracebacks as their message."""
    for _ in range(20):
        inner = getattr(error, "cause", None)
        inner = inner if isinstance(inner, BaseException) else error.__cause__
        if inner is None:
            break
        error = inner
    return error


def _clip(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "…"
