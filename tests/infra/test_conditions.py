"""Conditional writes: what is promised is tried on a store that keeps them, on one that ignores them, and locally."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra import conditions, local_files
from infra.storage import Location, Problem, StorageError
from tests.conditional_store import Asked, Lost, Store, conditional_store, refuse
from tests.s3_server import aws_settings, s3_server

PROBED = ("If-None-Match", "If-Match", "parts")


@pytest.fixture
def store(monkeypatch):
    with conditional_store() as serving:
        for name, value in aws_settings(serving.endpoint).items():
            monkeypatch.setenv(name, value)
        yield serving


@pytest.fixture(params=["local", "conditional"])
def root(request, tmp_path) -> Location:
    if request.param == "local":
        return Location(str(tmp_path / "table"))
    return Location(request.getfixturevalue("store").url("table"))


def parted(monkeypatch, tmp_path: Path, size: int = 9_999) -> Path:
    """A file that goes up in parts."""
    monkeypatch.setattr(conditions, "PART_BYTES", 1_000)
    file = tmp_path / "large"
    file.write_bytes(os.urandom(size))
    return file


@pytest.mark.parametrize("ignored", [(), *((each,) for each in PROBED), PROBED])
def test_a_store_is_known_by_what_it_does(store, ignored):
    store.ignores = frozenset(ignored)
    table = Location(store.url("table"))
    assert table.conditional is (not ignored)
    asked = len(store.asked)
    assert table.conditional is (not ignored) and table.child("a").conditional is (not ignored)
    assert len(store.asked) == asked, "asked again"
    assert store.objects == {} and store.uploads == {}


def test_a_store_without_conditions_is_known_too(tmp_path):
    with s3_server(tmp_path) as plain:
        assert not Location(plain.url("table")).conditional
        assert list(Location(plain.url("table")).list_files("")) == []
    assert not Location("memory://x").conditional


def test_lost_answers_do_not_make_it_look_like_another_store(store):
    lost = set()

    def after(asked: Asked) -> None:
        if asked.what in ("put_object", "complete", "head_object") and asked.what not in lost:
            lost.add(asked.what)
            raise Lost

    store.after = after
    assert Location(store.url("table")).conditional and len(lost) == 3


def test_a_store_that_refuses_everything_says_so(store):
    store.before = lambda asked: refuse(403, "AccessDenied")
    with pytest.raises(StorageError, match="access denied"):
        Location(store.url("table")).conditional  # noqa: B018


def test_one_of_two_makes_it(root, tmp_path):
    file, source = root.child("a", "x"), tmp_path / "source"
    source.write_bytes(b"2")
    assert root.conditional and file.version() is None
    assert file.create_exclusive(b"1") and not file.create_exclusive(source) and file.read_bytes() == b"1"
    seen = file.version()
    assert file.replace_seen(source, None) is None and file.read_bytes() == b"1"
    newer = file.replace_seen(source, seen)
    assert newer == file.version() != seen and file.read_bytes() == b"2"
    assert file.replace_seen(b"3", seen) is None and not file.remove_seen(seen, b"free")
    assert file.read_bytes() == b"2"
    assert file.remove_seen(newer, b"free")
    assert file.read_bytes() == b"free" if not root.is_local else not file.exists()
    assert root.child("b").replace_seen(b"1", "never") is None and not root.child("b").exists()
    assert root.child("b").replace_seen(b"1", None) == root.child("b").version()
    assert [root.below(each) for each in root.list_files("")] == (["b"] if root.is_local else ["a/x", "b"])


def test_counting_together_no_count_is_lost(root):
    file = root.child("count")
    file.create_exclusive(b"0")

    def add() -> None:
        for _ in range(10):
            while True:
                seen = file.version()
                if file.replace_seen(str(int(file.read_bytes()) + 1).encode(), seen):
                    break

    threads = [threading.Thread(target=add) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert file.read_bytes() == b"40"


def test_of_many_one_makes_it(root):
    for name in "abc":
        file, won = root.child(name), []
        sources = [str(n).encode() for n in range(8)]
        threads = [
            threading.Thread(target=lambda s=s, f=file, w=won: f.create_exclusive(s) and w.append(s)) for s in sources
        ]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert won == [file.read_bytes()]


@pytest.mark.parametrize("what", ["put_object", "complete"])
def test_what_was_done_and_not_answered_is_ones_own(store, monkeypatch, tmp_path, what):
    file, source = Location(store.url("table", "x")), parted(monkeypatch, tmp_path)
    data = source.read_bytes() if what == "complete" else b"small"
    assert file.parent.conditional
    lost = []

    def after(asked: Asked) -> None:
        if asked.what == what and not lost:
            lost.append(asked)
            raise Lost

    store.after = after
    assert file.create_exclusive(source if what == "complete" else data) and file.read_bytes() == data
    assert len(lost) == 1 and sum(each.what == what and each.key == lost[0].key for each in store.asked) == 2
    lost.clear()
    made = file.replace_seen(b"new" if what == "put_object" else source, file.version())
    assert made == file.version() and len(lost) == 1
    assert store.uploads == {}
    # and what another made in between is not
    lost.clear()
    seen = file.version()

    def other_first(asked: Asked) -> None:
        if asked.what == what and not lost:
            lost.append(asked)
            store.objects["table/x"] = store.made(b"theirs")
            raise Lost

    store.before = other_first
    assert file.replace_seen(b"mine" if what == "put_object" else source, seen) is None
    assert file.read_bytes() == b"theirs"


def test_large_files_go_up_in_parts_and_whole(store, monkeypatch, tmp_path):
    file, source = Location(store.url("table", "x")), parted(monkeypatch, tmp_path)
    seen = []
    store.changed = lambda: seen.append({name: len(data) for name, data in store.below("table/x").items()})
    assert file.create_exclusive(source) and file.read_bytes() == source.read_bytes()
    parts = [each for each in store.asked if each.what == "upload_part" and each.key == "table/x"]
    assert len(parts) == 10
    assert all(sizes in ({}, {"table/x": 9_999}) for sizes in seen)
    # another that comes late sends no parts
    assert not file.create_exclusive(source)
    assert len([each for each in store.asked if each.what == "upload_part" and each.key == "table/x"]) == 10


def test_one_that_is_overtaken_while_its_parts_go_up_is_refused(store, monkeypatch, tmp_path):
    file, source = Location(store.url("table", "x")), parted(monkeypatch, tmp_path)
    assert file.parent.conditional

    def overtake(asked: Asked) -> None:
        if asked.what == "complete":
            with store.lock:
                store.objects.setdefault("table/x", store.made(b"theirs"))

    store.before = overtake
    assert not file.create_exclusive(source)
    assert file.read_bytes() == b"theirs" and store.uploads == {}


@pytest.mark.parametrize("what", ["upload_part", "complete"])
def test_parts_of_an_upload_that_fails_are_not_left(store, monkeypatch, tmp_path, what):
    monkeypatch.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "1")
    file, source = Location(store.url("table", "x")), parted(monkeypatch, tmp_path)
    assert file.parent.conditional
    tried = []

    def fail(asked: Asked) -> None:
        if asked.what == what:
            tried.append(asked)
            if len(tried) > 2:
                refuse(500, "InternalError")

    store.before = fail if what == "upload_part" else lambda a: refuse(403, "AccessDenied") if a.what == what else None
    with pytest.raises(StorageError):
        file.create_exclusive(source)
    assert store.uploads == {} and store.objects == {}


def test_a_conflict_is_tried_again(store, monkeypatch):
    file, conflicts = Location(store.url("table", "x")), []
    assert file.parent.conditional

    def conflict(asked: Asked) -> None:
        if asked.what == "put_object" and len(conflicts) < 2:
            conflicts.append(asked)
            refuse(409, "ConditionalRequestConflict")

    store.before = conflict
    assert file.create_exclusive(b"1") and file.read_bytes() == b"1"
    monkeypatch.setattr(conditions, "_TRIES", 3)
    store.before = lambda asked: refuse(409, "ConditionalRequestConflict") if asked.what == "put_object" else None
    with pytest.raises(StorageError, match="in conflict") as said:
        file.replace_seen(b"2", file.version())
    assert said.value.problem is Problem.BUSY


def test_a_missing_bucket_is_named(store):
    with pytest.raises(StorageError, match="bucket does not exist"):
        Location("s3://elsewhere/table").conditional  # noqa: B018


def test_without_hard_links_still_one_makes_it(tmp_path, monkeypatch):
    def no_links(*_) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    test_of_many_one_makes_it(Location(str(tmp_path)))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_link_that_a_network_file_system_made_twice_is_ones_own(tmp_path, monkeypatch):
    link = os.link

    def twice(*names) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", twice)
    assert Location(str(tmp_path / "x")).create_exclusive(b"1")
    assert not Location(str(tmp_path / "x")).create_exclusive(b"2")
    assert not list(tmp_path.glob("*.tmp"))


def test_without_locks_a_file_system_promises_nothing(tmp_path, monkeypatch):
    def no_locks(*_) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    assert Location(str(tmp_path / "a")).conditional
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert not Location(str(tmp_path / "b")).conditional
    file = Location(str(tmp_path / "x"))
    assert file.create_exclusive(b"1") and file.replace_seen(b"2", file.version()) and file.read_bytes() == b"2"


def test_a_stopped_process_that_keeps_a_lock_is_told_of_and_a_killed_one_keeps_none(tmp_path, monkeypatch):
    file = Location(str(tmp_path / "x"))
    script = (
        "import os, signal, sys; from infra import local_files\n"
        "with local_files.locked(sys.argv[1]): print('locked', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, file.url], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    monkeypatch.setattr(local_files, "LOCK_SECONDS", 0.2)
    with pytest.raises(StorageError, match="has kept this file locked; it may be stopped") as said:
        file.replace_seen(b"1", None)
    assert "\n" not in str(said.value) and not file.exists() and not list(tmp_path.glob("*.tmp"))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert file.replace_seen(b"1", None)


def test_a_store_that_changes_its_mind_between_processes_is_asked_anew(store):
    assert Location(store.url("table")).conditional
    with conditional_store(ignores=frozenset(PROBED)) as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", other.endpoint)
        assert not Location(other.url("table")).conditional
    assert isinstance(store, Store) and Location(store.url("table")).conditional
