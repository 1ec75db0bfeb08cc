"""Images over http(s): below a listed prefix only, redirects too, never from inside the network, bounded throughout."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import resource
import socket
import threading
import time
import urllib.request

import pytest

from model_runtime.errors import ErrorCode, RequestError
from workers import http_images
from workers.image_reader import ImageReader

from .test_image_reader import refused


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        target = {"/img/away": "/private/x", "/img/round": "/img/round", "/img/there": "/img/a.png"}.get(self.path)
        if target:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif self.path == "/img/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path.startswith("/img/endless"):
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x" * 65536)
        elif self.path in ("/img/a.png", "/private/x", "/img/b%20c.png"):
            self.send_response(200)
            self.send_header("ETag", '"v1"')
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"image")
        else:
            self.send_error(503 if self.path == "/img/busy" else 404)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the reader hung up, as it should
            super().handle()


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_http_only_below_a_listed_prefix(site):
    reader, source = ImageReader("/data/x.parquet", (f"{site}/img/",)), "/data/x.parquet"
    assert reader(f"{site}/img/a.png", source) == (b"image", "v1")
    assert reader(f"{site}/img/b c.png", source)[0] == b"image"
    assert reader(f"{site}/img/there", source)[0] == b"image"
    assert refused(reader, f"{site}/img/none.png", source) is ErrorCode.IMAGE_NOT_FOUND
    assert refused(reader, f"{site}/img/busy", source) is ErrorCode.STORAGE
    for url in (
        f"{site}/private/x", f"{site}/img/../private/x", f"{site}/img/%2e%2e/private/x", f"{site}/image",
        f"{site}/img", f"{site}/img/away",
        site.replace("http://", "http://me@") + "/img/a.png", site.replace("http:", "https:") + "/img/a",
        site.replace("127.0.0.1", "localhost") + "/img/a.png", f"{site}0/img/a.png",
    ):  # fmt: skip
        assert refused(reader, url, source) is ErrorCode.IMAGE_FORBIDDEN, url
    assert refused(reader, f"{site}/img/round", source) is ErrorCode.STORAGE


def test_http_is_bounded_in_size_and_time(site):
    reader = ImageReader("/data", (f"{site}/img",), max_bytes=100_000, timeout_seconds=0.5)
    assert refused(reader, f"{site}/img/endless", "/data/x.parquet") is ErrorCode.IMAGE_TOO_LARGE
    started = time.monotonic()
    assert refused(reader, f"{site}/img/slow", "/data/x.parquet") is ErrorCode.STORAGE
    assert time.monotonic() - started < 3
    assert (
        refused(ImageReader("/data", (site,), max_bytes=4), f"{site}/img/a.png", "/data/x") is ErrorCode.IMAGE_TOO_LARGE
    )


def resolving(monkeypatch, *addresses: str) -> None:
    """Make every name lead to these addresses."""
    answer = [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 9))
        for address in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answer)


INSIDE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.7", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.1", "198.18.0.1", "::", "::1", "fc00::1", "fd00:ec2::254",
    "fe80::1%eth0", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "2002:7f00:1::",
    "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "not an address",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_leads_inside_the_network_is_refused(monkeypatch, address):
    assert not http_images._is_public(address)
    resolving(monkeypatch, address)
    reader = ImageReader("/data", ("http://images.example.com/img",))
    assert refused(reader, "http://images.example.com/img/a.png", "/data/x") is ErrorCode.IMAGE_FORBIDDEN


def test_public_addresses_are_public():
    for address in ("93.184.216.34", "2606:4700::1111", "64:ff9b::93.184.216.34", "::ffff:93.184.216.34"):
        assert http_images._is_public(address) or address.startswith("::ffff"), address


@pytest.mark.parametrize("spelled", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "[::ffff:7f00:1]."])
def test_odd_spellings_of_an_address_do_not_get_past_a_listed_host(site, spelled):
    port = site.rsplit(":", 1)[1]
    reader = ImageReader("/data", (f"{site}/img",))
    assert refused(reader, f"http://{spelled}:{port}/img/a.png", "/data/x") is ErrorCode.IMAGE_FORBIDDEN
    if "[" not in spelled:
        listed = ImageReader("/data", (f"http://{spelled}:{port}/img",))
        assert refused(listed, f"http://{spelled}:{port}/img/a.png", "/data/x") is ErrorCode.IMAGE_FORBIDDEN


def test_a_name_server_cannot_answer_twice(site, monkeypatch):
    """The first answer is looked at, and it is the one that is connected to."""
    asked = []
    port = int(site.rsplit(":", 1)[1])

    def rebinding(host, *_, **__):
        asked.append(host)
        address = "203.0.113.7" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(http_images, "_is_public", lambda address: address == "203.0.113.7")
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    reader = ImageReader("/data", (f"http://images.example.com:{port}/img",), timeout_seconds=0.5)
    assert refused(reader, f"http://images.example.com:{port}/img/a.png", "/data/x") is ErrorCode.STORAGE
    assert len(asked) == 1


def test_one_address_inside_spoils_a_name(monkeypatch):
    resolving(monkeypatch, "127.0.0.1", "93.184.216.34")
    reader = ImageReader("/data", ("http://images.example.com/img",))
    assert refused(reader, "http://images.example.com/img/a.png", "/data/x") is ErrorCode.IMAGE_FORBIDDEN


def test_addresses_that_do_not_answer_share_the_time(monkeypatch):
    class Silent(socket.socket):
        def connect(self, address):
            time.sleep(min(self.gettimeout() or 60, 60))
            raise TimeoutError

    monkeypatch.setattr(http_images, "_is_public", lambda address: True)
    resolving(monkeypatch, *[f"203.0.113.{n}" for n in range(50)])
    monkeypatch.setattr(socket, "socket", Silent)
    reader = ImageReader("/data", ("http://images.example.com/img",), timeout_seconds=0.4)
    started = time.monotonic()
    assert refused(reader, "http://images.example.com/img/a.png", "/data/x") is ErrorCode.STORAGE
    assert time.monotonic() - started < 2


def test_a_slow_name_server_does_not_turn_the_clock_off(site, monkeypatch):
    """The timer fires while the name is looked up, when there is no connection yet to cut."""
    look_up = socket.getaddrinfo

    def slow(*arguments, **options):
        time.sleep(0.4)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    reader = ImageReader("/data", (f"{site}/img",), timeout_seconds=0.3)
    started = time.monotonic()
    assert refused(reader, f"{site}/img/slow", "/data/x") is ErrorCode.STORAGE
    assert time.monotonic() - started < 2


ANSWERS = {
    # what a server may send → what the row says
    "a redirect whose body never ends": (b"HTTP/1.1 302 x\r\nLocation: /img/b\r\n\r\n", b"x" * 65536, "storage"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"A: " + b"x" * 60_000 + b"\r\n", "storage"),
    "a header line without end": (b"HTTP/1.1 200 OK\r\nA: ", b"x" * 65536, "storage"),
    "a status line without end": (b"HTTP/1.1 200 ", b"x" * 65536, "storage"),
    "continue, continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "storage"),
    "a chunk of no end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", b"x" * 65536, "image_too_large"),
    "a length that says less": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"x" * 65536, None),
    "a length that says more": (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b"", "image_too_large"),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"x" * 65536, "image_too_large"),
    "not http at all": (b"\x1b[31m evil \r\x85\x00\r\n", b"\x1b]0;evil\x07\n" * 99, "storage"),
}  # fmt: skip


@contextlib.contextmanager
def raw_server(head: bytes, more: bytes):
    """A server that answers every request with `head`, then `more` again and again."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    connection.recv(65536)
                    connection.sendall(head)
                    while more:
                        connection.sendall(more)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


@pytest.mark.parametrize("kind", ANSWERS)
def test_no_answer_takes_more_memory_or_time_than_it_may(kind):
    head, more, said = ANSWERS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with raw_server(head, more) as url:
        reader = ImageReader("/data", (f"{url}/img",), max_bytes=1 << 20, timeout_seconds=3)
        if said is None:
            assert reader(f"{url}/img/a", "/data/x")[0] == b"xxxxx"
        else:
            assert refused(reader, f"{url}/img/a", "/data/x") == said
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "64 MiB, in KiB"


def test_a_compressed_body_is_not_unpacked():
    body = gzip.compress(bytes(50 << 20))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with raw_server(head + body, b"") as url:
        assert ImageReader("/data", (url,), max_bytes=1 << 20)(f"{url}/a", "/data/x")[0] == body


def test_nothing_of_this_machine_goes_along(tmp_path, monkeypatch):
    """No .netrc, no user of the root's URL, no cookies, no referrer; and no proxy of the environment sees it."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password a-secret-of-a-test\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert urllib.request.getproxies()
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        seen.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    port, secret = listener.getsockname()[1], "a-secret-of-a-test"
    reader = ImageReader("/data", (f"http://me:{secret}@127.0.0.1:{port}/img",))
    assert reader(f"http://127.0.0.1:{port}/img/a", "/data/x")[0] == b"x"
    listener.close()
    names = {line.split(b":")[0].lower() for line in seen[0].split(b"\r\n")[1:] if line}
    assert names == {b"host", b"user-agent", b"accept", b"accept-encoding", b"connection"}
    assert b"secret" not in seen[0]


def test_a_redirect_is_held_to_the_same_rules(site):
    for target in (
        "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.1:9/img/x",
        "/img/%2e%2e/private/x", "/img/%252e%252e/private/x", "/img/..%5cprivate", "http://me@127.0.0.1/img/x",
        "gopher://127.0.0.1/x", "data:image/png;base64,AAAA",
    ):  # fmt: skip
        head = f"HTTP/1.1 302 x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        with raw_server(head, b"") as url:
            code = refused(ImageReader("/data", (f"{url}/img",), timeout_seconds=2), f"{url}/img/a", "/data/x")
            assert code is ErrorCode.IMAGE_FORBIDDEN, target


def test_a_token_in_a_refused_address_is_not_shown(site):
    url = f"{site}/private/x?X-Amz-Signature=a-secret-of-a-test"
    with pytest.raises(RequestError) as caught:
        ImageReader("/data", (f"{site}/img",))(url, "/data/x")
    assert "a-secret-of-a-test" not in caught.value.message and "/private/x" in caught.value.message
