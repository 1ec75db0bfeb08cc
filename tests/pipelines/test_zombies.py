"""A publisher that wakes up late: no key twice at any moment, nothing lost, wherever it was held."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from infra.storage import Location, StorageError
from pipelines import lease as leases
from pipelines.errors import TableHeldError
from pipelines.lease import Lease
from pipelines.publish import clean_partial, write_work
from pipelines.results import ResultsLog
from tests.conditional_store import Asked, conditional_store, refuse
from tests.pipelines.fencing import Holding, LocalWorld, StoreWorld, Working, World, parts_of, publisher, state
from tests.pipelines.rows import key, row, rows
from tests.s3_server import aws_settings


@pytest.fixture(params=["local", "conditional"])
def world(request, tmp_path, monkeypatch) -> World:
    if request.param == "local":
        return LocalWorld(tmp_path, monkeypatch)
    return StoreWorld(request.getfixturevalue("conditional"))


def of_document(document: int, content: int, hour: int, **values) -> dict:
    """A row of one version of a document: another version has another key."""
    made = row(1000 * document + content, **values)
    return {**made, "document_id": f"doc-{document}", "created_at": datetime(2026, 1, 2, hour, tzinfo=UTC)}


def prepare(table: Location) -> None:
    """Some rows published, and work that waits: new ones, repeated ones, failures of which some are mended later."""
    write_work(table, "r0", rows(*(row(n, t) for n in range(3) for t in "ab"), row(20, status="failed")))
    publisher(table, "r0").publish(final=True)
    write_work(table, "r1", rows(*(row(n, t) for n in range(2, 6) for t in "ab"), row(21, "b", status="rejected")))
    write_work(table, "r1", rows(row(20, attempt=2), row(22, status="failed"), of_document(50, 1, 1, status="failed")))


def more_work(table: Location) -> None:
    """What the next run finds out meanwhile: what failed before works, what was new is made again."""
    write_work(table, "r2", rows(*(row(n, t, run="r2") for n in range(5, 8) for t in "ab"), row(22, attempt=2)))
    write_work(table, "r2", rows(of_document(50, 2, 2), row(23, status="failed"), row(24, "b", status="failed")))


RESULTS = sorted([*(key(n, t) for n in range(8) for t in "ab"), key(20), key(22), key(50_002)])
ERRORS = sorted([(key(21, "b"), "rejected", 1), (key(23), "failed", 1), (key(24, "b"), "failed", 1)])


def held_everywhere(world: World, results: list[str]) -> int:
    """Holds the zombie at each point in turn while another publishes; the table is prepared."""
    world.save()
    point = 0
    while True:
        world.restore()
        hold = Holding(point)
        zombie = Working(lambda: publisher(world.table, "r1").publish(final=True))
        world.step = hold
        zombie.start()
        held = hold.reached(zombie)
        world.step = lambda: None
        more_work(world.table)
        new = Working(lambda: publisher(world.table, "r2").publish(final=True))
        new.start()
        # Held inside a lock, it holds up the other one too: that waits, and does not hang.
        new.join(0.5 if world.table.is_local else 60)
        hold.go()
        zombie.end()
        new.end()
        where = f"held at point {point}"
        assert world.reader.wrong == [], where
        assert sorted(world.reader.look().elements()) == results, where
        assert state(world.table, "errors") == ERRORS, where
        assert world.table.child("_work").list_files("") == [], where
        if not held:
            return point
        point += 1


@pytest.mark.slow
def test_a_zombie_held_anywhere_does_no_harm(world, monkeypatch):
    prepare(world.table)
    with parts_of(3_000, monkeypatch):
        points = held_everywhere(world, RESULTS)
    assert points > 40 and world.reader.looks > 400


def test_nor_in_a_table_that_is_new(world):
    # The zombie knows of no errors and would leave empty files for both tasks.
    write_work(
        world.table, "r1", rows(*(row(n) for n in range(8)), row(20, attempt=2), row(21, "b", status="rejected"))
    )
    held_everywhere(world, sorted(set(RESULTS) - {key(n, "b") for n in range(5)}))


@pytest.mark.parametrize("seed", range(6))
def test_many_publishers_at_once(world, monkeypatch, seed):
    together(world, monkeypatch, seed)


def together(world: World, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """2 to 8 publishers over one table, each with work of its own and all with everybody's, with random delays."""
    chance = random.Random(seed)
    publishers = chance.randint(2, 8)
    slowest = chance.choice([0.0, 0.002, 0.01])
    monkeypatch.setattr("pipelines.publish._WINDOW_FILES", 2)
    monkeypatch.setattr("pipelines.table._ROW_GROUP_BYTES", 2_000)
    expected, errors = set[str](), set[str]()

    def work(run: int) -> None:
        own = random.Random(seed * 100 + run)
        publishing = publisher(world.table, f"r{run}", target=own.choice([3_000, 1 << 28]))
        for _ in range(own.randint(1, 3)):
            for _ in range(own.randint(0, 3)):
                made = [
                    row(n, t, run=f"r{run}") for n, t in own.sample([*((n, t) for n in range(40) for t in "ab")], 12)
                ]
                bad = [row(n, "b", status="failed", attempt=own.randint(1, 3)) for n in own.sample(range(30, 60), 4)]
                write_work(world.table, f"r{run}", rows(*made, *bad))
                expected.update(each["key"] for each in made)
                errors.update(each["key"] for each in bad)
            publishing.publish(final=own.random() < 0.7)
        publishing.publish(final=True)

    delays = random.Random(seed)
    world.step = lambda: time.sleep(delays.random() * slowest)
    threads = [Working(lambda run=run: work(run)) for run in range(publishers)]
    [thread.start() for thread in threads]
    [thread.end() for thread in threads]
    world.step = lambda: None
    publisher(world.table, "last").publish(final=True)
    assert world.reader.wrong == []
    assert world.reader.look() == Counter(expected)
    assert {each[0] for each in state(world.table, "errors")} == errors - expected
    assert len(state(world.table, "errors")) == len(errors - expected)
    assert world.table.child("_work").list_files("") == []


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True], ids=["before it is done", "after it was done"])
def test_cut_off_from_the_store_anywhere_the_next_publisher_ends_it(conditional, monkeypatch, answered):
    """As if killed there: nothing of what the publisher does afterwards, cleaning up included, gets through."""
    world = StoreWorld(conditional)
    prepare(world.table)
    more_work(world.table)
    world.save()
    point, more = 0, True
    while more:
        world.restore()
        count, refused = itertools.count(), threading.Event()

        def cut(asked: Asked, point=point, count=count, refused=refused) -> None:
            changes = asked.what not in ("head_object", "get_object", "list_objects")
            if (changes or not answered) and next(count) >= point:
                refused.set()
            if refused.is_set():
                refuse(403, "AccessDenied")

        setattr(conditional, "after" if answered else "before", cut)
        with parts_of(3_000, monkeypatch), suppress(StorageError):
            publisher(world.table, "r1").publish(final=True)
        conditional.before = conditional.after = lambda asked: None
        clean_partial(world.table)
        publisher(world.table, "r2").publish(final=True)
        where = f"cut off at request {point}"
        assert world.reader.wrong == [], where
        assert sorted(world.reader.look().elements()) == RESULTS and state(world.table, "errors") == ERRORS, where
        assert world.table.child("_work").list_files("") == [] and conditional.uploads == {}, where
        point, more = point + 1, refused.is_set()
    assert point > (16 if answered else 40)


def test_a_process_that_is_stopped_and_wakes_up_as_a_zombie_ends_with_one_line(conditional):
    """Stopped at its first upload, as if on another host; a minute passes, another run publishes all, it wakes up."""
    world = StoreWorld(conditional)
    prepare(world.table)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.pipelines.fencing", world.table.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    stopped, frozen = threading.Event(), threading.Event()

    def freeze(asked: Asked) -> None:
        if "/results/" in asked.key and asked.what == "put_object" and not stopped.is_set():
            os.kill(child.pid, signal.SIGSTOP)
            stopped.set()
            # The request is on its way already: it arrives when the other run is done.
            assert frozen.wait(60)

    conditional.before = freeze
    assert stopped.wait(60)
    more_work(world.table)
    with pytest.raises(TableHeldError, match=f"held by run zombie of job nightly .host .*, pid {child.pid}, since 20"):
        Lease.acquire(world.table, "r2", "nightly")
    with pytest.MonkeyPatch.context() as later:
        later.setattr(leases, "STALE_SECONDS", -5.0)
        lease = Lease.acquire(world.table, "r2", "nightly")
    with lease:
        publisher(world.table, "r2", check=lease.check).publish(final=True)
        assert sorted(world.reader.look().elements()) == RESULTS
        frozen.set()
        os.kill(child.pid, signal.SIGCONT)
        said, _ = child.communicate(timeout=60)
        lease.check()
    assert child.returncode == 5 and said.count("\n") == 1, said
    assert "this run lost the table's lease to run r2 on" in said
    assert world.reader.wrong == [] and sorted(world.reader.look().elements()) == RESULTS
    assert state(world.table, "errors") == ERRORS and world.table.child("_work").list_files("") == []


def test_a_listing_that_lacks_a_file_at_its_beginning_misleads_nobody(world, monkeypatch):
    for run in range(3):
        write_work(world.table, f"r{run}", rows(row(run), row(run + 1)))
        publisher(world.table, f"r{run}").publish(final=True)
    listed = Location.list_files
    hidden = world.table.child("results", "a", "part-000001.parquet").url
    with monkeypatch.context() as patch:
        patch.setattr(
            Location, "list_files", lambda self, *s: [file for file in listed(self, *s) if file.url != hidden]
        )
        write_work(world.table, "r3", rows(row(2), row(9)))
        assert publisher(world.table, "r3").publish(final=True)["rows"] == 1
    # one that somebody took away is no trouble
    Location(hidden).delete()
    world.reader.wrong.clear()
    write_work(world.table, "r4", rows(row(2), row(3)))
    assert publisher(world.table, "r4").publish(final=True)["rows"] == 1
    assert world.reader.wrong == []
    names = [file.url.rsplit("/", 1)[1] for file in world.table.child("results", "a").list_files()]
    assert names == [f"part-{n:06d}.parquet" for n in (0, 2, 3, 4)]


def test_files_of_older_releases_count_as_known(world, tmp_path):
    write_work(world.table, "r0", rows(row(1), row(2)))
    publisher(world.table, "r0").publish(final=True)
    [file] = world.table.child("results", "a").list_files()
    data = Location(file.url).read_bytes()
    world.table.child("results", "a", "20260101T000000Z-ab-00000.parquet").write_bytes(data)
    Location(file.url).delete()
    world.reader.wrong.clear()
    write_work(world.table, "r1", rows(row(2), row(3)))
    assert publisher(world.table, "r1").publish(final=True)["rows"] == 1
    names = [each.url.rsplit("/", 1)[1] for each in world.table.child("results", "a").list_files()]
    assert names == ["20260101T000000Z-ab-00000.parquet", "part-000000.parquet"]
    assert sorted(world.reader.look().elements()) == sorted(map(key, (1, 2, 3)))


def test_an_old_failure_does_not_come_back_after_the_success_that_mended_it(world):
    # The success stands in results/ already when the late failure of the same document arrives, under another key.
    write_work(world.table, "r2", rows(of_document(1, 2, 5), of_document(2, 2, 1)))
    publisher(world.table, "r2").publish(final=True)
    write_work(world.table, "r1", rows(of_document(1, 1, 4, status="failed"), of_document(2, 1, 4, status="failed")))
    publisher(world.table, "r3").publish(final=True)
    assert state(world.table, "errors") == [(key(2_001), "failed", 1)]


@pytest.mark.parametrize("ignored", [("If-None-Match",), ("If-Match",), ("parts",)])
def test_a_store_that_ignores_conditions_has_files_of_runs_and_lease_checks(s3, monkeypatch, ignored):
    with conditional_store(ignores=frozenset(ignored)) as store:
        for name, value in aws_settings(store.endpoint).items():
            monkeypatch.setenv(name, value)
        world, checks = StoreWorld(store), []

        def check() -> None:
            checks.append(len(store.asked))

        prepare(world.table)
        more_work(world.table)
        done = publisher(world.table, "r9", check=check)
        began = len(store.asked)
        done.publish(final=True)
        assert sorted(world.reader.look().elements()) == RESULTS and state(world.table, "errors") == ERRORS
        names = [each.url.rsplit("/", 1)[1] for each in world.table.child("results", "a").list_files()]
        assert names == ["r0-00000.parquet", "r9-00000.parquet"]
        written = [
            each.number for each in store.asked[began:] if each.what == "put_object" and ".probe" not in each.key
        ]
        assert len(written) >= 4
        # Nothing but one's own look at what stands there comes between the last check and a write.
        for number in written:
            last = max(each for each in checks if each <= number)
            between = [
                each.what for each in store.asked[last:number] if each.what not in ("head_object", "list_objects")
            ]
            assert between == []


def test_only_who_knows_all_gets_in(world, tmp_path):
    """The log itself: a second one that has not looked since is refused, reads, drops and goes on."""
    from pipelines.table import TableFile, footer_keys
    from tests.pipelines.rows import SCHEMA

    def file(name: str, *numbers: int):
        path = tmp_path / name
        with TableFile(path, SCHEMA, footer_keys("r")) as out:
            for number in numbers:
                out.write(rows(row(number)))
        return path

    first, second = (ResultsLog(world.table, name, lambda: None) for name in ("one", "two"))
    first.learn(), second.learn()
    assert first.append("a", file("x", 1, 2), SCHEMA)[1] == 2
    url, count = second.append("a", file("y", 2, 3, 1, 4), SCHEMA)
    assert count == 2 and url.endswith("part-000001.parquet")
    assert first.append("a", file("z", 3, 4), SCHEMA) == (None, 0)
    assert first.append("a", file("v", 5), SCHEMA)[0].endswith("part-000002.parquet")
    assert sorted(world.reader.look().elements()) == sorted(map(key, (1, 2, 3, 4, 5)))
    assert world.reader.wrong == [] and threading.active_count() < 100
