"""Admission: rows, tokens and memory are never overrun, nothing waits for ever."""

from __future__ import annotations

import random

import numpy as np

from model_runtime import Decode, Request, Sampling
from model_runtime.scheduler import Budget, Scheduler


def request(name: str, tokens: int, decodes: int, max_tokens: int = 8) -> Request:
    return Request(
        id=name,
        input_ids=np.zeros(tokens, np.int32),
        decodes=tuple(Decode(key=f"{name}-{i}", sampling=Sampling(max_tokens=max_tokens)) for i in range(decodes)),
    )


def scheduler(*, tokens: int = 100, decodes: int = 4, memory: int = 10**9) -> Scheduler:
    def row_bytes(rows: int, positions: int) -> int:
        return rows * positions

    return Scheduler(
        Budget(batch_tokens=tokens, decodes=decodes, cache_bytes=memory, document_token_bytes=1, row_bytes=row_bytes)
    )


def keys(admission) -> list[str]:
    return [decode.key for _, decode in admission.start]


def test_a_document_is_encoded_once_though_its_decodes_start_in_turns():
    schedule = scheduler(decodes=2)
    schedule.add(request("a", 10, decodes=5))
    first = schedule.admit()
    assert [d.request.id for d in first.encode] == ["a"] and keys(first) == ["a-0", "a-1"]
    document = first.encode[0]
    assert not schedule.finished(document)
    second = schedule.admit()
    assert second.encode == [] and keys(second) == ["a-2"]
    for _ in range(2):
        assert not schedule.finished(document)
    assert keys(schedule.admit()) == ["a-3", "a-4"]
    assert not schedule.finished(document)
    assert schedule.finished(document), "the last decode completes the document"
    assert not schedule.busy


def test_a_pass_of_the_encoder_holds_no_more_than_its_tokens_unless_one_document_is_longer():
    schedule = scheduler(tokens=100, decodes=10)
    for name, tokens in (("a", 60), ("b", 30), ("c", 20), ("d", 500)):
        schedule.add(request(name, tokens, decodes=1))
    assert [d.request.id for d in schedule.admit().encode] == ["a", "b"]
    assert [d.request.id for d in schedule.admit().encode] == ["c"]
    assert [d.request.id for d in schedule.admit().encode] == ["d"]


def test_a_document_beyond_the_memory_budget_runs_alone():
    schedule = scheduler(tokens=1000, memory=200)
    schedule.add(request("small", 50, decodes=1))
    schedule.add(request("huge", 900, decodes=2))
    first = schedule.admit()
    assert [d.request.id for d in first.encode] == ["small"]
    assert schedule.admit().encode == []
    schedule.finished(first.encode[0])
    second = schedule.admit()
    assert [d.request.id for d in second.encode] == ["huge"] and keys(second) == ["huge-0"]


def test_dropping_a_document_frees_what_it_held():
    schedule = scheduler(decodes=2)
    schedule.add(request("a", 10, decodes=3))
    schedule.add(request("b", 10, decodes=1))
    document = schedule.admit().encode[0]
    schedule.drop(document)
    assert keys(schedule.admit()) == ["b-0"]


def test_under_random_load_limits_hold_and_everything_ends():
    rng = random.Random(7)
    for round_ in range(50):
        schedule = scheduler(tokens=64, decodes=5, memory=rng.choice([50, 300, 10**6]))
        wanted = {}
        for i in range(rng.randrange(1, 30)):
            wanted[f"d{i}"] = rng.randrange(1, 9)
            schedule.add(request(f"d{i}", rng.randrange(1, 90), wanted[f"d{i}"], rng.randrange(1, 20)))
        running, started, steps = [], 0, 0
        while schedule.busy:
            admission = schedule.admit()
            assert sum(d.tokens for d in admission.encode) <= 64 or len(admission.encode) == 1
            running += [document for document, _ in admission.start]
            started += len(admission.start)
            assert running, f"round {round_}: work is left and nothing runs"
            assert len(running) <= 5
            schedule.finished(running.pop(rng.randrange(len(running))))
            steps += 1
            assert steps < 10_000
        assert started == sum(wanted.values())
