"""A source row → a document with its identity: text, image bytes, content hash, or the error that it is known for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from model_runtime.errors import ErrorCode, RequestError
from model_runtime.images import image_array, open_image


class ImageReader(Protocol):
    """Reads an image that a row refers to."""

    def __call__(self, path: str, source_path: str, /) -> tuple[bytes, str]:
        """The bytes and the etag; RequestError `image_not_found`, `image_forbidden` or `storage`."""
        ...


@dataclass(slots=True, kw_only=True)
class Image:
    """One image of a row. A referenced image has a path, and after reading also its bytes and etag."""

    data: bytes | None
    path: str | None
    etag: str | None = None


@dataclass(slots=True, kw_only=True)
class Document:
    """One source row. `error` holds for all its pairs; without a `sha256` it is known by its place only.

    `unread`: the row's cells could not be read, so nobody knows which tasks apply, and all are taken to.
    `not_asked`: tasks whose `where` it does not pass.
    """

    source_path: str
    source_row: int
    has_text: bool
    image_count: int
    id: str | None = None
    text: str | None = None
    images: list[Image] = field(default_factory=list)
    sha256: str | None = None
    unread: bool = False
    not_asked: frozenset[int] = frozenset()
    error: RequestError | None = None


def read_document(batch: pa.RecordBatch, i: int, read_image: ImageReader, max_images: int) -> Document:
    """Row `i` of a batch of source rows, its referenced images read; never raises for what the row holds."""
    images = batch.column("images")[i]
    document = Document(
        source_path=batch.column("source_path")[i].as_py(),
        source_row=batch.column("source_row")[i].as_py(),
        has_text=batch.column("text")[i].is_valid,
        image_count=len(images) if images.is_valid else 0,
        not_asked=frozenset(batch.column("not_asked")[i].as_py() or ()),
    )
    try:
        problem = batch.column("problem")[i].as_py()
        if problem is not None:
            document.unread = True
            raise RequestError(ErrorCode.BAD_ROW, problem)
        document.id = _string(batch.column("document_id")[i], "the document id")
        if document.id is None:
            raise RequestError(ErrorCode.NULL_ID, "the document id is null")
        if batch.column("duplicate")[i].as_py():
            raise RequestError(ErrorCode.DUPLICATE_ID, "an earlier row of the source has the same document id")
        document.text = _string(batch.column("text")[i], "the text")
        if document.image_count:
            document.images = [_image(cell, n) for n, cell in enumerate(images, start=1)]
        _read_referenced(document, read_image, max_images)
        document.sha256 = _sha256(document.text, document.images)
    except BaseException as error:
        document.error = request_error(error)
    return document


def sha256_without_etags(document: Document) -> str:
    """The content hash that a document has while one of its referenced images cannot be read."""
    return _sha256(document.text, [replace(image, etag=None) for image in document.images])


def request_error(error: BaseException) -> RequestError:
    """What stopped one document, as its rows' error; what is meant for the process is raised again."""
    if isinstance(error, RequestError):
        return error
    # A panic in the tokenizer's Rust code is no Exception, yet it concerns one text only.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    code = ErrorCode.OUT_OF_MEMORY if isinstance(error, MemoryError) else ErrorCode.INTERNAL
    line = " ".join(str(error).split())[:300]
    return RequestError(code, f"{type(error).__name__}: {line}" if line else type(error).__name__)


def open_images(images: Sequence[Image], size: int, max_pixels: int) -> np.ndarray:
    """The images that were read, decoded: uint8 [images, 3, size, size]; RequestError names the one that cannot be."""
    pixels_N3SS = np.empty((len(images), 3, size, size), dtype=np.uint8)
    for n, image in enumerate(images):
        assert image.data is not None  # a document whose images were not all read has an error
        with image_named(n + 1):
            pixels_N3SS[n] = image_array(open_image(image.data, max_pixels=max_pixels), size)
    return pixels_N3SS


@contextmanager
def image_named(number: int) -> Iterator[None]:
    """Say which image, counted from 1, a RequestError inside is about."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.code, f"image {number}: {error.message}") from error


def _string(cell: pa.Scalar, what: str) -> str | None:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:  # Parquet files exist whose strings are not UTF-8; Arrow does not look
        raise RequestError(ErrorCode.BAD_ROW, f"{what} is not valid UTF-8") from error


def _image(cell: pa.Scalar, number: int) -> Image:
    if not cell.is_valid:
        return Image(data=None, path=None)
    data = cell["bytes"].as_py()
    # Beside bytes, a path is only a file name.
    return Image(data=data, path=None if data is not None else _string(cell["path"], f"the path of image {number}"))


def _read_referenced(document: Document, read_image: ImageReader, max_images: int) -> None:
    try:
        if document.image_count > max_images:
            raise RequestError(
                ErrorCode.TOO_LONG, f"the document has {document.image_count:,} images; the limit is {max_images:,}"
            )
        for n, image in enumerate(document.images, start=1):
            if image.data is None and image.path is None:
                raise RequestError(ErrorCode.BAD_ROW, f"image {n} has neither bytes nor a path")
            if image.path is not None:
                with image_named(n):
                    image.data, image.etag = read_image(image.path, document.source_path)
    except Exception as error:
        # Not raised: the document still has an identity. Without all etags the paths alone make it, whichever
        # image failed this time, so that the attempts on it are counted on one key.
        document.error = request_error(error)
        for image in document.images:
            image.etag = None


def _sha256(text: str | None, images: list[Image]) -> str:
    """Over length-prefixed parts: the text (null is not empty), and each image's bytes or its path and etag."""
    digest = hashlib.sha256()

    def add(kind: bytes, part: bytes | None) -> None:
        # A part that is not there has no length: it differs from an empty one.
        digest.update(kind + (b"-" if part is None else b"+" + len(part).to_bytes(8, "little")))
        digest.update(part or b"")

    add(b"text", None if text is None else text.encode())
    for image in images:
        if image.path is None:
            add(b"bytes", image.data)
        else:
            add(b"path", image.path.encode())
            add(b"etag", None if image.etag is None else image.etag.encode())
    return digest.hexdigest()
