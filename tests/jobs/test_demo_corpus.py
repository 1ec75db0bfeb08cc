"""The demo's corpus, job and model: real enough, the same each time, and left alone when they were changed."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.demo.corpus import corpus_rows, right_answers, write_corpus
from jobs.demo.model import MODEL, copy_model
from jobs.demo.run import write_job
from jobs.demo.show import show_results
from jobs.spec import load_job
from model_runtime.config import ModelConfig
from model_runtime.processing import Processor
from workers.tasks import TaskTable, language_warnings

ROOT = Path(__file__).parents[2]


def test_the_shards_hold_every_document_once(tmp_path: Path) -> None:
    shards = write_corpus(tmp_path)
    assert len(shards) == 3
    ids = []
    for shard in shards:
        file = pq.ParquetFile(shard)
        assert file.num_row_groups >= 2
        ids += file.read().column("doc_id").to_pylist()
    assert sorted(ids) == sorted(row["doc_id"] for row in corpus_rows())
    assert len(set(ids)) == len(ids) == 20


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_corpus(tmp_path / "a")]
    again = [path.read_bytes() for path in write_corpus(tmp_path / "a")]
    other = [path.read_bytes() for path in write_corpus(tmp_path / "b")]
    assert first == again == other


def test_it_holds_what_a_demo_should_show() -> None:
    rows = corpus_rows()
    assert Counter(row["genre"] for row in rows) == {"report": 6, "note": 7, "scene": 7}
    assert max(len((row["body"] or "").split()) for row in rows) > 900
    assert [row["doc_id"] for row in rows if not row["body"] and not row["photo"]] == ["note-empty"]
    for row in rows:
        if row["photo"] and row["doc_id"] != "scene-damaged":
            Image.open(io.BytesIO(row["photo"])).load()
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(next(row["photo"] for row in rows if row["doc_id"] == "scene-damaged"))).load()


def test_the_job_reads_and_an_edited_one_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / 'a "folder" with $HOME and ü'
    folder.mkdir()
    path = write_job(folder)
    job = load_job(path).job
    assert job.source.path == str(folder / "corpus")
    names = [task.name for task in job.tasks]
    assert {"summary_en", "who", "to_ar", "caption_de"} <= set(names)
    assert {task for _, task in right_answers()} <= set(names), "every task with a right answer is asked"
    path.write_text(path.read_text().replace("summary_en", "short"))
    assert "short" in write_job(folder).read_text()


def test_the_model_that_ships_is_small_and_knows_the_jobs_languages(tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in MODEL.iterdir())
    assert size <= 20_000_000
    config, processor = ModelConfig.load(MODEL), Processor.load(MODEL)
    assert config.vision.image_size == processor.image_size == 56
    job = load_job(write_job(tmp_path)).job
    assert not language_warnings(job.tasks, TaskTable.parse(processor.tasks_document))
    card = (MODEL / "README.md").read_text()
    assert "| summary_en | summarize | en |" in card and "Licence" in card
    history = json.loads((MODEL / "training.json").read_text())["history"]
    assert len(history["loss"]) > 100 and history["held_out"]


def test_no_file_of_the_model_names_a_place_of_the_machine_it_was_trained_on() -> None:
    for path in MODEL.iterdir():
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert not re.search(r"[\"' (`]/[a-z]+/", text), path.name


def test_the_model_is_copied_once_and_whole(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "config.json").write_text("{")
    folder = copy_model(tmp_path / "model")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert copy_model(tmp_path / "model") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in MODEL.iterdir()}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_outputs_stand_beside_their_documents_and_are_marked(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), highlight=False, no_color=True)
    rows, right = corpus_rows(), right_answers()
    report = rows[0]["doc_id"]
    made = {
        report: {"summary_en": right[report, "summary_en"], "summary_de": "\x1b[31mfalsch"},
        rows[6]["doc_id"]: {"to_ar": right[rows[6]["doc_id"], "to_ar"]},
    }
    show_results(console, rows, made, right)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown and "\\x1b" in shown
    assert shown.count("✓") == 3 and shown.count("✗") == 2, "two right ones, a wrong one, and the legend"
    assert "2 of 3 are exactly right" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= width


def test_what_is_marked_right_is_counted_as_right() -> None:
    console = Console(width=120, file=io.StringIO(), highlight=False, no_color=True)
    rows, right = corpus_rows(), right_answers()
    report = rows[0]["doc_id"]
    show_results(console, rows, {report: {"summary_en": right[report, "summary_en"] + " "}}, right)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("✓") == 1 and shown.count("✗") == 2, "marked wrong; the others are the legend's"
    assert "0 of 1 are exactly right" in " ".join(shown.split())
