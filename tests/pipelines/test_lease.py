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

from infra.storage import Location
from pipelines import lease as leases
from pipelines.errors import TableHeldError
from pipelines.lease import Lease, current_holder

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
