"""An HTTP proxy in front of a real S3 server that breaks chosen requests, by a seeded plan, as networks and stores do.

It speaks the store's own address to nobody: the client signs the proxy's host, and the head goes on as it was signed.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

_HEAD_LIMIT = 1 << 20
_STALL_SECONDS = 120.0
_DRIPS, _DRIP_SECONDS = 16, 0.02


class Fault(StrEnum):
    """What can go wrong with a request."""

    SLOW_DOWN = "503 SlowDown"
    UNAVAILABLE = "503 ServiceUnavailable"
    INTERNAL = "500 InternalError"
    BAD_GATEWAY = "502 without a body"
    TIMEOUT = "400 RequestTimeout"
    RESET_BEFORE = "reset before the request went on"
    RESET_AFTER = "reset after the request took effect"
    RESET_UPLOAD = "reset in the middle of the upload"
    TORN_UPLOAD = "half of the upload went on"
    RESET_DOWNLOAD = "reset in the middle of the download"
    TRUNCATED = "truncated body"
    STALL = "no answer"
    STALL_BODY = "stalled in the middle of the download"
    STALL_UPLOAD = "upload not taken"
    CRAWL = "a download that crawls for ever"
    DRIP = "slow download"
    FORBIDDEN = "403 AccessDenied"


# Those that an error answers or a closed connection ends: a client knows at once.
QUICK = (
    Fault.SLOW_DOWN,
    Fault.UNAVAILABLE,
    Fault.INTERNAL,
    Fault.BAD_GATEWAY,
    Fault.TIMEOUT,
    Fault.RESET_BEFORE,
    Fault.RESET_AFTER,
    Fault.RESET_UPLOAD,
    Fault.TORN_UPLOAD,
    Fault.RESET_DOWNLOAD,
    Fault.TRUNCATED,
    Fault.DRIP,
)
# Those that only a client's own clock ends.
SILENT = (Fault.STALL, Fault.STALL_BODY, Fault.STALL_UPLOAD, Fault.CRAWL)

_ANSWERS = {
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.UNAVAILABLE: (503, "ServiceUnavailable", "Please try again."),
    Fault.INTERNAL: (500, "InternalError", "We encountered an internal error. Please try again."),
    Fault.FORBIDDEN: (403, "AccessDenied", "Access Denied."),
    Fault.TIMEOUT: (400, "RequestTimeout", "Your socket connection was not read from or written to in time."),
}
_NEEDS_UPLOAD = {Fault.RESET_UPLOAD, Fault.TORN_UPLOAD, Fault.STALL_UPLOAD}
_NEEDS_DOWNLOAD = {Fault.RESET_DOWNLOAD, Fault.TRUNCATED, Fault.STALL_BODY, Fault.CRAWL, Fault.DRIP}

# Every fault that any proxy of this process injected.
INJECTED: Counter[str] = Counter()


@dataclass
class Plan:
    """Which requests are broken: those of `methods` whose target matches `target`, a share `rate` of them.

    A fault is drawn from `kinds`; with `burst` above 1 the requests that follow get the same one. `limit`: no more
    than so many faults; a kind that a request cannot have (a torn upload of a GET) leaves the request alone.
    """

    kinds: Sequence[Fault]
    rate: float = 1.0
    seed: int = 0
    methods: Sequence[str] = ("GET", "PUT", "HEAD", "POST", "DELETE")
    target: str = ""
    burst: int = 1
    limit: int | None = None
    injected: Counter[Fault] = field(init=False, default_factory=Counter)
    _random: random.Random = field(init=False)
    _left: int = field(init=False, default=0)
    _again: Fault | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def choose(self, method: str, target: str, has_upload: bool) -> Fault | None:
        """The fault of this request, or None."""
        if method not in self.methods or not re.search(self.target, target) or self.limit == 0:
            return None
        possible = [
            kind
            for kind in self.kinds
            if (kind not in _NEEDS_UPLOAD or has_upload)
            and (kind not in _NEEDS_DOWNLOAD or method == "GET")
            # An answer to HEAD has no body, and its status alone says too little.
            and (kind is not Fault.TIMEOUT or method != "HEAD")
        ]
        if not possible:
            return None
        if self._left and self._again in possible:
            self._left -= 1
        elif self._random.random() < self.rate:
            self._again, self._left = self._random.choice(possible), self.burst - 1
        else:
            return None
        if self.limit is not None:
            self.limit -= 1
        return self._again

    def give_back(self) -> None:
        """A fault that was chosen could not be injected."""
        if self.limit is not None:
            self.limit += 1


@dataclass
class FaultProxy:
    """A running proxy: `endpoint` is its URL, `plan` may be changed at any time."""

    endpoint: str
    plan: Plan | None = None
    requests: int = 0

    @contextmanager
    def breaking(self, *kinds: Fault, **options) -> Iterator[Counter[Fault]]:
        """Injects faults by `Plan(kinds, **options)` while the block runs; counts what it injected."""
        self.plan = Plan(kinds, **options)
        try:
            yield self.plan.injected
        finally:
            self.plan = None


@contextmanager
def fault_proxy(upstream: str, own_port: int = 0) -> Iterator[FaultProxy]:
    """A proxy for `upstream` (http://host:port) while the block runs; it breaks nothing until it has a plan."""
    host, port = upstream.removeprefix("http://").split(":")
    loop = asyncio.new_event_loop()
    started: list[asyncio.Server] = []
    proxy = FaultProxy("")
    worker = _Worker(proxy, host, int(port))

    async def serve() -> None:
        started.append(await asyncio.start_server(worker.connection, "127.0.0.1", own_port, limit=_HEAD_LIMIT))

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    proxy.endpoint = f"http://127.0.0.1:{started[0].sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_end(started[0]), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Request:
    method: str
    target: str
    head: bytes
    length: int
    body: bytes = b""

    @classmethod
    def parse(cls, head: bytes) -> _Request:
        lines = head[:-4].split(b"\r\n")
        method, target, _ = lines[0].decode().split(" ")
        headers = dict(line.split(b":", 1) for line in lines[1:])
        lower = {name.strip().lower(): value.strip() for name, value in headers.items()}
        assert b"transfer-encoding" not in lower, "a chunked upload"
        # Neither of the two is signed; each request gets a connection of its own to the store.
        kept = [line for line in lines if not line.lower().startswith((b"expect:", b"connection:"))]
        cleaned = b"\r\n".join([*kept, b"Connection: close", b"", b""])
        return cls(method, target, cleaned, int(lower.get(b"content-length", b"0")))


class _Broken(Exception):
    """The connection to the client has been ended on purpose."""


class _Worker:
    """The proxy's connections."""

    def __init__(self, proxy: FaultProxy, host: str, port: int) -> None:
        self._proxy, self._host, self._port = proxy, host, port

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(_Request.parse(head), b"100-continue" in head.lower(), reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, _Broken):
            pass
        finally:
            with suppress(Exception):
                writer.close()

    async def _answer(
        self, request: _Request, expects: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy.requests += 1
        plan = self._proxy.plan
        fault = plan.choose(request.method, request.target, request.length > 1) if plan else None
        if expects:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        half = request.length // 2
        if fault is Fault.STALL_UPLOAD:
            self._count(fault, plan)
            await self._silence(writer)
        if fault in (Fault.RESET_UPLOAD, Fault.TORN_UPLOAD):
            request.body = await reader.readexactly(half)
            self._count(fault, plan)
            if fault is Fault.TORN_UPLOAD:
                await self._tear(request)
            self._reset(writer)
        request.body = await reader.readexactly(request.length)
        if fault is None:
            return await self._send(writer, *await self._ask(request))
        await self._break(fault, plan, request, writer)

    async def _break(self, fault: Fault, plan: Plan, request: _Request, writer: asyncio.StreamWriter) -> None:
        if fault in _ANSWERS or fault is Fault.BAD_GATEWAY:
            self._count(fault, plan)
            return await self._send(writer, *_refusal(fault, request.method))
        if fault is Fault.RESET_BEFORE:
            self._count(fault, plan)
            self._reset(writer)
        if fault is Fault.STALL:
            self._count(fault, plan)
            await self._silence(writer)
        head, body = await self._ask(request)
        if fault is Fault.RESET_AFTER:
            self._count(fault, plan)
            self._reset(writer)
        if len(body) < 2:
            plan.give_back()
            return await self._send(writer, head, body)
        self._count(fault, plan)
        if fault in (Fault.DRIP, Fault.CRAWL):
            return await self._drip(fault, writer, head, body)
        writer.write(head + body[: len(body) // 2])
        await writer.drain()
        if fault is Fault.STALL_BODY:
            await self._silence(writer)
        if fault is Fault.RESET_DOWNLOAD:
            await asyncio.sleep(0.02)  # what was sent arrives before the reset does
            self._reset(writer)
        raise _Broken

    def _count(self, fault: Fault, plan: Plan) -> None:
        plan.injected[fault] += 1
        INJECTED[fault.value] += 1

    async def _ask(self, request: _Request) -> tuple[bytes, bytes]:
        """The store's own answer: its head, to be sent on as it is, and its body."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=_HEAD_LIMIT)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read(-1)
        finally:
            writer.close()
        if b"chunked" in head.lower():
            body = _dechunked(body)
        lines = head[:-4].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith((b"connection:", b"transfer-encoding:"))]
        if not any(line.lower().startswith(b"content-length:") for line in kept) and request.method != "HEAD":
            kept.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join([*kept, b"", b""]), body

    async def _tear(self, request: _Request) -> None:
        """Half of an upload reaches the store, then its client is gone."""
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(request.head + request.body)
        with suppress(ConnectionError):
            await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def _drip(self, fault: Fault, writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(head)
        step = 1 if fault is Fault.CRAWL else max(1, len(body) // _DRIPS)
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            await asyncio.sleep(_DRIP_SECONDS)

    async def _silence(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(_STALL_SECONDS)
        self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        with suppress(OSError):
            # Lingering for no time at all makes closing a reset instead of an orderly end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise _Broken

    async def _send(self, writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
        writer.write(head + body)
        await writer.drain()


def _refusal(fault: Fault, method: str) -> tuple[bytes, bytes]:
    if fault is Fault.BAD_GATEWAY:
        return b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", b""
    status, code, message = _ANSWERS[fault]
    text = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode(), b"" if method == "HEAD" else text.encode()


def _dechunked(body: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
