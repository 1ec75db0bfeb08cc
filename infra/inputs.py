"""Seekable inputs that pyarrow reads by ranges; each read is tried again by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa

_READ_AHEAD = 512 * 1024


def local_input(path: str) -> Any:
    """A file of this machine; IsADirectoryError for a folder."""
    if os.path.isdir(path):
        raise IsADirectoryError(path)
    return pa.OSFile(path)


def s3_input(fs: Any, path: str) -> Any:
    """An object, all of whose reads are of the content that was there when it was opened."""
    opened = fs.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
    if opened.details["type"] != "file":
        raise IsADirectoryError(path)
    return opened


def remote_input(fs: Any, path: str, tried: Callable[[Callable[[], bytes]], bytes]) -> Any:
    """A file of any other fsspec file system; `tried` runs each fetch."""
    opened = fs.open(path, "rb")
    cache = getattr(opened, "cache", None)
    if cache is not None and cache.fetcher is not None:
        fetch = cache.fetcher
        cache.fetcher = lambda start, end: tried(lambda: fetch(start, end))
    return opened
