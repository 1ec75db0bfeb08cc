"""One thread that owns a backend and keeps it full from many callers at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model_runtime import Backend, ErrorCode, Generation, Request, RequestError


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


class EngineThread:
    """Callers block in `run`; the engine advances everybody's decodes together.

    A slow decode of one caller never idles the engine: the others' documents join while it runs.
    """

    def __init__(self, load: Callable[[], Backend]) -> None:
        self._load = load
        self._backend = load()
        self._inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._owner: dict[str, _Call] = {}
        self._requests: dict[str, Request] = {}
        self._busy_seconds = 0.0
        self._first: float | None = None
        self._serving_seconds = 0.0
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def backend(self) -> Backend:
        """The backend in use; only for reading its stats and dtype."""
        return self._backend

    @property
    def busy_seconds(self) -> float:
        """Time spent advancing the backend since it was loaded."""
        return self._busy_seconds

    @property
    def serving_seconds(self) -> float:
        """Time from the first document's arrival to the newest generation; loading is not in it, waiting is."""
        return self._serving_seconds

    def run(self, requests: Sequence[Request]) -> dict[str, Generation]:
        """Every decode's generation by key, once all are there; errors are generations too.

        ValueError for a key that stands twice in `requests`; what ended the thread, when it has died.
        """
        keys = [decode.key for request in requests for decode in request.decodes]
        missing = set(keys)
        if len(missing) < len(keys):
            raise ValueError("a key stands twice in one call")
        if not missing:
            return {}
        call = _Call(requests, missing)
        self._inbox.put(call)
        while not call.finished.wait(timeout=5):
            if not self._thread.is_alive():
                raise self._death or RuntimeError("the engine thread has ended")
        return call.results

    def close(self) -> None:
        """Finish what is in flight, stop the thread and drop the model."""
        self._inbox.put(None)
        self._thread.join()
        self._backend.close()

    def _serve(self) -> None:
        try:
            self._serve_until_closed()
        except BaseException as error:
            self._death = error

    def _serve_until_closed(self) -> None:
        open_ = True
        while open_ or self._owner:
            try:
                call = self._inbox.get(block=not self._owner) if open_ else None
                if call is None:
                    open_ = False
                else:
                    self._submit(call)
                    continue
            except queue.Empty:
                pass
            self._step()

    def _submit(self, call: _Call) -> None:
        if self._first is None:
            self._first = time.perf_counter()
        for request in call.requests:
            twice = [decode.key for decode in request.decodes if decode.key in self._owner]
            if twice:
                self._fail(call, request, f"key {twice[0]} is already in flight")
                continue
            self._owner |= {decode.key: call for decode in request.decodes}
            self._requests |= {decode.key: request for decode in request.decodes}
            try:
                self._backend.submit(request)
            except Exception as error:
                self._isolate(error)

    def _step(self) -> None:
        if not self._owner:
            return
        started = time.perf_counter()
        try:
            finished = self._backend.step()
        except Exception as error:
            self._isolate(error)
            return
        finally:
            self._busy_seconds += time.perf_counter() - started
        for generation in finished:
            self._deliver(generation)

    def _isolate(self, error: Exception) -> None:
        """The backend broke with several inputs in flight: load it anew and run each alone to find the one to blame."""
        suspects = list({id(request): request for request in self._requests.values()}.values())
        self._reload()
        for request in suspects:
            left = tuple(decode for decode in request.decodes if decode.key in self._owner)
            alone = Request(id=request.id, input_ids=request.input_ids, pixel_values=request.pixel_values, decodes=left)
            try:
                for generation in self._backend.generate([alone]):
                    self._deliver(generation)
            except Exception as again:
                line = (str(again) or str(error)).splitlines() or [""]
                crash = RequestError(ErrorCode.ENGINE_CRASH, f"{type(again).__name__}: {line[0]}")
                for decode in left:
                    if decode.key in self._owner:
                        self._deliver(Generation(key=decode.key, error=crash))
                self._reload()

    def _reload(self) -> None:
        # The old one goes first: two models may not fit.
        self._backend.close()
        self._backend = self._load()

    def _deliver(self, generation: Generation) -> None:
        if self._first is not None:
            self._serving_seconds = time.perf_counter() - self._first
        self._requests.pop(generation.key, None)
        self._owner.pop(generation.key).take(generation)

    def _fail(self, call: _Call, request: Request, message: str) -> None:
        for decode in request.decodes:
            call.take(Generation(key=decode.key, error=RequestError(ErrorCode.INTERNAL, message)))
