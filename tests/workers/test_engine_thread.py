"""Many callers, one engine: calls join while others run, and an input that breaks the engine breaks only itself."""

from __future__ import annotations

import threading
import time

import pytest

from model_runtime import Decode, EngineConfig, ErrorCode, ModelError, Request, Sampling, load_backend
from tests.checkpoints import SHAPES, cached_checkpoint
from workers.engine_thread import EngineThread

POISON = 77


def request(name: str, tokens: int = 6, decodes: int = 2, length: int = 8) -> Request:
    ids = [2, *range(10, 10 + tokens)]
    wanted = tuple(Decode(key=f"{name}-{i}", sampling=Sampling(max_tokens=length)) for i in range(decodes))
    return Request(id=name, input_ids=ids, decodes=wanted)


def load(**changes):
    folder = cached_checkpoint(SHAPES[0])
    return load_backend(EngineConfig(model=str(folder), device="cpu", dtype="float32", **changes))


class Fragile:
    """The native backend, but a step dies while a document with the poison token is in flight."""

    def __init__(self) -> None:
        self._backend = load()
        self._poisoned: set[str] = set()

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def submit(self, request: Request) -> None:
        if POISON in request.input_ids:
            self._poisoned.add(request.id)
        self._backend.submit(request)

    def step(self):
        if self._poisoned:
            raise RuntimeError("the kernel has died\nwith a second line")
        return self._backend.step()

    def generate(self, requests):
        for one in requests:
            self.submit(one)
        if self._poisoned:
            raise RuntimeError("the kernel has died\nwith a second line")
        yield from self._backend.generate([])


@pytest.fixture
def engine():
    thread = EngineThread(lambda: load(max_decodes=16))
    yield thread
    thread.close()


def test_callers_share_one_engine_and_get_their_own(engine):
    alone = {}
    for i in range(6):
        alone |= engine.run([request(f"c{i}", tokens=3 + i)])
    results: dict[str, dict] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({f"c{i}": engine.run([request(f"c{i}", tokens=3 + i)])}))
        for i in range(6)
    ]
    before = engine.backend.stats
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for i in range(6):
        assert set(results[f"c{i}"]) == {f"c{i}-0", f"c{i}-1"}
        for key, generation in results[f"c{i}"].items():
            assert generation.token_ids == alone[key].token_ids
    after = engine.backend.stats
    assert after.encodes - before.encodes == 6
    assert after.steps - before.steps < 6 * 7, "decodes of different callers advanced together"


def test_a_late_caller_is_served_while_an_early_one_still_decodes(engine):
    order: list[str] = []
    # The later call is long done before the first one is: nobody waits for the slowest decode.
    slow = threading.Thread(
        target=lambda: (engine.run([request("slow", decodes=1, length=2000)]), order.append("slow"))
    )
    slow.start()
    time.sleep(0.05)
    engine.run([request("quick", decodes=1, length=2)])
    order.append("quick")
    slow.join(timeout=120)
    assert order == ["quick", "slow"]


def test_nothing_to_do_returns_at_once(engine):
    assert engine.run([]) == {}


def test_a_key_asked_for_twice_is_refused(engine):
    with pytest.raises(ValueError, match="twice"):
        engine.run([request("same"), request("same")])
    slow = threading.Thread(target=lambda: engine.run([request("slow", decodes=1, length=2000)]))
    slow.start()
    time.sleep(0.1)
    results = engine.run([request("slow", decodes=1), request("other", decodes=1)])
    assert results["slow-0"].error.code is ErrorCode.INTERNAL and "in flight" in results["slow-0"].error.message
    assert results["other-0"].error is None
    slow.join(timeout=120)


def test_what_ended_the_thread_reaches_the_callers():
    loads = iter([Fragile])

    def load_once():
        kind = next(loads, None)
        if kind is None:
            raise ModelError("the model folder has gone")
        return kind()

    thread = EngineThread(load_once)
    poison = Request(id="poison", input_ids=[2, POISON], decodes=(Decode(key="p", sampling=Sampling(max_tokens=3)),))
    with pytest.raises(ModelError, match="has gone"):
        thread.run([poison])


def test_the_input_that_breaks_the_engine_is_found_and_the_others_finish():
    thread = EngineThread(Fragile)
    poison = Request(
        id="poison", input_ids=[2, POISON, 11], decodes=(Decode(key="p", sampling=Sampling(max_tokens=3)),)
    )
    good = [request(f"good{i}") for i in range(3)]
    results = thread.run([good[0], poison, *good[1:]])
    assert results["p"].error.code is ErrorCode.ENGINE_CRASH
    assert "\n" not in results["p"].error.message
    for one in good:
        for decode in one.decodes:
            assert results[decode.key].error is None and results[decode.key].token_ids
    assert thread.run([request("after")])["after-0"].error is None
    thread.close()
