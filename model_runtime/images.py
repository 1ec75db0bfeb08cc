"""An image's bytes → RGB pixels: three formats, checked before they are decoded, refused in one line."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np

# Importing a plugin registers its decoder: with these three there, Pillow does not load its forty others.
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

from .errors import ErrorCode, RequestError

_SUPPORTED = "JPEG, PNG and WebP are read"
_STRIP_ROWS = 1024
# A progressive JPEG of 64 megapixels takes 0.1 s for each scan, which may be 100 bytes long; cameras write ten.
_MOST_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# First bytes of what people store in image columns besides the three formats.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (rb"GIF8[79]a", "GIF"),
    (rb"BM.{4}\0\0\0\0", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb".{4}ftyp(?:avif|avis)", "AVIF"),
    (rb".{4}ftyp(?:hei|hev|mif1|msf1)", "HEIC"),
    (rb".{4}ftyp", "MP4 or QuickTime"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"\0\0\x01\0[^\0]\0|\0\0\x02\0[^\0]\0", "ICO"),
    (rb"icns", "ICNS"),
    (rb"8BPS", "PSD"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"P[1-7][\s#]", "PNM"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"RIFF.{4}(?:AVI |WAVE)", "AVI or WAV"),
    (rb"PK\x03\x04", "ZIP"),
    (rb"\x1f\x8b", "gzip"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<(?:svg:)?svg[\s>]", "SVG"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<!DOCTYPE html|<html)", "HTML"),
)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame of a JPEG, PNG or WebP as upright RGB; transparency lies on white.

    The size is read from the header and refused before anything is decoded. RequestError: `image_unreadable`,
    `image_format` (another format, named), `image_too_large` (more than `max_pixels`, or more than Pillow's own
    bound of 179 million), `out_of_memory`. A message never holds bytes of the image.
    """
    kind = _kind(data)
    try:
        # A broken profile or EXIF block warns; the rows that it concerns say so themselves when it matters.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, kind, max_pixels)
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(ErrorCode.IMAGE_TOO_LARGE, f"the {kind} unpacks to too many pixels") from error
    except MemoryError as error:
        raise RequestError(ErrorCode.OUT_OF_MEMORY, f"not enough memory to decode the {kind}") from error
    except Exception as error:  # Pillow raises a dozen types for broken data, struct.error and KeyError among them
        raise RequestError(
            ErrorCode.IMAGE_UNREADABLE, f"the {kind} is broken, truncated or carries oversized metadata"
        ) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB, turned as its EXIF block says; transparency lies on white."""
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def image_array(image: Image.Image, size: int) -> np.ndarray:
    """`image` (RGB) resized to size × size without keeping its aspect: [3, size, size] uint8.

    Bilinear with antialiasing: what transformers' Gemma3ImageProcessorPil has before it rescales.
    """
    resized_HWC = np.asarray(image.resize((size, size), resample=Image.Resampling.BILINEAR))
    return np.ascontiguousarray(resized_HWC.transpose(2, 0, 1))


def _kind(data: bytes) -> str:
    if not data:
        raise RequestError(ErrorCode.IMAGE_UNREADABLE, "the image is empty (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    head = data[:1024]
    for pattern, name in _MAGIC:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise RequestError(ErrorCode.IMAGE_FORMAT, f"the data is {name}; {_SUPPORTED}")
    raise RequestError(ErrorCode.IMAGE_UNREADABLE, f"the {len(data):,} bytes are no image; {_SUPPORTED}")


def _jpeg_scans(data: bytes) -> int:
    """Scans up to the end of the first image, counted to one more than _MOST_SCANS."""
    at, scans = 2, 0
    while scans <= _MOST_SCANS and (found := _JPEG_MARKER.search(data, at)):
        marker, at = found[1][0], found.end()
        if marker == 0xD9:  # the image's end
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _decode(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    if kind == "WEBP":
        # Pillow allocates a WebP's canvas as it opens the file, so its header is read here.
        _check_size(_webp_size(data), max_pixels)
    if kind == "JPEG" and _jpeg_scans(data) > _MOST_SCANS:
        raise RequestError(ErrorCode.IMAGE_TOO_LARGE, f"the JPEG has more than {_MOST_SCANS} scans")
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _check_size(image.size, max_pixels)
        image.load()
        return upright_rgb(image)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise RequestError(ErrorCode.IMAGE_UNREADABLE, f"the image has no pixels ({width}×{height})")
    if width * height > max_pixels:
        raise RequestError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"the image has {width}×{height} = {width * height:,} pixels; the limit is {max_pixels:,}",
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height, by the WebP container specification; ValueError when the header is broken."""
    match data[12:16]:
        case b"VP8X" if len(data) >= 30:
            return _u24(data, 24) + 1, _u24(data, 27) + 1
        case b"VP8L" if len(data) >= 25 and data[20] == 0x2F:
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
            return _u24(data, 26) & 0x3FFF, _u24(data, 28) & 0x3FFF
    raise ValueError("broken WebP header")


def _u24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _orientation(image: Image.Image) -> int:
    # ImageOps.exif_transpose would also rewrite the EXIF block, and fails where that block is broken.
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16L", "I;16B"):
        return _sixteen_bit_grey(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _on_white(image)
    return image.convert("RGB")


def _sixteen_bit_grey(image: Image.Image) -> Image.Image:
    # Pillow would clip at 255; 65535 / 257 = 255, so this maps black to black and white to white.
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    # As transformers' convert_to_rgb does; in strips, because four RGBA copies of 64 megapixels are a gigabyte.
    width, height = image.size
    rgb = Image.new("RGB", image.size)
    for top in range(0, height, _STRIP_ROWS):
        strip = image.crop((0, top, width, min(top + _STRIP_ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return rgb
