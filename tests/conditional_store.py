"""An S3 server in this process that honours conditional writes, or some of them, and whose every request can be held.

Path-style, unsigned, in memory; as much of the protocol as a table needs: objects, listings, ranges, parts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET = "corpus"


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, etag in quotes, metadata, and when it was written."""

    data: bytes
    etag: str
    metadata: Mapping[str, str]
    written: datetime


@dataclass(frozen=True)
class Asked:
    """A request as hooks see it: `what` is the operation's name in S3's words."""

    what: str
    key: str
    number: int


class Lost(Exception):
    """Raised by a hook: the connection breaks, before or after the request was done."""


@dataclass
class Store:
    """Its state and hooks. `ignores`: of If-None-Match, If-Match and parts (conditions on a completion)."""

    endpoint: str = ""
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignores: frozenset[str] = frozenset()
    before: Callable[[Asked], None] = lambda asked: None
    after: Callable[[Asked], None] = lambda asked: None
    # Called under the lock after each change of what a reader can see.
    changed: Callable[[], None] = lambda: None
    asked: list[Asked] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def url(self, *parts: str) -> str:
        return "/".join((f"s3://{BUCKET}", *parts))

    def below(self, prefix: str) -> dict[str, bytes]:
        """What stands below a prefix now."""
        with self.lock:
            return {key: each.data for key, each in self.objects.items() if key.startswith(prefix)}

    @staticmethod
    def made(data: bytes) -> Stored:
        """An object as somebody else would have put it."""
        return Stored(data, f'"{hashlib.md5(data).hexdigest()}"', {}, datetime.now(UTC))


def refuse(status: int, code: str) -> None:
    """For hooks: answers with an error of S3's."""
    raise _Refused(status, code)


@contextmanager
def conditional_store(**options: Any) -> Iterator[Store]:
    """Serves an empty bucket while the block runs."""
    store = Store(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str, **details: str) -> None:
        super().__init__(code)
        self.status, self.code, self.details = status, code, details


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer are two writes, which must not wait for each other.
    disable_nagle_algorithm = True
    wbufsize = -1
    store: Store

    def handle_expect_100(self) -> bool:
        """Lets the client go on now."""
        told = super().handle_expect_100()
        self.wfile.flush()
        return told

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, Lost):
            self.close_connection = True

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        what = self._operation(key, query)
        with self.store.lock:
            asked = Asked(what, key, len(self.store.asked))
            self.store.asked.append(asked)
        try:
            self.store.before(asked)
            with self.store.lock:
                if bucket != BUCKET:
                    raise _Refused(404, "NoSuchBucket")
                status, headers, answer = getattr(self, f"_{what}")(key, query, body)
                if what in ("put_object", "complete", "delete_object"):
                    self.store.changed()
            self.store.after(asked)
        except _Refused as refused:
            details = "".join(f"<{name}>{value}</{name}>" for name, value in refused.details.items())
            text = f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message>{details}</Error>"
            status, headers, answer = refused.status, {"Content-Type": "application/xml"}, text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raw = b"".join(iter(self._chunk, b""))
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return raw
        made = b""
        while raw:
            head, _, raw = raw.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            made, raw = made + raw[:size], raw[size + 2 :]
        return made

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _operation(self, key: str, query: Mapping[str, str]) -> str:
        if self.command == "POST":
            return "create_upload" if "uploads" in query else "complete" if "uploadId" in query else "delete_objects"
        if self.command == "PUT":
            return "upload_part" if "partNumber" in query else "put_object"
        if self.command == "DELETE":
            return "abort_upload" if "uploadId" in query else "delete_object"
        if self.command == "HEAD":
            return "head_object"
        return "list_uploads" if "uploads" in query else "get_object" if key else "list_objects"

    def _check(self, key: str, parts: bool) -> None:
        if parts and "parts" in self.store.ignores:
            return
        there = self.store.objects.get(key)
        if self.headers.get("If-None-Match") == "*" and "If-None-Match" not in self.store.ignores and there:
            raise _Refused(412, "PreconditionFailed", Condition="If-None-Match")
        wanted = self.headers.get("If-Match")
        if wanted is not None and "If-Match" not in self.store.ignores:
            if there is None:
                raise _Refused(404, "NoSuchKey")
            if there.etag != wanted:
                raise _Refused(412, "PreconditionFailed", Condition="If-Match")

    def _metadata(self) -> dict[str, str]:
        return {name[11:].lower(): value for name, value in self.headers.items() if name.lower()[:11] == "x-amz-meta-"}

    def _keep(self, key: str, data: bytes, metadata: Mapping[str, str], suffix: str = "") -> str:
        etag = f'"{hashlib.md5(data).hexdigest()}{suffix}"'
        self.store.objects[key] = Stored(data, etag, metadata, datetime.now(UTC))
        return etag

    def _put_object(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._check(key, parts=False)
        return 200, {"ETag": self._keep(key, body, self._metadata())}, b""

    def _create_upload(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        name = uuid4().hex
        self.store.uploads[name] = {"key": key, "metadata": self._metadata(), "parts": {}}
        text = f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"  # noqa: E501
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _list_uploads(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        found = [(n, each["key"]) for n, each in self.store.uploads.items() if each["key"].startswith(query["prefix"])]
        made = "".join(f"<Upload><Key>{escape(key)}</Key><UploadId>{name}</UploadId></Upload>" for name, key in found)
        text = f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{made}</ListMultipartUploadsResult>"
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _upload(self, query: Mapping[str, str]) -> dict[str, Any]:
        if query["uploadId"] not in self.store.uploads:
            raise _Refused(404, "NoSuchUpload")
        return self.store.uploads[query["uploadId"]]

    def _upload_part(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._upload(query)["parts"][int(query["partNumber"])] = body
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""

    def _complete(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        upload = self._upload(query)
        self._check(key, parts=True)
        numbers = [int(e.text or "") for e in ElementTree.fromstring(body).iter() if e.tag.endswith("PartNumber")]
        data = b"".join(upload["parts"][number] for number in numbers)
        etag = self._keep(key, data, upload["metadata"], f"-{len(numbers)}")
        del self.store.uploads[query["uploadId"]]
        text = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"  # noqa: E501
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _abort_upload(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._upload(query)
        del self.store.uploads[query["uploadId"]]
        return 204, {}, b""

    def _delete_object(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.store.objects.pop(key, None)
        return 204, {}, b""

    def _head_object(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not key:
            return 200, {}, b""
        there = self.store.objects.get(key)
        if there is None:
            raise _Refused(404, "NoSuchKey")
        return 200, {**self._headers_of(there), "Content-Length": str(len(there.data))}, b""

    def _headers_of(self, there: Stored) -> dict[str, str]:
        marks = {f"x-amz-meta-{name}": value for name, value in there.metadata.items()}
        return {"ETag": there.etag, "Last-Modified": format_datetime(there.written, usegmt=True), **marks}

    def _get_object(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        there = self.store.objects.get(key)
        if there is None:
            raise _Refused(404, "NoSuchKey")
        if self.headers.get("If-Match") not in (None, there.etag):
            raise _Refused(412, "PreconditionFailed", Condition="If-Match")
        wanted = self.headers.get("Range")
        if wanted is None:
            return 200, self._headers_of(there), there.data
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = len(there.data)
        start, stop = (int(first), int(last or size - 1) + 1) if first else (max(0, size - int(last)), size)
        part = there.data[start:stop]
        span = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{size}"}
        return 206, {**self._headers_of(there), **span}, part

    def _list_objects(self, key: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        files, folders = [], dict[str, None]()
        for name, each in sorted(self.store.objects.items()):
            below = name[len(prefix) :]
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in below:
                folders[prefix + below.split(delimiter)[0] + delimiter] = None
                continue
            stamp = each.written.strftime("%Y-%m-%dT%H:%M:%S.000Z")
            files.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{stamp}</LastModified><ETag>{escape(each.etag)}</ETag>"
                f"<Size>{len(each.data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        shared = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        text = (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(files)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{''.join(files)}{''.join(shared)}</ListBucketResult>"
        )
        return 200, {"Content-Type": "application/xml"}, text.encode()
