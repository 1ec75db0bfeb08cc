"""Files that are made or replaced only if nobody did it in between: local ones under a lock, on S3 by conditions."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from . import local_files
from .storage_errors import Problem, StorageError, codes

if TYPE_CHECKING:
    from .location import Location

_S3 = ("s3", "s3a")
# Larger files go up in parts, with the condition on their completion.
PART_BYTES = 32 << 20
_PARALLEL_PARTS = 4
_TRIES = 6
# Marks an object as one write's own: a request repeated after its answer was lost is refused for what it made itself.
_MARK = "corpusmill-write"

_FAILED = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
_MISSING = {"NoSuchKey", "404"}
_GONE = {"NoSuchUpload"}
_UNKNOWN = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "405", "400"}

Source = bytes | Path
_ABSENT: Mapping[str, str] = {"IfNoneMatch": "*"}
_NEVER = '"00000000000000000000000000000000"'


def honoured(location: Location) -> bool:
    """Whether this location's store keeps the promises below; found out by trying, in the folder `location`."""
    if location.is_local:
        with location.errors():
            return local_files.can_lock(location.url)
    if location.scheme not in _S3:
        return False
    fs, path = location._fs_and_path()
    bucket, _, below = path.partition("/")
    with location.errors():
        return _honours(_Bucket(fs, bucket, f"{below}/" if below else ""))


def version(location: Location) -> str | None:
    """The version of the file that stands here, None when there is none."""
    with location.errors():
        if location.is_local:
            return local_files.version(location.url)
        if location.scheme in _S3:
            there = _head(*_object(location))
            return there["ETag"] if there else None
    found = location.info()
    return found.etag if found else None


def create(location: Location, source: Source) -> bool:
    """Makes the file, whole, only when none is there; False when one was."""
    with location.errors():
        if location.is_local:
            return local_files.create(location.url, _writing(source))
        if honoured(location.parent):
            return _write_if(location, source, _ABSENT) is not None
        if location.exists():
            return False
        if location.scheme != "memory":
            _write(location, source)
            return True
        try:
            location.fs.pipe_file(location.path, _bytes(source), mode="create")
        except FileExistsError:
            return False
        return True


def replace_seen(location: Location, source: Source, seen: str | None) -> str | None:
    """Puts `source` in the place of version `seen` (None: of nothing); the new version, None when another is there."""
    with location.errors():
        if location.is_local:
            return local_files.replace_seen(location.url, _writing(source), seen)
        if honoured(location.parent):
            return _write_if(location, source, _ABSENT if seen is None else {"IfMatch": seen})
        if version(location) != seen:
            return None
        _write(location, source)
        return version(location)


def remove_seen(location: Location, seen: str, instead: bytes) -> bool:
    """Removes version `seen`, or leaves `instead` in its place where conditions hold for writes only; False if gone."""
    with location.errors():
        if location.is_local:
            return local_files.remove_seen(location.url, seen)
        if honoured(location.parent):
            return replace_seen(location, instead, seen) is not None
        if version(location) != seen:
            return False
        location.delete()
        return True


def abort_uploads(location: Location) -> int:
    """Ends uploads in parts below this folder; how many. 0 where it knows none or one may not ask."""
    if location.scheme not in _S3:
        return 0
    fs, bucket, key = _object(location)
    ended = 0
    with suppress(Exception):
        listed = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
        for upload in listed.get("Uploads", []):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            ended += 1
    return ended


@dataclass(frozen=True)
class _Bucket:
    """A bucket as one file system object sees it, compared by identity; probes go below `prefix`, wherever that is."""

    fs: Any = field(compare=False)
    name: str
    prefix: str = field(compare=False)
    of: int = 0

    def __post_init__(self) -> None:
        # fsspec's objects are equal when their arguments are, and the endpoint is not among them.
        object.__setattr__(self, "of", id(self.fs))


@lru_cache(maxsize=16)
def _honours(bucket: _Bucket) -> bool:
    """Tries every kind of conditional write on an object of its own: a store may know some and ignore others."""
    fs, key = bucket.fs, f"{bucket.prefix}.probe-{secrets.token_hex(8)}"

    def done(condition: Mapping[str, str], parts: bool) -> bool:
        mark = secrets.token_hex(16)
        try:
            _put(fs, bucket.name, key, b"probe", mark, condition, parts)
        except Exception as error:
            if not codes(error) & (_FAILED | _UNKNOWN | _GONE):
                raise
            return _is_marked(_head(fs, bucket.name, key), mark)
        return True

    try:
        if not done(_ABSENT, parts=False):
            return False
        for parts in (False, True):
            there = _head(fs, bucket.name, key)
            if there is None or _MARK not in there["Metadata"]:
                return False
            if done(_ABSENT, parts) or done({"IfMatch": _NEVER}, parts):
                return False
            if not done({"IfMatch": there["ETag"]}, parts):
                return False
        return True
    finally:
        with suppress(Exception):
            fs.call_s3("delete_object", Bucket=bucket.name, Key=key)


def _object(location: Location) -> tuple[Any, str, str]:
    fs, path = location._fs_and_path()
    bucket, _, key = path.partition("/")
    return fs, bucket, key


def _write_if(location: Location, source: Source, condition: Mapping[str, str]) -> str | None:
    """The new etag, None when the condition did not hold."""
    fs, bucket, key = _object(location)
    mark = secrets.token_hex(16)
    parts = isinstance(source, Path) and source.stat().st_size > 2 * PART_BYTES
    if parts and condition is _ABSENT and _head(fs, bucket, key) is not None:
        return None
    for attempt in range(_TRIES):
        try:
            return _put(fs, bucket, key, source, mark, condition, parts)
        except Exception as error:
            found = codes(error)
            if not found & (_FAILED | _CONFLICT | _GONE | (_MISSING if "IfMatch" in condition else set())):
                raise
        there = _head(fs, bucket, key)
        if there is not None and _is_marked(there, mark):
            return there["ETag"]
        if found & (_FAILED | _MISSING):
            return None
        # Two wrote at once and the store could not tell who was first.
        time.sleep(0.1 * 2**attempt)
    raise StorageError(
        location.url, "the store refused this write again and again as in conflict; run the same command again",
        Problem.BUSY,
    )  # fmt: skip


def _put(fs: Any, bucket: str, key: str, source: Source, mark: str, condition: Mapping[str, str], parts: bool) -> str:
    """Writes the object under `condition`, whole or not at all; its etag. `mark` becomes its metadata."""
    where, marked = {"Bucket": bucket, "Key": key}, {_MARK: mark}
    if not parts:
        return fs.call_s3("put_object", **where, Body=_bytes(source), Metadata=marked, **condition)["ETag"]
    where["UploadId"] = fs.call_s3("create_multipart_upload", **where, Metadata=marked)["UploadId"]
    try:
        made = {"Parts": _put_parts(fs, where, source)}
        return fs.call_s3("complete_multipart_upload", **where, MultipartUpload=made, **condition)["ETag"]
    except BaseException:
        # Parts of an upload that never completes are paid for and seen by nobody.
        with suppress(Exception):
            fs.call_s3("abort_multipart_upload", **where)
        raise


def _put_parts(fs: Any, where: Mapping[str, str], source: Source) -> list[dict[str, Any]]:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size

    def put(number: int) -> dict[str, Any]:
        body = _bytes(source, number * PART_BYTES)
        made = fs.call_s3("upload_part", **where, PartNumber=number + 1, Body=body)
        return {"PartNumber": number + 1, "ETag": made["ETag"]}

    pool = ThreadPoolExecutor(_PARALLEL_PARTS)
    try:
        return list(pool.map(put, range(-(-size // PART_BYTES))))
    finally:
        pool.shutdown(cancel_futures=True)


def _head(fs: Any, bucket: str, key: str) -> Mapping[str, Any] | None:
    try:
        return fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError as error:
        if "NoSuchBucket" in codes(error):
            raise
        return None


def _is_marked(there: Mapping[str, Any] | None, mark: str) -> bool:
    return there is not None and there["Metadata"].get(_MARK) == mark


def _bytes(source: Source, start: int | None = None) -> bytes:
    """All of it, or the part that begins at byte `start`."""
    if isinstance(source, bytes):
        return source if start is None else source[start : start + PART_BYTES]
    with open(source, "rb") as opened:
        opened.seek(start or 0)
        return opened.read() if start is None else opened.read(PART_BYTES)


def _writing(source: Source) -> Callable[[BinaryIO], Any]:
    if isinstance(source, bytes):
        return lambda out: out.write(source)

    def copy(out: BinaryIO) -> None:
        with open(source, "rb") as opened:
            shutil.copyfileobj(opened, out)

    return copy


def _write(location: Location, source: Source) -> None:
    location.write_bytes(source) if isinstance(source, bytes) else location.upload(source)
