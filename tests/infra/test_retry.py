"""How trouble is waited out: how long, how often, and what is not tried again."""

from __future__ import annotations

import asyncio
import time

import pytest

from infra import retry
from infra.retry import Patience, Tries, impatient, retried, retried_async
from infra.storage import Problem, StorageError

BUSY = StorageError("s3://b/x", "the store is busy", Problem.BUSY)


def test_pauses_are_drawn_from_a_span_that_doubles_up_to_a_limit(monkeypatch):
    spans: list[tuple[float, float]] = []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: spans.append((low, high)) or 0.0)
    tries = Tries(Patience(seconds=60))
    for _ in range(12):
        tries.pause(BUSY)
    assert all(low == 0 for low, _ in spans), "full jitter begins at no pause at all"
    highs = [high for _, high in spans]
    assert highs[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6]) and highs[-1] == 20.0 and highs == sorted(highs)


def test_two_clients_do_not_come_back_at_the_same_moment():
    pauses = {Tries(Patience(seconds=60)).pause(BUSY) for _ in range(50)}
    assert len(pauses) == 50 and min(pauses) < 0.05 and max(pauses) > 0.15 and max(pauses) <= 0.2


def flaky(times: int, problem: Problem = Problem.BUSY):
    calls: list[int] = []

    def operation() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise StorageError("s3://b/x", "trouble", problem)
        return "done"

    return operation, calls


def test_what_passes_ends_well(monkeypatch):
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.001)
    operation, calls = flaky(5)
    assert retried(operation) == "done" and len(calls) == 6
    operation, calls = flaky(5, Problem.UNREACHABLE)

    async def coroutine() -> str:
        return operation()

    assert asyncio.run(retried_async(coroutine, "s3://b/x", Tries(Patience()))) == "done" and len(calls) == 6


@pytest.mark.parametrize("problem", sorted(set(Problem) - retry.PASSING))
def test_what_does_not_pass_is_raised_at_once(problem):
    operation, calls = flaky(1, problem)
    with pytest.raises(StorageError, match=r"trouble$"):
        retried(operation)
    assert len(calls) == 1


def test_the_time_is_bounded_and_said():
    operation, calls = flaky(10_000)
    started = time.monotonic()
    with impatient(0.5), pytest.raises(StorageError, match=r"^s3://b/x: trouble \(\d+ tries in \d s\)$") as ended:
        retried(operation)
    assert 0.5 <= time.monotonic() - started < 3 and len(calls) >= 2 and ended.value.problem is Problem.BUSY


def test_an_address_that_never_answered_gets_less_time(monkeypatch):
    monkeypatch.setattr(retry, "_STRANGER_SECONDS", 0.0)
    gone = StorageError("s3://b/x", "cannot be reached", Problem.UNREACHABLE)
    with pytest.raises(StorageError):
        Tries(Patience(), stranger=True).pause(gone)
    assert Tries(Patience(), stranger=True).pause(BUSY) >= 0
    assert Tries(Patience(), stranger=False).pause(gone) >= 0


def test_patience_comes_from_the_environment_and_can_only_be_shortened(monkeypatch):
    assert Patience.current() == Patience(seconds=120.0, stall=30.0)
    monkeypatch.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "7")
    monkeypatch.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "2.5")
    assert Patience.current() == Patience(seconds=7.0, stall=2.5)
    with impatient(3), impatient(20):
        assert Patience.current() == Patience(seconds=3.0, stall=2.5)
    assert Patience.current().seconds == 7
    assert Patience(stall=2).allowed(640 << 10) == pytest.approx(12), "64 KiB a second, at least"
    for wrong in ("soon", "-1", "nan", "1e9"):
        monkeypatch.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", wrong)
        with pytest.raises(StorageError, match=r"CORPUSMILL_STORAGE_RETRY_SECONDS: .* is no number of seconds"):
            Patience.current()
