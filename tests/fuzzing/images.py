"""Image bytes: real images of every kind, damaged, cut, joined; an RGB picture of bounded size, or one line."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from model_runtime.errors import RequestError
from model_runtime.images import image_array, open_image

from .mutate import damaged
from .surface import Escaped, Surface, answered

_LIMIT = 1_000_000
_SIDE = 28
_PNG = b"\x89PNG\r\n\x1a\n"


def _picture(mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> Image.Image:
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x, 255 * (x + y) / (width + height)], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8), "RGBA")
    if mode == "I;16":
        return Image.fromarray((np.arange(width * height).reshape(height, width) * 150).astype(np.uint16))
    return image if mode == "RGBA" else image.convert("LA") if mode == "LA" else image.convert("RGB").convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _with_orientation() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return _saved(_picture(), "JPEG", exif=exif, quality=60)


@cache
def _seeds() -> dict[str, list[bytes]]:
    """Images by container. What an old Pillow cannot write is left out of `other`, never of the three formats."""
    frames = [_picture(), _picture().rotate(90)]
    jpeg = [
        _saved(_picture(), "JPEG", quality=70),
        _saved(_picture("L"), "JPEG"),
        _saved(_picture("CMYK"), "JPEG"),
        _saved(_picture(), "JPEG", progressive=True),
        _saved(_picture(), "JPEG", subsampling=0, restart_marker_blocks=1),
        _with_orientation(),
        _saved(frames[0], "MPO", save_all=True, append_images=frames[1:]),
    ]
    png = [_saved(_picture(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    png += [
        _saved(_picture("P"), "PNG", transparency=3),
        _saved(_picture(), "PNG", transparency=(0, 0, 128)),
        _saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        _saved(_picture("L", (1, 300)), "PNG"),
    ]
    webp = [
        _saved(_picture(), "WEBP"),
        _saved(_picture("RGBA"), "WEBP"),
        _saved(_picture("RGBA"), "WEBP", lossless=True),
        _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        _saved(_picture(), "WEBP", exif=b"Exif\0\0II"),
    ]
    other = [
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%PDF-1.7\n1 0 obj",
        b"P6\n2 2\n255\n" + bytes(12),
        b"",
        b"\x00" * 64,
        b"\xff\xd8\xff",
        _PNG,
        b"RIFF\x10\0\0\0WEBPVP8X",
        b"<html><body>404</body></html>",
        b"\x1f\x8b\x08",
    ]
    for kind in ("GIF", "BMP", "TIFF", "ICO", "TGA", "PCX", "PPM", "JPEG2000"):
        other.append(_saved(_picture(), kind))
    return {"jpeg": jpeg, "png": png, "webp": webp, "other": other}


@st.composite
def _cases(draw: Any) -> bytes:
    kind = draw(st.sampled_from((*("jpeg", "png", "webp") * 4, "other", "random")))
    if kind == "random":
        return random.Random(draw(st.integers(0, 1 << 32))).randbytes(draw(st.integers(0, 300)))
    data = draw(damaged(_seeds()[kind], 2))
    # Damage behind a right checksum gets past the reader's first look.
    return _checksummed(data) if kind == "png" and draw(st.booleans()) else data


def _checksummed(data: bytes) -> bytes:
    out, at = bytearray(data), len(_PNG)
    while at + 12 <= len(out):
        size = int.from_bytes(out[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(out[at + 4 : end])))
        at = end + 4
    return bytes(out)


def _check(case: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return answered(lambda: _open(case), RequestError)


def _open(data: bytes) -> None:
    image = open_image(data, max_pixels=_LIMIT)
    if image.mode != "RGB" or not 0 < image.width * image.height <= _LIMIT:
        raise Escaped(f"{image.mode} of {image.size}")
    pixels = image_array(image, _SIDE)
    if pixels.shape != (3, _SIDE, _SIDE) or pixels.dtype != np.uint8:
        raise Escaped(f"{pixels.dtype} {pixels.shape}")


SURFACE = Surface(name="images", cases=_cases(), check=_check, share=280)
