"""The demo's images, drawn on the spot so that the project ships no photographs."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont


def draw(name: str) -> bytes:
    """The drawing called `name` as PNG, JPEG or WebP bytes; `broken` is a JPEG cut off after a third."""
    if name == "broken":
        whole = draw("beach")
        return whole[: len(whole) // 3]
    paint, form, options = _DRAWINGS[name]
    buffer = io.BytesIO()
    paint().save(buffer, form, **options)
    return buffer.getvalue()


def _canvas(width: int, height: int, colour: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), colour)
    return image, ImageDraw.Draw(image)


def _shapes() -> Image.Image:
    image, pen = _canvas(480, 360, "#f4f1ea")
    pen.ellipse((40, 60, 200, 220), fill="#c8402f")
    pen.rectangle((230, 80, 380, 230), fill="#2f6fb0")
    pen.polygon([(300, 340), (370, 220), (440, 340)], fill="#3d8f5a")
    return image


def _chart() -> Image.Image:
    image, pen = _canvas(640, 400, "white")
    font = ImageFont.load_default(22)
    pen.text((24, 16), "Sales by region, 2025", fill="black", font=font)
    for index, (region, units) in enumerate((("North", 42), ("East", 61), ("South", 38), ("West", 77))):
        left, top = 70 + index * 140, 340 - units * 3
        pen.rectangle((left, top, left + 80, 340), fill="#2f6fb0")
        pen.text((left + 24, top - 30), str(units), fill="black", font=font)
        pen.text((left + 8, 350), region, fill="black", font=font)
    pen.line((50, 340, 610, 340), fill="black", width=3)
    return image


def _sign() -> Image.Image:
    image, pen = _canvas(520, 320, "#bcd4e6")
    pen.rectangle((250, 200, 270, 320), fill="#6b5b4b")
    pen.rounded_rectangle((70, 50, 450, 210), radius=24, fill="#1d5f3a", outline="white", width=6)
    font = ImageFont.load_default(46)
    pen.text((120, 75), "Harbour 2 km", fill="white", font=font)
    pen.text((120, 135), "Station 5 km", fill="white", font=font)
    return image


def _flag() -> Image.Image:
    image, pen = _canvas(450, 300, "white")
    for index, colour in enumerate(("#1b4f9c", "#f2c230", "#b5283a")):
        pen.rectangle((0, index * 100, 450, index * 100 + 99), fill=colour)
    return image


def _soup() -> Image.Image:
    image, pen = _canvas(420, 420, "#e8dcc8")
    pen.ellipse((40, 40, 380, 380), fill="white", outline="#b0a490", width=4)
    pen.ellipse((80, 80, 340, 340), fill="#8a5a2b")
    for x, y in ((150, 160), (220, 130), (260, 220), (180, 260), (230, 290), (130, 220)):
        pen.ellipse((x, y, x + 26, y + 26), fill="#e07b28")
    return image


def _beach() -> Image.Image:
    image, pen = _canvas(600, 400, "#9fd0ee")
    pen.ellipse((440, 40, 530, 130), fill="#f6d34b")
    pen.rectangle((0, 180, 600, 270), fill="#2f7fb8")
    pen.rectangle((0, 270, 600, 400), fill="#e9d8a6")
    pen.polygon([(120, 330), (200, 220), (280, 330)], fill="#c8402f")
    pen.line((200, 220, 200, 360), fill="#5a4632", width=5)
    return image


_DRAWINGS: dict[str, tuple[Callable[[], Image.Image], str, dict[str, int]]] = {
    "shapes": (_shapes, "PNG", {}),
    "chart": (_chart, "PNG", {}),
    "sign": (_sign, "WEBP", {"quality": 85}),
    "flag": (_flag, "PNG", {}),
    "soup": (_soup, "JPEG", {"quality": 88}),
    "beach": (_beach, "JPEG", {"quality": 88}),
}
