"""Images that a document names instead of holding them: only from under the allowed roots, bounded in size and time."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from infra.storage import FileInfo, Location, Problem, StorageError, base_folder, impatient, redact
from model_runtime.errors import ErrorCode, RequestError

from .http_images import HttpRoot, fetch

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 200
# What Linux opens at most (PATH_MAX); stores and servers take less.
_LONGEST = 4096


@dataclass(frozen=True)
class ImageReader:
    """Reads the image at a path: `reader(path, source_path)` → (bytes, etag); only RequestError is raised.

    Allowed are paths below the source's own folder and below `roots`; a relative path counts from the folder of the
    source file that names it. `..`, backslashes, links that lead out and other schemes are `image_forbidden`; http(s)
    is read only below a root that is listed, never from a private address unless the root spells that address.
    """

    source_root: str
    roots: tuple[str, ...] = ()
    max_bytes: int = 64 << 20
    timeout_seconds: float = 20.0

    def __call__(self, path: str, source_path: str) -> tuple[bytes, str]:
        try:
            return self._read(path, source_path)
        except RequestError:
            raise
        except StorageError as error:
            raise _from_storage(error, path) from error
        except Exception as error:
            reason = redact(" ".join(str(error).split()))[:_SHOWN]
            raise _failure(ErrorCode.STORAGE, path, f"reading it failed: {type(error).__name__}: {reason}") from error

    def _read(self, path: str, source_path: str) -> tuple[bytes, str]:
        _check_spelling(path)
        scheme = _scheme(path)
        if scheme in ("http", "https"):
            return fetch(path, self._http_roots, self.max_bytes, self.timeout_seconds)
        if scheme is not None and "://" not in path:
            raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "images are not read from this kind of URL")
        if scheme is None and not path.startswith("/"):
            # Joined by hand: `~` and wildcards are plain characters in a file name.
            url = f"{Location(source_path).parent.url.rstrip('/')}/{posixpath.normpath(path)}"
        else:
            url = path
        if url.startswith(("http://", "https://")):
            return fetch(url, self._http_roots, self.max_bytes, self.timeout_seconds)
        try:
            location = Location(url)
        except StorageError as error:
            raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, error.reason) from error
        root = next((root for root in self._storage_roots if _is_below(location.url, root.url)), None)
        if root is None:
            raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "it is not below the source's folder or an image root")
        if location.is_local:
            return self._read_local(location, root, path)
        # One image that the store cannot give costs its own rows: the others do not wait for it as long as for a shard.
        with impatient(self.timeout_seconds):
            return self._read_remote(location, path)

    def _read_local(self, location: Location, root: Location, path: str) -> tuple[bytes, str]:
        real = os.path.realpath(location.url)
        if not _is_below(real, os.path.realpath(root.url)):
            raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "a symbolic link leads out of the allowed folder")
        with location.errors():
            handle = _open_without_links(real)
        try:
            entry = os.fstat(handle)
            if not stat.S_ISREG(entry.st_mode):
                raise _failure(ErrorCode.IMAGE_NOT_FOUND, path, "it is not a file")
            with open(handle, "rb", closefd=False) as file:
                data = self._bounded(lambda: file.read(self.max_bytes + 1), entry.st_size, path)
        finally:
            os.close(handle)
        return data, f"{entry.st_size}-{entry.st_mtime_ns}"

    def _read_remote(self, location: Location, path: str) -> tuple[bytes, str]:
        found: FileInfo | None = location.info()
        if found is None:
            raise _failure(ErrorCode.IMAGE_NOT_FOUND, path, "there is no such file")

        size = found.size

        def read() -> bytes:
            with location.errors():
                return location.fs.cat_file(location.path, start=0, end=size) if size else b""

        return self._bounded(read, size, path), found.etag

    def _bounded(self, read: Callable[[], bytes], size: int, path: str) -> bytes:
        data = read() if size <= self.max_bytes else b""
        if size > self.max_bytes or len(data) > self.max_bytes:
            raise _failure(ErrorCode.IMAGE_TOO_LARGE, path, f"it has more than {self.max_bytes:,} bytes")
        return data

    @cached_property
    def _storage_roots(self) -> list[Location]:
        listed = [Location(root) for root in self.roots if _scheme(root) not in ("http", "https")]
        own = self.source_root
        return listed if _scheme(own) in ("http", "https") else [base_folder(own), *listed]

    @cached_property
    def _http_roots(self) -> list[HttpRoot]:
        return [HttpRoot.parse(root) for root in self.roots if _scheme(root) in ("http", "https")]


def _open_without_links(path: str) -> int:
    """A descriptor of the file; OSError where a part of `path`, which had no links, has become one since.

    It does not wait for a pipe's other end.
    """
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    *steps, name = path.strip("/").split("/")
    try:
        for step in steps:
            below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _check_spelling(path: str) -> None:
    if not isinstance(path, str) or not path.strip():
        raise RequestError(ErrorCode.IMAGE_NOT_FOUND, "an image's path is empty")
    if _SURROGATE.search(path):
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, _SURROGATE.sub("?", path), "the path holds half a character")
    if len(path.encode()) > _LONGEST:
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, f"the path is longer than {_LONGEST:,} bytes")
    if _CONTROL.search(path):
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "the path holds control characters")
    if "::" in path and "://" in path:
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "chained URLs are not read")
    decoded = _decoded(path)
    # A file may be called 100%41.png; what matters is where a store or server that decodes would go.
    if "\\" in decoded or ".." in re.split(r"[/\\?#]", decoded) or "\0" in decoded:
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, path, "the path leads upwards or holds a backslash")


def _decoded(path: str) -> str:
    for _ in range(8):
        plain = unquote(path)
        if plain == path:
            return plain
        path = plain
    return ".."  # encoded over and over: nobody means well


def _scheme(path: str) -> str | None:
    found = _SCHEME.match(path)
    if found is None or not (found[2] or found[1].lower() in ("file", "data", "http", "https", "javascript")):
        return None
    return found[1].lower()


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _from_storage(error: StorageError, path: str) -> RequestError:
    cause = error.__cause__
    if error.problem is Problem.MISSING or (isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG):
        return _failure(ErrorCode.IMAGE_NOT_FOUND, path, "there is no such file")
    if error.problem is Problem.UNSUPPORTED:
        return _failure(ErrorCode.IMAGE_FORBIDDEN, path, "images are not read from this kind of URL")
    return _failure(ErrorCode.STORAGE, path, error.reason)


def _failure(code: ErrorCode, path: str, reason: str) -> RequestError:
    shown = "".join(c if c.isprintable() else "?" for c in redact(str(path)))
    return RequestError(code, f"image {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}: {reason}")
