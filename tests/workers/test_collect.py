"""Rows of the table from generated documents: outcomes, lineage, and carried values that no one may change."""

from __future__ import annotations

import pyarrow as pa
import pytest

from model_runtime import Sampling
from model_runtime.processing import Processor
from pipelines.schema import output_schema
from tests.checkpoints import SHAPES, cached_checkpoint
from workers.collect import RunContext, collect
from workers.tasks import Task

CARRY = pa.schema([("at", pa.time64("ns")), ("tags", pa.list_(pa.string()))])
TASK = Task(
    name="summary", kind="summarize", language="en", prompt="Sum:", prompt_in="decoder",
    sampling=Sampling(seed=7), fingerprint="f" * 32,
)  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.load(cached_checkpoint(SHAPES[0]))


def context() -> RunContext:
    return RunContext(
        run_id="run", job="job", model="sftp://me:hunter2@host/model", model_revision="r", backend="native",
        runtime_version="1", tasks=(TASK,),
    )  # fmt: skip


def document(name: str, pair: dict, results: list[dict], at: int) -> dict:
    defaults = {"task": 0, "state": 0, "attempt": 1, "request": 0, "error_code": None, "error_message": None}
    return {
        "document_id": name,
        "source_path": "s3://bucket/a.parquet",
        "source_row": 3,
        "document_sha256": "0" * 64,
        "image_count": 0,
        "carry": {"at": at, "tags": ["x", None]},
        "pairs": [{**defaults, **pair}],
        "requests": [{"truncated": True, "input_tokens": 11}],
        "results": results,
        "dtype": "float32",
    }


def collected(documents: list[dict], processor: Processor) -> pa.Table:
    carry = pa.array([d.pop("carry") for d in documents], pa.struct(list(CARRY)))
    table = pa.Table.from_pylist(documents).append_column("carry", carry)
    made = collect(table, context(), processor, output_schema(CARRY))
    assert made.schema.equals(output_schema(CARRY))
    return made


def test_each_outcome_is_a_row(processor):
    done = {"token_ids": processor.encode_text(" fox "), "finish_reason": "stop", "logprob": -1.5, "output_tokens": 3}
    ok = {**done, "key": b"a" * 16, "error_code": None, "error_message": None}
    crashed = {**ok, "key": b"b" * 16, "token_ids": [], "error_code": "engine_crash", "error_message": "it\ndied"}
    made = collected(
        [
            document("fine", {"key": b"a" * 16}, [ok], 1),
            document("crashed", {"key": b"b" * 16, "attempt": 2}, [crashed], 2),
            document("empty", {"key": b"c" * 16, "request": -1, "error_code": "empty_input"}, [], 3),
            document("lost", {"key": b"d" * 16}, [], 4),
            document("there already", {"key": b"e" * 16, "state": 1}, [], 5),
        ],
        processor,
    ).to_pylist()
    assert [row["document_id"] for row in made] == ["fine", "crashed", "empty", "lost"]
    assert [row["status"] for row in made] == ["ok", "failed", "rejected", "failed"]
    fine, crashed_row, empty, lost = made
    assert (fine["text"], fine["finish_reason"], fine["logprob"], fine["output_tokens"]) == ("fox", "stop", -1.5, 3)
    assert fine["key"] == (b"a" * 16).hex() and fine["seed"] == 7 and fine["truncated"] and fine["input_tokens"] == 11
    assert crashed_row["error_message"] == "it died" and crashed_row["attempt"] == 2
    assert empty["error_code"] == "empty_input" and empty["text"] is None and empty["input_tokens"] is None
    assert lost["error_code"] == "internal", "nothing is dropped silently"


def test_carried_values_are_copied_as_they_are_and_secrets_are_not(processor):
    nanoseconds = 1_234_567_891
    too_long = {"key": b"c" * 16, "request": -1, "error_code": "too_long"}
    made = collected([document("d", too_long, [], nanoseconds)], processor)
    assert made.column("at").cast(pa.int64()).to_pylist() == [nanoseconds], "not a nanosecond is lost"
    assert made.column("tags").to_pylist() == [["x", None]]
    assert "hunter2" not in made.column("model").to_pylist()[0]
