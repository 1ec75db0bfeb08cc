"""Images by reference: what may be read, and what each refusal is called."""

from __future__ import annotations

import contextlib
import http.server
import os
import pickle
import socket
import threading
import time
import uuid

import pytest

from infra.storage import Location
from model_runtime.errors import ErrorCode, RequestError
from tests.s3_server import s3_server
from workers import http_images
from workers.image_reader import ImageReader


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "memory", "s3"])
def corpus(request, tmp_path, s3) -> Location:
    name = uuid.uuid4().hex
    root = Location({"local": str(tmp_path), "memory": f"memory://{name}", "s3": s3.url(name)}[request.param])
    for path in ("in/docs/a.png", "in/docs/sub/b c%41.png", "in/c.png", "in2/d.png", "shared/e.png"):
        root.child(path).write_bytes(path.encode())
    return root


def refused(reader: ImageReader, path: str, source: str) -> ErrorCode:
    with pytest.raises(RequestError) as error:
        reader(path, source)
    assert "\n" not in error.value.message
    return error.value.code


def test_below_the_source_or_a_listed_root(corpus):
    reader = pickle.loads(pickle.dumps(ImageReader(f"{corpus.url}/in/**/*.parquet")))
    source = f"{corpus.url}/in/docs/x.parquet"
    data, etag = reader("a.png", source)
    assert data == b"in/docs/a.png" and etag == corpus.child("in/docs/a.png").info().etag
    assert reader("./sub/b c%41.png", source)[0] == b"in/docs/sub/b c%41.png"
    assert reader(f"{corpus.url}/in/c.png", source)[0] == b"in/c.png"
    assert refused(reader, f"{corpus.url}/in2/d.png", source) is ErrorCode.IMAGE_FORBIDDEN
    assert refused(reader, f"{corpus.url}/shared/e.png", source) is ErrorCode.IMAGE_FORBIDDEN
    assert refused(reader, "absent.png", source) is ErrorCode.IMAGE_NOT_FOUND
    assert refused(reader, "sub", source) is ErrorCode.IMAGE_NOT_FOUND
    allowing = ImageReader(f"{corpus.url}/in/docs/x.parquet", (f"{corpus.url}/shared/",))
    assert allowing(f"{corpus.url}/shared/e.png", source)[0] == b"shared/e.png"
    assert refused(allowing, f"{corpus.url}/in/c.png", source) is ErrorCode.IMAGE_FORBIDDEN


@pytest.mark.parametrize(
    "path",
    [
        "../c.png", "sub/../../c.png", "%2e%2e/c.png", "..%2fc.png", "%252e%252e/c.png", "..\\c.png", "sub%5c..%5cx",
        "/etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "data:image/png;base64,AAAA", "http://127.0.0.1/x",
        "https://example.com/x.png", "ftp://h/x", "simplecache::s3://b/x", "a\0b.png", "a\nb.png", "javascript:x",
        "nosuch://x/y", "s3://other-bucket/x", "//etc/passwd", "file://host/share/x", "memory://../x",
    ],
)  # fmt: skip
def test_what_leads_out_is_forbidden(corpus, path):
    reader = ImageReader(corpus.child("in").url)
    assert refused(reader, path, f"{corpus.url}/in/docs/x.parquet") is ErrorCode.IMAGE_FORBIDDEN


def test_no_path_at_all(corpus):
    reader = ImageReader(corpus.child("in").url)
    for path in ("", "  ", None):
        assert refused(reader, path, f"{corpus.url}/in/docs/x.parquet") is ErrorCode.IMAGE_NOT_FOUND  # type: ignore


def test_too_many_bytes(corpus):
    source = f"{corpus.url}/in/docs/x.parquet"
    assert refused(ImageReader(corpus.child("in").url, max_bytes=5), "a.png", source) is ErrorCode.IMAGE_TOO_LARGE
    assert ImageReader(corpus.child("in").url, max_bytes=13)("a.png", source)[0] == b"in/docs/a.png"


def test_links_and_odd_files(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.png").write_bytes(b"a")
    (outside / "s.png").write_bytes(b"secret")
    (inside / "within.png").symlink_to(inside / "a.png")
    (inside / "out.png").symlink_to(outside / "s.png")
    (inside / "folder").symlink_to(outside)
    (inside / "round.png").symlink_to(inside / "round.png")
    os.mkfifo(inside / "pipe.png")
    reader, source = ImageReader(str(inside)), str(inside / "x.parquet")
    assert reader("within.png", source)[0] == b"a"
    assert refused(reader, "out.png", source) is ErrorCode.IMAGE_FORBIDDEN
    assert refused(reader, "folder/s.png", source) is ErrorCode.IMAGE_FORBIDDEN
    assert refused(reader, "pipe.png", source) is ErrorCode.IMAGE_NOT_FOUND
    assert refused(reader, "round.png", source) in (ErrorCode.STORAGE, ErrorCode.IMAGE_NOT_FOUND)
    (inside / "~x.png").write_bytes(b"tilde")
    assert reader("~x.png", source)[0] == b"tilde"


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


def test_a_name_that_leads_inside_the_network_is_refused(site, monkeypatch):
    port = int(site.rsplit(":", 1)[1])
    reader = ImageReader("/data", (f"http://images.example.com:{port}/img",))
    for address in ("127.0.0.1", "10.0.0.7", "169.254.169.254", "192.168.1.1", "0.0.0.0"):
        resolved = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, answer=resolved, **k: answer)
        url = f"http://images.example.com:{port}/img/a.png"
        assert refused(reader, url, "/data/x.parquet") is ErrorCode.IMAGE_FORBIDDEN
    for address in ("::1", "fc00::1", "fe80::1%eth0", "::ffff:127.0.0.1", "2002:7f00:1::", "100.64.0.1", "224.0.0.1"):
        assert not http_images._is_public(address), address
    assert http_images._is_public("93.184.216.34") and http_images._is_public("2606:4700::1111")
