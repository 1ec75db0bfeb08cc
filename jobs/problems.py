"""What pydantic found wrong with a job file, said to a person: what was expected, and what stands there."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from pipelines.job import JobSpec

from .environment import redact
from .text import escape

YamlPath = tuple[str | int, ...]

_PATTERNS = {
    r"^[a-z0-9_]{1,64}$": "1 to 64 small letters, digits and _",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$": "up to 128 letters, digits, dots, _ and -, a letter or digit first",
    r"^(auto|cpu|cuda(:\d+)?)$": "auto, cpu, cuda or cuda:N",
}
_LONGEST_KEY = 80
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a block of `key: value` lines",
    "model_attributes_type": "a block of `key: value` lines",
    "dict_type": "a block of `key: value` lines",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def dotted(path: YamlPath) -> str:
    """A path as people write it: tasks[1].language."""
    # A key is the file's own text, and may hold what would break the line or fill the screen.
    parts = (part if isinstance(part, int) or len(part) <= _LONGEST_KEY else f"{part[:_LONGEST_KEY]}…" for part in path)
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return escape(text.removeprefix(".")) or "the file"


def known_keys(model: type[BaseModel]) -> str:
    """The keys a block takes, in the order of the documentation."""
    return ", ".join(model.model_fields)


def settle(data: Any, location: Iterable[str | int]) -> tuple[YamlPath, Any]:
    """The part of pydantic's `location` that is in the file, and the value there.

    pydantic adds parts of its own for unions; they are cut off.
    """
    path: list[str | int] = []
    for part in location:
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if not inside:
            break
        path.append(part)
        data = data[part]
    return tuple(path), data


def sentence(
    item: Mapping[str, Any],
    value: Any,
    written: str | None,
    expanded: Mapping[str, str],
    file: type[BaseModel] = JobSpec,
) -> str:
    """One pydantic error in words; `written` is the scalar as it stands in the file, `expanded` for `redact`.

    `file` is the model of the whole file.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(item["loc"], file)
    if kind == "missing":
        return _missing(item["loc"], file)
    if kind == "value_error":
        return redact(str(context["error"]), expanded)
    if kind == "literal_error":
        choices = context["expected"]
        return f"expected {_either(choices)}{_found(value, written)}{_close(value, choices)}"
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS.get(context["pattern"], f"text matching {context['pattern']}")
        return f"expected {wanted}{_found(value, written)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"expected {words} {context[name]:,}{_found(value, written)}"
    if kind in ("too_short", "string_too_short"):
        return "expected at least one entry" if kind == "too_short" else "expected some text, found none"
    if kind == "string_type":
        return f"expected text{_found(value, written)}{_quote_hint(value, written)}"
    if kind in _KINDS:
        return f"expected {_KINDS[kind]}{_found(value, written)}"
    message = item["msg"]
    return redact(message[:1].lower() + message[1:], expanded)


def join(sentences: list[str]) -> str:
    """Several things said of one value, as one: the branches of a union read "expected a or b, found c"."""
    if len(sentences) > 1 and all(s.startswith("expected ") for s in sentences):
        heads = [s.removeprefix("expected ").split(", found ", 1) for s in sentences]
        tail = next((f", found {rest[0]}" for _, *rest in heads if rest), "")
        return "expected " + " or ".join(dict.fromkeys(head for head, *_ in heads)) + tail
    return "; ".join(dict.fromkeys(sentences))


def _unknown_key(location: tuple[str | int, ...], file: type[BaseModel]) -> str:
    known = list(_model_at(location[:-1], file).model_fields)
    key = str(location[-1])
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; known here: {', '.join(known)}"


def _missing(location: tuple[str | int, ...], file: type[BaseModel]) -> str:
    if isinstance(location[-1], int):  # only a condition is a list of parts
        return 'expected three parts in each filter: [column, operator, value], as in ["lang", "=", "de"]'
    key = str(location[-1])
    holds = _model_in(_model_at(location[:-1], file).model_fields[key].annotation)
    if holds is None:
        return "is missing"
    needed = [name for name, field in holds.model_fields.items() if field.is_required()]
    return f"is missing; it needs {', '.join(needed)}"


def _model_at(location: Iterable[str | int], file: type[BaseModel]) -> type[BaseModel]:
    model = file
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _either(expected: str) -> str:
    return re.sub(r"'([^']*)'", r"\1", expected)


def _close(value: Any, expected: str) -> str:
    if not isinstance(value, str):
        return ""
    choices = re.findall(r"'([^']*)'", expected)
    close = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _found(value: Any, written: str | None) -> str:
    if value is None and not written:
        return ", found nothing"
    if isinstance(value, Mapping):
        return ", found a block of `key: value` lines"
    if isinstance(value, list | tuple):
        return ", found a list"
    # What the file says, not what it expands to: a value from the environment may be a secret.
    shown = written if written is not None else str(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    return f", found {shown!r}" if isinstance(value, str) else f", found {shown}"


def _quote_hint(value: Any, written: str | None) -> str:
    if written is None or isinstance(value, Mapping | list | tuple):
        return ""
    if isinstance(value, bool):
        return f', which YAML reads as {str(value).lower()}: write "{written}" in quotes'
    if isinstance(value, int | float | datetime.date | None):
        return f': write "{written}" in quotes'
    return ""
