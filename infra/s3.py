"""s3fs with one policy for what fails: every request, and every piece of a file, is tried again by itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

from fsspec.asyn import sync_wrapper
from fsspec.callbacks import DEFAULT_CALLBACK
from s3fs import S3FileSystem

from .retry import Patience, Tries, retried_async
from .storage_errors import StorageError, codes, explain, storage_errors

_T = TypeVar("_T")
# Files are moved in pieces: a fault costs one of them, and the others go on.
PIECE_BYTES = 16 << 20
_PARALLEL_PIECES = 8
# A store that was given up is asked only briefly until it answers again, so that a run can end; and so is one that
# shall forget a half upload.
_BRIEF_SECONDS = 5.0
# A store may think about a completed upload for minutes.
_SLOW_METHODS = {"complete_multipart_upload": 10.0}
_CHANGED = "the file changed while it was read; run the same command again"


@lru_cache(maxsize=8)
def _of(settings: str, pid: int) -> PatientS3:
    # One layer of tries, ours: s3fs's and botocore's inside it would multiply.
    config = {
        "connect_timeout": 5,
        "read_timeout": Patience.current().stall,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return PatientS3(use_listings_cache=False, config_kwargs=config, skip_instance_cache=True)


def s3_file_system() -> PatientS3:
    """The file system of this process and its AWS_* settings as they are now; fsspec's would keep the first."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "CORPUSMILL_STORAGE_")))
    return _of(hashlib.sha256(repr(settings).encode()).hexdigest(), os.getpid())


class PatientS3(S3FileSystem):
    """An s3fs file system whose requests are tried again while the trouble may pass, each try in bounded time.

    Trouble that lasts is a StorageError; what is missing or refused is s3fs's own exception, except from listings:
    fsspec takes an OSError there for an empty folder.
    """

    retries = 1
    # Until the first answer; and from giving up to the next answer.
    _stranger, _given_up = True, False

    async def _call_s3(self, method: str, *others: Any, **options: Any) -> Any:
        allowed = Patience.current().allowed(_length(options.get("Body"))) * _SLOW_METHODS.get(method, 1.0)
        call = super()._call_s3

        async def once() -> Any:
            return await asyncio.wait_for(call(method, *others, **options), allowed)

        url = _url(options)
        if method != "list_objects_v2":
            return await self._retried(once, url, brief=method == "abort_multipart_upload")
        try:
            return await self._retried(once, url)
        except FileNotFoundError as error:
            if "NoSuchBucket" in codes(error):
                raise explain(error, url) from error
            raise
        except OSError as error:
            raise explain(error, url) from error

    call_s3 = sync_wrapper(_call_s3)

    async def _retried(self, once: Callable[[], Awaitable[_T]], url: str, brief: bool = False) -> _T:
        # Loading the client is work of this machine, however busy it is: no try of the store's.
        await self.set_session()
        patience = Patience.current()
        if brief or self._given_up:
            patience = patience.at_most(_BRIEF_SECONDS)
        try:
            answer = await retried_async(once, url, Tries(patience, self._stranger))
        except StorageError:
            self._given_up = True
            raise
        except Exception as error:
            if codes(error):  # a refusal is an answer too
                self._stranger = self._given_up = False
            raise
        self._stranger = self._given_up = False
        return answer

    async def _fetch(self, path: str, start: int | None = None, end: int | None = None, etag: str = "") -> bytes:
        """The bytes of a file, or those from `start` to before `end` (to its end when None) of the content `etag`."""
        bucket, key, version = self.split_path(path)
        options: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if version:
            options["VersionId"] = version
        if start is not None:
            options["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if etag:
            options["IfMatch"] = etag
        call, patience, url = super()._call_s3, Patience.current(), f"s3://{bucket}/{key}"

        async def once() -> bytes:
            answer = await asyncio.wait_for(call("get_object", **options), patience.allowed(0))
            body, size = answer["Body"], int(answer["ContentLength"])
            try:
                # Not every store looks at If-Match.
                if etag and answer.get("ETag") not in (None, etag):
                    raise StorageError(url, _CHANGED)
                data = await asyncio.wait_for(body.read(), patience.allowed(size))
            finally:
                body.close()
            if len(data) != size:
                raise ConnectionError(f"{len(data)} of {size} bytes came")
            # A store that does not look at Range sends all of it.
            return data if start is None or answer.get("ContentRange") else data[start:end]

        try:
            return await self._retried(once, url)
        except Exception as error:
            if etag and codes(error) & {"PreconditionFailed", "412"}:
                raise StorageError(url, _CHANGED) from error
            raise

    fetch = sync_wrapper(_fetch)

    async def _cat_file(
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        if start is None and end is None:
            return await self._fetch(path)
        if (start or 0) < 0 or (end or 0) < 0:
            size = (await self._info(path))["size"]
            start, end, _step = slice(start, end).indices(size)
        return await self._fetch(path, start or 0, end) if end is None or end > (start or 0) else b""

    async def _get_file(self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **_: Any) -> None:
        if os.path.isdir(lpath):
            return
        found = await self._info(rpath)
        callback.set_size(found["size"])
        starts = range(0, found["size"], PIECE_BYTES)
        with open(lpath, "wb") as out:
            for first in range(0, len(starts), _PARALLEL_PIECES):
                window = starts[first : first + _PARALLEL_PIECES]
                ends = [min(start + PIECE_BYTES, found["size"]) for start in window]
                pieces = [self._fetch(rpath, start, end, found["ETag"]) for start, end in zip(window, ends)]
                for data in await _all(pieces):
                    out.write(data)
                    callback.relative_update(len(data))

    async def _put_file(self, lpath: str, rpath: str, *others: Any, **options: Any) -> Any:
        return await self._whole(partial(super()._put_file, lpath, rpath, *others, **_in_pieces(lpath, options)))

    async def _pipe_file(self, path: str, data: bytes, *others: Any, **options: Any) -> Any:
        options = options if others else {"chunksize": PIECE_BYTES, **options}
        return await self._whole(partial(super()._pipe_file, path, data, *others, **options))

    async def _whole(self, upload: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await upload()
        except Exception as error:
            # An upload that was completed, and whose answer was lost, is known no more when it is completed again. The
            # same bytes once more are harmless.
            if "NoSuchUpload" not in codes(error):
                raise
        return await upload()

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        # What went wrong with the upload is the news; parts that cannot be removed now fall to the bucket's own rules.
        with suppress(Exception):
            await super()._abort_mpu(bucket, key, mpu)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        opened = super()._open(path, mode, **options)
        if mode == "rb":
            opened.cache.fetcher = partial(self._piece, path, str(opened.details.get("ETag") or ""))
        return opened

    def _piece(self, path: str, etag: str, start: int, end: int) -> bytes:
        """Of an open file, whose size is known: all that is asked for."""
        if end <= start:
            return b""
        data = self.fetch(path, start, end, etag)
        if len(data) != end - start:
            raise StorageError(f"s3://{path}", _CHANGED)
        return data


class S3Errors:
    """As `storage_errors`, and asks again where the first answer had no body: a HEAD tells 403, but not why."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, StorageError) or not isinstance(error, Exception):
            return
        with storage_errors(self._url):
            if codes(error) != {"403"}:
                raise error
            fs = s3_file_system()
            try:
                fs.call_s3("list_objects_v2", Bucket=fs._strip_protocol(self._url).split("/")[0], MaxKeys=1)
            except StorageError as why:
                raise StorageError(self._url, why.reason, why.problem) from error
            raise error


async def _all(coroutines: list[Any]) -> list[bytes]:
    """All results in order; when one fails, the others do not go on behind our back."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _in_pieces(lpath: str, options: dict[str, Any]) -> dict[str, Any]:
    # A file may have 10,000 parts: s3fs's own rule serves those that are too large for ours.
    small = os.path.getsize(lpath) <= 9_000 * PIECE_BYTES
    return {"chunksize": PIECE_BYTES, **options} if small else options


def _length(body: Any) -> int:
    return len(body) if isinstance(body, bytes | bytearray | memoryview) else 0


def _url(options: dict[str, Any]) -> str:
    path = options.get("Key") or options.get("Prefix") or ""
    return f"s3://{options.get('Bucket', '')}/{path}".rstrip("/")
