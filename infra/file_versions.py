"""What tells one content of a file from another: the store's etag, or what its times say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_STAMPS = ("mtime_ns", "mtime", "created", "LastModified", "last_modified", "updated")
# A store without etags may tell times in whole seconds: a file as young as this may change and keep its time.
_YOUNG_SECONDS = 5.0


def etag_and_version(entry: Mapping[str, Any], size: int) -> tuple[str, str]:
    """The etag of an fsspec entry, and what of it may be trusted from one run to the next ("" when nothing may).

    On local disks the version also holds the inode and the time of the last change of any kind, which nobody can set
    back as a time of modification can be.
    """
    etag = next((str(entry[name]).strip('"') for name in ("ETag", "etag") if entry.get(name)), None)
    if etag is not None:
        return etag, etag
    stamp = next((entry[name] for name in _STAMPS if entry.get(name)), None)
    etag = f"{size}-{stamp.timestamp() if isinstance(stamp, datetime) else stamp}"
    if "ctime_ns" in entry:
        return etag, f"{etag}-{entry['ino']}-{entry['ctime_ns']}"
    if isinstance(stamp, datetime):
        stamp = stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp()
    old = isinstance(stamp, int | float) and stamp < time.time() - _YOUNG_SECONDS
    return etag, etag if old else ""
