"""A file as its store lists it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as its store lists it: `path` is `url` without the scheme; a new content has a new `etag`.

    `version` is what may be trusted from one run to the next: the etag, on local disks with the inode and the time of
    its last change, which nobody can set back; "" where the store tells nothing to trust.
    """

    url: str
    path: str
    size: int
    etag: str
    version: str = ""


def hidden(below: str, marks: str) -> bool:
    """Whether a component of a relative path starts with one of `marks`."""
    return any(step[:1] in marks for step in below.split("/") if step)


def first(entry: Mapping[str, Any], *names: str) -> Any:
    """The first of the entries that says something, None when none does."""
    return next((entry[name] for name in names if entry.get(name)), None)


def seconds(stamp: Any) -> float | None:
    """A store's time as seconds since 1970; None when it is none."""
    if isinstance(stamp, datetime):
        return stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp()
    return float(stamp) if isinstance(stamp, int | float) else None
