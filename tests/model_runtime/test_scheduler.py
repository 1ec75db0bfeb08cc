"""What enters next: limits are never overrun, rows are kept full, packs are worth a pass, nothing waits for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from model_runtime import Decode, Request, Sampling
from model_runtime.scheduler import Budget, Document, Scheduler


def request(name: str, tokens: int, decodes: int = 1, max_tokens: int = 8) -> Request:
    return Request(
        id=name,
        input_ids=np.zeros(tokens, np.int32),
        decodes=tuple(Decode(key=f"{name}-{i}", sampling=Sampling(max_tokens=max_tokens)) for i in range(decodes)),
    )


def scheduler(*, tokens: int = 100, decodes: int = 4, memory: int = 10**9, **more: int) -> Scheduler:
    def row_bytes(rows: int, positions: int) -> int:
        return rows * positions

    return Scheduler(
        Budget(
            batch_tokens=tokens,
            decodes=decodes,
            cache_bytes=memory,
            document_token_bytes=1,
            row_bytes=row_bytes,
            **more,
        )
    )


def names(documents: Sequence[Document]) -> list[str]:
    return [document.request.id for document in documents]


def pack(schedule: Scheduler) -> list[str]:
    """Names of the next pack, encoded."""
    documents = schedule.next_pack()
    schedule.encoded(documents)
    return names(documents)


def started(schedule: Scheduler) -> list[tuple[Document, str]]:
    return [(document, decode.key) for document, decode in schedule.start()]


def keys(start: Sequence[tuple[Document, str]]) -> list[str]:
    return [key for _, key in start]


# --- packs ---------------------------------------------------------------------------------------------------------


def test_a_document_is_encoded_once_though_its_decodes_start_in_turns():
    schedule = scheduler(decodes=2)
    schedule.add(request("a", 10, decodes=5))
    assert pack(schedule) == ["a"]
    first = started(schedule)
    document = first[0][0]
    assert keys(first) == ["a-0", "a-1"]
    assert not schedule.finished(document)
    assert pack(schedule) == [] and keys(started(schedule)) == ["a-2"]
    for _ in range(2):
        assert not schedule.finished(document)
    assert keys(started(schedule)) == ["a-3", "a-4"]
    assert not schedule.finished(document)
    assert schedule.finished(document), "the last decode completes the document"
    assert not schedule.busy


def test_a_pack_holds_no_more_than_its_tokens_unless_one_document_is_longer():
    schedule = scheduler(tokens=100, decodes=100)
    for name, tokens in (("a", 60), ("b", 30), ("c", 20), ("d", 500)):
        schedule.add(request(name, tokens))
    assert [pack(schedule) for _ in range(3)] == [["a", "b"], ["c"], ["d"]]


def test_the_encoder_works_ahead_of_the_rows_and_stops_when_half_of_them_are_covered():
    schedule = scheduler(tokens=100, decodes=8)
    for i in range(40):
        schedule.add(request(f"d{i}", 50))
    for _ in range(4):
        assert len(pack(schedule)) == 2
        schedule.start()
    # Eight run, none is ready: two more packs make four, which is half of the rows.
    assert [len(pack(schedule)) for _ in range(3)] == [2, 2, 0]


def test_a_small_pack_waits_for_company_while_rows_have_work():
    schedule = scheduler(tokens=100, decodes=8)
    schedule.add(request("a", 100, decodes=9))
    assert pack(schedule) == ["a"]
    running = started(schedule)
    assert len(running) == 8
    schedule.add(request("b", 10))
    assert pack(schedule) == [], "one decode is ready, no row is free, and ten tokens are not worth a pass"
    schedule.add(request("c", 90))
    assert pack(schedule) == ["b", "c"], "now they are"


def test_a_small_pack_is_encoded_at_once_when_a_row_would_stand_empty():
    schedule = scheduler(tokens=100, decodes=2)
    schedule.add(request("a", 10))
    assert pack(schedule) == ["a"]
    schedule.start()
    schedule.add(request("b", 10))
    assert pack(schedule) == ["b"]


def test_one_pass_at_a_time():
    schedule = scheduler()
    schedule.add(request("a", 90))
    schedule.add(request("b", 90))
    documents = schedule.next_pack()
    assert names(documents) == ["a"] and not schedule.next_pack()
    schedule.encoded(documents)
    assert pack(schedule) == ["b"]


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_refilled_some_at_a_time():
    schedule = scheduler(tokens=1000, decodes=16)
    schedule.add(request("a", 10, decodes=40))
    assert pack(schedule) == ["a"]
    document = started(schedule)[0][0]
    schedule.finished(document)
    assert started(schedule) == [], "one row of sixteen is not worth a pass"
    schedule.finished(document)
    assert len(started(schedule)) == 2


def test_the_last_decodes_do_not_wait_for_company():
    schedule = scheduler(tokens=1000, decodes=16)
    schedule.add(request("a", 10, decodes=17))
    pack(schedule)
    document = started(schedule)[0][0]
    schedule.finished(document)
    assert keys(started(schedule)) == ["a-16"]


def test_decodes_that_are_put_back_start_first_and_in_order():
    schedule = scheduler(decodes=2)
    schedule.add(request("a", 10, decodes=4))
    pack(schedule)
    [(document, first), (_, second)] = schedule.start()
    schedule.put_back(document, [first, second])
    assert keys(started(schedule)) == ["a-0", "a-1"]


# --- shares of the encoder and the decoder -------------------------------------------------------------------------


def test_the_encoder_gets_less_the_more_decodes_run_and_are_ready():
    schedule = scheduler(tokens=10_000, decodes=8, step_tokens=1600)
    schedule.add(request("a", 10, decodes=40))
    assert schedule.allowance() == 1600, "nothing runs: as much as a step is worth"
    pack(schedule)
    schedule.start()
    assert schedule.allowance() == 100, "rows are full and the next ones ready: little, but not nothing"


def test_the_encoder_speeds_up_before_rows_run_dry():
    schedule = scheduler(tokens=10_000, decodes=8, step_tokens=1600)
    schedule.add(request("a", 10, decodes=12))
    pack(schedule)
    document = started(schedule)[0][0]
    grants = [schedule.allowance()]
    for _ in range(11):
        schedule.finished(document)
        schedule.start()
        grants.append(schedule.allowance())
    assert grants == sorted(grants) and grants[0] == 100 and grants[4] == 800 and grants[-1] == 1600


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_document_beyond_the_memory_budget_runs_alone():
    schedule = scheduler(tokens=1000, memory=200)
    schedule.add(request("small", 50))
    schedule.add(request("huge", 900, decodes=2))
    assert pack(schedule) == ["small"]
    [(small, _)] = schedule.start()
    assert pack(schedule) == []
    assert schedule.finished(small)
    assert pack(schedule) == ["huge"] and keys(started(schedule)) == ["huge-0", "huge-1"][:1]


def test_a_pack_leaves_room_for_the_rows_it_will_fill():
    # 9 positions a row: four documents of 10 tokens and their rows take 4 · 19 bytes.
    schedule = scheduler(tokens=1000, decodes=8, memory=4 * 19)
    for i in range(8):
        schedule.add(request(f"d{i}", 10))
    assert len(pack(schedule)) == 4


def test_a_pass_longer_than_a_batch_needs_room_for_what_it_computes():
    schedule = scheduler(tokens=100, decodes=8, memory=2000, pass_token_bytes=10)
    schedule.add(request("short", 10))
    assert pack(schedule) == ["short"]
    [(short, _)] = schedule.start()
    schedule.add(request("long", 400))
    assert pack(schedule) == []
    schedule.finished(short)
    assert pack(schedule) == ["long"]


# --- overtaking ----------------------------------------------------------------------------------------------------


def test_a_document_that_does_not_fit_now_is_passed_by_a_pack_of_tokens_and_no_more():
    schedule = scheduler(tokens=100, decodes=4, memory=300)
    schedule.add(request("first", 50))
    assert pack(schedule) == ["first"]
    running = [document for document, _ in schedule.start()]
    schedule.add(request("big", 290))
    for i in range(40):
        schedule.add(request(f"s{i}", 30))
    order = []
    while "big" not in order:
        order += pack(schedule)
        running += [document for document, _ in schedule.start()]
        schedule.finished(running.pop(0))
    assert order == ["s0", "s1", "s2", "big"]


def test_a_document_longer_than_a_pack_lets_one_pack_of_shorter_ones_go_first():
    schedule = scheduler(tokens=100, decodes=64)
    schedule.add(request("long", 1000))
    for i in range(9):
        schedule.add(request(f"s{i}", 50))
    assert [pack(schedule) for _ in range(3)] == [["s0", "s1"], ["long"], ["s2", "s3"]]


def test_long_documents_among_themselves_keep_their_order():
    schedule = scheduler(tokens=100, decodes=64)
    for i in range(3):
        schedule.add(request(f"long{i}", 1000 + i))
    assert [pack(schedule) for _ in range(3)] == [["long0"], ["long1"], ["long2"]]


# --- out of memory -------------------------------------------------------------------------------------------------


def test_a_pack_that_runs_out_of_memory_is_tried_again_in_halves():
    schedule = scheduler(tokens=100, decodes=64)
    for i in range(4):
        schedule.add(request(f"d{i}", 25))
    documents = schedule.next_pack()
    assert len(documents) == 4
    assert schedule.encoding_failed(documents, out_of_memory=True) is None
    half = schedule.next_pack()
    assert names(half) == ["d0", "d1"]
    assert schedule.encoding_failed(half, out_of_memory=True) is None
    assert [pack(schedule) for _ in range(4)] == [["d0"], ["d1"], ["d2"], ["d3"]]


def test_a_lone_document_that_runs_out_of_memory_waits_until_nothing_else_is_held():
    schedule = scheduler(tokens=100, decodes=4)
    schedule.add(request("a", 50))
    assert pack(schedule) == ["a"]
    [(a, _)] = schedule.start()
    schedule.add(request("big", 90))
    schedule.add(request("b", 30))
    documents = schedule.next_pack()
    assert schedule.encoding_failed(documents, out_of_memory=True) is None
    assert pack(schedule) == ["b"], "others may pass it"
    [(b, _)] = schedule.start()
    assert pack(schedule) == []
    schedule.finished(a)
    assert pack(schedule) == []
    schedule.finished(b)
    again = schedule.next_pack()
    assert names(again) == ["big"]
    assert schedule.encoding_failed(again, out_of_memory=True) is again[0], "alone, it cannot be done"
    assert not schedule.busy


def test_a_pack_that_breaks_is_tried_again_one_by_one():
    schedule = scheduler(tokens=100, decodes=64)
    for name in "abc":
        schedule.add(request(name, 10))
    documents = schedule.next_pack()
    assert schedule.encoding_failed(documents, out_of_memory=False) is None
    assert pack(schedule) == ["a"]
    broken = schedule.next_pack()
    assert names(broken) == ["b"] and schedule.encoding_failed(broken, out_of_memory=False) is broken[0]
    assert pack(schedule) == ["c"]


def test_rows_that_run_out_of_memory_are_halved_and_grow_back():
    schedule = scheduler(tokens=100, decodes=8)
    schedule.add(request("a", 10, decodes=100))
    pack(schedule)
    running = schedule.start()
    schedule.rows_failed(len(running))
    schedule.put_back(running[0][0], [decode for _, decode in running])
    assert len(schedule.start()) == schedule.row_limit == 4
    for _ in range(64):
        schedule.stepped()
    assert schedule.row_limit == 8


def test_everything_but_one_document_can_be_sent_back_to_be_encoded_again():
    schedule = scheduler(tokens=100, decodes=1)
    for name in "abc":
        schedule.add(request(name, 10))
    assert pack(schedule) == ["a", "b", "c"]
    [(a, decode)] = schedule.start()
    schedule.put_back(a, [decode])
    assert names(schedule.evict_others(a)) == ["b", "c"]
    assert schedule.queued == 2 and keys(started(schedule)) == ["a-0"]
    assert schedule.finished(a)
    assert pack(schedule) == ["b", "c"]


# --- everything at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [50, 300, 10**6])
def test_under_random_load_limits_hold_and_everything_ends(memory: int):
    rng = random.Random(memory)
    for round_ in range(40):
        schedule = scheduler(tokens=64, decodes=5, memory=memory, step_tokens=64)
        wanted, arriving = 0, []
        for i in range(rng.randrange(1, 30)):
            one = request(f"d{i}", rng.randrange(1, 90), rng.randrange(1, 9), rng.randrange(1, 20))
            arriving.append(one)
            wanted += len(one.decodes)
        running: list[tuple[Document, Decode]] = []
        ended = steps = 0
        while schedule.busy or arriving:
            if arriving and (rng.random() < 0.3 or not schedule.busy):
                schedule.add(arriving.pop())
            documents = schedule.next_pack()
            assert sum(document.tokens for document in documents) <= 64 or len(documents) == 1
            if documents and rng.random() < 0.1:
                lost = schedule.encoding_failed(documents, out_of_memory=True)
                ended += len(lost.waiting) if lost else 0
            else:
                schedule.encoded(documents)
            running += schedule.start()
            assert len(running) <= 5
            if running and rng.random() < 0.1:
                schedule.rows_failed(len(running))
                for document in dict.fromkeys(document for document, _ in running):
                    schedule.put_back(document, [decode for other, decode in running if other is document])
                running = schedule.start()
                assert running
            assert 0 < schedule.allowance() <= 64
            if running:
                schedule.stepped()
                document, _ = running.pop(rng.randrange(len(running)))
                schedule.finished(document)
                ended += 1
            steps += 1
            assert steps < 10_000, f"round {round_}: something waits for ever"
        assert ended == wanted
