"""vLLM in the engine's process, and in processes of its own behind it: each may die, nothing is lost or left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

from model_runtime import Decode, EngineConfig, Generation, Request, Sampling
from tests.checkpoints import cached_checkpoint, shape_named
from tests.model_runtime.oracle import make_request, oracle_for
from workers.engine_client import EngineClient

pytestmark = pytest.mark.vllm

SHAPE = shape_named("heads-of-64")
LENGTH = 200


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: one thread is faster than many, for the oracle here as for the engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config() -> EngineConfig:
    return EngineConfig(
        model=str(cached_checkpoint(SHAPE)), backend="vllm", device="cpu", dtype="float32", threads=1,
        max_batch_tokens=512, max_decodes=8, cache_bytes=1 << 25,
    )  # fmt: skip


def requests(count: int, length: int = LENGTH) -> list[Request]:
    chance = random.Random(count)
    made = []
    for n in range(count):
        sampling = [Sampling(max_tokens=length), Sampling(max_tokens=5)]
        made.append(
            make_request(SHAPE, chance, f"d{n}", tokens=20 + 9 * n, images=n % 2, prefixes=[0, 3], sampling=sampling)
        )
    return made


def check(results: dict[str, Generation], asked: list[Request]) -> None:
    assert results.keys() == {decode.key for request in asked for decode in request.decodes}
    for request in asked:
        for expected in oracle_for(SHAPE).greedy(request):
            assert results[expected.key].error is None
            assert results[expected.key].token_ids == expected.token_ids


def kill_in_mid_run(engine: EngineClient, asked: list[Request], victim: Callable[[], int]) -> dict[str, Generation]:
    """SIGKILL to `victim` once the engine has begun; what `run` gives in the end."""
    results: list[dict[str, Generation]] = []
    thread = threading.Thread(target=lambda: results.append(engine.run(asked)))
    before = engine.stats.steps
    thread.start()
    wait_for(lambda: engine.stats.steps > before)
    os.kill(victim(), signal.SIGKILL)
    thread.join(timeout=300)
    assert not thread.is_alive()
    [found] = results
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Living processes below `pid`."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    found, edge = [], [pid]
    while edge:
        edge = [child for child, parent in parents.items() if parent in edge]
        found += edge
    return found


def named(pids: list[int], name: str) -> list[int]:
    """Those of `pids` whose command line holds `name`."""
    found = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if name in line:
            found.append(pid)
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in status(pid)]


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def test_a_killed_engine_loses_nothing() -> None:
    engine = EngineClient(config())
    try:
        asked = requests(6)
        check(kill_in_mid_run(engine, asked, lambda: engine.pid or 0), asked)
        assert engine.deaths == 1
        assert engine.stats.encodes > 0
    finally:
        engine.close()


@pytest.mark.slow
def test_vllms_own_processes_may_die_and_are_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """First vLLM's engine process is killed, then ours in front of it, whose children must not live on."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    engine = EngineClient(config())
    assert engine.pid is not None
    # Not all of this process's: other tests have left helpers of multiprocessing's behind.
    mine = [engine.pid, *descendants(engine.pid)]
    try:
        assert len(named(mine, "EngineCore")) == 1
        asked = requests(5)
        check(kill_in_mid_run(engine, asked, lambda: named(mine, "EngineCore")[0]), asked)
        assert engine.deaths == 1
        wait_for(lambda: not alive(mine), 30)

        first = engine.pid
        assert first is not None and first not in mine
        below = descendants(first)
        assert named(below, "EngineCore")
        again = requests(4)
        check(kill_in_mid_run(engine, again, lambda: first), again)
        assert engine.deaths == 2
        wait_for(lambda: not alive([first, *below]), 30)
        last = engine.pid
        assert last is not None
        left = descendants(last)
    finally:
        engine.close()
    wait_for(lambda: not alive([last, *left]), 30)


def test_an_engine_proves_itself_with_one_token() -> None:
    """What a process is asked for before it gets documents again."""
    from workers.engine_process import _PROOF

    engine = EngineClient(config())
    try:
        results = engine.run([_PROOF, Request(id="x", input_ids=[5, 6], decodes=(Decode(key="x"),))])
        assert all(generation.error is None for generation in results.values())
    finally:
        engine.close()
