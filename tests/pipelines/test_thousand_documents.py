"""A thousand documents with every kind of bad input at once: each bad row gets its code, each good one is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from infra.storage import Location
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.lineage import read_manifests
from pipelines.resolve import Resolved

from .bad_corpus import (
    DATA_KINDS,
    LIMITS,
    NAMES,
    OK,
    TASKS,
    Doc,
    expected_counts,
    expected_rows,
    make_documents,
    status_of,
    write_corpus,
)
from .crashing import load_crashing

COUNT, SEED = 1000, 20
# 5 % of each kind; of those that crash the engine fewer, because each makes it load several times. Where the engine is
# no process of its own there are none: a crash would end the worker.
EACH, CRASHING = 50, 2
KINDS = dict.fromkeys(DATA_KINDS, EACH) | ({"crash": CRASHING} if find_spec("workers.engine_process") else {})

pytestmark = pytest.mark.slow


def make_job(folder: Path, model: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "thousand",
            "model": {"path": str(model), "dtype": "float32"},
            "source": {
                "path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photos", "carry": ["note"],
            },
            "tasks": TASKS,
            "output": {"path": str(folder / "table")},
            "limits": LIMITS,
        }
    )  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    zones = [ds.dataset(folder / "table" / zone).to_table() for zone in ("results", "errors")]
    return [row for zone in zones for row in zone.to_pylist()]


def place(row: dict) -> tuple[str, int, str]:
    return Path(row["source_path"]).name, row["source_row"], row["task"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("thousand")


@pytest.fixture(scope="module")
def docs(folder) -> list[Doc]:
    docs = make_documents(COUNT, KINDS, SEED)
    write_corpus(docs, folder / "corpus", shards=5)
    (folder / "elsewhere.png").write_bytes(b"outside of the source: never read")
    return docs


@contextmanager
def crashing_engines() -> Iterator[None]:
    """Runs that start in the block have engines that certain documents crash."""
    real = Resolved.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resolved, "settings", lambda self, **given: replace(real(self, **given), load=load_crashing))
        yield


@pytest.fixture(scope="module")
def report(local_ray, folder, docs, model):
    with crashing_engines():
        return run_job(make_job(folder, model), job_text="")


@pytest.fixture(scope="module")
def rows(report, folder) -> list[dict]:
    return rows_of(folder)


def test_the_corpus_holds_that_share_of_each_kind(docs):
    kinds = Counter(doc.kind for doc in docs)
    assert len(docs) == COUNT and kinds.pop("good") > 100 and dict(kinds) == KINDS


def test_every_pair_that_applies_is_one_row_with_its_code(docs, rows):
    wanted = expected_rows(docs)
    found = {place(row): row["error_code"] for row in rows}
    assert len(found) == len(rows) == len({row["key"] for row in rows})
    wrong = {at: (found.get(at, "no row"), wanted.get(at, "no row")) for at in found.keys() | wanted.keys()}
    kind = {doc.place: doc.kind for doc in docs}
    wrong = {(kind.get(at[:2]), *at): pair for at, pair in wrong.items() if pair[0] != pair[1]}
    assert not wrong, f"{len(wrong)} rows, found and wanted: {dict(list(wrong.items())[:20])}"


def test_rows_say_what_they_are(docs, rows):
    by_place = {doc.place: doc for doc in docs}
    for row in rows:
        doc = by_place[place(row)[:2]]
        unread = doc.kind in ("damaged", "no_parquet", "carried_not_utf8", "id_not_utf8")
        assert row["document_id"] == (None if unread or doc.id is None else doc.id.decode())
        if row["error_code"] is OK:
            assert row["status"] == "ok" and row["text"] is not None and row["error_message"] is None
            assert row["note"] == doc.note.decode()
        else:
            assert row["status"] == status_of(row["error_code"]) and row["text"] is None
            assert row["error_message"] and row["error_message"].isprintable()


def test_good_documents_get_the_text_that_they_get_alone(docs, rows, local_ray, tmp_path, model):
    alone = [doc for doc in docs if doc.is_good]
    places = {doc.id: doc.place for doc in alone}
    write_corpus(alone, tmp_path / "corpus", shards=1)
    for doc in alone:
        doc.place = places[doc.id]
    run_job(make_job(tmp_path, model), job_text="")
    expected = {(row["document_id"], row["task"]): row["text"] for row in rows_of(tmp_path) if row["status"] == "ok"}
    made = {(row["document_id"], row["task"]): row["text"] for row in rows if row["status"] == "ok"}
    assert len(made) > 300 and len(set(made.values())) > 100
    assert made == expected


def test_the_counts_add_up(docs, rows, report, folder):
    counts = expected_counts(docs)
    manifest = read_manifests(Location(str(folder / "table")))[0]
    assert manifest["run_id"] == report.run_id and manifest["exit"] == 0
    for name in NAMES:
        said = report.tasks[name]
        assert (said.ok, said.rejected, said.failed) == tuple(counts[name][s] for s in ("ok", "rejected", "failed"))
        assert said.not_applicable == counts[name]["not_applicable"]
        assert said.applicable + said.not_applicable == COUNT
        written = manifest["counts"][name]
        assert (written["ok"], written["rejected"], written["failed"]) == (said.ok, said.rejected, said.failed)
        assert written["not_applicable"] == said.not_applicable
    assert sum(said.applicable for said in report.tasks.values()) == len(rows)
    assert len(manifest["unreadable"]) == EACH


def test_a_second_run_makes_only_what_failed(docs, rows, folder, model):
    """Without what crashed it: the engine was mended."""
    again = run_job(make_job(folder, model), job_text="")
    before, after = {row["key"]: row for row in rows}, {row["key"]: row for row in rows_of(folder)}
    assert before.keys() == after.keys()
    changed = {key for key, row in after.items() if row != before[key]}
    assert changed == {key for key, row in before.items() if row["status"] == "failed"}
    assert all((after[key]["status"], after[key]["attempt"]) == ("ok", 2) for key in changed)
    assert sum(counts.made for counts in again.tasks.values()) == len(changed)

    third = run_job(make_job(folder, model), job_text="")
    assert all(counts.made == 0 for counts in third.tasks.values())
    assert third.input_tokens == third.output_tokens == 0
    assert {row["key"]: row for row in rows_of(folder)} == after
