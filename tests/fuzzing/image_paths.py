"""Paths in image columns: bytes from below the allowed roots alone, or one line; nothing from outside, ever."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from infra.storage import Location
from model_runtime.errors import RequestError
from workers.image_reader import ImageReader

from .surface import Escaped, Surface, answered

_INSIDE, _OUTSIDE = b"inside", b"outside"
# A port where nothing listens: refused at once.
_HTTP = "http://127.0.0.1:9/pictures/"
_PIECES = (
    "a.png",
    "sub",
    "b c%41.png",
    "%2e%2e",
    "..",
    ".",
    "",
    "%2F",
    "%5c",
    "\\",
    "~",
    "*",
    "?",
    "[a-z]",
    "a.png?x=1",
    "#x",
    "link.png",
    "loop",
    "outside.png",
    "in",
    "docs",
    "out",
    "pipe",
    "folder.png",
    "x" * 300,
    "ü",
    "日本",
    "\ud800",
    "\x00",
    "\n",
    "\x7f",
    "\u202e",
    "%",
    "%zz",
    "%25%32%65",
    "::",
    "://",
    ":",
    "@",
    "user:pass@",
    " ",
    "a.png ",
    "CON",
    "$HOME",
)
_STARTS = (
    "",
    "",
    "",
    "",
    "./",
    "/",
    "//",
    "{root}/in/docs/",
    "{root}/in/",
    "{root}/shared/",
    "{root}/out/",
    "file://{root}/in/docs/",
    "file:{root}/in/docs/",
    "FILE://{root}/out/",
    "local://",
    "memory://bucket/in/",
    "memory://bucket/",
    "memory:/",
    "s3://",
    "s3://bucket/in/",
    "gs://b/",
    "data:image/png;base64,",
    "javascript:",
    "http://",
    "https://",
    _HTTP,
    "http://127.0.0.1:9/",
    "http://localhost:9/pictures/",
    "http://[::1]:9/",
    "http://127.0.0.1:99999/",
    "HTTP://127.0.0.1:9/pictures/",
    "ftp://x/",
    "zip://a.zip::",
    "simplecache::",
    "github://",
    "C:\\",
    "c:/",
    "\\\\host\\share",
    "hf://",
    "reference://",
    "dir://",
)

_GOOD = (
    "{root}/in/docs/a.png",
    "file://{root}/in/docs/a.png",
    "{root}/shared/a.png",
    "a.png",
    "sub/a.png",
    "sub/b c%41.png",
    "./a.png",
    "sub/./a.png",
    "{root}/in/c.png",
    "m.png",
    "memory://bucket/in/m.png",
)


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    if draw(st.integers(0, 2)) == 0:
        steps = draw(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4))
        path = draw(st.sampled_from(_STARTS)) + draw(st.sampled_from(("/", "/", "/", ""))).join(steps)
    else:
        path = draw(st.sampled_from(_GOOD))
        for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
            slashes = [n for n, c in enumerate(path) if c == "/"]
            at = draw(st.sampled_from((0, len(path), *slashes)) if draw(st.booleans()) else st.integers(0, len(path)))
            harmless = st.sampled_from(("/", "./", "/.", "//", "/./", ""))
            piece = draw(harmless | st.sampled_from(_PIECES) | st.text(max_size=2))
            path = path[:at] + piece + path[at:]
    return {"path": path, "source": draw(st.sampled_from(("local", "local", "memory", "glob")))}


@cache
def _root() -> Path:
    root = Path("corpus").absolute()
    for folder in ("in/docs/sub", "in/docs/folder.png", "shared", "out"):
        (root / folder).mkdir(parents=True)
    for name in (
        "in/docs/a.png",
        "in/docs/sub/b c%41.png",
        "in/c.png",
        "in/docs/sub/a.png",
        "in/a.png",
        "shared/a.png",
    ):
        (root / name).write_bytes(_INSIDE)
    for name in ("out/a.png", "a.png", "outside.png"):
        (root / name).write_bytes(_OUTSIDE)
    os.symlink(root / "outside.png", root / "in/docs/link.png")
    os.symlink(root / "in/docs/loop", root / "in/docs/loop")
    os.mkfifo(root / "in/docs/pipe")
    Location("memory://bucket/in/m.png").write_bytes(_INSIDE)
    Location("memory://bucket/a.png").write_bytes(_OUTSIDE)
    return root


def _check(case: dict[str, Any]) -> bool:
    root = _root()
    source, base = {
        "local": (f"{root}/in/docs/x.parquet", f"{root}/in/docs"),
        "memory": ("memory://bucket/in/x.parquet", "memory://bucket/in/"),
        "glob": (f"{root}/in/docs/x.parquet", f"{root}/in/**/*.parquet"),
    }[case["source"]]
    reader = ImageReader(base, (f"{root}/shared", _HTTP), max_bytes=1 << 20, timeout_seconds=2.0)
    return answered(lambda: _read(reader, case["path"].replace("{root}", str(root)), source), RequestError)


def _read(reader: ImageReader, path: str, source: str) -> None:
    try:
        data, etag = reader(path, source)
    except RequestError as error:
        # What nobody thought of is caught there too, and says so.
        if "reading it failed" in error.message:
            raise Escaped(error.message) from error
        raise
    if data != _INSIDE or not etag:
        raise Escaped(f"{path!r} read {data[:20]!r} from outside")


SURFACE = Surface(name="image_paths", cases=_cases(), check=_check, share=110)
