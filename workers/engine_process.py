"""The process that a backend runs in: `python -m workers.engine_process`, started by workers.engine_client."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_runtime import Backend, Decode, EngineConfig, EngineStats, Generation, ModelError, Request, Sampling
from workers.child_process import Broken, Parent, one_line

# A report without results says that the engine is alive; more of them would only wake the other side.
_REPORT_SECONDS = 0.5
# The beginning of every text: what an engine that works at all can work on.
_PROOF = Request(id="proof", input_ids=(2,), decodes=(Decode(key="proof", sampling=Sampling(max_tokens=1)),))


@dataclass(frozen=True, slots=True)
class Order:
    """The first message: what to load, and with what. `prove`: make a token of nothing before any document comes."""

    config: EngineConfig
    load: Callable[[EngineConfig], Backend]
    prove: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """The backend is there; `dtype` is what it computes in."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """The model cannot be used, and no other process could: `line` is for a person."""

    line: str


@dataclass(frozen=True, slots=True)
class Report:
    """What has finished since the last one, and how things stand: `busy_seconds` spent in steps since loading."""

    generations: list[Generation]
    stats: EngineStats
    busy_seconds: float


def serve(parent: Parent, backend: Backend) -> None:
    """Submit what comes, step while anything is in flight, report what finishes; for ever."""
    in_flight: set[str] = set()
    busy, reported = 0.0, 0.0
    while True:
        while requests := _next(parent, block=not in_flight):
            for request in requests:
                in_flight.update(decode.key for decode in request.decodes)
                backend.submit(request)
        started = time.perf_counter()
        finished = backend.step()
        now = time.perf_counter()
        busy += now - started
        in_flight.difference_update(generation.key for generation in finished)
        if finished or now - reported >= _REPORT_SECONDS:
            parent.send(Report(finished, backend.stats, busy))
            reported = now


def _next(parent: Parent, block: bool) -> list[Request]:
    """What came together goes in together: the engine packs it as one."""
    try:
        return parent.receive(block)
    except queue.Empty:
        return []


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from model_runtime.memory import is_out_of_memory

    return is_out_of_memory(error)


def main() -> None:
    """Load as ordered, then serve; an exception is told in one line and ends the process."""
    parent = Parent(sys.argv)
    doing = "starting"
    try:
        order = parent.receive()
        doing = f"loading {order.config.model}"
        backend = order.load(order.config)
        doing = ""
        if order.prove:
            list(backend.generate([_PROOF]))
        parent.send(Loaded(backend.dtype))
        serve(parent, backend)
    except ModelError as error:
        parent.send(Unusable(str(error)))
    except BaseException as error:
        if doing:
            short = "there is not enough memory" if _is_out_of_memory(error) else one_line(error)
            parent.send(Unusable(f"{doing} in the engine's process failed: {short}"))
        else:
            parent.send(Broken(one_line(error), _is_out_of_memory(error)))
        sys.exit(1)


if __name__ == "__main__":
    # Not as __main__: what is sent and unpickled by name has to be one class on both sides.
    from workers.engine_process import main as run

    run()
