"""Source rows become requests: shared, skipped, rejected or failed, and never an exception for the batch."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tokenizers import Tokenizer

from model_runtime.errors import ErrorCode, ModelError, RequestError
from model_runtime.images import image_array, open_image
from model_runtime.processing import Processor
from pipelines.schema import source_schema
from tests.tokenizers_tiny import BOS, IMAGE_SIZE, IMAGE_TOKENS, TOKENS_PER_IMAGE, model_folder
from workers.inputs import Inputs
from workers.prepare import FAILED, OK, PENDING, REJECTED, Prepare, prepared_schema
from workers.tasks import LimitsSpec, Task, TaskSpec, TaskTable, location_key, resolve_tasks

REVISION = "rev-1"
CARRY = pa.schema([("year", pa.int32()), ("tags", pa.list_(pa.string()))])
SPECS = (
    TaskSpec(name="summary", kind="summarize", language="en"),
    TaskSpec(name="to_fr", kind="translate", language="fr"),
    TaskSpec(name="alt", kind="caption"),
    TaskSpec(name="animals", kind="answer", question="Which animals?"),
)


class PanicException(BaseException):
    """As pyo3 raises it: no Exception."""


class Table:
    """What the output table holds: key → (state, attempts)."""

    def __init__(self, rows: dict[bytes, tuple[int, int]] | None = None) -> None:
        self.rows = rows or {}
        self.calls = 0

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert keys.dtype == np.dtype("S16")
        self.calls += 1
        found = [self.rows.get(keys[i : i + 1].tobytes(), (PENDING, 0)) for i in range(len(keys))]
        return np.array([f[0] for f in found], np.int8), np.array([f[1] for f in found], np.int16)


class Bucket:
    """Referenced images by path; an error instead of bytes is raised."""

    def __init__(self, objects: dict[str, tuple[bytes, str] | Exception] | None = None) -> None:
        self.objects = objects or {}
        self.reads: list[tuple[str, str]] = []

    def __call__(self, path: str, source_path: str, /) -> tuple[bytes, str]:
        self.reads.append((path, source_path))
        found = self.objects.get(path, RequestError(ErrorCode.IMAGE_NOT_FOUND, f"{path} does not exist"))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def tasks_of(*specs: TaskSpec, limits: LimitsSpec | None = None) -> tuple[Task, ...]:
    return resolve_tasks(specs or SPECS, TaskTable.parse(None), limits or LimitsSpec())


def prepare(folder: Path, *specs: TaskSpec, **options: Any) -> Prepare:
    limits = options.pop("limits", LimitsSpec())
    done, reader = options.pop("done", Table()), options.pop("image_reader", Bucket())
    tasks = tasks_of(*specs, limits=limits)
    inputs = Inputs(str(folder), tasks, limits, options.pop("pixels", True))
    return Prepare(inputs, tasks, limits, REVISION, done, reader, **options)


def row(document_id: str | None, text: str | None = None, *images: Any, **more: Any) -> dict[str, Any]:
    """One source row; an image is bytes or a path."""
    cells = [image if image is None else _cell(image) for image in images]
    base = {"document_id": document_id, "text": text, "images": cells or None, "source_path": "s3://in/a.parquet"}
    return base | {"source_row": 0, "duplicate": False, "carry": {"year": 1999, "tags": ["x"]}} | more


def _cell(image: bytes | str) -> dict[str, Any]:
    return {"bytes": image, "path": None} if isinstance(image, bytes) else {"bytes": None, "path": image}


def source(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=source_schema(CARRY))


def made(stage: Prepare, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    table = stage(source(*rows))
    assert table.schema == prepared_schema(pa.struct(list(CARRY)))
    table.validate(full=True)
    out = table.to_pylist()
    for document in out:
        check_consistent(document, len(stage._tasks))
    return out


def check_consistent(document: dict[str, Any], tasks: int) -> None:
    """Every task once; every pair done, in error, or in exactly one request."""
    seen = [pair["task"] for pair in document["pairs"]] + document["not_applicable"]
    assert sorted(seen) == list(range(tasks))
    asked = [(t, r) for r, request in enumerate(document["requests"]) for t in request["tasks"]]
    assert asked == sorted(asked, key=lambda pair: pair[1])
    for pair in document["pairs"]:
        work = pair["state"] == PENDING and pair["error_code"] is None
        assert (pair["request"] >= 0) == work
        assert ((pair["task"], pair["request"]) in asked) == work
        assert (pair["error_code"] is None) == (pair["error_message"] is None)
        assert pair["state"] == PENDING or pair["error_code"] is None
        assert "\n" not in (pair["error_message"] or "")
        assert pair["attempt"] >= 1
    for request in document["requests"]:
        assert len(request["input_ids"]) == 4 * request["input_tokens"]


def picture(colour: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (50, 30), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def errors(document: dict[str, Any]) -> dict[str, str | None]:
    return {SPECS[pair["task"]].name: pair["error_code"] for pair in document["pairs"]}


def ids(request: dict[str, Any]) -> list[int]:
    return np.frombuffer(request["input_ids"], "<i4").tolist()


# --- requests ----------------------------------------------------------------------------------------------------


def test_a_text_is_encoded_once_for_all_its_tasks(folder: Path) -> None:
    (document,) = made(prepare(folder), row("a", "the fox in the house"))
    assert errors(document) == {"summary": None, "to_fr": None, "animals": None}
    assert document["not_applicable"] == [2]
    (request,) = document["requests"]
    assert request["tasks"] == [0, 1, 3]
    assert ids(request) == [BOS, *Processor.load(folder).encode_text("the fox in the house")]
    assert not request["truncated"]
    assert document["pixels"] is None
    assert document["image_count"] == 0
    assert [pair["attempt"] for pair in document["pairs"]] == [1, 1, 1]


def test_carried_columns_and_lineage_pass_through(folder: Path) -> None:
    rows = [row(f"d{i}", "x", source_row=10 + i, carry={"year": i, "tags": None}) for i in range(3)]
    out = made(prepare(folder), *rows)
    assert [d["carry"] for d in out] == [{"year": i, "tags": None} for i in range(3)]
    assert [d["source_row"] for d in out] == [10, 11, 12]
    assert [d["document_id"] for d in out] == ["d0", "d1", "d2"]
    assert {d["source_path"] for d in out} == {"s3://in/a.parquet"}


def test_images_come_first_and_their_pixels_are_ready(folder: Path) -> None:
    first, second = picture(), picture((10, 200, 30), (20, 90), "JPEG")
    (document,) = made(prepare(folder), row("a", "the fox", first, second))
    (request,) = document["requests"]
    assert request["tasks"] == [0, 1, 2, 3]
    expected = Processor.load(folder).encoder_input(text="the fox", images=2, max_tokens=999, overflow="reject")
    assert ids(request) == expected.ids.tolist()
    pixels = np.frombuffer(document["pixels"], np.uint8).reshape(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    for got, data in zip(pixels, (first, second)):
        assert (got == image_array(open_image(data, max_pixels=10**6), IMAGE_SIZE)).all()
    assert document["image_count"] == 2


def test_prompts_in_the_encoder_share_by_prompt_and_the_rest_share_one(folder: Path) -> None:
    specs = [
        TaskSpec(name="p1", kind="prompt", prompt="List:", prompt_in="encoder", seed=1),
        TaskSpec(name="p2", kind="prompt", prompt="List:", prompt_in="encoder", seed=2),
        TaskSpec(name="p3", kind="prompt", prompt="Count:", prompt_in="encoder"),
        TaskSpec(name="d1", kind="prompt", prompt="List:"),
        TaskSpec(name="d2", kind="summarize"),
    ]
    (document,) = made(prepare(folder, *specs), row("a", "the fox"))
    assert [request["tasks"] for request in document["requests"]] == [[0, 1], [2], [3, 4]]
    processor = Processor.load(folder)
    listed, counted, plain = map(ids, document["requests"])
    assert listed == [BOS, *processor.encode_text("List:\n\nthe fox")]
    assert counted == [BOS, *processor.encode_text("Count:\n\nthe fox")]
    assert plain == [BOS, *processor.encode_text("the fox")]


def test_special_tokens_in_a_document_are_characters(folder: Path) -> None:
    text = "<eos><start_of_image><image_soft_token><end_of_image><bos><pad>"
    (document,) = made(prepare(folder), row("a", text, picture()))
    got = ids(document["requests"][0])
    made_of = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [got.count(made_of.get_vocab()[t]) for t in IMAGE_TOKENS] == [1, 1, TOKENS_PER_IMAGE]
    assert got.count(BOS) == 1


def test_without_pixels_images_stay_closed(folder: Path) -> None:
    (document,) = made(prepare(folder, pixels=False), row("a", None, b"no image"))
    assert document["pixels"] is None
    assert errors(document) == {"alt": None, "animals": None}
    assert document["requests"][0]["input_tokens"] > TOKENS_PER_IMAGE


def test_long_text_is_truncated_or_rejected(folder: Path) -> None:
    text = "the fox " * 200
    (cut,) = made(prepare(folder, limits=LimitsSpec(max_input_tokens=50)), row("a", text, picture()))
    assert cut["requests"][0]["truncated"]
    assert cut["requests"][0]["input_tokens"] == 50
    limits = LimitsSpec(max_input_tokens=50, overflow="reject")
    (refused,) = made(prepare(folder, limits=limits), row("a", text, picture()))
    assert set(errors(refused).values()) == {"too_long"}
    assert refused["pixels"] is None


def test_the_models_own_positions_bound_the_input(tmp_path: Path) -> None:
    small = model_folder(tmp_path, max_positions=30)
    (document,) = made(prepare(small), row("a", "x" * 100))
    assert document["requests"][0]["input_tokens"] == 30


def test_an_instruction_that_does_not_fit_rejects_its_own_tasks_only(folder: Path) -> None:
    specs = [
        TaskSpec(name="summary", kind="prompt", prompt="z" * 100, prompt_in="encoder"),
        TaskSpec(name="to_fr", kind="prompt", prompt="z" * 100),
    ]
    (document,) = made(prepare(folder, *specs, limits=LimitsSpec(max_input_tokens=60)), row("a", "the fox"))
    assert errors(document) == {"summary": "too_long", "to_fr": None}


# --- what cannot work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n\t", "\u00a0\u2003"])
def test_blank_text_is_empty_input_and_null_text_does_not_apply(folder: Path, text: str) -> None:
    blank, null, pictured, nothing = made(
        prepare(folder), row("a", text), row("b", None, picture()), row("c", text, picture()), row("d", None)
    )
    assert errors(blank) == {"summary": "empty_input", "to_fr": "empty_input", "animals": "empty_input"}
    assert blank["requests"] == []
    assert errors(null) == {"alt": None, "animals": None}
    assert errors(pictured) == {"summary": "empty_input", "to_fr": "empty_input", "alt": None, "animals": None}
    assert pictured["requests"][0]["tasks"] == [2, 3]
    assert nothing["pairs"] == []
    assert nothing["not_applicable"] == [0, 1, 2, 3]


def test_null_and_duplicate_ids_are_known_by_their_place(folder: Path) -> None:
    null, twice = made(
        prepare(folder), row(None, "x", source_row=7), row("a", "x", "p.png", source_row=8, duplicate=True)
    )
    assert set(errors(null).values()) == {"null_id"}
    assert set(errors(twice).values()) == {"duplicate_id"}
    tasks = tasks_of()
    for document, place in ((null, 7), (twice, 8)):
        for pair in document["pairs"]:
            fingerprint = tasks[pair["task"]].fingerprint
            assert pair["key"] == location_key("s3://in/a.parquet", place, fingerprint, REVISION)


def test_a_broken_image_rejects_every_task_and_says_which(folder: Path) -> None:
    cases = {
        "image_unreadable": picture()[:60],
        "image_format": b"GIF89a" + bytes(20),
        "image_too_large": picture(size=(2000, 2000)),
    }
    for code, broken in cases.items():
        stage = prepare(folder, limits=LimitsSpec(max_image_pixels=10_000))
        good, bad = made(stage, row("a", "x", picture()), row("b", "x", picture(), broken))
        assert set(errors(good).values()) == {None}
        assert set(errors(bad).values()) == {code}
        assert bad["pairs"][0]["error_message"].startswith("image 2: ")
        assert bad["requests"] == []
        assert bad["pixels"] is None


def test_too_many_images_are_refused_unread(folder: Path) -> None:
    bucket = Bucket({f"{i}.png": (picture(), "e") for i in range(5)})
    stage = prepare(folder, limits=LimitsSpec(max_images=4), image_reader=bucket)
    (document,) = made(stage, row("a", "x", *bucket.objects))
    assert set(errors(document).values()) == {"too_long"}
    assert "5 images; the limit is 4" in document["pairs"][0]["error_message"]
    assert bucket.reads == []


def test_rows_that_are_not_what_they_should_be_are_bad_rows(folder: Path) -> None:
    table = source(row("a", "fine"), row("b", "xx"), row("c", "x", None))
    broken = pa.array(["fine", "xx", "x"]).buffers()
    data = broken[2].to_pybytes().replace(b"xx", b"\xff\xfe")
    text = pa.Array.from_buffers(pa.string(), 3, [None, broken[1], pa.py_buffer(data)])
    fine, not_utf8, null_image = prepare(folder)(table.set_column(1, "text", text)).to_pylist()
    assert set(errors(fine).values()) == {None}
    assert set(errors(not_utf8).values()) == {"bad_row"}
    assert "UTF-8" in not_utf8["pairs"][0]["error_message"]
    assert set(errors(null_image).values()) == {"bad_row"}
    assert null_image["image_count"] == 1


def test_an_unexpected_exception_fails_one_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Processor.encoder_input

    def fragile(self: Processor, **inputs: Any) -> Any:
        if inputs["text"] == "boom":
            raise KeyError("two\nlines")
        if inputs["text"] == "memory":
            raise MemoryError
        if inputs["text"] == "panic":
            raise PanicException("unwrap on None")
        return encode(self, **inputs)

    monkeypatch.setattr(Processor, "encoder_input", fragile)
    rows = [row("a", "x"), row("b", "boom"), row("c", "memory"), row("d", "panic")]
    fine, boom, memory, panic = made(prepare(folder), *rows)
    assert set(errors(fine).values()) == {None}
    assert set(errors(boom).values()) == {"internal"}
    assert boom["pairs"][0]["error_message"].startswith("KeyError: ")
    assert set(errors(memory).values()) == {"out_of_memory"}
    assert panic["pairs"][0]["error_message"] == "PanicException: unwrap on None"


def test_what_stops_the_process_is_not_swallowed(folder: Path) -> None:
    def stop(path: str, source_path: str, /) -> tuple[bytes, str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, image_reader=stop)(source(row("a", "x", "p.png")))


def test_a_model_folder_without_a_tokenizer_stops_the_run(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        prepare(folder)(source(row("a", "x")))


# --- referenced images -------------------------------------------------------------------------------------------


def test_a_referenced_image_is_read_once_and_known_by_path_and_etag(folder: Path) -> None:
    bucket = Bucket({"p.png": (picture(), "v1")})
    (first,) = made(prepare(folder, image_reader=bucket), row("a", "x", "p.png"))
    assert bucket.reads == [("p.png", "s3://in/a.parquet")]
    assert first["pixels"] is not None
    bucket.objects["p.png"] = (picture((1, 2, 3)), "v2")
    (second,) = made(prepare(folder, image_reader=bucket), row("a", "x", "p.png"))
    assert first["document_sha256"] != second["document_sha256"]
    assert first["pairs"][0]["key"] != second["pairs"][0]["key"]


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (RequestError(ErrorCode.IMAGE_NOT_FOUND, "gone"), "image_not_found"),
        (RequestError(ErrorCode.IMAGE_FORBIDDEN, "outside the roots"), "image_forbidden"),
        (RequestError(ErrorCode.STORAGE, "timed out"), "storage"),
        (OSError("socket"), "internal"),
    ],
)
def test_an_image_that_cannot_be_read_keeps_one_key(folder: Path, problem: Exception, code: str) -> None:
    keys = set()
    for failing in ("a.png", "b.png"):
        bucket = Bucket({"a.png": (picture(), "1"), "b.png": (picture(), "2"), failing: problem})
        (document,) = made(prepare(folder, image_reader=bucket), row("a", "x", "a.png", "b.png"))
        assert set(errors(document).values()) == {code}
        keys.add(document["pairs"][0]["key"])
    assert len(keys) == 1


def test_bytes_beside_a_path_win(folder: Path) -> None:
    bucket = Bucket()
    images = [{"bytes": picture(), "path": "name.png"}]
    (document,) = made(prepare(folder, image_reader=bucket), row("a", "x", images=images))
    assert set(errors(document).values()) == {None}
    assert bucket.reads == []


# --- identity ----------------------------------------------------------------------------------------------------


def test_the_hash_tells_null_from_empty_and_text_from_image(folder: Path) -> None:
    png = picture()
    rows = [
        row("a", None, png),
        row("a", "", png),
        row("a", "x", png),
        row("a", "x"),
        row("a", "x", png, png),
        row("a", "x", b""),
        row("a", "x", b"", b""),
        row("a", "x", "p"),
        row("a", "x", b"p"),
    ]
    hashes = [
        d["document_sha256"] for d in prepare(folder, image_reader=Bucket({"p": (b"", "")}))(source(*rows)).to_pylist()
    ]
    assert len(set(hashes)) == len(rows)
    assert all(len(value) == 64 for value in hashes)
    empty_list, no_list = made(prepare(folder), row("a", "x", images=[]), row("a", "x", images=None))
    assert empty_list["document_sha256"] == no_list["document_sha256"]


def test_keys_depend_on_document_content_task_and_revision_only(folder: Path) -> None:
    def keys(stage: Prepare, cells: dict[str, Any]) -> set[bytes]:
        return {pair["key"] for pair in made(stage, cells)[0]["pairs"]}

    base = keys(prepare(folder), row("a", "x"))
    assert base == keys(prepare(folder), row("a", "x", source_row=99, source_path="elsewhere"))
    other_revision = prepare(folder)
    other_revision._revision = "rev-2"
    others = [
        keys(prepare(folder), row("b", "x")),
        keys(prepare(folder), row("a", "y")),
        keys(other_revision, row("a", "x")),
        keys(prepare(folder, limits=LimitsSpec(max_input_tokens=9)), row("a", "x")),
    ]
    assert all(base.isdisjoint(other) for other in others)
    assert base < keys(prepare(folder, *SPECS, TaskSpec(name="more", kind="summarize")), row("a", "x"))


# --- resuming ----------------------------------------------------------------------------------------------------


def keys_of(folder: Path, *rows: dict[str, Any], **options: Any) -> list[list[bytes]]:
    return [[pair["key"] for pair in d["pairs"]] for d in made(prepare(folder, **options), *rows)]


def test_what_is_done_is_not_done_again(folder: Path) -> None:
    rows = [row("a", "x", b"no image"), row("b", "x", picture())]
    all_done, half_done = keys_of(folder, *rows)
    table = Table(dict.fromkeys(all_done, (OK, 1)) | {half_done[0]: (OK, 1), half_done[1]: (REJECTED, 2)})
    first, second = made(prepare(folder, done=table), *rows)
    assert [pair["state"] for pair in first["pairs"]] == [OK] * 4
    assert first["requests"] == []  # and the broken image stayed closed
    assert first["pixels"] is None
    assert [pair["state"] for pair in second["pairs"]] == [OK, REJECTED, PENDING, PENDING]
    assert [pair["attempt"] for pair in second["pairs"]] == [1, 2, 1, 1]
    assert second["requests"][0]["tasks"] == [2, 3]
    assert second["pixels"] is not None
    assert table.calls == 1


def test_rejected_rows_stay_rejected_without_work(folder: Path) -> None:
    rows = [row(None, "x"), row("b", ""), row("c", "x", "gone.png")]
    table = Table({key: (REJECTED, 1) for keys in keys_of(folder, *rows) for key in keys})
    for document in made(prepare(folder, done=table), *rows):
        assert {pair["state"] for pair in document["pairs"]} == {REJECTED}
        assert {pair["error_code"] for pair in document["pairs"]} == {None}


def test_a_failed_pair_is_tried_until_its_third_attempt(folder: Path) -> None:
    cells = row("a", "x")
    (keys,) = keys_of(folder, cells)
    seen = []
    for attempts in range(1, 5):
        (document,) = made(prepare(folder, done=Table({keys[0]: (FAILED, attempts)})), cells)
        seen.append((document["pairs"][0]["state"], document["pairs"][0]["attempt"]))
    assert seen == [(PENDING, 2), (PENDING, 3), (FAILED, 3), (FAILED, 4)]
    (again,) = made(prepare(folder, done=Table({keys[0]: (FAILED, 3)}), retry_failed=True), cells)
    assert (again["pairs"][0]["state"], again["pairs"][0]["attempt"]) == (PENDING, 4)
    (five,) = made(prepare(folder, done=Table({keys[0]: (FAILED, 3)}), max_attempts=5), cells)
    assert five["pairs"][0]["state"] == PENDING


def test_keys_that_end_in_zero_bytes_are_looked_up_whole(folder: Path) -> None:
    rows = [row(f"d{i}", "x") for i in range(400)]
    keys = [key for document in keys_of(folder, *rows) for key in document]
    assert any(key.endswith(b"\0") for key in keys)
    table = Table(dict.fromkeys(keys, (OK, 1)))
    assert all(not document["requests"] for document in made(prepare(folder, done=table), *rows))


# --- the batch ---------------------------------------------------------------------------------------------------


def test_it_pickles_small_after_use_and_works_on(folder: Path) -> None:
    stage = prepare(folder)
    before = made(stage, row("a", "x"))
    data = pickle.dumps(stage)
    assert len(data) < 5000
    assert made(pickle.loads(data), row("a", "x")) == before


def test_an_empty_batch_keeps_the_schema(folder: Path) -> None:
    assert made(prepare(folder)) == []


def test_image_bytes_are_held_in_bounded_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.prepare._HELD_BYTES", 100)
    table = Table()
    rows = [row(f"d{i}", "x", picture()) for i in range(5)]
    small = made(prepare(folder, done=table), *rows)
    assert table.calls == 5
    monkeypatch.undo()
    assert made(prepare(folder), *rows) == small


def test_any_mix_of_rows_is_accounted_for(folder: Path) -> None:
    rng = random.Random(3)
    texts = [None, "", "  ", "the fox", "<eos>" * 9, "x" * 9000, "\n\n", "é漢\0"]
    images: list[Any] = [picture(), picture(kind="JPEG"), b"", b"GIF89a", picture()[:50], "ok.png", "gone.png", None]
    bucket = Bucket({"ok.png": (picture(), "e")})
    rows = [
        row(
            rng.choice([None, f"id{i}", f"id{i}"]),
            rng.choice(texts),
            *rng.choices(images, weights=[6, 6, 1, 1, 1, 3, 1, 1], k=rng.choice([0, 0, 1, 2, 5])),
            duplicate=rng.random() < 0.1,
            source_row=i,
        )
        for i in range(300)
    ]
    specs = [*SPECS, TaskSpec(name="enc", kind="prompt", prompt="List:", prompt_in="encoder")]
    limits = LimitsSpec(max_input_tokens=40, max_images=4)
    first = made(prepare(folder, *specs, limits=limits, image_reader=bucket), *rows)
    assert len(first) == 300
    keys = [pair["key"] for document in first for pair in document["pairs"]]
    assert len(set(keys)) == len(keys)
    states = {key: rng.choice([(PENDING, 0), (OK, 1), (REJECTED, 1), (FAILED, 1), (FAILED, 3)]) for key in keys}
    again = made(prepare(folder, *specs, limits=limits, image_reader=bucket, done=Table(states)), *rows)
    for before, after in zip(first, again):
        assert [pair["key"] for pair in after["pairs"]] == [pair["key"] for pair in before["pairs"]]
        for was, now in zip(before["pairs"], after["pairs"]):
            skipped = states[now["key"]] not in ((PENDING, 0), (FAILED, 1))
            assert (now["state"] != PENDING) == skipped
            if not skipped:
                assert now["error_code"] == was["error_code"]
