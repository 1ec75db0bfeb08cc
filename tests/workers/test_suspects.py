"""Who is to blame, without a process: every guilty input is found, nobody else is, and few deaths are needed."""

from __future__ import annotations

import math
import random
import signal
from pathlib import Path

import pytest

from model_runtime import Decode, ErrorCode, Request
from workers import child_process
from workers.child_process import Broken, Death, hang_seconds
from workers.suspects import Suspect, Suspects

CRASH = Death(ErrorCode.ENGINE_CRASH, "was ended by SIGSEGV")
KILL = Death(ErrorCode.ENGINE_CRASH, "was ended by SIGKILL", outside=True)


def suspect(name: int, decodes: int = 1) -> Suspect:
    wanted = tuple(Decode(key=f"{name}-{i}") for i in range(decodes))
    return Suspect(Request(id=str(name), input_ids=(2,), decodes=wanted), None)


def tried(
    group: list[Suspect], guilty: set[str], chance: random.Random | None = None
) -> tuple[set[str], set[str], int]:
    """Run them as a client would: (found guilty, finished, deaths). With `chance` some processes are killed as well."""
    suspects, found, finished, deaths = Suspects(), set(), set(), 0
    waiting = [group]
    while waiting or suspects:
        now = waiting.pop() if waiting else suspects.next()
        killed = chance is not None and chance.random() < 0.1
        if killed or any(set(one.keys) & guilty for one in now):
            deaths += 1
            for one in suspects.died(now, KILL if killed else CRASH):
                found.update(one.keys)
        else:
            finished.update(key for one in now for key in one.keys)
    return found, finished, deaths


@pytest.mark.parametrize("count", [1, 2, 3, 32, 100, 512])
@pytest.mark.parametrize("bad", [1, 2, 5])
def test_the_guilty_are_found_in_few_processes(count: int, bad: int) -> None:
    chance = random.Random(count * 10 + bad)
    for _ in range(20):
        guilty = {f"{n}-0" for n in chance.sample(range(count), min(bad, count))}
        found, finished, deaths = tried([suspect(n) for n in range(count)], guilty)
        assert found == guilty
        assert finished == {f"{n}-0" for n in range(count)} - guilty
        assert deaths <= len(guilty) * (math.ceil(math.log2(count)) + 2)


def test_decodes_of_a_document_are_told_apart_until_two_are_guilty() -> None:
    group = [suspect(n, decodes=6) for n in range(4)]
    found, finished, _ = tried(group, {"2-3"})
    assert found == {"2-3"} and len(finished) == 23
    found, finished, deaths = tried([suspect(n, decodes=6) for n in range(4)], {"2-1", "2-3"})
    assert found == {"2-1", "2-3", "2-4", "2-5"}, "what they share is to blame, and is not tried for ever"
    assert not found & finished and len(found | finished) == 24 and deaths == 1 + 2 + 4


def test_kills_from_outside_alone_find_nobody_guilty_soon() -> None:
    suspects = Suspects()
    one = suspect(0)
    for _ in range(3):
        assert suspects.died([one], KILL) == []
        assert suspects.next() == [one] and not suspects
    assert suspects.died([one], KILL) == [one], "an input that is killed for every time is found all the same"
    assert Suspects().died([suspect(1)], CRASH) == []


def test_chance_kills_among_real_crashes_hide_nobody() -> None:
    chance = random.Random(5)
    for _ in range(50):
        found, finished, _ = tried([suspect(n) for n in range(64)], {"7-0", "40-0"}, chance)
        assert {"7-0", "40-0"} <= found and len(found) <= 3 and len(found | finished) == 64


# --- what a death is -----------------------------------------------------------------------------------------------


def test_a_death_says_what_ended_the_process() -> None:
    death = child_process._death
    assert death(-signal.SIGSEGV, None, False) == CRASH
    assert death(-signal.SIGKILL, None, False) == KILL
    assert death(-signal.SIGKILL, None, True).code is ErrorCode.OUT_OF_MEMORY
    assert death(-signal.SIGSEGV, None, True) == CRASH, "a crash is one, whatever else was killed meanwhile"
    assert death(3, None, False).what == "ended by itself with exit code 3"
    assert death(1, Broken("RuntimeError: x", False), False).what == "failed with RuntimeError: x"
    assert death(1, Broken("MemoryError", True), False).code is ErrorCode.OUT_OF_MEMORY


def test_the_kernels_kills_are_counted_where_it_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, control = tmp_path / "memory.events", tmp_path / "memory.oom_control"
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    monkeypatch.setattr(child_process, "_OOM_COUNTERS", (str(events), str(tmp_path / "none")))
    monkeypatch.setattr(child_process, "_own_counters", lambda: [str(control)])
    assert child_process._oom_kills() == 7


def test_the_time_to_hang_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORPUSMILL_HANG_SECONDS", raising=False)
    assert hang_seconds() == 600
    for text, seconds in (("30", 30.0), ("soon", 600), ("-1", 600), ("nan", 600)):
        monkeypatch.setenv("CORPUSMILL_HANG_SECONDS", text)
        assert hang_seconds() == seconds
