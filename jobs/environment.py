"""${ENV} in a job file: filled in when it is read, and kept out of every message."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# "$$" is a plain dollar sign; "${" must open a name; any other "$" stands for itself.
_TOKEN = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$\{(?P<broken>[^}]*)\}?")


class ExpansionError(ValueError):
    """A string's ${NAME} cannot be filled in; the message names the variable and never a value."""


def expand(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with each ${NAME} filled in and each $$ as one dollar sign; ExpansionError when it cannot be."""
    values = os.environ if environment is None else environment

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match["name"]
        if name is None:
            raise ExpansionError(f"{match[0]!r} is not a variable: write ${{NAME}}, or $$ for a plain dollar sign")
        if name not in values:
            raise ExpansionError(f"the environment variable {name} is not set (export {name}=…)")
        return values[name]

    return _TOKEN.sub(fill, text)


def redact(message: str, expanded: Mapping[str, str]) -> str:
    """`message` with every expanded string (filled in → as written) shown as it is written in the file."""
    for value in sorted(expanded, key=len, reverse=True):
        if value:
            written = expanded[value].replace("\\", r"\\")
            message = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", written, message)
    return message
