"""Which files a source path means: a file, a folder, or a glob."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .file_info import FileInfo, hidden
from .location import Location
from .storage_errors import nothing_here

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = re.compile(r"[*?\[]")


def expand(url: str, suffixes: Iterable[str] = PARQUET_SUFFIXES) -> list[FileInfo]:
    """The files a source path means, sorted by URL: a file, a folder's files with one of `suffixes`, or a glob's.

    Below a folder, and where a glob's wildcard matches, names that start with "." or "_" are left out as Spark and
    pyarrow do. A path without anything there is a StorageError; a folder without such files, and a glob that matches
    nothing, are [].
    """
    endings = tuple(suffixes)
    if not _MAGIC.search(url):
        location = Location(url)
        file = location.info()
        if file is not None:
            return [file]
        if not location.exists():
            raise nothing_here(location.url)
        return _visible(location, endings)
    pattern, folder = Location(url), base_folder(url)
    below = pattern.url[len(folder.url) :]
    shown = any(step.startswith(("_", ".")) for step in below.split("/"))
    files: dict[str, FileInfo] = {}
    with pattern.errors():
        matches = pattern.fs.glob(pattern.path, detail=True)
    for entry in matches.values():
        match = pattern.file(entry)
        if not shown and hidden(folder.below(match), "._"):
            continue
        found = [match] if entry["type"] == "file" else _visible(Location(match.url), endings)
        files.update((file.url, file) for file in found)
    return [files[key] for key in sorted(files)]


def base_folder(url: str) -> Location:
    """The folder a source path reads from: of a file its folder, of a glob the part before the first wildcard."""
    if not _MAGIC.search(url):
        location = Location(url)
        is_file = location.url.endswith(PARQUET_SUFFIXES) and not url.endswith("/") and not location.is_dir()
        return location.parent if is_file else location
    steps = Location(url).url.split("/")
    first = next(i for i, step in enumerate(steps) if _MAGIC.search(step))
    return Location("/".join(steps[:first]) or "/")


def _visible(folder: Location, endings: tuple[str, ...]) -> list[FileInfo]:
    return [file for file in folder.list_files("") if _is_shard(folder.below(file), endings)]


def _is_shard(below: str, endings: tuple[str, ...]) -> bool:
    return below.lower().endswith(endings) and not hidden(below, "._")
