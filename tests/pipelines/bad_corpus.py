"""A corpus of documents of which most cannot work, each in one of many ways, and what must become of each of them."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .corpora import bomb, picture, text
from .crashing import CRASH

TASKS = [
    {"name": "summary", "kind": "summarize", "max_tokens": 5},
    {"name": "to_de", "kind": "translate", "language": "de", "max_tokens": 5},
    {"name": "alt", "kind": "caption", "max_tokens": 5},
    {"name": "ask", "kind": "answer", "question": "What is it?", "max_tokens": 5},
]
NAMES = [task["name"] for task in TASKS]
LIMITS = {
    "max_input_tokens": 512, "overflow": "reject", "max_image_pixels": 10_000, "max_images": 3, "max_failure_rate": 1.0,
}  # fmt: skip
PHOTO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OK = None
_GROUP = 10  # rows to a row group


@dataclass(slots=True)
class Doc:
    """One document: its cells as bytes, what is wrong with it, and the code that each of its rows must have.

    `codes`: task name → error code, OK for a row in results/; a task that does not apply is not in it.
    `place`: file name and physical row, once it is written.
    """

    number: int
    kind: str
    id: bytes | None
    body: bytes | None
    photos: list[dict[str, Any] | None]
    note: bytes | None
    codes: dict[str, str | None]
    place: tuple[str, int] = ("", 0)

    @property
    def is_good(self) -> bool:
        """Whether any of its rows is ok."""
        return OK in self.codes.values()


def make_documents(count: int, kinds: Mapping[str, int], seed: int) -> list[Doc]:
    """`count` documents, so many of each of `kinds` and the rest good, in an order drawn by `seed`."""
    rng = random.Random(seed)
    plan = [kind for kind, number in kinds.items() for _ in range(number)]
    assert len(plan) < count
    plan += ["good"] * (count - len(plan))
    rng.shuffle(plan)
    # A repeated id needs an earlier one.
    first = plan.index("good")
    plan[0], plan[first] = plan[first], plan[0]
    docs: list[Doc] = []
    for number, kind in enumerate(plan):
        doc = _good(number, rng)
        doc.kind = kind
        if kind == "duplicate_id":
            doc.id = rng.choice([d.id for d in docs if d.kind in ("good", "too_long", "image_format")])
            doc.codes = dict.fromkeys(doc.codes, "duplicate_id")
        elif kind != "good":
            _SPOIL[kind](doc, rng)
        docs.append(doc)
    return docs


def write_corpus(docs: list[Doc], folder: Path, shards: int) -> None:
    """The documents as Parquet in `folder`, in their order; damaged row groups and junk files beside them."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(4):
        (folder / "pictures" / f"there-{number}.png").write_bytes(picture(number))
    whole = [doc for doc in docs if doc.kind not in ("damaged", "no_parquet")]
    size = -(-len(whole) // shards)
    for i in range(shards):
        _write(folder / f"shard-{i:02d}.parquet", whole[i * size : (i + 1) * size])
    damaged = [doc for doc in docs if doc.kind == "damaged"]
    for i in range(0, len(damaged), 2 * _GROUP):
        path = folder / f"wounded-{i:03d}.parquet"
        _write(path, damaged[i : i + 2 * _GROUP])
        _damage(path, "body" if i % (4 * _GROUP) else "doc_id")
    for i, doc in enumerate(doc for doc in docs if doc.kind == "no_parquet"):
        # One row for the file, which has no rows of its own.
        doc.place = (f"junk-{i:03d}.parquet", -1)
        (folder / doc.place[0]).write_bytes(_junk(i, folder / "shard-00.parquet"))


def expected_rows(docs: list[Doc]) -> dict[tuple[str, int, str], str | None]:
    """(file name, physical row, task) → error code, OK for a row in results/."""
    return {(*doc.place, task): code for doc in docs for task, code in doc.codes.items()}


def expected_counts(docs: list[Doc]) -> dict[str, Counter[str]]:
    """Of each task: ok, rejected, failed, not_applicable."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for doc in docs:
        for name in NAMES:
            counts[name]["not_applicable" if name not in doc.codes else status_of(doc.codes[name])] += 1
    return counts


def status_of(code: str | None) -> str:
    """The status of a row with that code."""
    return "ok" if code is OK else "failed" if code == "engine_crash" else "rejected"


def _good(number: int, rng: random.Random) -> Doc:
    has_text, images = rng.choice([(True, 0), (True, 1), (False, 1), (True, 2)])
    photos: list[dict[str, Any] | None] = [_photo(number + i, rng) for i in range(images)]
    return Doc(
        number=number,
        kind="good",
        id=f"doc-{number:04d}".encode(),
        body=text(number, 3 + number % 40).encode() if has_text else None,
        photos=photos,
        note=f"note {number}".encode(),
        codes=dict.fromkeys(_applying(has_text, images > 0), OK),
    )


def _photo(number: int, rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"bytes": None, "path": f"pictures/there-{number % 4}.png"}
    return {"bytes": picture(number, rng.choice(["PNG", "JPEG", "WEBP"])), "path": None}


def _applying(has_text: bool, has_image: bool) -> list[str]:
    return ["summary", "to_de"] * has_text + ["alt"] * has_image + ["ask"] * (has_text or has_image)


def _with_image(code: str, photo: Callable[[int, random.Random], dict[str, Any] | None]) -> Callable:
    """One image that cannot work, alone or beside a good one, with or without a text: it costs every row."""

    def spoil(doc: Doc, rng: random.Random) -> None:
        doc.photos = doc.photos[:1]
        doc.photos.insert(rng.randint(0, len(doc.photos)), photo(doc.number, rng))
        doc.codes = dict.fromkeys(_applying(doc.body is not None, True), code)

    return spoil


def _all(code: str, **cells: Any) -> Callable:
    """Other cells, and one code for all rows of the tasks that then apply."""

    def spoil(doc: Doc, rng: random.Random) -> None:
        for name, value in cells.items():
            setattr(doc, name, value(doc.number) if callable(value) else value)
        doc.codes = dict.fromkeys(_applying(doc.body is not None, bool(doc.photos)), code)

    return spoil


def _unread(doc: Doc, rng: random.Random) -> None:
    """Nobody knows which tasks apply to what cannot be read: all do."""
    doc.codes = dict.fromkeys(NAMES, "bad_row")


def _carried(doc: Doc, rng: random.Random) -> None:
    doc.note = b"n\xff\xfe" + str(doc.number).encode()
    _unread(doc, rng)


def _blank(body: Callable[[int], bytes]) -> Callable:
    """A text with nothing in it: what works on the image alone is made, where there is one."""

    def spoil(doc: Doc, rng: random.Random) -> None:
        doc.body = body(doc.number)
        doc.codes = dict.fromkeys(_applying(True, bool(doc.photos)), "empty_input")
        if doc.photos:
            doc.codes |= {"alt": OK, "ask": OK}

    return spoil


def _unreadable(number: int, rng: random.Random) -> dict[str, Any]:
    whole = picture(number, "JPEG", (90, 80))
    png = bytearray(picture(number))
    png[40:60] = b"\0" * 20
    return {"bytes": [b"no image at all", b"", whole[: len(whole) // 2], bytes(png)][number % 4], "path": None}


def _wrong_format(number: int, rng: random.Random) -> dict[str, Any]:
    out = io.BytesIO()
    form = ["GIF", "BMP", "TIFF", "SVG"][number % 4]
    if form == "SVG":
        out.write(b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    else:
        Image.new("RGB", (12, 9), (number % 256, 1, 2)).save(out, form)
    return {"bytes": out.getvalue(), "path": None}


def _too_large(number: int, rng: random.Random) -> dict[str, Any]:
    data = bomb() if number % 4 == 3 else picture(number, ["PNG", "JPEG", "WEBP"][number % 4], (150, 100))
    return {"bytes": data, "path": None}


def _nowhere(number: int, rng: random.Random) -> dict[str, Any]:
    return {"bytes": None, "path": [f"pictures/gone-{number}.png", f"no/such/folder/{number}.jpg"][number % 2]}


def _forbidden(number: int, rng: random.Random) -> dict[str, Any]:
    paths = ["../elsewhere.png", "/etc/hostname", "http://127.0.0.1:9/a.png", "file:///etc/hostname", "pictures\\a.png"]
    return {"bytes": None, "path": paths[number % len(paths)]}


def _nothing(number: int, rng: random.Random) -> dict[str, Any] | None:
    return [None, {"bytes": None, "path": None}][number % 2]


_SPOIL: dict[str, Callable[[Doc, random.Random], None]] = {
    "null_id": _all("null_id", id=None),
    "id_not_utf8": _all("bad_row", id=lambda n: b"doc-\xff" + str(n).encode()),
    "empty_text": _blank(lambda n: b""),
    "white_text": _blank(lambda n: [b" \n\t ", "\u2003\u00a0".encode(), b"\r\n" * 9][n % 3]),
    "too_long": _all("too_long", body=lambda n: text(n, 1500).encode()),
    "text_not_utf8": _all("bad_row", body=lambda n: b"a fox \xff\xfe " + str(n).encode()),
    "too_many_images": _all("too_long", photos=lambda n: [{"bytes": picture(n + i), "path": None} for i in range(4)]),
    "image_unreadable": _with_image("image_unreadable", _unreadable),
    "image_format": _with_image("image_format", _wrong_format),
    "image_too_large": _with_image("image_too_large", _too_large),
    "image_not_found": _with_image("image_not_found", _nowhere),
    "image_forbidden": _with_image("image_forbidden", _forbidden),
    "image_of_nothing": _with_image("bad_row", _nothing),
    "crash": _all("engine_crash", body=lambda n: f"a text with {CRASH} {n}".encode()),
    "carried_not_utf8": _carried,
    "damaged": _unread,
    "no_parquet": _unread,
}
DATA_KINDS = ("duplicate_id", *(kind for kind in _SPOIL if kind != "crash"))


def _write(path: Path, docs: list[Doc]) -> None:
    def strings(cells: list[bytes | None]) -> pa.Array:
        # A view, so that what is no UTF-8 stays as it is.
        return pa.array(cells, pa.binary()).view(pa.string())

    table = pa.table(
        {
            "doc_id": strings([doc.id for doc in docs]),
            "body": strings([doc.body for doc in docs]),
            "photos": pa.array([doc.photos for doc in docs], pa.list_(PHOTO)),
            "note": strings([doc.note for doc in docs]),
        }
    )
    pq.write_table(table, path, row_group_size=_GROUP, compression="none", use_dictionary=False)
    for row, doc in enumerate(docs):
        doc.place = (path.name, row)


def _damage(path: Path, column: str) -> None:
    """Page headers of every row group's `column` become nonsense."""
    data = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    index = metadata.schema.names.index(column)
    for group in range(metadata.num_row_groups):
        start = metadata.row_group(group).column(index).data_page_offset
        data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)


def _junk(number: int, whole: Path) -> bytes:
    data = whole.read_bytes()
    rubbish = random.Random(number).randbytes(200)
    return [b"", b"PAR1 no Parquet PAR1", b'{"doc_id": "x"}\n', rubbish, data[:-100], b"PAR1" + rubbish][number % 6]
