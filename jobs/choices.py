"""The words that options of the command line take."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """How `query` prints a result."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class Retry(StrEnum):
    """Which rows `run --retry` tries again."""

    FAILED = "failed"
