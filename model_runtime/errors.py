"""What can go wrong with one input, and what can go wrong with a model: typed, and each in one sentence."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a row is not `ok`. The code decides the row's status: `rejected` or `failed`."""

    # rejected: this input can never work
    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    EMPTY_INPUT = "empty_input"
    TOO_LONG = "too_long"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_FORMAT = "image_format"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_FORBIDDEN = "image_forbidden"
    BAD_ROW = "bad_row"
    # failed: it may work later
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_CRASH = "engine_crash"
    ENGINE_HANG = "engine_hang"
    NON_FINITE = "non_finite"
    STORAGE = "storage"
    INTERNAL = "internal"

    @property
    def status(self) -> str:
        """`failed` when a later attempt may succeed, else `rejected`."""
        return "failed" if self in _FAILED else "rejected"


_FAILED = frozenset(
    {
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.ENGINE_CRASH,
        ErrorCode.ENGINE_HANG,
        ErrorCode.NON_FINITE,
        ErrorCode.STORAGE,
        ErrorCode.INTERNAL,
    }
)


class RequestError(Exception):
    """One input cannot be done: `code` says why, `message` says it to a person in one line."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[ErrorCode, str]]:
        return type(self), (self.code, self.message)


class ModelError(Exception):
    """A checkpoint, its configuration or its device cannot be used; the message names what and what to do."""
