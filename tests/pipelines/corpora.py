"""Small corpora as Parquet: text, drawn images in every form a column may have, and rows that cannot work."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "der",
    "kleine",
    "Hund",
    "schläft",
    "et",
    "le",
    "renard",
    "saute",
    "encore",
]


def picture(number: int, form: str = "PNG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """A drawn image, another one for each number."""
    image = Image.new("RGB", size, (number * 40 % 256, 90, 200 - number * 20 % 200))
    ImageDraw.Draw(image).ellipse((5, 5, 20 + number % 20, 30), fill=(250, number * 70 % 256, 10))
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def text(number: int, words: int) -> str:
    """A sentence of that many words, another one for each number."""
    return " ".join(WORDS[(number * 7 + i * (1 + number % 3)) % len(WORDS)] for i in range(words)) + f" {number}."


def documents(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Documents with text, images, or both; every fifth has two images, every seventh none and no text."""
    rows: list[dict[str, Any]] = []
    for n in range(first, first + count):
        images = [[], [picture(n)], [], [], [picture(n, "JPEG"), picture(n + 1, "WEBP")]][n % 5]
        body = None if n % 5 == 1 or n % 7 == 6 else text(n, 3 + n * 5 % 60)
        rows.append({"doc_id": f"doc-{n:03d}", "body": body, "photos": images, "year": 1990 + n})
    return rows


SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("body", pa.string()), ("photos", pa.list_(pa.binary())), ("year", pa.int32())]
)


def write_shards(folder: Path, rows: Sequence[dict[str, Any]], shards: int, group: int, schema=SCHEMA) -> None:
    """`rows` over `shards` files in `folder`, `group` rows to a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for i in range(shards):
        piece = pa.Table.from_pylist(list(rows[i * size : (i + 1) * size]), schema=schema)
        pq.write_table(piece, folder / f"shard-{i}.parquet", row_group_size=group)


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG whose header promises far more pixels than anybody has memory for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def rotated_jpeg() -> bytes:
    """A JPEG that EXIF says to turn by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(3, "JPEG", exif=exif)


def odd_images() -> dict[str, bytes]:
    """Images that are unusual and fine."""
    cmyk, palette, deep, animated = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (40, 30), (10, 200, 30, 5)).save(cmyk, "JPEG")
    Image.new("RGB", (40, 30), (10, 200, 30)).quantize(8).save(palette, "PNG")
    Image.new("I;16", (40, 30), 40_000).save(deep, "PNG")
    frames = [Image.new("RGB", (40, 30), (i * 60, 0, 0)) for i in range(3)]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:], duration=50)
    return {
        "cmyk": cmyk.getvalue(),
        "palette": palette.getvalue(),
        "sixteen-bit": deep.getvalue(),
        "animated": animated.getvalue(),
        "rotated": rotated_jpeg(),
    }


def broken_images() -> dict[str, tuple[bytes, str]]:
    """Images that cannot work, each with the code it must get."""
    gif = io.BytesIO()
    Image.new("P", (10, 10)).save(gif, "GIF")
    return {
        "broken": (b"this is no image at all", "image_unreadable"),
        "truncated": (picture(1, "JPEG", (400, 300))[:900], "image_unreadable"),
        "bomb": (bomb(), "image_too_large"),
        "gif": (gif.getvalue(), "image_format"),
    }
