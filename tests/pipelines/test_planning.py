"""What planning costs: each folder listed once, no Ray for nothing, few tasks for very many shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from infra.storage import Location
from pipelines import graph
from pipelines.job import JobSpec
from pipelines.keys import find, hashes_of, high_words, order_of
from pipelines.plan import plan_job
from pipelines.resolve import resolve
from pipelines.resume import OK, read_done
from pipelines.source import RowGroup
from pipelines.table import list_zones, write_work
from tests.pipelines.rows import key, row, rows

from .by_hand import CAPTION, SUMMARY, Job, run
from .corpora import documents, write_shards


@pytest.fixture
def listings(monkeypatch) -> Counter[str]:
    """How often each folder was listed, by its name."""
    counted: Counter[str] = Counter()
    real = Location.list_files

    def list_files(self: Location, *arguments):
        counted[self.name] += 1
        return real(self, *arguments)

    monkeypatch.setattr(Location, "list_files", list_files)
    return counted


def by_hand(spec: JobSpec) -> Job:
    revision = resolve(spec).revision
    return Job(table=Location(spec.output.path), source=spec.source, specs=spec.tasks, revision=revision)


def test_a_plan_over_what_is_known_lists_each_folder_once_and_needs_no_ray(tmp_path, model, listings, monkeypatch):
    write_shards(tmp_path / "corpus", documents(60), shards=20, group=2)
    spec = JobSpec.model_validate(
        {
            "name": "planned",
            "model": {"path": str(model), "dtype": "float32"},
            "source": {"path": str(tmp_path / "corpus"), "id": "doc_id", "text": "body", "images": "photos"},
            "tasks": [SUMMARY, CAPTION],
            "output": {"path": str(tmp_path / "table")},
        }
    )
    ran = run(by_hand(spec), part_pairs=20)
    listings.clear()
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("there is nothing to run"))
    report = plan_job(spec)
    assert listings == {"corpus": 1, "_runs": 1, "_work": 1, "results": 1, "errors": 1}
    assert report.documents == 60 and report.documents_todo == 0 and report.todo == {"summary": 0, "alt": 0}
    assert {name: counts.already_ok for name, counts in report.tasks.items()} == {
        name: counts.ok for name, counts in ran.tally.counts.items()
    }
    assert report.tasks["alt"].not_applicable == ran.tally.counts["alt"].not_applicable > 0


def test_rows_that_are_published_after_the_listing_are_found_where_they_went(tmp_path):
    table = Location(str(tmp_path))
    write_work(table, "r1", rows(row(1)))
    zones = list_zones(table)
    (work,) = zones["_work"]
    moved = table.child("results", "a", "r1-00000.parquet")
    Path(moved.url).parent.mkdir(parents=True)
    Path(work.path).rename(moved.url)
    done = read_done(table, zones)
    assert len(done) == 1 and done.status.tolist() == [OK]
    assert len(read_done(table, list_zones(table))) == 1 and key(1) == done.keys[0].hex()


def test_very_many_small_row_groups_share_tasks_and_few_have_one_each():
    def groups(count: int, size: int) -> list[RowGroup]:
        return [RowGroup(url="u", index=i, first_row=i * size, rows=size, documents=size) for i in range(count)]

    few = graph.unit_blocks(groups(40, 1), [])
    assert [block.num_rows for block in few] == [1] * 40
    many = graph.unit_blocks(groups(5000, 10), [])
    assert len(many) < 200 and sum(block.num_rows for block in many) == 5000
    assert [i for block in many for i in block.column("index").to_pylist()] == list(range(5000))
    large = graph.unit_blocks(groups(2000, 1000), [])
    assert [block.num_rows for block in large] == [1] * 2000


def test_keys_are_ordered_and_found_by_their_words_also_where_these_are_shared():
    generator = np.random.default_rng(0)
    for size in (0, 1, 2, 7, 300):
        bytes_N16 = np.zeros((size, 16), np.uint8)
        for place, values in ((3, 2), (7, 3), (15, 4)):
            bytes_N16[:, place] = generator.integers(0, values, size)
        keys = bytes_N16.reshape(-1).view("S16")
        assert (order_of(keys) == np.argsort(keys, kind="stable")).all()
        known = np.unique(keys[: size // 2])
        for wanted in zip(find(known, keys), find(known, keys, high_words(known)), strict=True):
            assert (wanted[0] == wanted[1]).all()


def test_ids_are_hashed_as_their_bytes():
    column = pa.chunked_array([pa.array(["a", None, "", "b"]), pa.array(["a"]).slice(0, 1), pa.array(["x", "b"])[1:]])
    hashes = hashes_of(column)
    assert hashes[1] == b"" and len(set(hashes.tolist())) == 4
    assert hashes[0] == hashes[4] and hashes[3] == hashes[5] and hashes[2] != b""
    broken = pa.array([b"\xff", b"\xfe"]).view(pa.string())
    assert len(set(hashes_of(broken).tolist())) == 2


def test_files_of_one_schema_share_it(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n in range(200):
        pq.write_table(pa.table({"doc_id": [f"d{n}"], "body": ["t"]}), folder / f"{n:06d}.parquet")
    corpus = Job.make(tmp_path, images=None).scan()
    assert corpus.documents == 200 and len({id(file.schema) for file in corpus.files}) == 1
