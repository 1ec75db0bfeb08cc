"""What a surface is: inputs, and a check that either works or is refused in one line, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from infra.storage import StorageError
from model_runtime.errors import ErrorCode, ModelError, RequestError
from pipelines.errors import RunError

OURS = (RequestError, ModelError, RunError, StorageError)
_LONGEST = 4000


class Escaped(AssertionError):
    """An input did what none may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One place where foreign data comes in.

    `check` takes a case (JSON values and bytes): True for a good result, False for a refusal; it raises for whatever
    else. `share`: of a thousand inputs of a whole run, how many are this surface's. `seconds`: what one may take.
    """

    name: str
    cases: SearchStrategy[Any]
    check: Callable[[Any], bool]
    share: int
    seconds: float = 20.0


def answered(call: Callable[[], Any], *errors: type[Exception]) -> bool:
    """Whether `call` works, or is refused with one of `errors` (by default all of ours); anything else goes its way."""
    expected = errors or OURS
    try:
        call()
    except expected as error:
        if isinstance(error, RequestError):
            honest(error.code, error.message)
        line(str(error))
        return False
    return True


def line(message: str) -> None:
    """Escaped unless `message` is one line, and no novel."""
    if not message.strip() or len(message.splitlines()) != 1:
        raise Escaped(f"not one line: {message[:_LONGEST]!r}")
    if len(message) > _LONGEST:
        raise Escaped(f"a message of {len(message)} characters: {message[:200]!r}")


def honest(code: str, message: str) -> None:
    """Escaped when a row's error is a mistake of ours, or memory that was not bounded, in a typed error's clothes."""
    line(message)
    if code in (ErrorCode.INTERNAL, ErrorCode.OUT_OF_MEMORY):
        raise Escaped(f"{code}: {message}")
