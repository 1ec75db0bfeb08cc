"""Images as people store them: what is read, what is refused, and none that takes a worker down."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.images import image_array, open_image

LIMIT = 4_000_000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """Smooth colours with an asymmetric corner, so that a turn or a flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x, 255 * (x + y) / (width + height)], axis=-1)
    pixels[: height // 4, : width // 4, :3] = 255, 0, 0
    image = Image.fromarray(pixels.astype(np.uint8))
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def refusal(data: bytes, max_pixels: int = LIMIT) -> RequestError:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError) as caught:
            open_image(data, max_pixels=max_pixels)
    assert "\n" not in caught.value.message
    return caught.value


def pixels(data: bytes, max_pixels: int = LIMIT) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(data, max_pixels=max_pixels)
    assert image.mode == "RGB"
    return np.asarray(image)


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_png_in_every_mode_is_read_exactly(mode: str) -> None:
    image = photo(mode=mode)
    expected = image.convert("RGB")
    if mode in ("RGBA", "LA"):
        white = Image.new("RGBA", image.size, "white")
        expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    assert (pixels(encoded(image, "PNG")) == np.asarray(expected)).all()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95, "subsampling": 0}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True, "subsampling": 0}),
        ("JPEG", "L", {"quality": 95}),
        ("WEBP", "RGB", {"quality": 95}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_lossy_formats_come_out_close(kind: str, mode: str, options: dict[str, Any]) -> None:
    image = photo(mode=mode)
    off = pixels(encoded(image, kind, **options)).astype(int) - np.asarray(image.convert("RGB"))
    assert np.abs(off).mean() < 6


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (32, 32), (220, 30, 30)).convert("CMYK")
    r, g, b = pixels(encoded(red, "JPEG", quality=95)).reshape(-1, 3).mean(0)
    assert r > 200
    assert g < 60
    assert b < 60


def test_a_ycck_jpeg_is_read() -> None:
    data = bytearray(encoded(photo(mode="CMYK"), "JPEG"))
    at = data.find(b"Adobe")
    data[at + 11] = 2  # the Adobe marker's colour transform: YCCK
    assert pixels(bytes(data)).shape == (24, 40, 3)


def test_a_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
    image.putpixel((0, 0), 0)
    got = pixels(encoded(image, "PNG", transparency=0))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == [200, 10, 10]


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_one_transparent_colour_lies_on_white(mode: str, clear: Any) -> None:
    image = Image.new(mode, (4, 4), clear)
    assert (pixels(encoded(image, "PNG", transparency=clear)) == 255).all()


def test_transparency_is_the_same_across_the_strips_of_a_tall_image() -> None:
    image = photo(3, 2500, "RGBA")
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert (pixels(encoded(image, "PNG")) == np.asarray(expected)).all()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], dtype=np.uint16)
    got = pixels(encoded(Image.fromarray(levels), "PNG"))
    assert got[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]
    assert (got[..., 0] == got[..., 2]).all()


def test_sixteen_bit_grey_has_a_transparent_level() -> None:
    levels = np.array([[0, 4000, 65535]], dtype=np.uint16)
    plain = encoded(Image.fromarray(levels), "PNG")
    ihdr = len(PNG_SIGNATURE) + 25
    data = plain[:ihdr] + chunk(b"tRNS", struct.pack(">H", 4000)) + plain[ihdr:]
    assert pixels(data)[0, :, 0].tolist() == [0, 255, 255]


def test_sixteen_bit_colour_is_read() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 2 for _ in range(2))
    data = png_header(2, 2, depth=16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert pixels(data)[1, 1].tolist() == [255, 128, 0]


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    got = pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (got == [250, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (pixels(data) == np.asarray(upright.convert("RGB"))).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"\xff" * 40])
def test_a_broken_exif_block_does_not_spoil_the_pixels(exif: bytes) -> None:
    plain = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert (pixels(plain[:2] + segment + plain[2:]) == pixels(plain)).all()


def test_a_multi_picture_jpeg_gives_its_first() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo(8, 8)])
    assert pixels(data).shape == (24, 40, 3)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_an_empty_cell_and_junk_are_unreadable() -> None:
    for data in (b"", b"\0", b"not an image", random.Random(0).randbytes(5000), b"\0" * 100):
        assert refusal(data).code == ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    ("kind", "name"), [("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("ICO", "ICO"), ("PPM", "PNM"), ("PDF", "PDF")]
)
def test_other_formats_are_named(kind: str, name: str) -> None:
    error = refusal(encoded(photo(64, 64), kind))
    assert error.code == ErrorCode.IMAGE_FORMAT
    assert name in error.message


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b"8BPS\0\x01" + b"\0" * 20, "PSD"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"\xef\xbb\xbf<svg width='3'>", "SVG"),
        (b"<!DOCTYPE html><html>404", "HTML"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_formats_are_known_by_their_first_bytes(data: bytes, name: str) -> None:
    error = refusal(data)
    assert error.code == ErrorCode.IMAGE_FORMAT
    assert name in error.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_unreadable(kind: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert refusal(data[: int(len(data) * kept)]).code == ErrorCode.IMAGE_UNREADABLE


def test_jpegs_that_pillow_does_not_decode_are_unreadable() -> None:
    data = bytearray(encoded(photo(), "JPEG"))
    start_of_frame = data.find(b"\xff\xc0")
    data[start_of_frame + 4] = 12  # bits per sample
    assert refusal(bytes(data)).code == ErrorCode.IMAGE_UNREADABLE


def test_an_image_without_pixels_is_unreadable() -> None:
    assert refusal(png_header(0, 5) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")).code == ErrorCode.IMAGE_UNREADABLE


def test_the_limit_is_on_pixels_and_says_both_numbers() -> None:
    data = encoded(photo(40, 24), "PNG")
    assert pixels(data, max_pixels=960).shape == (24, 40, 3)
    error = refusal(data, max_pixels=959)
    assert error.code == ErrorCode.IMAGE_TOO_LARGE
    assert "960" in error.message
    assert "959" in error.message


def webp_canvas(width: int, height: int) -> bytes:
    extended = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = encoded(photo(), "WEBP", lossless=True)[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(photo(), "JPEG"))
    start_of_frame = data.find(b"\xff\xc0")
    data[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png_header(50_000, 50_000) + chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b""),
    "png-one-bit": lambda: png_header(50_000, 50_000, 1, 0) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    "jpeg": lambda: jpeg_of_size(50_000, 50_000),
    "webp": lambda: webp_canvas(16_383, 16_383),
    # under the bound at which Pillow itself refuses
    "png-144M": lambda: png_header(12_000, 12_000) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""),
    "jpeg-144M": lambda: jpeg_of_size(12_000, 12_000),
    "webp-144M": lambda: webp_canvas(12_000, 12_000),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail when the process's peak grows by 30 MB inside."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak_kib()
    yield
    assert peak_kib() - before < 30_000


def peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_from_its_header(bomb: str) -> None:
    data = BOMBS[bomb]()
    with little_memory():
        for limit in (64_000_000, 100_000_000):
            assert refusal(data, max_pixels=limit).code == ErrorCode.IMAGE_TOO_LARGE


def test_pillows_own_bound_holds_above_a_generous_limit() -> None:
    assert refusal(BOMBS["png"](), max_pixels=10**12).code == ErrorCode.IMAGE_TOO_LARGE
    assert refusal(BOMBS["webp"](), max_pixels=10**12).code == ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_text_chunk_bomb_is_refused_without_unpacking_it(kind: bytes) -> None:
    packed = zlib.compress(bytes(50_000_000))
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    plain = encoded(photo(), "PNG")
    ihdr = len(PNG_SIGNATURE) + 25
    data = plain[:ihdr] + chunk(kind, head + packed) + plain[ihdr:]
    with little_memory():
        assert refusal(data).code == ErrorCode.IMAGE_UNREADABLE


def test_small_texts_in_a_png_are_harmless() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5000, zip=True)
    assert pixels(encoded(photo(), "PNG", pnginfo=info)).shape == (24, 40, 3)


def test_a_refusal_pickles() -> None:
    error = pickle.loads(pickle.dumps(refusal(b"GIF89a")))
    assert (error.code, error.message) == (ErrorCode.IMAGE_FORMAT, "the data is GIF; JPEG, PNG and WebP are read")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damage_anywhere_is_read_or_refused_and_never_more(kind: str) -> None:
    rng = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif}
    whole = encoded(photo(mode="RGBA" if kind != "JPEG" else "RGB"), kind, **options)
    images, errors = [], []
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                images.append(open_image(bytes(data), max_pixels=LIMIT))
        except RequestError as error:
            errors.append(error)
    assert {image.mode for image in images} == {"RGB"}
    expected = {ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_TOO_LARGE, ErrorCode.IMAGE_FORMAT}
    assert ErrorCode.IMAGE_UNREADABLE in {error.code for error in errors} <= expected
    assert not any("\n" in error.message for error in errors)


def test_only_three_decoders_are_opened() -> None:
    program = (
        "import io, sys\nfrom PIL import Image\nimport model_runtime.images as m\n"
        "b = io.BytesIO(); Image.new('RGB', (4, 4)).save(b, 'WEBP'); m.open_image(b.getvalue(), max_pixels=99)\n"
        "sys.exit('TiffImagePlugin' in Image.OPEN or 'EPS' in Image.OPEN or 'FITS' in Image.OPEN)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- the array ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(28, 28), (40, 24), (7, 300), (1, 1), (640, 480), (1000, 30)])
@pytest.mark.parametrize("side", [28, 56, 896])
def test_the_array_is_the_reference_processors(size: tuple[int, int], side: int) -> None:
    transformers = pytest.importorskip("transformers.models.gemma3.image_processing_pil_gemma3")
    reference = transformers.Gemma3ImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2
    )
    data = encoded(photo(*size), "PNG")
    ours = image_array(open_image(data, max_pixels=LIMIT), side)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    raw = reference(Image.open(io.BytesIO(data)), return_tensors="np", do_rescale=False, do_normalize=False)
    assert (ours == np.asarray(raw["pixel_values"])[0]).all()
    theirs = np.asarray(reference(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"])[0]
    np.testing.assert_allclose((ours / 255 - 0.5) / 0.5, theirs, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_the_array_of_other_modes_is_the_reference_processors(mode: str) -> None:
    transformers = pytest.importorskip("transformers.models.gemma3.image_processing_pil_gemma3")
    reference = transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, resample=2)
    data = encoded(photo(mode=mode), "JPEG" if mode == "CMYK" else "PNG")
    raw = reference(Image.open(io.BytesIO(data)), return_tensors="np", do_rescale=False, do_normalize=False)
    assert (image_array(open_image(data, max_pixels=LIMIT), 28) == np.asarray(raw["pixel_values"])[0]).all()
