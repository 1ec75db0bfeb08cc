"""Images over http(s): below a listed prefix only, redirects included, and never from an address inside the network."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from infra.storage import redact, redact_url
from model_runtime.errors import ErrorCode, RequestError

_CHUNK = 1 << 16
# By it a network without IPv4 reaches the whole of it: the last 32 bits are the address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HttpRoot:
    """A prefix from which images may be read."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, root: str) -> HttpRoot:
        """From a listed root's URL."""
        parts = urlsplit(root)
        host = (parts.hostname or "").lower()
        path = unquote(parts.path).rstrip("/") + "/"
        return cls(parts.scheme.lower(), host, _port(parts), path)

    def allows(self, parts: SplitResult) -> bool:
        """Whether a URL lies below: same scheme, host and port, and the path below at a "/"."""
        same = (parts.scheme.lower(), (parts.hostname or "").lower(), _port(parts)) == (
            self.scheme,
            self.host,
            self.port,
        )
        return same and parts.username is None and parts.password is None and unquote(parts.path).startswith(self.path)


def fetch(url: str, roots: list[HttpRoot], max_bytes: int, timeout_seconds: float) -> tuple[bytes, str]:
    """(bytes, etag) of an image; RequestError for everything that does not work, the whole within the time limit.

    Nothing of this machine goes along: no credentials (.netrc, cookies), and no proxy of the environment, which would
    resolve names where nobody looks at the addresses.
    """
    _check_allowed(url, roots)
    deadline = _Deadline(timeout_seconds)
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Http(deadline),
        _Https(deadline),
        _Redirects(roots),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(
        quote(url.partition("#")[0], safe=":/?&=%[]@!$'()*+,;~"),
        headers={"User-Agent": "corpusmill", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
    )
    try:
        with deadline, opener.open(request, timeout=timeout_seconds) as response:
            return _body(response, url, max_bytes, deadline)
    except RequestError:
        raise
    except urllib.error.HTTPError as error:
        code = ErrorCode.IMAGE_NOT_FOUND if error.code in (404, 410) else ErrorCode.STORAGE
        raise _failure(code, url, f"the server answered {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        refused = error.reason if isinstance(error, urllib.error.URLError) else None
        if isinstance(refused, RequestError):
            raise refused from error
        reason = f"no answer within {timeout_seconds:g} s" if deadline.passed else _reason(error)
        raise _failure(ErrorCode.STORAGE, url, reason) from error


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended in mid-transfer"
    # Their text is what the server sent, whatever bytes that were.
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return f"what the server sent is not HTTP ({type(error).__name__})"
    return " ".join(redact(str(error)).split())[:200]


class _Deadline:
    """Cuts every connection that is open when time is up: a server that sends a byte a second cannot hold a worker."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    @property
    def left(self) -> float:
        """Seconds; TimeoutError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self.passed:  # while a name was looked up, perhaps: the timer will not come again
            self._cut()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connection in self._sockets:
            connection.close()

    def _cut(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                # A duplicate, because TLS takes the descriptor over from the socket that was connected.
                connection.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connect = _connector(deadline)

    def http_open(self, request: urllib.request.Request) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **options)
            made._create_connection = self._connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, request)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connect = _connector(deadline)

    def https_open(self, request: urllib.request.Request) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, context=ssl.create_default_context(), **options)
            made._create_connection = self._connect  # type: ignore[attr-defined]
            return made

        return self.do_open(connection, request)  # type: ignore[arg-type]


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def __init__(self, roots: list[HttpRoot]) -> None:
        self._roots = roots

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        # The standard library would read the redirect's body to its end, however long it is.
        fp.read = lambda *_: b""
        # Here too: it says to other schemes that they are an error of the server's.
        _check_allowed(urljoin(req.full_url, headers.get("location", "")), self._roots)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]

    def redirect_request(self, request: Any, fp: Any, code: int, message: str, headers: Any, target: str) -> Any:
        _check_allowed(target, self._roots)
        return super().redirect_request(request, fp, code, message, headers, target)


def _connector(deadline: _Deadline) -> Any:
    def connect(address: tuple[str, int], timeout: Any = None, source: Any = None, **_: Any) -> socket.socket:
        # The address that was looked at is the one that is connected to: a name server cannot answer twice.
        failure: OSError | None = None
        # Every host that gets here is a listed root's: one that spells an address inside means it.
        meant = address[0] == "localhost" or _address(address[0]) is not None
        for family, kind, protocol, _name, resolved in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            if not meant and not _is_public(str(resolved[0])):
                raise _failure(ErrorCode.IMAGE_FORBIDDEN, address[0], "this host is inside the network")
            connection = socket.socket(family, kind, protocol)
            try:
                # Of many addresses that do not answer, all together get the time that one would.
                connection.settimeout(deadline.left)
                connection.connect(resolved)
            except OSError as error:
                connection.close()
                failure = error
                continue
            deadline.watch(connection.dup())
            return connection
        raise failure or OSError(f"{address[0]} has no address")

    return connect


def _body(response: Any, url: str, max_bytes: int, deadline: _Deadline) -> tuple[bytes, str]:
    length = response.headers.get("Content-Length", "")
    chunks: list[bytes] = []
    size = int(length) if length.isdigit() else 0
    received = 0
    while size <= max_bytes and received <= max_bytes:
        chunk = response.read(_CHUNK)
        if not chunk:
            break
        chunks.append(chunk)
        received += len(chunk)
    if deadline.passed:
        raise TimeoutError
    if max(size, received) > max_bytes:
        raise _failure(ErrorCode.IMAGE_TOO_LARGE, url, f"it has more than {max_bytes:,} bytes")
    if received < size:
        raise OSError("the connection ended in mid-transfer")
    data = b"".join(chunks)
    etag = response.headers.get("ETag", "").strip('"')
    return data, etag or f"sha256-{hashlib.sha256(data).hexdigest()}"


def _check_allowed(url: str, roots: list[HttpRoot]) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # brackets around what is no address, letters that NFKC would make a "/"
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, url, "this is not a URL") from error
    decoded = _decoded(parts.path)
    leads_out = ".." in decoded.split("/") or "\\" in decoded or "\\" in url
    if leads_out or not any(root.allows(parts) for root in roots):
        raise _failure(ErrorCode.IMAGE_FORBIDDEN, url, "it is not below a listed image root")


def _decoded(path: str) -> str:
    # A redirect's target too may be encoded more than once.
    for _ in range(8):
        path, before = unquote(path), path
        if path == before:
            return path
    return "/../"


def _is_public(address: str) -> bool:
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address):
        # An IPv4 address in IPv6 clothes leads where the IPv4 address leads.
        if found in _NAT64:
            return _is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found.is_site_local or (inner is not None and not _is_public(str(inner))):
            return False
    return found is not None and found.is_global and not (found.is_multicast or found.is_reserved)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or _DEFAULT_PORTS.get(parts.scheme.lower(), 0)
    except ValueError:
        return -1


def _failure(code: ErrorCode, url: str, reason: str) -> RequestError:
    shown = "".join(c if c.isprintable() else "?" for c in redact_url(url)[:200])
    return RequestError(code, f"image {shown}: {reason}")
