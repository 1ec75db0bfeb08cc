"""What Arrow says of bytes it cannot decode, told apart from trouble of the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa


def is_damage(error: BaseException) -> bool:
    """Whether bytes could not be decoded: Arrow's own types, or its plain OSError without an errno."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


@contextmanager
def damage() -> Iterator[list[str]]:
    """Catches damage. The list holds one line after it, and stays empty otherwise; other errors go on their way."""
    found: list[str] = []
    try:
        yield found
    except Exception as error:
        if not is_damage(error):
            raise
        found.append(first_line(error))


def printable(name: str) -> str:
    """A column's name for a message: a damaged footer spells names in any characters, and at any length."""
    shown = "".join(c if c.isprintable() else "?" for c in name[:80])
    return f"{shown}…" if len(name) > 80 else shown


def first_line(error: BaseException) -> str:
    """An error's message, its first line alone; Arrow may quote a damaged byte in it, which is shown as `?`."""
    line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return "".join(sign if sign.isprintable() else "?" for sign in line)
