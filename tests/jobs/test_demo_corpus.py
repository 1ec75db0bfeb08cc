"""The demo's corpus, job and model: real enough, the same each time, and left alone when they were changed."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.corpus import corpus_table, write_corpus
from jobs.demo.drawings import draw
from jobs.demo.model import write_model
from jobs.demo.run import write_job
from jobs.demo.texts import DOCUMENTS
from jobs.spec import load_job


def test_the_shards_hold_every_document_once(tmp_path: Path) -> None:
    shards = write_corpus(tmp_path)
    assert len(shards) == 3
    ids = []
    for shard in shards:
        file = pq.ParquetFile(shard)
        assert file.num_row_groups >= 2
        ids += file.read().column("doc_id").to_pylist()
    assert sorted(ids) == sorted(document.id for document in DOCUMENTS)
    assert len(set(ids)) == len(ids) >= 24


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_corpus(tmp_path / "a")]
    again = [path.read_bytes() for path in write_corpus(tmp_path / "a")]
    other = [path.read_bytes() for path in write_corpus(tmp_path / "b")]
    assert first == again == other


def test_it_holds_what_a_demo_should_show() -> None:
    rows = corpus_table().to_pylist()
    assert len({row["lang"] for row in rows}) >= 8
    assert any(row["body"] and row["photo"] for row in rows)
    assert any(not row["body"] and row["photo"] for row in rows)
    assert sum(not row["body"] and not row["photo"] for row in rows) == 1
    assert any("<eos>" in (row["body"] or "") for row in rows)


def test_one_image_is_broken_and_the_others_are_not() -> None:
    formats = set()
    for document in DOCUMENTS:
        if document.image is None:
            continue
        image = Image.open(io.BytesIO(draw(document.image)))
        if document.image == "broken":
            with pytest.raises(OSError, match="truncated"):
                image.load()
        else:
            image.load()
            formats.add(image.format)
    assert formats == {"PNG", "JPEG", "WEBP"}


def test_the_job_reads_and_an_edited_one_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / 'a "folder" with $HOME and ü'
    folder.mkdir()
    path = write_job(folder)
    job = load_job(path).job
    assert job.source.path == str(folder / "corpus")
    assert [task.name for task in job.tasks] == ["summary", "to_de", "to_fr", "caption"]
    path.write_text(path.read_text().replace("to_fr", "to_french"))
    assert "to_french" in write_job(folder).read_text()


def test_the_model_is_made_once_and_whole(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "config.json").write_text("{")
    folder = write_model(tmp_path / "model")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert write_model(tmp_path / "model") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
