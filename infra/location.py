"""One file or folder on any fsspec URL: whole or absent when written, never stale when listed."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import split_protocol, url_to_fs

from . import conditions, local_files
from .file_info import FileInfo, first, hidden, seconds
from .file_versions import etag_and_version
from .inputs import local_input, remote_input, s3_input
from .retry import retried
from .storage_errors import StorageError, codes, no_bucket, redact_url, storage_errors

_T = TypeVar("_T")

_S3 = ("s3", "s3a")
# Schemes whose files appear while they are being written, but which can rename.
_RENAMING = ("hdfs", "webhdfs", "sftp", "ssh", "smb", "ftp", "arrow_hdfs")


@dataclass(frozen=True)
class Location:
    """A file or folder on a local path or any fsspec URL; picklable, equal by its absolute URL.

    Trouble that may pass (a busy store, a reset, a stalled or torn transfer) is tried again for a bounded time; then,
    and for trouble that does not pass, each operation raises StorageError.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _absolute(self.url))

    def __str__(self) -> str:
        return redact_url(self.url)

    def __repr__(self) -> str:
        return f"Location({redact_url(self.url)!r})"

    @property
    def scheme(self) -> str:
        """`file`, `s3`, `memory`, …"""
        return split_protocol(self.url)[0] or "file"

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine's file systems."""
        return self.scheme == "file"

    @property
    def fs(self) -> Any:
        """The fsspec file system, without a listings cache."""
        return self._fs_and_path()[0]

    @property
    def path(self) -> str:
        """The path as the file system spells it."""
        return self.url if self.is_local else self._fs_and_path()[1]

    @property
    def name(self) -> str:
        """The last component."""
        return posixpath.basename(self.url)

    @property
    def parent(self) -> Location:
        """The folder it stands in."""
        return Location(posixpath.dirname(self.url))

    def child(self, *parts: str) -> Location:
        """The location below this one; ValueError for a part that leads out of it."""
        if any(step in ("", ".", "..") for part in parts for step in part.split("/")):
            raise ValueError(f"not a path below {self}: {'/'.join(parts)!r}")
        return Location("/".join((self.url.rstrip("/"), *parts)))

    def info(self) -> FileInfo | None:
        """The file that stands here now, or None when there is none (also for a folder)."""
        found = self._info()
        return None if found is None or found["type"] != "file" else self.file(found)

    def exists(self) -> bool:
        """Whether a file or folder stands here; StorageError when the store, or its bucket, cannot be asked."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether a folder stands here (in a bucket: a prefix with something below it)."""
        found = self._info()
        return found is not None and found["type"] == "directory"

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self._tried(lambda: Path(self.url).read_bytes() if self.is_local else self.fs.cat_file(self.path))

    def open_input(self) -> Any:
        """A seekable input that pyarrow.parquet reads by ranges; close it, or use it in a `with`.

        Each read is tried again like an operation; on S3 all come from one content, or the read is a StorageError.
        """

        def opened() -> Any:
            if self.is_local:
                return local_input(self.url)
            fs, path = self._fs_and_path()
            return s3_input(fs, path) if self.scheme in _S3 else remote_input(fs, path, self._tried)

        return self._tried(opened)

    def write_bytes(self, data: bytes) -> None:
        """Makes `data` the file's content: a reader sees the old file or the whole new one."""

        def write() -> None:
            if self.is_local:
                local_files.replace(self.url, lambda out: out.write(data))
            elif self.scheme in _RENAMING:
                self._replace_by_rename(lambda path: self.fs.pipe_file(path, data))
            else:
                self.fs.pipe_file(self.path, data)

        self._tried(write)

    def upload(self, local_file: str | os.PathLike[str]) -> None:
        """Makes a local file's content this file's content: whole or absent, as `write_bytes`."""

        def upload() -> None:
            if self.is_local:
                with open(local_file, "rb") as source:
                    local_files.replace(self.url, partial(shutil.copyfileobj, source))
            elif self.scheme in _RENAMING:
                self._replace_by_rename(lambda path: self.fs.put_file(os.fspath(local_file), path))
            else:
                self.fs.put_file(os.fspath(local_file), self.path)

        self._tried(upload)

    def download(self, local_file: str | os.PathLike[str]) -> None:
        """Copies the file to a local path, in pieces that are each tried again; all are of one content."""
        self._tried(lambda: self.fs.get_file(self.path, os.fspath(local_file)))

    @property
    def conditional(self) -> bool:
        """Whether the four below hold here against any other process; tried on the store once per process and bucket.

        True for local file systems with locks and S3 stores that honour `If-None-Match` and `If-Match`; False
        elsewhere: there they look and then write, and of two at the same moment both may be told that they did it.
        """
        return conditions.honoured(self)

    def create_exclusive(self, source: bytes | Path) -> bool:
        """Makes bytes or a local file's content this file, whole, only when none is there; False when one was."""
        return conditions.create(self, source)

    def version(self) -> str | None:
        """What the file is now, for `replace_seen`; None when there is none."""
        return conditions.version(self)

    def replace_seen(self, source: bytes | Path, seen: str | None) -> str | None:
        """As `write_bytes`, only when the version there is `seen` (None: no file); its new version, None if refused."""
        return conditions.replace_seen(self, source, seen)

    def remove_seen(self, seen: str, instead: bytes) -> bool:
        """Removes the file when its version is `seen`; `instead` stays where a store cannot delete on a condition."""
        return conditions.remove_seen(self, seen, instead)

    def abort_uploads(self) -> int:
        """Ends uploads in parts to this folder that their writers never finished; how many: 0 where a store cannot."""
        return conditions.abort_uploads(self)

    def delete(self) -> None:
        """Removes the file; nothing happens when there is none."""

        def remove() -> None:
            try:
                os.unlink(self.url) if self.is_local else self.fs.rm_file(self.path)
            except FileNotFoundError as error:
                if "NoSuchBucket" in codes(error):
                    raise

        self._tried(remove)

    def list_files(self, suffix: str = ".parquet") -> list[FileInfo]:
        """Files at any depth below whose name ends in `suffix`, sorted by URL; [] when the folder is missing.

        Names that start with "." are left out, folders of that name with all they hold.
        """
        found = self._tried(lambda: [self.file(e) for e in self._entries() if str(e["name"]).endswith(suffix)])
        return sorted((file for file in found if not hidden(self.below(file), ".")), key=lambda file: file.url)

    def modified(self) -> float | None:
        """When the file was last written by the store's clock (seconds since 1970); None when it does not say."""
        found = self._info()
        stamp = None if found is None else first(found, "LastModified", "mtime", "last_modified", "updated", "created")
        return seconds(stamp)

    def below(self, file: FileInfo) -> str:
        """The file's path relative to this folder."""
        return file.url[len(self.url) :].lstrip("/")

    def _entries(self) -> Iterable[Mapping[str, Any]]:
        if self.is_local:
            return local_files.walk(self.url)
        fs, path = self._fs_and_path()
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError as error:
            if "NoSuchBucket" in codes(error):
                raise
            return []
        return [entry for name, entry in found.items() if entry["type"] == "file" and name != path]

    def _info(self) -> Mapping[str, Any] | None:
        def look() -> Mapping[str, Any] | None:
            try:
                return local_files.info(self.url) if self.is_local else self.fs.info(self.path)
            except (FileNotFoundError, NotADirectoryError) as error:
                bucket_itself = self.scheme in _S3 and "/" not in self.path
                if "NoSuchBucket" in codes(error) or bucket_itself:
                    raise no_bucket(self.url) from error
                return None

        return self._tried(look)

    def file(self, entry: Mapping[str, Any]) -> FileInfo:
        """An fsspec entry of this file system as a FileInfo."""
        if self.is_local and "mtime_ns" not in entry:
            entry = local_files.info(str(entry["name"]))
        size, name = int(entry["size"] or 0), str(entry["name"])
        etag, version = etag_and_version(entry, size)
        return FileInfo(url=self._url_of(name), path=name, size=size, etag=etag, version=version)

    def _url_of(self, path: str) -> str:
        if self.is_local:
            return path
        if self.scheme in _S3:
            return f"{self.scheme}://{path}"
        # What stands before the path in this URL (scheme, user, host) stands before its neighbours' too.
        fs, own = self._fs_and_path()
        return self.url.removesuffix(own) + path if self.url.endswith(own) else fs.unstrip_protocol(path)

    def _fs_and_path(self) -> tuple[Any, str]:
        with storage_errors(self.url):
            if self.is_local:
                return fsspec.filesystem("file", use_listings_cache=False), self.url
            if self.scheme in _S3:
                from .s3 import s3_file_system

                fs = s3_file_system()
                return fs, fs._strip_protocol(self.url)
            fs, path = url_to_fs(self.url, use_listings_cache=False)
            return fs, path.rstrip("/") or "/"

    def _replace_by_rename(self, write: Any) -> None:
        fs, path = self._fs_and_path()
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        temporary = posixpath.join(posixpath.dirname(path), local_files.temporary_name())
        write(temporary)
        fs.mv(temporary, path)

    def errors(self) -> Any:
        """A `with` block that turns any storage trouble about this location into a StorageError."""
        if self.scheme not in _S3:
            return storage_errors(self.url)
        from .s3 import S3Errors

        return S3Errors(self.url)

    def _tried(self, operation: Callable[[], _T]) -> _T:
        """What an operation that may be done twice returns; its trouble as StorageError."""

        def once() -> _T:
            with self.errors():
                return operation()

        # On S3 each request is tried again below, so that of many the others need not be.
        return once() if self.scheme in _S3 else retried(once)


def _absolute(url: str) -> str:
    scheme, rest = split_protocol(url)
    if scheme in (None, "file", "local"):
        if scheme is not None and not rest.startswith(("/", "~")):
            raise StorageError(url, "a file:// URL has three slashes before an absolute path: file:///data/x")
        return os.path.abspath(os.path.expanduser(rest))
    if "::" in url:
        raise StorageError(url, "chained URLs (a::b) are not supported; give the storage's own URL")
    # Taken for a bucket's name, a secret would stand in whatever the client says of it.
    if scheme.lower() in _S3 and not rest.startswith("arn:") and set("@:") & set(rest.partition("/")[0]):
        raise StorageError(url, "an s3 URL names no user; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    return f"{scheme.lower()}://{rest.rstrip('/')}"
