"""Conditions on source columns, as job files write them: pyarrow's filters, checked as far as a file alone allows."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import AfterValidator

_COMPARING = ("=", "==", "!=", "<", "<=", ">", ">=")
_LISTING = ("in", "not in")


def _check_condition(condition: tuple[str, str, Any]) -> tuple[str, str, Any]:
    """A filter that pyarrow can make an expression of; whether it fits the column's type, the source knows."""
    column, operator, value = condition
    if operator in _COMPARING:
        if _kind(value) is None:
            raise ValueError(f"{operator} compares {column} with one value: text, a number, true or false, or a date")
    elif operator not in _LISTING:
        known = ", ".join((*_COMPARING, *_LISTING))
        raise ValueError(f"operator {operator!r} on column {column}: use one of {known}")
    elif not isinstance(value, list):
        raise ValueError(f"{operator} looks for {column} in a list of values: write [a, b]")
    else:
        # A null beside other values finds what is empty.
        kinds = {_kind(entry) for entry in value if entry is not None}
        if len(kinds) != 1 or None in kinds:
            raise ValueError(
                f"{operator} looks for {column} in a list of one value or more, all text, all numbers, all true or "
                "false, or all dates"
            )
    return condition


def _kind(value: Any) -> str | None:
    """What a filter's value is to Arrow; None for what it cannot be compared with."""
    match value:
        case bool():
            return "flag"
        case int():
            return "number" if -(1 << 63) <= value < 1 << 63 else None
        case float():
            return "number"
        case str():
            return "text"
        case datetime.date():
            return "date"
    return None


Condition = Annotated[tuple[str, str, Any], AfterValidator(_check_condition)]
