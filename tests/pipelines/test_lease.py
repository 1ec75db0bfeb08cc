"""One run holds a table; the dead lose it, and who lost it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from infra.storage import Location, StorageError
from pipelines import lease as leases
from pipelines.errors import TableHeldError
from pipelines.lease import Lease, current_holder
from tests.conditional_store import refuse

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory", "s3", "conditional"])
def table(request, tmp_path, s3) -> Location:
    name = uuid.uuid4().hex
    if request.param == "conditional":
        return Location(request.getfixturevalue("conditional").url(name))
    return Location({"local": str(tmp_path), "memory": f"memory://{name}", "s3": s3.url(name)}[request.param])


def test_the_second_is_refused_until_the_first_is_done(table):
    with Lease.acquire(table, "run-1", "nightly") as held:
        assert held.run_id == "run-1" and current_holder(table).run_id == "run-1"
        with pytest.raises(TableHeldError, match=rf"run-1 of job nightly .*pid {os.getpid()}, since 20") as refused:
            Lease.acquire(table, "run-2", "other")
        assert refused.value.exit_code == 5
        held.check()
    assert current_holder(table) is None
    Lease.acquire(table, "run-3", "other").release()
    left = table.child("_runs", "lease.json")
    # Where nothing is deleted on a condition, a lease that names nobody stays.
    assert left.read_bytes() == b"{}" if table.conditional and not table.is_local else not left.exists()


def of_another_host(table: Location) -> None:
    location = table.child("_runs", "lease.json")
    there = json.loads(location.read_bytes())
    location.write_bytes(json.dumps({**there, "place": "elsewhere", "host": "node-7"}).encode())


def test_another_hosts_lease_lives_by_its_heartbeat(table, monkeypatch):
    first = Lease.acquire(table, "run-1", "nightly")
    of_another_host(table)
    with pytest.raises(TableHeldError, match="node-7"):
        Lease.acquire(table, "run-2", "nightly")
    with monkeypatch.context() as later:
        later.setattr(leases, "STALE_SECONDS", -5.0)
        second = Lease.acquire(table, "run-2", "nightly")
    with second:
        with pytest.raises(TableHeldError, match="lost the table's lease to run run-2"):
            first.check()
        first.release()
        second.check()


def test_a_heartbeat_keeps_it_and_sees_that_it_is_lost(table, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    location = table.child("_runs", "lease.json")
    with Lease.acquire(table, "run-1", "nightly") as held:
        before = json.loads(location.read_bytes())["heartbeat"]
        deadline = time.monotonic() + 10
        while json.loads(location.read_bytes())["heartbeat"] == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads(location.read_bytes())["heartbeat"] > before
        stolen = {**json.loads(location.read_bytes()), "token": "another", "run_id": "run-9"}
        deadline = time.monotonic() + 10
        while held._lost is None and time.monotonic() < deadline:
            location.write_bytes(json.dumps(stolen).encode())
            time.sleep(0.1)
        with pytest.raises(TableHeldError, match="run-9"):
            held.check()
    assert json.loads(location.read_bytes())["run_id"] == "run-9"


def test_a_killed_process_leaves_nothing_in_the_way(table):
    if table.url.startswith("memory"):
        pytest.skip("memory is one process's own")
    script = (
        "import sys, time; from infra.storage import Location; from pipelines.lease import Lease\n"
        "Lease.acquire(Location(sys.argv[1]), 'run-1', 'nightly'); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, table.url], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(TableHeldError, match=f"pid {child.pid}"):
        Lease.acquire(table, "run-2", "nightly")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert current_holder(table) is None
    with Lease.acquire(table, "run-2", "nightly") as held:
        held.check()


def test_of_many_starters_one_wins(table):
    for _ in range(2 if table.is_local else 1):
        won, refused = [], []

        def start(number: int, won=won, refused=refused) -> None:
            try:
                won.append(Lease.acquire(table, f"run-{number}", "nightly"))
            except TableHeldError:
                refused.append(number)

        threads = [threading.Thread(target=start, args=(n,)) for n in range(6)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(won) == 1 and len(refused) == 5
        won[0].release()


def test_garbage_in_the_leases_place_is_taken_over(table):
    table.child("_runs", "lease.json").write_bytes(b"{half a le")
    Lease.acquire(table, "run-1", "nightly").release()


def stale(table: Location, monkeypatch) -> Lease:
    """A lease of another host's whose holder has been silent for long."""
    first = Lease.acquire(table, "run-1", "nightly")
    first._stop.set()
    of_another_host(table)
    monkeypatch.setattr(leases, "_is_held", lambda location, there: there.run_id != "run-1")
    return first


@pytest.mark.parametrize("left", ["nothing", "a dead run's", "one given back"])
@pytest.mark.parametrize("promising", ["local", "conditional"])
def test_whatever_is_left_there_exactly_one_of_several_starters_wins(request, tmp_path, monkeypatch, promising, left):
    local = promising == "local"
    table = Location(str(tmp_path) if local else request.getfixturevalue("conditional").url("table"))
    assert table.conditional
    monkeypatch.setattr(leases, "_SETTLE_SECONDS", 1e9)  # nobody waits for it here
    for _ in range(3):
        if left == "a dead run's":
            stale(table, monkeypatch)
        elif left == "one given back":
            Lease.acquire(table, "run-0", "nightly").release()
        won, refused, together = [], [], threading.Barrier(6)

        def start(number: int, won=won, refused=refused, together=together) -> None:
            together.wait()
            try:
                won.append(Lease.acquire(table, f"run-{number}", "nightly"))
            except TableHeldError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=start, args=(n,)) for n in range(2, 8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(won) == 1 and len(refused) == 5
        assert all(f"held by run {won[0].run_id} of job nightly" in said for said in refused)
        won[0].check()
        won[0].release()
        table.child("_runs", "lease.json").delete()


def test_the_heartbeat_of_a_zombie_puts_nothing_back(conditional, monkeypatch):
    table = Location(conditional.url("table"))
    zombie = stale(table, monkeypatch)
    # Its beat is on its way, past every look of its own, when another takes the lease over.
    taken = []

    def take_over(asked) -> None:
        if asked.what == "put_object" and not taken:
            taken.append(None)
            taken.append(Lease.acquire(table, "run-2", "nightly"))

    zombie._version = table.child("_runs", "lease.json").version()
    conditional.before = take_over
    zombie._renew()
    conditional.before = lambda asked: None
    assert zombie._lost.run_id == "run-2" and current_holder(table).run_id == "run-2"
    with pytest.raises(TableHeldError, match="to run run-2"):
        zombie.check()
    zombie.release()
    taken[1].check()
    taken[1].release()


def test_a_beat_whose_answer_was_lost_is_ones_own(conditional):
    table = Location(conditional.url("table"))
    with Lease.acquire(table, "run-1", "nightly") as held:
        # Refused by the store, done all the same: an answer that says nothing about what was done.
        conditional.after = lambda asked: refuse(403, "AccessDenied") if asked.what == "put_object" else None
        with pytest.raises(StorageError):
            held._renew()
        conditional.after = lambda asked: None
        for _ in range(2):
            held._renew()
            held.check()
        assert held._version == table.child("_runs", "lease.json").version()


def test_giving_back_too_late_takes_nothing_away(conditional, monkeypatch):
    table = Location(conditional.url("table"))
    zombie, taken = stale(table, monkeypatch), []

    def take_over(asked) -> None:
        if asked.what == "put_object" and not taken:
            taken.append(None)
            taken[0] = Lease.acquire(table, "run-2", "nightly")

    there = table.child("_runs", "lease.json")
    there.write_bytes(there.read_bytes().replace(b"elsewhere", zombie._holder.place.encode()))
    conditional.before = take_over
    zombie.release()
    conditional.before = lambda asked: None
    taken[0].check()
    assert current_holder(table).run_id == "run-2"
    taken[0].release()
