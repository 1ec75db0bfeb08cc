"""What a run writes down of its source, and what the next one need not read for it; whole runs, but for the model."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.shards
from infra.storage import Location, Problem, StorageError
from pipelines.asked import asked_keys, newest_asked
from pipelines.errors import TableError
from pipelines.keys import hex_of
from pipelines.known import hash_of
from pipelines.ledger import LedgerWriter
from pipelines.read import Read, as_units
from pipelines.reports import TaskCounts
from pipelines.resume import FAILED, OK
from pipelines.source import scan

from .by_hand import CAPTION, SUMMARY, Job, Ran, outcomes_of, run
from .corpora import SCHEMA, documents, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "corpus", documents(24), shards=3, group=4)
    return tmp_path


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The source files that planning opens."""
    names: list[str] = []
    real = Location.open_input

    def open_input(self: Location):
        if "/corpus/" in self.url:
            names.append(Path(self.url).name)
        return real(self)

    monkeypatch.setattr(pipelines.shards.Location, "open_input", open_input)
    return names


def already(ran: Ran) -> dict[str, TaskCounts]:
    """The counts of a run as those of one that found everything done."""
    return {
        name: TaskCounts(
            already_ok=c.ok + c.already_ok,
            already_rejected=c.rejected + c.already_rejected,
            already_failed=c.failed + c.already_failed,
            not_applicable=c.not_applicable,
        )
        for name, c in ran.tally.counts.items()
    }


def asked(job: Job, ran: Ran) -> Counter[tuple[str, str, str]]:
    rows = [row for batch in asked_keys(job.table, ran.run_id) for row in batch.to_pylist()]
    return Counter((row["key"], row["task"], row["status"]) for row in rows)


def ledger(job: Job, ran: Ran, pattern: str = "*") -> list[Path]:
    return sorted(Path(job.table.url, "_runs", ran.run_id, "asked").glob(pattern))


def rewrite(folder: Path, rows: list[dict], shard: int, shards: int = 3, group: int = 4) -> None:
    """One shard of `rows` alone."""
    size = -(-len(rows) // shards)
    piece = pa.Table.from_pylist(rows[shard * size : (shard + 1) * size], schema=SCHEMA)
    pq.write_table(piece, folder / "corpus" / f"shard-{shard}.parquet", row_group_size=group)


def test_an_unchanged_source_is_not_opened_and_counts_as_if_it_had_been_read(folder, opened):
    job = Job.make(folder, [SUMMARY, CAPTION])
    first = run(job)
    assert len(first.read) == 6 and len(first.made) == sum(c.ok for c in first.tally.counts.values()) > 10
    assert len(ledger(job, first, "part-*")) > 1 and len(ledger(job, first, "groups-*")) > 1
    opened.clear()
    for _ in range(2):
        again = run(job)
        assert again.read == [] and opened == []
        assert again.tally.documents == 24 == again.tally.documents_total
        assert again.tally.counts == already(first)
        assert asked(job, again) == asked(job, first) and max(asked(job, first).values()) == 1
        assert [path.name for path in ledger(job, again)] == ["known.parquet"], "nothing was copied"
    # Each night refers to where the pairs are, not to the night before.
    shutil.rmtree(Path(job.table.url, "_runs", again.run_id))
    assert run(job).read == []


def test_what_is_known_is_the_same_corpus(folder):
    write_shards(folder / "corpus" / "more", documents(9, first=20), shards=1, group=4)
    job = Job.make(folder, carry=["year"], filter=[["year", "!=", 1993]])
    before = job.scan()
    run(job)
    after = job.scan()
    assert after.row_groups == before.row_groups
    assert sum(len(group.duplicates) for group in before.row_groups) == 4
    assert after.files == before.files and after.carry == before.carry and (after.ids == before.ids).all()
    assert len(after.asked) == len(after.row_groups)


def test_only_the_changed_file_is_read_also_when_its_time_is_the_old_one(folder, opened):
    job = Job.make(folder)
    run(job)
    rows = documents(24)
    path = folder / "corpus" / "shard-1.parquet"
    stat = path.stat()
    rows[8 + 0]["body"], rows[8 + 1]["body"] = "something else", None
    rewrite(folder, rows, 1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    opened.clear()
    again = run(job)
    assert again.made == [("doc-008", "summary")]
    assert {name for name, _ in again.read} == set(opened) == {"shard-1.parquet"}


def test_a_file_of_the_same_size_and_time_with_another_content_is_read(tmp_path):
    def write(word: str) -> None:
        table = pa.Table.from_pylist([{"doc_id": "a", "body": word, "photos": [], "year": 1}], schema=SCHEMA)
        pq.write_table(table, tmp_path / "corpus" / "a.parquet", compression="none")

    (tmp_path / "corpus").mkdir()
    write("this")
    path = tmp_path / "corpus" / "a.parquet"
    before = path.stat()
    job = Job.make(tmp_path)
    assert run(job).made == [("a", "summary")]
    write("that")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert run(job).made == [("a", "summary")]
    assert run(job).read == []


def test_a_new_file_with_a_known_id_changes_who_comes_first(folder):
    job = Job.make(folder)
    run(job)
    # Later in the source: the new document is the duplicate, the old row group stays known.
    write_shards(folder / "corpus" / "z", [{**documents(1)[0], "body": "later"}], shards=1, group=4)
    later = run(job)
    assert later.read == [("shard-0.parquet", 0)] and later.tally.counts["summary"].rejected == 1
    # Earlier in the source: the new document is made, the old one is the duplicate now, and read for it.
    early = {**documents(1)[0], "body": "earlier"}
    write_shards(folder / "corpus" / "a", [early], shards=1, group=4)
    earlier = run(job)
    assert earlier.tally.counts["summary"].ok == 1 and earlier.tally.counts["summary"].rejected == 1
    assert len(earlier.read) == 2 and run(job).read == []
    # And when it is gone again, the old one counts as it did: its row is there.
    shutil.rmtree(folder / "corpus" / "a")
    back = run(job)
    assert back.made == [] and back.read == [("shard-0.parquet", 0)]


@pytest.mark.parametrize(
    ("tasks", "changes"),
    [
        ([SUMMARY, CAPTION], {}),
        ([{**SUMMARY, "prompt": "In short:"}], {}),
        ([{**SUMMARY, "where": [["year", "<", 2000]]}], {}),
        ([SUMMARY], {"filter": [["year", "<", 2000]]}),
        ([SUMMARY], {"carry": ["year"]}),
        ([SUMMARY], {"images": None}),
        ([SUMMARY], {"revision": "r2"}),
    ],
    ids=["a new task", "a prompt", "where", "a filter", "carry", "images", "a revision"],
)
def test_what_decides_the_keys_decides_what_is_read(folder, tasks, changes):
    run(Job.make(folder))
    job = Job.make(folder, tasks, **changes)
    corpus = job.scan()
    skip = job.skip(corpus)
    assert len(skip.groups) == 6 and skip.documents == 0
    assert corpus.row_groups == scan(job.source).row_groups


def test_fewer_tasks_are_covered_and_only_they_are_asked(folder):
    both = Job.make(folder, [SUMMARY, CAPTION])
    first = run(both)
    one = Job.make(folder, [CAPTION])
    again = run(one)
    assert again.read == [] and again.tally.counts == {"alt": already(first)["alt"]}
    assert asked(one, again) == Counter(each for each in asked(both, first) if each[1] == "alt")


def test_failed_pairs_are_tried_again_until_their_attempts_are_used_up(folder):
    job = Job.make(folder)

    def status(document: str | None, task: str) -> int:
        return FAILED if document == "doc-009" else OK

    for attempt in range(3):
        ran = run(job, status=status)
        assert ("doc-009", "summary") in ran.made
        assert len(ran.read) == (6 if attempt == 0 else 1)
    last = run(job, status=status)
    assert last.read == [] and last.tally.counts["summary"].already_failed == 1
    retried = run(job, retry_failed=True)
    assert retried.made == [("doc-009", "summary")] and len(retried.read) == 1
    assert run(job, retry_failed=True).read == []


def test_a_status_that_a_killed_run_changed_is_written_down_by_the_next(folder):
    job = Job.make(folder)
    first = run(job, status=lambda document, task: FAILED if document == "doc-009" else OK)
    assert {status for _, _, status in asked(job, first)} == {"ok", "failed"}
    killed = run(job, end=False, part_pairs=1 << 20)
    assert killed.made == [("doc-009", "summary")] and ledger(job, killed, "groups-*") == []
    again = run(job)
    assert again.made == [] and len(again.read) == 1, "the row is there, but no ledger says so"
    assert {status for _, _, status in asked(job, again)} == {"ok"} and run(job).read == []


def test_a_ledger_alone_makes_nothing_done(folder):
    job = Job.make(folder)
    first = run(job)
    shutil.rmtree(Path(job.table.url, "results"))
    again = run(job)
    assert len(again.read) == 6 and sorted(again.made) == sorted(first.made)


def test_a_killed_runs_parts_count_as_far_as_they_go(folder):
    job = Job.make(folder)
    killed = run(job, end=False)
    assert ledger(job, killed, "groups-*") and sum(asked(job, killed).values()) < len(killed.made)
    again = run(job)
    assert 0 < len(again.read) < 6, "only row groups that came out whole and were written down are known"
    assert again.made == [], "all rows had become durable"
    # Killed before anything became durable.
    shutil.rmtree(Path(job.table.url, "results"))
    assert len(run(job, end=False).read) == 6


@pytest.mark.parametrize("how", ["gone", "damaged", "another file"])
@pytest.mark.parametrize("kind", ["part-*", "groups-*"])
def test_a_ledger_file_that_cannot_be_used_makes_the_source_be_read(folder, kind, how):
    job = Job.make(folder)
    first = run(job)
    victim, before = ledger(job, first, kind)[0], asked(job, first)
    match how:
        case "gone":
            victim.unlink()
        case "damaged":
            victim.write_bytes(victim.read_bytes()[:-20])
        case "another file":
            pq.write_table(pa.table({"key": ["x"]}), victim)
    again = run(job)
    assert 0 < len(again.read) < 6 and again.made == []
    assert already(again) == already(first)
    assert {key for key, *_ in asked(job, again)} == {key for key, *_ in before}
    assert run(job).read == []


def test_pairs_of_an_older_run_that_went_away_are_an_error_and_not_a_smaller_answer(folder):
    job = Job.make(folder)
    first = run(job)
    again = run(job)
    ledger(job, first, "part-*")[0].unlink()
    with pytest.raises(TableError, match=r"part-00000\.parquet: a newer run counts on this file .* run the job again"):
        asked(job, again)
    assert newest_asked(job.table)[1] is not None


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string()), pa.struct([("path", pa.string())])])
def test_row_groups_whose_images_stand_elsewhere_are_read_each_time(tmp_path, kind):
    cell = {"struct<path: string>": {"path": "a.png"}, "list<item: string>": ["a.png"]}.get(str(kind), "a.png")
    (tmp_path / "corpus").mkdir()
    columns = {"doc_id": list("abcd"), "body": list("efgh"), "photos": pa.array([None, None, cell, None], kind)}
    pq.write_table(pa.table(columns), tmp_path / "corpus" / "a.parquet", row_group_size=2)
    job = Job.make(tmp_path)
    run(job)
    again = run(job)
    assert again.read == [("a.parquet", 1)] and again.made == []


def test_a_file_that_changes_while_the_run_reads_is_not_written_down(folder):
    job = Job.make(folder)
    rows = documents(24)
    first = run(job, part_pairs=1 << 20, meanwhile=lambda: rewrite(folder, rows[:-1], 2))
    assert len(first.read) == 6
    written = {name for path in ledger(job, first, "groups-*") for name in pq.read_table(path)["file"].to_pylist()}
    # An etag that comes back with its content must not bring back the keys of what was read in between.
    assert written == {hash_of(str(folder / "corpus" / f"shard-{n}.parquet")) for n in range(2)}
    assert {name for name, _ in run(job).read} == {"shard-2.parquet"}


def test_a_document_that_comes_twice_does_not_stand_for_another(folder):
    job = Job.make(folder)
    corpus = job.scan()
    skip = job.skip(corpus)
    (group, *_) = skip.groups
    rows = next(Read(job.source, corpus.carry)(as_units([group])))
    outcomes, _ = outcomes_of(job, rows, skip, "r", lambda *_: OK, False)
    doubled = pa.concat_tables([outcomes.slice(0, 2), outcomes.slice(1, 2)])
    for given, whole in ((doubled, False), (outcomes, True)):
        run_id = f"r{whole}"
        with LedgerWriter(job.table, run_id, corpus, [group], job.decides) as writer:
            writer.add(given)
        assert job.table.child("_runs", run_id, "asked", "groups-00000.parquet").exists() is whole


def test_rows_that_could_not_be_read_are_read_again(tmp_path):
    (tmp_path / "corpus").mkdir()
    bad = pa.array([b"fine", b"\xff\xfe", None, b"too"]).cast(pa.binary()).view(pa.string())
    columns = {"doc_id": pa.array(["a", None, "c", "a"]), "body": ["t"] * 4, "note": bad}
    path = tmp_path / "corpus" / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4)
    job = Job.make(tmp_path, carry=["note"], images=None)
    first = run(job)
    assert first.tally.counts["summary"].rejected == 2 and first.tally.counts["summary"].ok == 2
    assert run(job).read == [], "an id that is null or repeated is no damage"
    pq.write_table(pa.table({**columns, "doc_id": list("abcd")}), path, row_group_size=4)
    assert len(run(job).made) == 1
    assert run(job).read == [("a.parquet", 0)], "what looked damaged may have been the store's doing"


def test_row_groups_of_which_nothing_passes_are_known_too(folder):
    job = Job.make(folder, filter=[["year", ">=", 2002]])
    first = run(job)
    assert first.tally.documents == 12
    assert run(job).read == []


def test_the_keys_of_an_older_versions_run_can_still_be_read(tmp_path):
    table = Location(str(tmp_path))
    keys = hex_of(np.array([b"a" * 16, b"b" * 16], "S16"))
    names = pa.array(["t", "u"]).dictionary_encode()
    statuses = pa.array(["pending", "ok"]).dictionary_encode()
    path = tmp_path / "_runs" / "20260101T000000000-aa" / "keys.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"key": keys, "task": names, "status": statuses}), path)
    (batch,) = asked_keys(table, "20260101T000000000-aa")
    assert batch.to_pylist() == [
        {"key": "61" * 16, "task": "t", "status": "pending"},
        {"key": "62" * 16, "task": "u", "status": "ok"},
    ]
    with pytest.raises(StorageError) as caught:
        list(asked_keys(table, "20260102T000000000-aa"))
    assert caught.value.problem is Problem.MISSING
