"""The lease while its store breaks: one holder, a heart that goes on beating, and no run that hangs."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from infra.storage import Location, StorageError
from pipelines import lease as leases
from pipelines.errors import TableHeldError
from pipelines.lease import Lease, current_holder
from tests.fault_proxy import QUICK, Fault

HARD = [kind for kind in QUICK if kind is not Fault.DRIP]


@pytest.fixture
def table(s3, stormy) -> Location:
    return Location(s3.url(uuid.uuid4().hex))


@pytest.mark.parametrize("fault", HARD, ids=lambda kind: kind.name)
def test_one_holds_it_through_any_fault(fault, table, proxy):
    with proxy.breaking(fault, rate=0.6, seed=2) as counted:
        for number in range(3):
            with Lease.acquire(table, f"run-{number}", "nightly") as held:
                held.check()
                with pytest.raises(TableHeldError, match=f"run-{number}"):
                    Lease.acquire(table, "another", "nightly")
                held.check()
            assert current_holder(table) is None
    assert counted.total() >= 2
    assert [table.below(f) for f in table.list_files("") if "clock" in f.url or "probe" in f.url] == []


def test_the_heart_beats_on_through_bursts(table, proxy, stormy):
    stormy.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    with Lease.acquire(table, "run-1", "nightly") as held:
        before = json.loads(table.child("_runs", "lease.json").read_bytes())["heartbeat"]
        with proxy.breaking(*HARD, rate=0.5, seed=5, burst=3) as counted:
            deadline = time.monotonic() + 30
            while counted.total() < 25 and time.monotonic() < deadline:
                time.sleep(0.1)
        held.check()
        deadline = time.monotonic() + 20
        while (now := json.loads(table.child("_runs", "lease.json").read_bytes())["heartbeat"]) == before:
            assert time.monotonic() < deadline, "it no longer beats"
            time.sleep(0.1)
        assert now > before
    assert counted.total() >= 25 and current_holder(table) is None


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET_BEFORE, Fault.STALL], ids=lambda kind: kind.name)
def test_a_store_that_fails_for_good_hangs_nobody(fault, table, proxy, stormy):
    held = Lease.acquire(table, "run-1", "nightly")
    stormy.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.5")
    stormy.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "1")
    started = time.monotonic()
    with proxy.breaking(fault):
        with pytest.raises(StorageError, match=r"lease\.json"):
            held.check()
        with pytest.raises(StorageError):
            Lease.acquire(table, "run-2", "nightly")
        held.release()
    assert time.monotonic() - started < 30
    # Its own process still lives: to others it looks held, until it is given back or goes stale.
    assert current_holder(table).run_id == "run-1"
