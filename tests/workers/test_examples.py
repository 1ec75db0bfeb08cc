"""Rows with targets become training documents; whatever cannot be learned from is named with its row and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model_runtime.batches import TrainingDocument
from model_runtime.processing import Processor
from pipelines.schema import source_schema
from tests.checkpoints import Shape, cached_checkpoint
from tests.pipelines.corpora import picture
from workers.examples import Examples, Skipped, TrainingTask
from workers.tasks import LimitsSpec

SHAPE = Shape(name="examples", kv_heads=1)
TASKS = (
    TrainingTask(
        name="short", kind="summarize", language="de", prompt="Summarize in {language}:", question=None,
        question_column=None, target="summary",
    ),
    TrainingTask(
        name="alt", kind="caption", language=None, prompt="Describe:", question=None, question_column=None, target="alt"
    ),
    TrainingTask(
        name="asked", kind="answer", language="en", prompt="Answer: {question}", question=None, question_column="q",
        target="a",
    ),
)  # fmt: skip
CARRY = pa.schema([(name, pa.string()) for name in ("summary", "alt", "q", "a")])


def no_reader(path: str, source: str) -> tuple[bytes, str]:
    raise AssertionError(f"{path} is not to be read")


@pytest.fixture(scope="module")
def folder() -> Path:
    return cached_checkpoint(SHAPE)


def made(folder: Path, *rows: dict[str, Any], prompt_in: Any = "decoder", **limits: Any) -> list[Any]:
    table = pa.Table.from_pylist(
        [
            {
                "document_id": f"d{n}",
                "text": row.get("text"),
                "images": row.get("images", []),
                "source_path": "train.parquet",
                "source_row": n,
                "duplicate": row.get("duplicate", False),
                "carry": {name: row.get(name) for name in CARRY.names},
            }
            for n, row in enumerate(rows)
        ],
        schema=source_schema(CARRY),
    )
    examples = Examples(str(folder), TASKS, LimitsSpec(**limits), 12, prompt_in, no_reader)
    return list(examples(table))


def image(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": None}


def test_a_row_becomes_one_document_with_all_its_targets(folder: Path) -> None:
    (document,) = made(folder, {"text": "the fox", "images": [image(1)], "summary": "fox", "alt": "a dot", "a": None})
    processor = Processor.load(folder)
    assert isinstance(document, TrainingDocument) and document.pixels is not None
    assert document.pixels.shape == (1, 3, SHAPE.image_size, SHAPE.image_size) and document.pixels.dtype == np.uint8
    whole = processor.encoder_input(text="the fox", images=1, max_tokens=1000, overflow="reject")
    assert document.input_ids.tolist() == whole.ids.tolist()
    assert [example.task for example in document.examples] == [0, 1]
    summary = document.examples[0]
    assert tuple(summary.prefix_ids) == processor.prefix_ids("Summarize in German:")
    assert summary.target_ids.tolist() == processor.encode_text("fox")


def test_with_the_prompt_in_the_encoder_each_prompt_is_an_input_of_its_own(folder: Path) -> None:
    row = {"text": "the fox", "summary": "fox", "q": "who?", "a": "fox"}
    documents = made(folder, row, prompt_in="encoder")
    processor = Processor.load(folder)
    assert len(documents) == 2 and all(len(d.examples) == 1 for d in documents)
    for document, prompt in zip(documents, ("Summarize in German:", "Answer: who?")):
        whole = processor.encoder_input(
            text="the fox", images=0, instruction=prompt, max_tokens=1000, overflow="reject"
        )
        assert document.input_ids.tolist() == whole.ids.tolist()
        assert len(document.examples[0].prefix_ids) == 0


@pytest.mark.parametrize(
    ("row", "task", "code"),
    [
        ({"text": "x"}, None, "missing_target"),
        ({"text": " \n", "summary": "y"}, None, "empty_input"),
        ({"summary": "y"}, None, "empty_input"),
        ({"text": "x", "summary": "  "}, "short", "empty_target"),
        ({"text": "x", "summary": "the fox " * 30}, "short", "target_too_long"),
        ({"text": "x", "alt": "a dot"}, "alt", "not_applicable"),
        ({"text": "x", "a": "yes"}, "asked", "missing_question"),
        ({"text": "x", "images": [image(1), {"bytes": None, "path": None}], "alt": "y"}, None, "image_count_mismatch"),
        ({"text": "see <start_of_image> and <start_of_image>", "images": [image(1)], "alt": "y"}, None,
         "image_count_mismatch"),
        ({"text": "x", "images": [{"bytes": b"GIF89a nonsense", "path": None}], "alt": "y"}, None, "image_format"),
        ({"text": "x", "summary": "y", "duplicate": True}, None, "duplicate_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_named(folder: Path, row: dict[str, Any], task: str | None, code: str) -> None:
    good = {"text": "the fox", "summary": "fox"}
    found = made(folder, good, row, good)
    assert [type(made).__name__ for made in found] == ["TrainingDocument", "Skipped", "TrainingDocument"]
    skip = found[1]
    assert isinstance(skip, Skipped)
    assert (skip.source_path, skip.source_row, skip.task, skip.code) == ("train.parquet", 1, task, code)
    assert skip.message and "\n" not in skip.message


def test_one_bad_target_costs_its_row_nothing_else(folder: Path) -> None:
    skip, document = made(folder, {"text": "the fox", "summary": "", "q": "who?", "a": "fox"})
    assert (skip.task, skip.code) == ("short", "empty_target")
    assert [example.task for example in document.examples] == [2]


def test_a_document_over_the_limit_is_cut_or_left_out(folder: Path) -> None:
    row = {"text": "the fox " * 200, "summary": "fox"}
    (cut,) = made(folder, row, max_input_tokens=20)
    assert len(cut.input_ids) == 20
    (skip,) = made(folder, row, max_input_tokens=20, overflow="reject")
    assert skip.code == "too_long" and "the limit is 20" in skip.message
