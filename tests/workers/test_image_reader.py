"""Images by reference: what may be read, and what each refusal is called."""

from __future__ import annotations

import os
import pickle
import uuid

import pytest

from infra.storage import Location
from model_runtime.errors import ErrorCode, RequestError
from tests.s3_server import s3_server
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
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in error.value.message)
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
        "zip://a.png::file:///etc/x.zip", "simplecache::file:///etc/passwd", "filecache::http://127.0.0.1/x",
        "FILE:///etc/passwd", "File:/etc/passwd", "HTTP://127.0.0.1/x", "http:127.0.0.1/x", "http:///x",
        "http://[::1/x", "http://example.com\uff03@127.0.0.1/x", "github://me:repo@main/x", "local:///etc/passwd",
        "/proc/self/environ", "/proc/self/root", "~root/.ssh/id_rsa/../x", "..", "a/..", "%2e%2e",
        "%2E%2E%2Fc.png", "%25252e%25252e/c.png", "a%5c..%5c..%5cc.png", "a%00.png", "a\x7f.png", "a" * 5000,
        "s3://user:secret@b/x", "x/" * 3000,
    ],
)  # fmt: skip
def test_what_leads_out_is_forbidden(corpus, path):
    reader = ImageReader(corpus.child("in").url)
    assert refused(reader, path, f"{corpus.url}/in/docs/x.parquet") is ErrorCode.IMAGE_FORBIDDEN


@pytest.mark.parametrize(
    "path",
    [
        "\uff0e\uff0e/c.png",
        "\u2025/c.png",
        "..\u2215c.png",
        ".\u200b./c.png",
        "a\u202egnp.c",
        "zip::/etc/passwd",
        "n" * 255,
    ],
)
def test_odd_letters_are_letters_of_a_name(corpus, path):
    reader = ImageReader(corpus.child("in").url)
    code = refused(reader, path, f"{corpus.url}/in/docs/x.parquet")
    assert code in (ErrorCode.IMAGE_NOT_FOUND, ErrorCode.IMAGE_FORBIDDEN)
    assert refused(reader, "n" * 300, f"{corpus.url}/in/docs/x.parquet") is ErrorCode.IMAGE_NOT_FOUND


def test_a_name_that_begins_like_a_root_is_not_below_it(tmp_path):
    for name in ("imgs/a.png", "imgs-evil/a.png", "imgs.png"):
        Location(str(tmp_path / name)).write_bytes(name.encode())
    for root in (f"{tmp_path}/imgs", f"{tmp_path}/imgs/", f"{tmp_path}/x/../imgs", f"file://{tmp_path}/imgs"):
        reader, source = ImageReader("/data", (root,)), "/data/x.parquet"
        assert reader(f"{tmp_path}/imgs/a.png", source)[0] == b"imgs/a.png"
        for path in ("imgs-evil/a.png", "imgs.png"):
            assert refused(reader, f"{tmp_path}/{path}", source) is ErrorCode.IMAGE_FORBIDDEN


def test_a_folder_that_becomes_a_link_after_it_was_looked_at(tmp_path, monkeypatch):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"secret")
    reader, source = ImageReader(str(tmp_path / "in")), str(tmp_path / "in" / "x.parquet")
    real = os.path.realpath

    def swapped(path):
        found = real(path)
        if found.endswith("a.png") and not (tmp_path / "in" / "sub").is_symlink():
            (tmp_path / "in" / "sub").rename(tmp_path / "in" / "before")
            (tmp_path / "in" / "sub").symlink_to(tmp_path / "out")
        return found

    monkeypatch.setattr(os.path, "realpath", swapped)
    with pytest.raises(RequestError):
        reader("sub/a.png", source)


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
