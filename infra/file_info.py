"""A file as its store lists it, and what of that may be trusted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# A store without etags may tell times in whole seconds: a file as young as this may change and keep its time.
_YOUNG_SECONDS = 5.0


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


def identity(entry: Mapping[str, Any], size: int, local: bool) -> tuple[str, str]:
    """The etag and the version (see FileInfo) of an fsspec entry."""
    etag = version = first(entry, "ETag", "etag")
    if etag is None:
        stamp = first(entry, "mtime_ns", "mtime", "created", "LastModified", "last_modified", "updated")
        etag = f"{size}-{stamp.timestamp() if isinstance(stamp, datetime) else stamp}"
        if local:
            version = f"{etag}-{entry['ino']}-{entry['ctime_ns']}"
        elif (seconds(stamp) or time.time()) < time.time() - _YOUNG_SECONDS:
            version = etag
    return str(etag).strip('"'), str(version or "").strip('"')


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
