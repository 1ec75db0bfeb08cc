"""One file or folder on any fsspec URL: whole or absent when written, never stale when listed."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.core import split_protocol, url_to_fs

from . import local_files
from .storage_errors import StorageError, codes, no_bucket, redact_url, storage_errors

_S3 = ("s3", "s3a")
# Schemes whose files appear while they are being written, but which can rename.
_RENAMING = ("hdfs", "webhdfs", "sftp", "ssh", "smb", "ftp", "arrow_hdfs")
_CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_CONDITION_UNKNOWN = {"NotImplemented", "501", "InvalidArgument"}
_READ_AHEAD = 512 * 1024


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as its store lists it: `path` is `url` without the scheme; a new content has a new `etag`."""

    url: str
    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Location:
    """A file or folder on a local path or any fsspec URL; picklable, equal by its absolute URL."""

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
        with self.errors():
            if self.is_local:
                return Path(self.url).read_bytes()
            return self.fs.cat_file(self.path)

    def open_input(self) -> Any:
        """A seekable input that pyarrow.parquet reads by ranges; close it, or use it in a `with`."""
        with self.errors():
            if self.is_local:
                if os.path.isdir(self.url):
                    raise IsADirectoryError(self.url)
                return pa.OSFile(self.url)
            if self.scheme in _S3:
                opened = self.fs.open(self.path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
                if opened.details["type"] != "file":
                    raise IsADirectoryError(self.url)
                return opened
            return self.fs.open(self.path, "rb")

    def write_bytes(self, data: bytes) -> None:
        """Makes `data` the file's content: a reader sees the old file or the whole new one."""
        with self.errors():
            if self.is_local:
                local_files.replace(self.url, lambda out: out.write(data))
            elif self.scheme in _RENAMING:
                self._replace_by_rename(lambda path: self.fs.pipe_file(path, data))
            else:
                self.fs.pipe_file(self.path, data)

    def upload(self, local_file: str | os.PathLike[str]) -> None:
        """Makes a local file's content this file's content: whole or absent, as `write_bytes`."""
        with self.errors():
            if self.is_local:
                with open(local_file, "rb") as source:
                    local_files.replace(self.url, partial(shutil.copyfileobj, source))
            elif self.scheme in _RENAMING:
                self._replace_by_rename(lambda path: self.fs.put_file(os.fspath(local_file), path))
            else:
                self.fs.put_file(os.fspath(local_file), self.path)

    def create_exclusive(self, data: bytes) -> bool:
        """Writes `data` only when no file is there; False when one was.

        Of several at once exactly one wins on local file systems, in memory, and on S3 stores that honour
        `If-None-Match` (AWS, MinIO, moto). Other stores (rclone's server, old gateways) ignore the condition: there
        it is a look followed by a write, and two at the same moment may both be told True.
        """
        with self.errors():
            if self.is_local:
                return local_files.create(self.url, data)
            if self._info() is not None:
                return False
            try:
                self.fs.pipe_file(self.path, data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                found = codes(error)
                if found & _CONDITION_FAILED:
                    return False
                if not (found & _CONDITION_UNKNOWN or isinstance(error, TypeError)):
                    raise
                self.fs.pipe_file(self.path, data)
            return True

    def delete(self) -> None:
        """Removes the file; nothing happens when there is none."""
        with self.errors():
            try:
                os.unlink(self.url) if self.is_local else self.fs.rm_file(self.path)
            except FileNotFoundError as error:
                if "NoSuchBucket" in codes(error):
                    raise

    def list_files(self, suffix: str = ".parquet") -> list[FileInfo]:
        """Files at any depth below whose name ends in `suffix`, sorted by URL; [] when the folder is missing.

        Names that start with "." are left out, folders of that name with all they hold.
        """
        with self.errors():
            found = [file for file in map(self.file, self._entries()) if file.path.endswith(suffix)]
            files = [file for file in found if not hidden(self.below(file), ".")]
        return sorted(files, key=lambda file: file.url)

    def modified(self) -> float | None:
        """When the file was last written by the store's clock (seconds since 1970); None when it does not say."""
        found = self._info()
        stamp = None if found is None else _first(found, "LastModified", "mtime", "last_modified", "updated", "created")
        if isinstance(stamp, datetime):
            return stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp()
        return float(stamp) if isinstance(stamp, int | float) else None

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
        with self.errors():
            try:
                return local_files.info(self.url) if self.is_local else self.fs.info(self.path)
            except (FileNotFoundError, NotADirectoryError) as error:
                bucket_itself = self.scheme in _S3 and "/" not in self.path
                if "NoSuchBucket" in codes(error) or bucket_itself:
                    raise no_bucket(self.url) from error
                return None

    def file(self, entry: Mapping[str, Any]) -> FileInfo:
        """An fsspec entry of this file system as a FileInfo."""
        if self.is_local and "mtime_ns" not in entry:
            entry = local_files.info(str(entry["name"]))
        size, name = int(entry["size"] or 0), str(entry["name"])
        etag = _first(entry, "ETag", "etag")
        if etag is None:
            stamp = _first(entry, "mtime_ns", "mtime", "created", "LastModified", "last_modified", "updated")
            etag = f"{size}-{stamp.timestamp() if isinstance(stamp, datetime) else stamp}"
        return FileInfo(url=self._url_of(name), path=name, size=size, etag=str(etag).strip('"'))

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
                fs = _s3(_settings("AWS_"), os.getpid())
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
        return _S3Errors(self) if self.scheme in _S3 else storage_errors(self.url)


class _S3Errors:
    """As `storage_errors`, and asks again where the first answer had no body: a HEAD tells 403, but not why."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, StorageError) or not isinstance(error, Exception):
            return
        url = self._location.url
        with storage_errors(url):
            if codes(error) == {"403"}:
                fs, path = self._location._fs_and_path()
                fs.call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)
            raise error


def hidden(below: str, marks: str) -> bool:
    """Whether a component of a relative path starts with one of `marks`."""
    return any(step[:1] in marks for step in below.split("/") if step)


def _first(entry: Mapping[str, Any], *names: str) -> Any:
    return next((entry[name] for name in names if entry.get(name)), None)


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


@lru_cache(maxsize=4)
def _s3(settings: str, pid: int) -> Any:
    # A file system of its own per process and per AWS_* settings: fsspec would hand out the first one for ever.
    config = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}}
    return fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config, skip_instance_cache=True)


def _settings(prefix: str) -> str:
    settings = sorted(item for item in os.environ.items() if item[0].startswith(prefix))
    return hashlib.sha256(repr(settings).encode()).hexdigest()
