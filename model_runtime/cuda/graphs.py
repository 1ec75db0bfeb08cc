"""Decoder steps as CUDA graphs: one launch in place of some hundreds, where a step of the same sizes came before.

A graph reads and writes fixed places, so a step's inputs are copied to them, padded to the sizes it was captured for.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_log = logging.getLogger(__name__)

# A capture runs the step once more and costs some tens of milliseconds: only for sizes that have come back.
_SIGHTINGS = 2
# Steps after which a capture that ran out of memory is tried again.
_RETRY_AFTER = 1000
_GRAPHS = 32
_REMEMBERED = 1024

# Captures work(), which must already have run with the same sizes: what repeats it, and where its result then stands.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass(slots=True)
class _Captured:
    """`version`: of the plan that stands in `plan_I` now."""

    x_TE: Tensor
    positions_T: Tensor
    plan_I: Tensor
    replay: Callable[[], None]
    out_TE: Tensor
    version: int
    rows: int


class StepGraphs:
    """The graphs that have been captured. A capture that fails ends the use of graphs, with one line in the log."""

    def __init__(self, new_capture: Callable[[], Capture]) -> None:
        self._new_capture = new_capture
        self._capture = new_capture()
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._places: Hashable = None
        self.enabled = True
        self.captured = self.replayed = 0

    def run(
        self,
        sizes: Hashable,
        places: Hashable,
        rows: int,
        inputs: tuple[Tensor, Tensor, Tensor],
        version: int,
        work: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor | None:
        """The step's result [T, hidden], or None when it is to be run without a graph.

        `sizes`: everything that a graph depends on beside its inputs. `places`: changes when memory it reads has moved,
        which ends all graphs. `rows`: T is padded to it. `inputs`: x [T, hidden], positions [T] and the plan's numbers,
        of which `version` is new whenever they are.
        """
        if not self.enabled:
            return None
        if places != self._places:
            self._forget(places)
        x_TE, positions_T, plan_I = inputs
        graph = self._graphs.get(sizes)
        if graph is None:
            self._seen[sizes] += 1
            if self._seen[sizes] < _SIGHTINGS:
                return None
            return self._record(sizes, rows, inputs, version, work)
        self._graphs.move_to_end(sizes)
        count = x_TE.shape[0]
        graph.x_TE[:count] = x_TE
        graph.positions_T[:count] = positions_T
        if count < graph.rows:
            # Rows that left must not come back as numbers that are none.
            graph.x_TE[count : graph.rows] = 0
            graph.positions_T[count : graph.rows] = 0
        graph.rows = count
        if graph.version != version:
            graph.plan_I.copy_(plan_I)
            graph.version = version
        graph.replay()
        self.replayed += 1
        # The next replay writes there again, and whoever asked may still hold the result.
        return graph.out_TE[:count].clone()

    def _record(
        self,
        sizes: Hashable,
        rows: int,
        inputs: tuple[Tensor, Tensor, Tensor],
        version: int,
        work: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        count = inputs[0].shape[0]
        x_TE = F.pad(inputs[0], (0, 0, 0, rows - count)).clone()
        positions_T = F.pad(inputs[1], (0, rows - count)).clone()
        plan_I = inputs[2].clone()

        def again() -> Tensor:
            return work(x_TE, positions_T, plan_I)

        # This is the step itself; it also compiles and allocates what must not be done while capturing.
        result = again()[:count].clone()
        try:
            replay, out_TE = self._capture(again)
        except torch.OutOfMemoryError:
            # There may be room another time; not at every step again.
            self._seen[sizes] = -_RETRY_AFTER
            return result
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            _log.warning("decoder steps run without CUDA graphs: %s", reason)
            self.enabled = False
            self._graphs.clear()
            return result
        self.captured += 1
        self._graphs[sizes] = _Captured(x_TE, positions_T, plan_I, replay, out_TE, version, count)
        if len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)
        return result

    def _forget(self, places: Hashable) -> None:
        self._places = places
        if self._graphs:
            self._graphs.clear()
            self._capture = self._new_capture()
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()


def cuda_capture(device: torch.device) -> Capture:
    """Captures on `device`; all graphs of one of these share their working memory."""
    pool: Any = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # The thread that steps need not be the one that loaded, and its current device may be another.
        with torch.cuda.device(device):
            before = torch.cuda.current_stream(device)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile (they pin memory, say): that is no error of this one.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    out = work()
            finally:
                # A capture that breaks off leaves its own stream the current one.
                torch.cuda.set_stream(before)
        return graph.replay, out

    return capture
