"""Many callers, one engine in a process of its own: an input that ends the process is found, and is all that fails."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_runtime import (
    Backend,
    EngineConfig,
    EngineStats,
    ErrorCode,
    Generation,
    ModelError,
    Request,
    RequestError,
    load_backend,
)

from .child_process import ChildProcess, Death, hang_seconds
from .engine_process import Loaded, Order, Report, Unusable
from .suspects import Suspect, Suspects, is_hopeless, weight

_MODULE = "workers.engine_process"
# Loading may read tens of gigabytes from a slow disk and compile kernels.
_LOADING = 3.0
# Seconds that a step may take for each token of a pass or of the longest document, beside what any may. A native step
# is a slice of a pass; the reference backend's is a whole document, 128K tokens of which take hours on a CPU; vLLM's
# encodes whole documents too.
_TOKEN_SECONDS = {"native": 0.02, "transformers": 0.1, "vllm": 0.1}
# Limits are halved at most so often: 2 rows of 64 are left, packs of 256 tokens.
_MOST_HALVINGS = 5
# Their limits do not grow back while they run.
_FIXED_LIMITS = frozenset({"vllm"})


@dataclass(slots=True, eq=False)
class _Call:
    """One caller's requests and what has come back for them."""

    requests: Sequence[Request]
    missing: set[str]
    results: dict[str, Generation] = field(default_factory=dict)
    finished: threading.Event = field(default_factory=threading.Event)

    def take(self, generation: Generation) -> None:
        self.results[generation.key] = generation
        self.missing.discard(generation.key)
        if not self.missing:
            self.finished.set()


class EngineClient:
    """Callers block in `run`; one engine advances everybody's decodes together, in a process that may die.

    After a death what was in flight runs again in smaller and smaller groups (see Suspects), while what comes waits.
    Results that arrived stay. ModelError from the constructor or from `run`: the model cannot be used.
    """

    def __init__(self, config: EngineConfig, load: Callable[[EngineConfig], Backend] = load_backend) -> None:
        self._config = config
        self._load = load
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._child: ChildProcess | None = None
        self._loaded = False
        self._waiting: list[Suspect] = []
        self._sent: dict[str, Suspect] = {}
        self._suspects = Suspects()
        self._on_trial = False
        self._fruitless = self._halvings = self.deaths = 0
        # Whether one input alone was what memory ran out over.
        self._one_was_too_large = False
        self._stats, self._dtype = EngineStats(), ""
        self._busy_before = self._busy = 0.0
        self._first: float | None = None
        self._serving_seconds = 0.0
        self._began = 0.0
        # Tokens of the longest document that was sent since nothing was in flight.
        self._longest = 0
        self._failure: BaseException | None = None
        self._open = True
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self._dtype

    @property
    def stats(self) -> EngineStats:
        """The counts of the process that runs now, since it was loaded."""
        return self._stats

    @property
    def pid(self) -> int | None:
        """The engine's process, None while there is none."""
        child = self._child
        return child.pid if child else None

    @property
    def busy_seconds(self) -> float:
        """Time spent advancing the backend; loading is not in it."""
        return self._busy_before + self._busy

    @property
    def serving_seconds(self) -> float:
        """Time from the first document's arrival to the newest generation; loading is not in it, waiting is."""
        return self._serving_seconds

    def run(self, requests: Sequence[Request]) -> dict[str, Generation]:
        """Every decode's generation by key, once all are there; errors are generations too.

        ValueError for a key that stands twice in `requests`; what ended the engine for good, when it has.
        """
        keys = [decode.key for request in requests for decode in request.decodes]
        missing = set(keys)
        if len(missing) < len(keys):
            raise ValueError("a key stands twice in one call")
        if not missing:
            return {}
        call = _Call(requests, missing)
        self._events.put((None, call))
        while not call.finished.wait(timeout=1):
            if not self._thread.is_alive():
                raise self._failure or RuntimeError("the engine has been closed")
        return call.results

    def close(self) -> None:
        """Finish what is in flight and end the process."""
        self._events.put((None, None))
        self._thread.join()

    # --- the thread that owns the process ------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._start()
            while self._open or self._waiting or self._sent or self._suspects:
                self._handle(*self._next_event())
        except BaseException as error:
            self._failure = error
        finally:
            self._up.set()
            if self._child is not None:
                self._child.close()

    def _next_event(self) -> tuple[ChildProcess | None, Any]:
        while True:
            left = self._seconds_left()
            try:
                return self._events.get(timeout=left)
            except queue.Empty:
                child = self._child
                if child is not None and self._seconds_left() == 0:
                    limit = self._limit()
                    child.end(Death(ErrorCode.ENGINE_HANG, f"made no progress for {limit:,.0f} seconds"))
                    # Its death is the next event.
                    return self._events.get()

    def _seconds_left(self) -> float | None:
        """Until the process counts as hanging; None while it has nothing to do."""
        child = self._child
        if child is None or (self._loaded and not self._sent):
            return None
        return max(0.0, max(child.heard, self._began) + self._limit() - time.monotonic())

    def _limit(self) -> float:
        if not self._loaded:
            return hang_seconds() * _LOADING
        each = _TOKEN_SECONDS.get(self._config.backend, max(_TOKEN_SECONDS.values()))
        return hang_seconds() + each * (self._config.max_batch_tokens + self._longest)

    def _handle(self, child: ChildProcess | None, event: Any) -> None:
        if child is not None and child is not self._child:
            return
        match event:
            case None:
                self._open = False
            case _Call():
                self._take(event)
                self._pump()
            case Loaded():
                self._dtype, self._loaded, self._fruitless = event.dtype, True, 0
                self._up.set()
                self._pump()
            case Report():
                self._stats, self._busy = event.stats, event.busy_seconds
                for generation in event.generations:
                    self._deliver(generation)
                self._pump()
            case Unusable():
                raise ModelError(event.line)
            case Death():
                self._died(event)

    def _take(self, call: _Call) -> None:
        if self._first is None:
            self._first = time.perf_counter()
        open_ = self._open_keys()
        for request in call.requests:
            twice = [decode.key for decode in request.decodes if decode.key in open_]
            if twice:
                error = RequestError(ErrorCode.INTERNAL, f"key {twice[0]} is already in flight")
                for decode in request.decodes:
                    call.take(Generation(key=decode.key, error=error))
            elif request.decodes:
                self._waiting.append(Suspect(request, call))

    def _open_keys(self) -> set[str]:
        held = self._suspects.keys | self._sent.keys()
        return held.union(*(one.keys for one in self._waiting))

    def _pump(self) -> None:
        """Send what may go now: everything, or while suspects are left the next group of them, alone."""
        if self._child is None and (self._waiting or self._suspects):
            if not self._suspects:
                self._forget_halvings()
            self._start()
        if not self._loaded:
            return
        if self._sent and (self._on_trial or self._suspects):
            return
        self._on_trial = bool(self._suspects)
        if self._on_trial:
            self._send(self._suspects.next())
        elif self._waiting:
            if self._forget_halvings() and self._config.backend in _FIXED_LIMITS:
                assert self._child is not None
                self._child.close()
                self._no_child()
                self._start()
                return
            ready, self._waiting = self._waiting, []
            self._send(ready)

    def _forget_halvings(self) -> bool:
        """Full limits from here on, after a trial: whether they were others before.

        Those of a backend whose limits are fixed stay where it was not one input, but all of them together, that were
        too large: it would only run out of memory again.
        """
        if self._config.backend in _FIXED_LIMITS and not self._one_was_too_large:
            return False
        halved, self._halvings = self._halvings, 0
        self._one_was_too_large = False
        return halved > 0

    def _no_child(self) -> None:
        self._child, self._loaded = None, False
        self._busy_before, self._busy = self._busy_before + self._busy, 0.0

    def _send(self, group: Sequence[Suspect]) -> None:
        if not self._sent:
            self._began = time.monotonic()
            self._longest = 0
        for one in group:
            decoded = sum(decode.sampling.max_tokens for decode in one.request.decodes)
            self._longest = max(self._longest, len(one.request.input_ids) + decoded)
            self._sent |= dict.fromkeys(one.keys, one)
        assert self._child is not None
        self._child.send([one.request for one in group])

    def _deliver(self, generation: Generation) -> None:
        if self._first is not None:
            self._serving_seconds = time.perf_counter() - self._first
        self._sent.pop(generation.key).without(generation.key).call.take(generation)

    # --- deaths --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        config = dataclasses.replace(self._config, halvings=self._halvings)
        self._loaded = False
        self._child = ChildProcess(_MODULE, self._events)
        # After a death the engine is proved first: one that breaks at everything must not find each document guilty.
        self._child.send(Order(config, self._load, prove=self.deaths > 0))

    def _died(self, death: Death) -> None:
        self.deaths += 1
        was_loading = not self._loaded
        self._no_child()
        if death.code is ErrorCode.OUT_OF_MEMORY:
            self._halvings = min(_MOST_HALVINGS, self._halvings + 1)
        if was_loading:
            self._fruitless += weight(death)
            if is_hopeless(self._fruitless):
                raise ModelError(f"the engine does not run {self._config.model}: its process {death.what}, every time")
        in_flight = list({id(one): one for one in self._sent.values()}.values())
        self._sent.clear()
        if in_flight:
            guilty = self._suspects.died(in_flight, death)
            self._one_was_too_large |= bool(guilty) and death.code is ErrorCode.OUT_OF_MEMORY
            for one in guilty:
                when = "while it worked on this alone" if one.weights else "over two other outputs of this document"
                error = RequestError(death.code, f"the engine's process {death.what} {when}")
                for key in one.keys:
                    one.call.take(Generation(key=key, error=error))
        if self._open or self._waiting or self._suspects:
            if not self._up.is_set():
                self._start()
            self._pump()
