"""Small images that unpack to much: refused before they are decoded, or decoded within a bound that is measured."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.images import open_image

ROOT = Path(__file__).parents[2]
PIXELS = 64_000_000
_OPEN = """
import resource, sys, time
from model_runtime.errors import RequestError
from model_runtime.images import open_image
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
started = time.process_time()
try: said = open_image(data, max_pixels=64_000_000).size
except RequestError as error: said = error.code.value
mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
print(said, mebibytes, round(time.process_time() - started), sep="|")
"""


def packed(size: int) -> bytes:
    """`size` zero bytes, deflated."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(min(1 << 24, size - at))) for at in range(0, size, 1 << 24)]
    return b"".join(pieces) + packer.flush()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(form: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, form, **options)
    return data.getvalue()


def with_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan stands there `count` times more."""
    end = data.rindex(b"\xff\xd9")
    scan = data[data.rfind(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : end]
    return data[:end] + scan * count + data[end:]


def webp_sized(width: int, height: int) -> bytes:
    """An extended WebP that claims a canvas."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + sizes
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    # what is in the file → what is said, MiB at most
    "png: pixels": (lambda: png(50_000, 50_000), "image_too_large", 50),
    "png: the largest": (lambda: png(0x7FFFFFFF, 0x7FFFFFFF), "image_too_large", 50),
    "png: one line": (lambda: png(0x7FFFFFFF, 1), "image_too_large", 50),
    "png: profile": (lambda: png(8, 8, extra=chunk(b"iCCP", b"x\0\0" + packed(1 << 28))), "image_unreadable", 100),
    "png: text": (lambda: png(8, 8, extra=chunk(b"zTXt", b"k\0\0" + packed(1 << 28)) * 2), "image_unreadable", 100),
    "png: more than its pixels": (lambda: png(8, 8, pixels=packed(1 << 28)), "(8, 8)", 50),
    "png: 64 megapixels": (lambda: png(8000, 8000, 8, 6, packed(32_001 * 8000)), "(8000, 8000)", 1000),
    "png: 64 megapixels of 16 bits": (lambda: png(8000, 8000, 16, 0, packed(16_001 * 8000)), "(8000, 8000)", 1000),
    "jpeg: pixels": (lambda: saved("JPEG", (9000, 9000)), "image_too_large", 50),
    "jpeg: scans": (
        lambda: with_scans(saved("JPEG", (4000, 4000), progressive=True), 3000), "image_too_large", 50),
    "webp: canvas": (lambda: webp_sized(16_000, 16_000), "image_too_large", 50),
    "webp: 64 megapixels": (lambda: saved("WEBP", (8000, 8000), "RGBA", lossless=True), "(8000, 8000)", 1000),
    "webp: frames": (
        lambda: saved("WEBP", (1000, 1000), save_all=True, append_images=[Image.new("RGB", (1000, 1000), n) for n in
                      ("red", "blue")] * 20), "(1000, 1000)", 300),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_takes_no_more_than_its_pixels_may(tmp_path: Path, kind: str) -> None:
    make, said, most = BOMBS[kind]
    path = tmp_path / "image"
    path.write_bytes(make())
    assert path.stat().st_size < 30 << 20
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, mebibytes, seconds = done.stdout.strip().split("|")
    assert found == said
    assert int(mebibytes) < most and int(seconds) < 20, done.stdout


def test_scans_are_those_of_the_first_image() -> None:
    plain = saved("JPEG", (64, 64), progressive=True)
    assert open_image(with_scans(plain, 80), max_pixels=PIXELS).size == (64, 64)
    with pytest.raises(RequestError) as caught:
        open_image(with_scans(plain, 101), max_pixels=PIXELS)
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    # A film behind the picture, as telephones put it there, and a thumbnail in front of it.
    film = plain + b"\xff\xda\0\2" * 500
    assert open_image(film, max_pixels=PIXELS).size == (64, 64)
    thumbnail = b"\xff\xe5" + struct.pack(">H", 2 + 4 * 500) + b"\xff\xda\0\2" * 500
    assert open_image(plain[:2] + thumbnail + plain[2:], max_pixels=PIXELS).size == (64, 64)
